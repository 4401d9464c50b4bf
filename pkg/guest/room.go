package guest

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Room is what a guest has of memory and disk. It is what the guest says.
type Room struct {
	Memory     int64 `json:"memory"` // bytes
	MemoryFree int64 `json:"memory_free"`
	Disk       int64 `json:"disk"` // bytes of the file system that containers are on
	DiskFree   int64 `json:"disk_free"`
	Inodes     int64 `json:"inodes"` // files that it can hold; 0: as many as there are bytes for
	InodesFree int64 `json:"inodes_free"`
	// Reserve is how many parts of the reserve are there.
	Reserve int `json:"reserve"`
}

// A disk that is full is full if not even the engine's own records find room: it writes
// some before it starts a container and while it removes one.
const (
	fullBytes  = 16 << 20
	fullInodes = 200
)

// Full says that the disk has no room, and Files that it is for the number of files.
func (r Room) Full() bool { return r.Disk > 0 && r.DiskFree < fullBytes || r.Files() }

// Files says that the disk can hold no more files.
func (r Room) Files() bool { return r.Inodes > 0 && r.InodesFree < fullInodes }

// The reserve is files that can be removed when the disk is full: with nothing free at all
// the engine starts no container and prunes nothing. Blocks that ext4 keeps for root would
// not do, for containers are root, too, and overlayfs writes for them with the engine's
// rights. A writer that goes on takes what is removed, so that is a part at a time.
const (
	ReserveParts = 4
	// ReservePart is the size of a part, in bytes. It has 250 files as well.
	ReservePart = 32 << 20

	reserveInodes = 250
)

// Spares says that a part of the reserve is missing and that there is room for it.
func (r Room) Spares() bool {
	return r.Reserve < ReserveParts && r.DiskFree > 8*ReserveParts*ReservePart && (r.Inodes == 0 || r.InodesFree > 8*ReserveParts*reserveInodes)
}

// roomScript prints the numbers of a Room. Before that it keeps or releases the reserve.
//
// Free is what can be written (%a). ext4 holds 4,096 blocks back from everybody (%f), 16 MiB:
// a disk on which nothing can be written any more would still look as if it had room.
//
// It also keeps the kernel from killing the sshd of this connection, and what that starts
// from now on, when memory is short. Those are devvm's own: what users run has another sshd.
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

// KeepReserve makes what is missing of the reserve.
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

// product is a * b, or the largest number there is.
func product(a, b int64) int64 {
	if b > 0 && a > math.MaxInt64/b {
		return math.MaxInt64
	}
	return a * b
}

// firstLine keeps the beginning of what a guest says, which may be without end.
type firstLine []byte

// Write implements io.Writer.
func (f *firstLine) Write(b []byte) (int, error) {
	*f = append(*f, b[:min(len(b), 256-len(*f))]...)
	return len(b), nil
}
