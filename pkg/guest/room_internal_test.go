package guest

import (
	"math"
	"strings"
	"testing"
)

func TestParseRoom(t *testing.T) {
	r, err := parseRoom("1000 400 4 4096 1000 10 2000 1500\n")
	want := Room{Memory: 1000 << 10, MemoryFree: 400 << 10, Disk: 4096000, DiskFree: 40960, Inodes: 2000, InodesFree: 1500, Reserve: 4}
	if err != nil || r != want || !r.Full() || r.Files() || r.Spares() {
		t.Errorf("%+v, %v", r, err)
	}
	// Impossible numbers must not overflow.
	r, err = parseRoom("18446744073709551615 18446744073709551615 99 9223372036854775807 3 5 0 7")
	if err != nil || r.Memory != math.MaxInt64 || r.Disk != math.MaxInt64 || r.DiskFree != math.MaxInt64 || r.Reserve != ReserveParts || r.InodesFree != 0 || r.Full() {
		t.Errorf("%+v, %v", r, err)
	}
	for _, line := range []string{"", "1 2 3", "1 2 3 4 5 6 7 -8", "1 2 3 4 5 6 7 8 9", "a b c d e f g h", strings.Repeat("9", 300) + " 1 1 1 1 1 1 1"} {
		if r, err := parseRoom(line); err == nil {
			t.Errorf("%q is %+v", line, r)
		}
	}
	for r, want := range map[Room]bool{
		{DiskFree: 1 << 40}:                                       true,
		{DiskFree: 1 << 40, Reserve: ReserveParts}:                false,
		{DiskFree: 1 << 29}:                                       false,
		{DiskFree: 1 << 40, Inodes: 1e6, InodesFree: 1e3}:         false,
		{DiskFree: 1 << 40, Inodes: 1e6, InodesFree: 1e5}:         true,
		{DiskFree: 1 << 40, InodesFree: 0, Inodes: 0, Reserve: 3}: true,
	} {
		if r.Spares() != want {
			t.Errorf("%+v spares the reserve: %t", r, !want)
		}
	}
	files := Room{Disk: 1 << 40, DiskFree: 1 << 39, Inodes: 1000, InodesFree: 100}
	if !files.Full() || !files.Files() {
		t.Errorf("%+v is not full", files)
	}
}
