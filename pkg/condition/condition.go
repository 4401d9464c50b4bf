// Package condition waits in tests until something holds, and not for a time.
package condition

import (
	"testing"
	"time"
)

// patience is more than a busy machine needs: a test that passes does not wait for it.
const patience = time.Minute

// Wait returns when holds does. A test in which it does not hold within a minute fails; what
// says what was waited for.
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
