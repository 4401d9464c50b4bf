package supervisor_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/guest/guesttest"
	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/share"
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

func start(t *testing.T, change ...func(*guesttest.Options, *supervisor.Options)) *fixture {
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
	options := guesttest.Options{
		HostKey:        keys.HostKeyPEM(),
		AuthorizedKeys: []byte(keys.AuthorizedKey()),
		Dir:            t.TempDir(),
		Sockets:        map[string]func(context.Context) (net.Conn, error){guesttest.DockerSocket: fake.Dial},
		Intercept:      func(line string) (int, bool) { return 1, strings.Contains(line, "date -u -s") },
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
	ready := make(chan struct{})
	o := supervisor.Options{
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
		Ready: func() error { close(ready); return nil },
	}
	for _, c := range change {
		c(&options, &o)
	}
	if f.server, err = guesttest.NewServer(options); err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = f.server.Serve(ctx, ssh) }()
	go func() { f.ended <- supervisor.Run(ctx, o) }()
	select {
	case <-ready:
	case err := <-f.ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		<-f.ended
		<-served // its sessions may be writing to the directories yet
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

// A VM that boots by itself is told from one whose link broke, and from one that was
// stopped and started.
func TestReboot(t *testing.T) {
	boot := filepath.Join(t.TempDir(), "boot")
	write := func(id string) {
		t.Helper()
		if err := os.WriteFile(boot+".new", []byte(id+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(boot+".new", boot); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	f := start(t, func(g *guesttest.Options, _ *supervisor.Options) {
		g.Intercept = nil
		g.Rewrite = strings.NewReplacer("/proc/sys/kernel/random/boot_id", boot, "date -u -s", "false").Replace
	})
	rebooted := func(links int) bool {
		t.Helper()
		f.until(t, supervisor.StateReady, links)
		st, err := f.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return !st.Rebooted.IsZero()
	}
	if rebooted(0) {
		t.Error("the first boot was taken for another")
	}
	f.server.CloseConns()
	if rebooted(1) {
		t.Error("a new link was taken for a boot")
	}
	write("two")
	f.server.CloseConns()
	if !rebooted(2) {
		t.Error("a boot went unnoticed")
	}
	f.gone.Store(true)
	f.server.CloseConns()
	f.until(t, supervisor.StateStopped, 2)
	write("three")
	f.gone.Store(false)
	if rebooted(3) {
		t.Error("a VM that was stopped and started has not booted by itself")
	}
}

// An engine that the VM has given up is not waited for: who watches learns what it said, or
// what systemd says of it.
func TestEngineFailed(t *testing.T) {
	for journal, want := range map[string]string{"echo no such option: foo": "no such option: foo", "false": "exit-code"} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			failed := filepath.Join(t.TempDir(), "failed")
			if err := os.WriteFile(failed, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			f := start(t, func(g *guesttest.Options, o *supervisor.Options) {
				g.Rewrite = strings.NewReplacer(
					"systemctl is-failed -q docker.service", "test -e "+failed,
					"systemctl show -p Result --value docker.service", "echo exit-code",
					"journalctl -b -q -o cat -n 1 _SYSTEMD_UNIT=docker.service _TRANSPORT=stdout", journal,
				).Replace
				ping := o.Ping
				o.Ping = func(ctx context.Context) error {
					if _, err := os.Stat(failed); err == nil {
						return errors.New("connection refused")
					}
					return ping(ctx)
				}
			})
			var last supervisor.Status
			watch := func(more func() bool) {
				t.Helper()
				if err := f.client.Watch(t.Context(), func(s supervisor.Status) bool { last = s; return more() }); err != nil {
					t.Fatal(err)
				}
			}
			watch(func() bool { return last.EngineFailed == "" })
			if last.EngineFailed != want || last.State == supervisor.StateReady {
				t.Errorf("%+v", last)
			}
			if err := os.Remove(failed); err != nil {
				t.Fatal(err)
			}
			watch(func() bool { return last.State != supervisor.StateReady })
			if last.EngineFailed != "" {
				t.Errorf("an engine that answers has failed: %+v", last)
			}
		})
	}
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

// TestHung: one that listens and does not answer is told from one that is not there.
func TestHung(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/tmp", "dv") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	client := supervisor.NewClient(socket)
	if _, err := client.Status(t.Context()); !errors.Is(err, supervisor.ErrNone) {
		t.Errorf("nobody listens: %v", err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := client.Status(t.Context()); !errors.Is(err, supervisor.ErrHung) {
		t.Errorf("nobody answers: %v", err)
	}
}

// TestStopWaits: who asks for the end waits for all that the supervisor does, and who
// comes meanwhile is told that there is none.
func TestStopWaits(t *testing.T) {
	dialing, released := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(released) })
	defer release()
	f := start(t, func(_ *guesttest.Options, o *supervisor.Options) {
		o.Target.Dial = func(context.Context) (net.Conn, error) {
			select {
			case <-dialing:
			default:
				close(dialing)
			}
			<-released // whatever the context says
			return nil, errGone
		}
	})
	<-dialing
	stopped := make(chan error, 1)
	go func() { stopped <- f.client.Stop(t.Context()) }()
	for deadline := time.Now().Add(10 * time.Second); ; {
		_, err := f.client.Status(t.Context())
		if errors.Is(err, supervisor.ErrNone) {
			break
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("status of one that ends: %v", err)
		}
	}
	if err := f.client.Stop(t.Context()); !errors.Is(err, supervisor.ErrNone) {
		t.Errorf("stop of one that ends: %v", err)
	}
	select {
	case err := <-stopped:
		t.Errorf("Stop returned %v before the supervisor had ended", err)
	case err := <-f.ended:
		t.Fatalf("Run returned %v, and its goroutine was busy", err)
	default:
	}
	release()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	err := <-f.ended
	f.ended <- err
	if err != nil {
		t.Error(err)
	}
}

// No client of docker.sock gets through before the VM has its directories.
func TestShare(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mounting, mounted := make(chan struct{}, 10), make(chan int)
	socket := ""
	f := start(t, func(g *guesttest.Options, o *supervisor.Options) {
		socket = filepath.Join(filepath.Dir(o.Docker), "share.sock")
		o.Share = supervisor.Share{
			Socket: socket, Address: netip.MustParseAddr("192.0.2.1"),
			Exports: []share.Export{{Source: dir, Target: "/home/me/app", Writable: true}},
		}
		g.Intercept = func(line string) (int, bool) {
			switch {
			case strings.Contains(line, "/var/lib/devvm/share"):
				mounting <- struct{}{}
				return <-mounted, true
			case strings.Contains(line, "utimensat"):
				return 0, true
			}
			return 1, strings.Contains(line, "date -u -s")
		}
	})
	<-mounting
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("share.sock: %v, %v", info, err)
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := engine.Ping(short, f.docker); err == nil {
		t.Error("a client got through before the mount")
	}
	mounted <- 32 // it fails: the link is made anew
	<-mounting
	if err := engine.Ping(short, f.docker); err == nil {
		t.Error("a client got through after a mount that failed")
	}
	mounted <- 0
	f.until(t, supervisor.StateReady, 0)
	if err := engine.Ping(t.Context(), f.docker); err != nil {
		t.Error(err)
	}
	status, err := f.client.Status(t.Context())
	if err != nil || len(status.Files) != 1 || status.Files[0].Path != "/home/me/app" {
		t.Errorf("%+v, %v", status, err)
	}
}

// What the host changes is repeated in the VM, through the link. Here the VM's
// directory is a plain one, so that it can be seen.
func TestMirror(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become the agent's user")
	}
	if _, err := exec.LookPath("perl"); err != nil {
		t.Skip(err)
	}
	top, err := os.MkdirTemp("/tmp", "dv") //nolint:usetesting // t.TempDir is closed to the agent's user
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(top)
	dir, inVM := filepath.Join(top, "host"), filepath.Join(top, "it's the VM's")
	for _, d := range []string{top, dir, inVM} {
		_ = os.Mkdir(d, 0o777)
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	start(t, func(g *guesttest.Options, o *supervisor.Options) {
		o.Share = supervisor.Share{
			Socket: filepath.Join(filepath.Dir(o.Docker), "share.sock"), Address: netip.MustParseAddr("192.0.2.1"),
			Exports: []share.Export{{Source: dir, Target: inVM, Writable: true}},
		}
		g.Intercept = func(line string) (int, bool) {
			return 0, strings.Contains(line, "/var/lib/devvm/share") || strings.Contains(line, "date -u -s")
		}
	}).until(t, supervisor.StateReady, 0)
	deadline := time.Now().Add(20 * time.Second)
	for n := 0; ; n++ { // the watch begins when it likes
		name := fmt.Sprintf("a \"new\" $file %d", n)
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if _, err := os.Stat(filepath.Join(inVM, name)); err == nil {
				return
			}
			<-time.After(20 * time.Millisecond)
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing was repeated")
		}
	}
}

// TestRunUnwanted: a supervisor that nobody waits for any more does not stay.
func TestRunUnwanted(t *testing.T) {
	var o supervisor.Options
	f := start(t, func(_ *guesttest.Options, options *supervisor.Options) { o = *options })
	if err := f.client.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := <-f.ended
	f.ended <- err
	unwanted := errors.New("nobody waits")
	o.Ready = func() error { return unwanted }
	if err := supervisor.Run(t.Context(), o); !errors.Is(err, unwanted) {
		t.Errorf("Run returned %v, want %v", err, unwanted)
	}
}
