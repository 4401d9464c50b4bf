package usernet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/background"
	"github.com/devvm/devvm/pkg/condition"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
	"github.com/devvm/devvm/pkg/vmnet"
)

// TestMain is also the process that TestTakeover kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("USERNET_TEST_RUN"); dir != "" {
		o := optionsIn(dir)
		if path := filepath.Join(dir, "resolv.conf"); exists(path) {
			o.ResolvConf = path
		}
		o.Services = map[uint16]string{2049: filepath.Join(dir, "service")}
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
		o.Ready = func() error { _, err := os.Stdout.WriteString("ready\n"); return err }
		if err := usernet.Run(context.Background(), o); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv("USERNET_TEST_NAMESPACE") == "outside" {
		os.Exit(beOutside())
	}
	if os.Getenv("USERNET_TEST_NAMESPACE") == "kernel" {
		os.Exit(beKernel())
	}
	os.Exit(m.Run())
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func optionsIn(dir string) usernet.Options {
	return usernet.Options{
		NetSocket:  filepath.Join(dir, "net.sock"),
		DialSocket: filepath.Join(dir, "dial.sock"),
		Lock:       filepath.Join(dir, "net.lock"),
	}
}

// running is a call of Run.
type running struct {
	usernet.Options
	stop context.CancelFunc
	done chan struct{}
	err  error
}

// start calls Run and waits until it is ready.
func start(t *testing.T, o usernet.Options) *running {
	t.Helper()
	if o.Log == nil {
		o.Log = testLog(t)
	}
	r := &running{Options: o, done: make(chan struct{})}
	ready := make(chan struct{})
	r.Ready = func() error { close(ready); return nil }
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() {
		defer close(r.done)
		r.err = usernet.Run(ctx, r.Options)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.done
	})
	select {
	case <-ready:
	case <-r.done:
		t.Fatalf("Run: %v", r.err)
	}
	return r
}

// TestRunUnwanted: a process that nobody waits for any more does not stay.
func TestRunUnwanted(t *testing.T) {
	unwanted := errors.New("nobody waits")
	o := optionsIn(t.TempDir())
	o.Ready = func() error { return unwanted }
	if err := usernet.Run(t.Context(), o); !errors.Is(err, unwanted) {
		t.Errorf("Run returned %v, want %v", err, unwanted)
	}
	o.Ready = func() error { return errors.New("the lock is free") }
	if err := usernet.Run(t.Context(), o); errors.Is(err, usernet.ErrLocked) {
		t.Error("the lock is still held")
	}
}

// end waits until Run has returned, and for the sockets to be gone.
func (r *running) end(t *testing.T) error {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(20 * time.Second):
		t.Fatal("Run does not end")
	}
	for _, path := range []string{r.NetSocket, r.DialSocket} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	return r.err
}

