package guest

import (
	"testing"
	"time"
)

// The best reading counts. After the clock was set, only later readings do.
func TestNarrow(t *testing.T) {
	var c Clock
	c.Least, c.Most = -1000, 1000
	for _, x := range []struct{ least, most, wantLeast, wantMost int64 }{
		{-40, 10, -40, 10}, // the first, slow
		{-5, 20, -5, 10},
		{-30, 30, -5, 10},
		{100, 130, 100, 130}, // the clock was set
		{90, 120, 100, 120},
	} {
		c.narrow(time.Duration(x.least), time.Duration(x.most))
		if c.Least != time.Duration(x.wantLeast) || c.Most != time.Duration(x.wantMost) {
			t.Errorf("%+v: %d to %d", x, c.Least, c.Most)
		}
	}
}
