package supervisor

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/devvm/devvm/pkg/dockerproxy"
	"github.com/devvm/devvm/pkg/ports"
)

// TestAsks: while the host's disk is full libvirt is asked ever more rarely, and at once when
// something changes, a client calls, or there is room.
func TestAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full, paused atomic.Bool
		var asked, proceeded atomic.Int32
		ctx, cancel := context.WithCancel(t.Context())
		table, err := ports.New(ports.Options{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		s := &supervisor{
			Options: Options{Log: slog.New(slog.DiscardHandler), Disk: Disk{
				Full:    full.Load,
				Paused:  func(context.Context) (bool, error) { asked.Add(1); return paused.Load(), nil },
				Proceed: func(context.Context) error { proceeded.Add(1); paused.Store(false); return nil },
			}},
			changed: make(chan struct{}),
			called:  make(chan struct{}, 1),
			ports:   table,
			proxy:   dockerproxy.New(dockerproxy.Options{}),
		}
		var owned sync.WaitGroup
		owned.Go(func() { s.watchDisk(ctx) })
		defer owned.Wait()
		defer cancel()
		defer table.Close()
		expect := func(what string, after time.Duration, least, most int32) {
			t.Helper()
			before := asked.Load()
			time.Sleep(after) // by the clock of the bubble
			synctest.Wait()
			if n := asked.Load() - before; n < least || n > most {
				t.Errorf("%s: asked %d times in %s, want %d to %d", what, n, after, least, most)
			}
		}
		expect("there is room", time.Hour, 0, 0)
		full.Store(true)
		expect("it has just become full", 3*time.Second, 1, 1)
		expect("it stays so", time.Hour, 100, 130)
		s.call()
		expect("a client calls", time.Second, 1, 1)
		paused.Store(true)
		expect("the VM is paused", 35*time.Second, 1, 5)
		if status, _ := s.current(); status.Paused == "" {
			t.Error("nobody knows")
		}
		expect("it stays so", time.Hour, 100, 130)
		full.Store(false)
		expect("there is room again", 3*time.Second, 1, 3)
		if status, _ := s.current(); proceeded.Load() != 1 || status.Paused != "" {
			t.Errorf("it goes on: %d, %q", proceeded.Load(), status.Paused)
		}
		expect("and stays so", time.Hour, 0, 0)
	})
}
