package supervisor_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/guest/guesttest"
	"github.com/devvm/devvm/pkg/supervisor"
)

// A sync needs no new command in the VM, for a shell waits there, and needs that shell not
// either.
func TestSync(t *testing.T) {
	for name, waits := range map[string]bool{"a shell waits": true, "none waits": false} {
		t.Run(name, func(t *testing.T) {
			var commands atomic.Int32
			f := start(t, func(g *guesttest.Options, _ *supervisor.Options) {
				intercept := g.Intercept
				g.Intercept = func(line string) (int, bool) {
					if strings.HasSuffix(line, "exec sync") {
						commands.Add(1)
						return 0, true
					}
					if !waits && strings.Contains(line, "sync && echo") {
						return 1, true
					}
					return intercept(line)
				}
			})
			f.until(t, supervisor.StateReady, 0)
			deadline := time.Now().Add(time.Minute)
			for {
				before := commands.Load()
				if err := f.client.Sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				// The shell may not wait yet, or not have ended yet.
				if waits == (commands.Load() == before) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%d syncs by a command", commands.Load())
				}
			}
		})
	}
}
