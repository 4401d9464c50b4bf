package supervisor_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/guest/guesttest"
	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/supervisor"
)

var errGone = errors.New("nobody serves the VM's network")

// fixture is a guest that can be unplugged, and a supervisor for it.
type fixture struct {
	engine *guesttest.Engine
	server *guesttest.Server
	gone   atomic.Bool // the VM has no network process
	client *supervisor.Client
	docker string
	ended  chan error
}

func start(t *testing.T) *fixture {
	t.Helper()
	keys, err := guest.GenerateKeys(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	fake, err := guesttest.NewEngine(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{engine: fake, ended: make(chan error, 1)}
	f.server, err = guesttest.NewServer(guesttest.Options{
		HostKey:        keys.HostKeyPEM(),
		AuthorizedKeys: []byte(keys.AuthorizedKey()),
		Dir:            t.TempDir(),
		Sockets:        map[string]func(context.Context) (net.Conn, error){guesttest.DockerSocket: fake.Dial},
		Intercept:      func(line string) (int, bool) { return 1, strings.Contains(line, "date -u -s") },
	})
	if err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("/tmp", "dv") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	f.docker = filepath.Join(run, "docker.sock")
	f.client = supervisor.NewClient(filepath.Join(run, "control.sock"))
	ctx, cancel := context.WithCancel(t.Context())
	ssh, err := new(net.ListenConfig).Listen(ctx, "unix", filepath.Join(run, "ssh"))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = f.server.Serve(ctx, ssh) }()
	ready := make(chan struct{})
	go func() {
		f.ended <- supervisor.Run(ctx, supervisor.Options{
			Name: "app", Version: "test", Log: slog.New(slog.DiscardHandler),
			Lock: filepath.Join(run, "lock"), Control: filepath.Join(run, "control.sock"), Docker: f.docker,
			Gone: func(err error) bool { return errors.Is(err, errGone) },
			Ping: func(ctx context.Context) error { return engine.Ping(ctx, f.docker) },
			Target: guest.Target{User: "root", Keys: keys, Dial: func(ctx context.Context) (net.Conn, error) {
				if f.gone.Load() {
					return nil, errGone
				}
				return (&net.Dialer{}).DialContext(ctx, "unix", ssh.Addr().String())
			}},
			Ports: supervisor.PortOptions{
				Options: ports.Options{
					VM:  ports.VM{Addr: netip.MustParseAddr("192.0.2.2"), Loopback: netip.MustParseAddr("192.0.2.3")},
					Own: netip.MustParseAddr("127.98.97.96"), Exposures: filepath.Join(run, "exposures.json"),
					Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errGone },
				},
				Settings: func() (ports.Settings, error) { return ports.Settings{}, nil },
			},
			Ready: func() { close(ready) },
		})
	}()
	select {
	case <-ready:
	case err := <-f.ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		<-f.ended
		_ = fake.Close()
		_ = os.RemoveAll(run)
	})
	return f
}

// until waits for a state.
func (f *fixture) until(t *testing.T, want supervisor.State, redials int) {
	t.Helper()
	err := f.client.Watch(t.Context(), func(s supervisor.Status) bool { return s.State != want || s.Redials != redials })
	if err != nil {
		t.Fatalf("wait for %s: %v", want, err)
	}
}

func TestLink(t *testing.T) {
	f := start(t)
	f.until(t, supervisor.StateReady, 0)
	if err := engine.Ping(t.Context(), f.docker); err != nil {
		t.Fatal(err)
	}
	// A link that breaks is made anew.
	f.server.CloseConns()
	f.until(t, supervisor.StateReady, 1)
	if err := engine.Ping(t.Context(), f.docker); err != nil {
		t.Fatal(err)
	}
	// A VM that is gone is told to clients at once, and found again.
	f.gone.Store(true)
	f.server.CloseConns()
	f.until(t, supervisor.StateStopped, 1)
	if err := engine.Ping(t.Context(), f.docker); err == nil || !strings.Contains(err.Error(), "devvm up") {
		t.Fatalf("a client is told: %v", err)
	}
	f.gone.Store(false)
	f.until(t, supervisor.StateReady, 2)
}

// A suspended VM is not connected to, and clients are told so at once.
func TestSuspend(t *testing.T) {
	f := start(t)
	if err := f.client.Resume(t.Context()); err != nil {
		t.Errorf("resume of what was not suspended: %v", err)
	}
	f.until(t, supervisor.StateReady, 0)
	if err := f.client.Sync(t.Context()); err != nil {
		t.Errorf("sync: %v", err)
	}
	for range 2 { // twice is once
		if err := f.client.Suspend(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	f.until(t, supervisor.StateSuspended, 0)
	if err := engine.Ping(t.Context(), f.docker); err == nil || !strings.Contains(err.Error(), "suspended") {
		t.Fatalf("a client is told: %v", err)
	}
	if err := f.client.Sync(t.Context()); err == nil {
		t.Error("a suspended VM was synced")
	}
	if err := f.client.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.until(t, supervisor.StateReady, 1)
	if err := engine.Ping(t.Context(), f.docker); err != nil {
		t.Fatal(err)
	}
}

func TestStop(t *testing.T) {
	f := start(t)
	f.until(t, supervisor.StateReady, 0)
	if err := f.client.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-f.ended; err != nil {
		t.Fatal(err)
	}
	f.ended <- nil // for the cleanup
	if _, err := f.client.Status(t.Context()); !errors.Is(err, supervisor.ErrNone) {
		t.Errorf("status of none: %v", err)
	}
	if err := f.client.Stop(t.Context()); !errors.Is(err, supervisor.ErrNone) {
		t.Errorf("stop of none: %v", err)
	}
	if _, err := os.Stat(f.docker); !os.IsNotExist(err) {
		t.Errorf("docker.sock stays: %v", err)
	}
}