// connect plugs a guest into the socket for QEMU.
func connect(t *testing.T, path string) *usernettest.Guest {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	g, err := usernettest.NewGuest(conn, usernettest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// dialGuest dials until the guest has been plugged in.
func dialGuest(t *testing.T, d *vmnet.Dialer, network, address string) net.Conn {
	t.Helper()
	var conn net.Conn
	condition.Wait(t, "dial "+address, func() bool {
		c, err := d.Dial(t.Context(), network, address)
		if err != nil && !errors.Is(err, vmnet.ErrNoGuest) {
			t.Fatal(err)
		}
		conn = c
		return err == nil
	})
	return conn
}

func TestRun(t *testing.T) {
	r := start(t, optionsIn(t.TempDir()))
	ctx := testContext(t)
	for _, path := range []string{r.NetSocket, r.DialSocket, r.Lock} {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("%s has mode %o", path, mode)
		}
	}
	d := vmnet.NewDialer(r.DialSocket)
	if _, err := d.Dial(ctx, "tcp", "192.0.2.2:22"); !errors.Is(err, vmnet.ErrNoGuest) {
		t.Errorf("without QEMU: %v", err)
	}
	status, err := d.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if status.Connected || status.PID != os.Getpid() || status.MTU != vmnet.DefaultMTU {
		t.Errorf("status: %+v", status)
	}

	g := connect(t, r.NetSocket)
	guestTCP(t, g, 22, echo)
	p, err := g.ListenPacket(53)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	go func() {
		for buf := make([]byte, 65535); ; {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			p.WriteTo(buf[:n], from)
		}
	}()
	c := dialGuest(t, d, "tcp", "192.0.2.2:22")
	roundTrip(t, c, randomBytes(1<<20))
	c.Close()
	u := dialGuest(t, d, "udp", "192.0.2.2:53")
	echoDatagrams(t, u)
	condition.Wait(t, "the first tunnel ends", func() bool {
		status, err := d.Status(ctx)
		return err == nil && status.DialIns == 1
	})
	if status, err = d.Status(ctx); err != nil || !status.Connected || status.Since.IsZero() || status.FramesIn == 0 || status.BytesOut == 0 || status.DialIns != 1 {
		t.Errorf("status: %+v, %v", status, err)
	}
	u.Close()
	condition.Wait(t, "the tunnels end", func() bool {
		status, err := d.Status(ctx)
		return err == nil && status.DialIns == 0
	})

	for address, want := range map[string]error{
		"192.0.2.2:23":  syscall.ECONNREFUSED,
		"192.0.2.1:53":  vmnet.ErrNotGuest,
		"127.0.0.1:22":  vmnet.ErrNotGuest,
		"192.0.2.2:0":   vmnet.ErrNotGuest,
		"example.org:1": vmnet.ErrNotGuest,
	} {
		if _, err := d.Dial(ctx, "tcp", address); !errors.Is(err, want) {
			t.Errorf("dial %s: %v, want %v", address, err, want)
		}
	}
	for _, address := range []string{"192.0.2.1:53", "x", "192.0.2.2"} {
		if _, err := d.Dial(ctx, "udp", address); !errors.Is(err, vmnet.ErrNotGuest) {
			t.Errorf("dial UDP %s: %v", address, err)
		}
	}
	if _, err := d.Dial(ctx, "unix", "192.0.2.2:22"); err == nil {
		t.Error("an unknown network was dialled")
	}

	// It ends with QEMU.
	g.Close()
	if err := r.end(t); err != nil {
		t.Error(err)
	}
	if _, err := d.Dial(ctx, "tcp", "192.0.2.2:22"); !errors.Is(err, vmnet.ErrNoNetwork) {
		t.Errorf("afterwards: %v", err)
	}
	if _, err := d.Status(ctx); !errors.Is(err, vmnet.ErrNoNetwork) {
		t.Errorf("status afterwards: %v", err)
	}
	if err := d.Stop(ctx); err != nil {
		t.Errorf("stop afterwards: %v", err)
	}
}

func TestDialerHalfClose(t *testing.T) {
	r := start(t, optionsIn(t.TempDir()))
	g := connect(t, r.NetSocket)
	guestTCP(t, g, 22, func(c net.Conn) {
		io.WriteString(c, "banner\n") // may come with the answer to CONNECT
		c.(halfCloser).CloseWrite()
		b, _ := io.ReadAll(c)
		if string(b) != "late" {
			t.Errorf("the guest got %q", b)
		}
	})
	c := dialGuest(t, vmnet.NewDialer(r.DialSocket), "tcp", "192.0.2.2:22")
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "banner\n" {
		t.Errorf("got %q, %v", b, err)
	}
	io.WriteString(c, "late")
	c.(halfCloser).CloseWrite()
	// The tunnel ends once both directions have.
	d := vmnet.NewDialer(r.DialSocket)
	condition.Wait(t, "the tunnel ends", func() bool {
		status, err := d.Status(t.Context())
		return err == nil && status.DialIns == 0
	})
}

func TestDialerManyAtOnce(t *testing.T) {
	o := optionsIn(t.TempDir())
	o.Log = slog.New(slog.DiscardHandler)
	r := start(t, o)
	g := connect(t, r.NetSocket)
	const many = 300
	var gate, wg sync.WaitGroup
	gate.Add(many)
	guestTCP(t, g, 22, func(c net.Conn) {
		gate.Done()
		gate.Wait()
		echo(c)
	})
	d := vmnet.NewDialer(r.DialSocket)
	for i := range many {
		wg.Go(func() {
			c := dialGuest(t, d, "tcp", "192.0.2.2:22")
			defer c.Close()
			roundTrip(t, c, randomBytes(1000+i))
		})
	}
	wg.Wait()
}

// The deadline of a dial ends the dial, also at the other side, and nothing
// else.
func TestDialerDeadline(t *testing.T) {
	r := start(t, optionsIn(t.TempDir()))
	deaf, err := net.Dial("unix", r.NetSocket) // a VM that hears nothing
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	d := vmnet.NewDialer(r.DialSocket)
	condition.Wait(t, "the VM is connected", func() bool {
		status, err := d.Status(t.Context())
		return err == nil && status.Connected
	})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := d.Dial(ctx, "tcp", "192.0.2.2:22"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	deaf.Close()
	if err := r.end(t); err != nil {
		t.Error(err)
	}

	r = start(t, optionsIn(t.TempDir()))
	guestTCP(t, connect(t, r.NetSocket), 22, echo)
	d = vmnet.NewDialer(r.DialSocket)
	dialGuest(t, d, "tcp", "192.0.2.2:22").Close()
	ctx, cancel = context.WithCancel(t.Context())
	c, err := d.Dial(ctx, "tcp", "192.0.2.2:22")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel()
	roundTrip(t, c, []byte("still there"))
}

// Anything that speaks HTTP can use the socket.
func TestDialSocketHTTP(t *testing.T) {
	r := start(t, optionsIn(t.TempDir()))
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", r.DialSocket)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	for _, c := range []struct {
		method, path string
		header       http.Header
		want         int
		body         string
	}{
		{"GET", "/status", nil, 200, `"connected":false`},
		{"POST", "/status", nil, 405, ""},
		{"GET", "/stop", nil, 405, ""},
		{"GET", "/services/forwarder/all", nil, 404, ""},
		{"GET", "/.well-known/masque/udp/192.0.2.2/53/", nil, 426, ""},
		{"GET", "/.well-known/masque/udp/192.0.2.1/53/", http.Header{"Upgrade": {"connect-udp"}, "Connection": {"Upgrade"}}, 403, `"code":"not-guest"`},
	} {
		request, err := http.NewRequestWithContext(t.Context(), c.method, "http://devvm"+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header = c.header
		answer, err := client.Do(request)
		if err != nil {
			t.Errorf("%s %s: %v", c.method, c.path, err)
			continue
		}
		body, _ := io.ReadAll(answer.Body)
		answer.Body.Close()
		if answer.StatusCode != c.want || !strings.Contains(string(body), c.body) {
			t.Errorf("%s %s: %s, %s", c.method, c.path, answer.Status, body)
		}
	}
	raw, err := net.Dial("unix", r.DialSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	io.WriteString(raw, "CONNECT 192.0.2.2:22 HTTP/1.1\r\nHost: 192.0.2.2:22\r\nConnection: close\r\n\r\n")
	b, _ := io.ReadAll(raw)
	if !bytes.HasPrefix(b, []byte("HTTP/1.1 503 ")) || !bytes.Contains(b, []byte(`"code":"no-guest"`)) {
		t.Errorf("CONNECT: %s", b)
	}
}

func TestStop(t *testing.T) {
	r := start(t, optionsIn(t.TempDir()))
	g := connect(t, r.NetSocket)
	guestTCP(t, g, 22, echo)
	d := vmnet.NewDialer(r.DialSocket)
	c := dialGuest(t, d, "tcp", "192.0.2.2:22")
	defer c.Close()
	if err := d.Stop(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := r.end(t); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the tunnel is open")
	}
	<-g.Done()
}

func TestRunContext(t *testing.T) {
	r := start(t, optionsIn(t.TempDir()))
	r.stop()
	if err := r.end(t); err != nil {
		t.Error(err)
	}
}

func TestNoQEMU(t *testing.T) {
	o := optionsIn(t.TempDir())
	o.WaitQEMU = 50 * time.Millisecond
	r := start(t, o)
	if err := r.end(t); !errors.Is(err, usernet.ErrNoQEMU) {
		t.Errorf("got %v", err)
	}
}

// A second QEMU is turned away while the first is there. With that the process ends.
func TestSecondQEMU(t *testing.T) {
	t.Parallel()
	r := start(t, optionsIn(t.TempDir()))
	first := connect(t, r.NetSocket)
	guestTCP(t, first, 22, echo)
	d := vmnet.NewDialer(r.DialSocket)
	dialGuest(t, d, "tcp", "192.0.2.2:22").Close()
	for range 2 {
		second := connect(t, r.NetSocket)
		<-second.Done()
	}
	c := dialGuest(t, d, "tcp", "192.0.2.2:22")
	roundTrip(t, c, []byte("the first is still there"))
	c.Close()
	first.Close()
	if err := r.end(t); err != nil {
		t.Error(err)
	}
}

func TestLocked(t *testing.T) {
	t.Parallel()
	o := optionsIn(t.TempDir())
	r := start(t, o)
	if err := usernet.Run(testContext(t), o); !errors.Is(err, usernet.ErrLocked) {
		t.Errorf("got %v", err)
	}
	// The sockets of the one that runs are untouched.
	if _, err := vmnet.NewDialer(r.DialSocket).Status(testContext(t)); err != nil {
		t.Error(err)
	}
}

// A process that was killed leaves its sockets; the next takes over, and the
// guest plugs into it.
func TestTakeover(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o := optionsIn(dir)
	d := vmnet.NewDialer(o.DialSocket)
	var previous int
	for range 3 {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), "USERNET_TEST_RUN="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = t.Output()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		status, err := d.Status(testContext(t))
		if err != nil || status.PID != cmd.Process.Pid || status.PID == previous {
			t.Errorf("status: %+v, %v", status, err)
		}
		previous = status.PID
		g := connect(t, o.NetSocket)
		guestTCP(t, g, 22, echo)
		c := dialGuest(t, d, "tcp", "192.0.2.2:22")
		roundTrip(t, c, []byte("hello"))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		<-g.Done()
		if _, err := d.Dial(testContext(t), "tcp", "192.0.2.2:22"); !errors.Is(err, vmnet.ErrNoNetwork) {
			t.Errorf("after the kill: %v", err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("left over: %s", e.Name())
		}
	}
}

func TestSocketPaths(t *testing.T) {
	// As long as an address of a unix socket can be, though not what it takes
	// to make it.
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("d", 107-len(dir)-len("/dial.sock")-1))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	r := start(t, optionsIn(long))
	if _, err := vmnet.NewDialer(r.DialSocket).Status(testContext(t)); err != nil {
		t.Error(err)
	}
	r.stop()
	if err := r.end(t); err != nil {
		t.Error(err)
	}

	o := optionsIn(dir)
	writeFile(t, o.NetSocket, "a file of somebody")
	if err := usernet.Run(testContext(t), o); err == nil {
		t.Error("a file was taken for a socket")
	}
	if b, err := os.ReadFile(o.NetSocket); err != nil || string(b) != "a file of somebody" {
		t.Errorf("the file is now %q, %v", b, err)
	}
	o = optionsIn(filepath.Join(dir, "missing"))
	if err := usernet.Run(testContext(t), o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a missing directory: %v", err)
	}
}

func TestOwnNetSocket(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give a socket away")
	}
	o := optionsIn(t.TempDir())
	o.QEMU = &background.Owner{UID: 65534, GID: 65533}
	r := start(t, o)
	for path, want := range map[string]uint32{r.NetSocket: 65534, r.DialSocket: 0} {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Sys().(*syscall.Stat_t).Uid; got != want || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: uid %d, mode %o", path, got, info.Mode().Perm())
		}
	}
}
