// Package condition lets tests wait for a condition instead of a time.
package condition

import (
	"testing"
	"time"
)

// patience is longer than a busy machine needs. A test that passes does not wait for it.
const patience = time.Minute

// Wait returns once holds returns true. If that takes more than a minute, the test fails with a
// message that includes what, a description of the condition.
func Wait(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}
