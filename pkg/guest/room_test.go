package guest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/devvm/devvm/pkg/guest"
)

// TestReserve: the reserve is made once, is of bytes and files, and goes a part at a time.
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
	if err := os.Remove(filepath.Join(part, "whole")); err != nil { // it was interrupted
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
