package guest

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Room is the memory and disk of a guest, as the guest reports them.
type Room struct {
	Memory     int64 `json:"memory"` // bytes
	MemoryFree int64 `json:"memory_free"`
	Disk       int64 `json:"disk"` // bytes of the file system that containers are on
	DiskFree   int64 `json:"disk_free"`
	Inodes     int64 `json:"inodes"` // files that it can hold; 0: no limit but its bytes
	InodesFree int64 `json:"inodes_free"`
	// Reserve is the number of parts that the reserve has.
	Reserve int `json:"reserve"`
}

// Below these the disk counts as full: the engine's own records no longer fit. It writes some
// before it starts a container and while it removes one.
const (
	fullBytes  = 16 << 20
	fullInodes = 200
)

// Full reports whether the disk has no room for more data or for more files.
func (r Room) Full() bool { return r.Disk > 0 && r.DiskFree < fullBytes || r.Files() }

// Files reports whether the disk has no room for more files.
func (r Room) Files() bool { return r.Inodes > 0 && r.InodesFree < fullInodes }

// The reserve is files that can be removed when the disk is full: with nothing free, the engine
// starts no container and prunes nothing. Blocks that ext4 keeps for root would not help:
// containers are root too, and overlayfs writes for them with the engine's rights. A container
// that keeps writing takes whatever is freed, so the reserve is released one part at a time.
const (
	ReserveParts = 4
	// ReservePart is the size of a part, in bytes. Each part also has 250 files.
	ReservePart = 32 << 20

	reserveInodes = 250
)

// Spares reports whether a part of the reserve is missing and there is room for it.
func (r Room) Spares() bool {
	return r.Reserve < ReserveParts && r.DiskFree > 8*ReserveParts*ReservePart && (r.Inodes == 0 || r.InodesFree > 8*ReserveParts*reserveInodes)
}

// roomScript prints the numbers of a Room. Before that it fills or releases the reserve.
//
// Free space is what can be written (%a). ext4 withholds 4,096 blocks, 16 MiB, from everybody;
// %f counts them, so a disk that takes no more data would still look as if it had room.
//
// The script also keeps the kernel from killing this connection's sshd, and what that starts
// from now on, when memory is short. That sshd serves devvm only: users' commands have another.
const roomScript = `at=/var/lib/devvm/reserve
read -r name <"/proc/$PPID/comm"
case $name in sshd*) echo -900 2>/dev/null >"/proc/$PPID/oom_score_adj" ;; esac
case $1 in
keep)
	for n in 1 2 3 4; do
		[ ! -e $at/$n/whole ] || continue
		rm -rf $at/$n
		mkdir -p $at/$n && fallocate -l 32M $at/$n/bytes && (cd $at/$n && seq -f i%g 250 | xargs touch) && : >$at/$n/whole && continue
		rm -rf $at/$n
		break
	done ;;
release)
	for n in $at/*; do rm -rf "$n"; break; done ;;
esac
set -- $at/*/whole
parts=$#
[ -e "$1" ] || parts=0
while read -r key value _; do
	case $key in MemTotal:) total=$value ;; MemAvailable:) free=$value ;; esac
done </proc/meminfo
on=/var/lib/docker
[ -d $on ] || on=/
echo "$total $free $parts $(stat -f -c '%S %b %a %c %d' $on)"`

// Room asks the guest for its memory and disk.
func (c *Client) Room(ctx context.Context) (Room, error) { return c.room(ctx, "") }

// KeepReserve makes the missing parts of the reserve.
func (c *Client) KeepReserve(ctx context.Context) (Room, error) { return c.room(ctx, "keep") }

// ReleaseReserve removes a part of the reserve, if there is one.
func (c *Client) ReleaseReserve(ctx context.Context) (Room, error) { return c.room(ctx, "release") }

func (c *Client) room(ctx context.Context, act string) (Room, error) {
	var said firstLine
	code, err := c.Run(ctx, Command{Argv: []string{"sh", "-c", roomScript, "sh", act}, Stdout: &said})
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d", code)
	}
	if err != nil {
		return Room{}, fmt.Errorf("ask for the VM's memory and disk: %w", err)
	}
	return parseRoom(string(said))
}

// parseRoom reads what roomScript prints.
func parseRoom(line string) (Room, error) {
	words := strings.Fields(line)
	if len(words) != 8 {
		return Room{}, fmt.Errorf("the VM says of its memory and disk: %q", line)
	}
	var n [8]int64
	for i, w := range words {
		v, err := strconv.ParseUint(w, 10, 64)
		if err != nil {
			return Room{}, fmt.Errorf("the VM says of its memory and disk: %q", line)
		}
		n[i] = int64(min(v, math.MaxInt64))
	}
	total, free, size := product(n[0], 1<<10), product(n[1], 1<<10), n[3]
	r := Room{Memory: total, Disk: product(n[4], size), Inodes: n[6], Reserve: int(min(n[2], ReserveParts))}
	r.MemoryFree, r.DiskFree, r.InodesFree = min(free, r.Memory), min(product(n[5], size), r.Disk), min(n[7], r.Inodes)
	return r, nil
}

// product is a * b, or math.MaxInt64 if that overflows.
func product(a, b int64) int64 {
	if b > 0 && a > math.MaxInt64/b {
		return math.MaxInt64
	}
	return a * b
}

// firstLine keeps the first 256 bytes of a guest's output, which may be endless.
type firstLine []byte

// Write implements io.Writer.
func (f *firstLine) Write(b []byte) (int, error) {
	*f = append(*f, b[:min(len(b), 256-len(*f))]...)
	return len(b), nil
}
