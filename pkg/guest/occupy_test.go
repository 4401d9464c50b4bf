package guest_test

import (
	"errors"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/guest"
)

// TestOccupy: the guest listens on ports until they are released, or the connection ends.
func TestOccupy(t *testing.T) {
	h := testServer(t)
	c := h.connect(t)
	until := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); len(h.server.Occupied()) != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the guest listens on %v, want %d ports", h.server.Occupied(), want)
			}
		}
	}
	release, err := c.Occupy(t.Context(), []uint16{8180, 8181})
	if err != nil {
		t.Fatal(err)
	}
	until(2)
	if _, err := c.Occupy(t.Context(), []uint16{8182, 8181}); !errors.Is(err, guest.ErrRefused) {
		t.Errorf("a port that is taken: %v", err)
	}
	until(2) // none is left of those that failed
	release()
	until(0)
	if _, err := c.Occupy(t.Context(), []uint16{8180}); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	until(0)
	if _, err := c.Occupy(t.Context(), []uint16{8180}); !errors.Is(err, guest.ErrUnreachable) {
		t.Errorf("after the end: %v", err)
	}
}
