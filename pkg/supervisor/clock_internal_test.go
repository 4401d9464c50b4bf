package supervisor

import (
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/guest"
)

// A guest's clock may be ahead a little, and not behind.
func TestStrayed(t *testing.T) {
	for _, x := range []struct {
		least, most int // ms
		want        bool
	}{
		{0, 10, false},
		{5, 40, false},
		{45, 90, false},
		{-5, 10, true},     // it may be behind, and can be set to better than that
		{-33, -5, true},    // it is behind, by no more than the tolerance
		{-2, -1, true},     // it is
		{-300, 100, false}, // it may be, but is too busy to be set to better than that
		{-300, -1, true},
		{51, 60, true},
		{-3600_000, -3599_000, true}, // the host has slept
	} {
		c := guest.Clock{Least: time.Duration(x.least) * time.Millisecond, Most: time.Duration(x.most) * time.Millisecond}
		if got := strayed(c); got != x.want {
			t.Errorf("%s to %s ahead: %v", c.Least, c.Most, got)
		}
	}
}

func TestHasStepped(t *testing.T) {
	for _, x := range []struct {
		clock, count time.Duration
		want         bool
	}{
		{2 * time.Second, 2 * time.Second, false},
		{2*time.Second + time.Millisecond, 2 * time.Second, false},
		{time.Hour, 2 * time.Second, true},
		{2*time.Second - 20*time.Millisecond, 2 * time.Second, true},
	} {
		if got := hasStepped(x.clock, x.count); got != x.want {
			t.Errorf("%s and %s: %v", x.clock, x.count, got)
		}
	}
}
