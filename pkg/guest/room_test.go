package guest_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/guest"
)

// TestRoomFree: blocks that a file system holds back are not free.
func TestRoomFree(t *testing.T) {
	on := "/var/lib/docker"
	if _, err := os.Stat(on); err != nil {
		on = "/"
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(on, &fs); err != nil {
		t.Fatal(err)
	}
	held := int64(fs.Bfree-fs.Bavail) * fs.Bsize
	if held < 1<<20 {
		t.Skipf("%s holds back %d bytes", on, held)
	}
	c := testServer(t).connect(t)
	room, err := c.Room(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Others write to this disk meanwhile, so only check that the result is nearer to what can
	// be written than to what is free.
	if writable := int64(fs.Bavail) * fs.Bsize; room.DiskFree-writable > held/2 {
		t.Errorf("%d bytes are free, want about %d: %d are held back", room.DiskFree, writable, held)
	}
}

// TestReserve: the reserve is made once, of bytes and files, and released a part at a time.
func TestReserve(t *testing.T) {
	h := testServer(t)
	c := h.connect(t)
	room, err := c.Room(t.Context())
	if err != nil || room.Memory <= 0 || room.MemoryFree <= 0 || room.Disk <= 0 || room.Reserve != 0 {
		t.Fatalf("%+v, %v", room, err)
	}
	if room, err = c.KeepReserve(t.Context()); err != nil || room.Reserve != guest.ReserveParts {
		t.Fatalf("%+v, %v", room, err)
	}
	part := filepath.Join(h.dir, "reserve", "1")
	files, err := os.ReadDir(part)
	if err != nil || len(files) != 252 {
		t.Errorf("%d files, %v", len(files), err)
	}
	if err := os.Remove(filepath.Join(part, "whole")); err != nil { // an interrupted part
		t.Fatal(err)
	}
	if room, err = c.KeepReserve(t.Context()); err != nil || room.Reserve != guest.ReserveParts {
		t.Errorf("%+v, %v", room, err)
	}
	for left := guest.ReserveParts - 1; left >= -1; left-- {
		if room, err = c.ReleaseReserve(t.Context()); err != nil || room.Reserve != max(left, 0) {
			t.Errorf("%d parts left, want %d, %v", room.Reserve, left, err)
		}
	}
}
