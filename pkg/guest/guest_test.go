package guest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/guest/guesttest"
)

// host is a server to run a test against: the test server, or real sshd.
type host struct {
	name   string
	keys   guest.Keys
	dial   func(context.Context) (net.Conn, error)
	user   string
	server *guesttest.Server // nil for sshd
	engine *guesttest.Engine
	dir    string // the root that sftp sees
	docker string // path of the engine's socket "in the guest"
}

func (h *host) connect(t testing.TB) *guest.Client {
	t.Helper()
	c, err := guest.Connect(t.Context(), guest.Target{Dial: h.dial, User: h.user, Keys: h.keys})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func newKeys(t testing.TB) guest.Keys {
	t.Helper()
	keys, err := guest.GenerateKeys(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func newEngine(t testing.TB) *guesttest.Engine {
	t.Helper()
	engine, err := guesttest.NewEngine(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	return engine
}

// testServer starts the server in Go.
func testServer(t testing.TB, change ...func(*guesttest.Options)) *host {
	t.Helper()
	keys, engine, dir := newKeys(t), newEngine(t), t.TempDir()
	opts := guesttest.Options{
		HostKey:        keys.HostKeyPEM(),
		AuthorizedKeys: []byte(keys.AuthorizedKey()),
		Dir:            dir,
		Sockets: map[string]func(context.Context) (net.Conn, error){
			guesttest.DockerSocket: engine.Dial,
		},
	}
	for _, c := range change {
		c(&opts)
	}
	server, err := guesttest.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ssh")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return &host{
		name: "guesttest", keys: keys, server: server, engine: engine, dir: dir, docker: guesttest.DockerSocket,
		dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}
}

// openSSH starts real sshd, with the engine's socket at a path on this machine.
func openSSH(t testing.TB) *host {
	t.Helper()
	keys, engine := newKeys(t), newEngine(t)
	address, user := guesttest.OpenSSH(t, keys.HostKeyPEM(), []byte(keys.AuthorizedKey()))
	docker := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", docker)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = engine.Serve(l) }()
	return &host{
		name: "OpenSSH", keys: keys, user: user, engine: engine, docker: docker, dir: "/",
		dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		},
	}
}

// bothServers runs a test against both servers.
func bothServers(t *testing.T, f func(*testing.T, *host)) {
	ownServer(t, f)
	t.Run("OpenSSH", func(t *testing.T) { f(t, openSSH(t)) })
}

func ownServer(t *testing.T, f func(*testing.T, *host)) {
	t.Run("guesttest", func(t *testing.T) { f(t, testServer(t)) })
}

// settled waits until there are at most want goroutines again.
func settled(t *testing.T, want int) {
	t.Helper()
	for range 500 {
		if runtime.NumGoroutine() <= want {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	buf := make([]byte, 1<<20)
	t.Fatalf("%d goroutines, want %d:\n%s", runtime.NumGoroutine(), want, buf[:runtime.Stack(buf, true)])
}

func TestConnectRun(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		var out, errOut bytes.Buffer
		code, err := h.connect(t).Run(t.Context(), guest.Command{
			Line: "cat; echo oops >&2; exit 7", Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errOut,
		})
		if code != 7 || err != nil || out.String() != "hello" || errOut.String() != "oops\n" {
			t.Fatalf("code %d, err %v, stdout %q, stderr %q", code, err, &out, &errOut)
		}
	})
}

func TestConnectWithEveryCipher(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		for _, emulated := range []bool{false, true} {
			c, err := guest.Connect(t.Context(), guest.Target{Dial: h.dial, User: h.user, Keys: h.keys, Emulated: emulated})
			if err != nil {
				t.Fatal(err)
			}
			if code, err := c.Run(t.Context(), guest.Command{Line: "true"}); code != 0 || err != nil {
				t.Error(code, err)
			}
			_ = c.Close()
		}
	})
}

func TestConnectErrors(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		other := newKeys(t)
		mixed := func(user, host guest.Keys) guest.Keys { return guest.MixKeys(user, host) }
		for name, c := range map[string]struct {
			target guest.Target
			want   error
		}{
			"our key unknown":    {guest.Target{Dial: h.dial, User: h.user, Keys: mixed(other, h.keys)}, guest.ErrAuth},
			"another host's key": {guest.Target{Dial: h.dial, User: h.user, Keys: mixed(h.keys, other)}, guest.ErrHostKey},
			"nobody listens": {guest.Target{Keys: h.keys, Dial: func(ctx context.Context) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(t.TempDir(), "none"))
			}}, guest.ErrUnreachable},
			"closes at once": {guest.Target{Keys: h.keys, Dial: func(context.Context) (net.Conn, error) {
				a, b := net.Pipe()
				_ = b.Close()
				return a, nil
			}}, guest.ErrUnreachable},
		} {
			if _, err := guest.Connect(t.Context(), c.target); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
		}
		if _, err := guest.Connect(t.Context(), guest.Target{Dial: h.dial}); err == nil {
			t.Error("connected without keys")
		}
	})
}

func TestConnectIsBounded(t *testing.T) {
	before := runtime.NumGoroutine()
	mute := func(context.Context) (net.Conn, error) {
		a, b := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, b) }()
		return a, nil
	}
	keys := newKeys(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := guest.Connect(ctx, guest.Target{Dial: mute, Keys: keys})
	if !errors.Is(err, guest.ErrUnreachable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %s", d)
	}
	settled(t, before)
}

// frozen is a connection that can stop delivering, like one to a VM that hangs.
type frozen struct {
	net.Conn
	freeze chan struct{}
	closed chan struct{}
}

func (f *frozen) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	select {
	case <-f.freeze:
		<-f.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (f *frozen) Write(p []byte) (int, error) {
	select {
	case <-f.freeze:
		<-f.closed
		return 0, net.ErrClosed
	default:
		return f.Conn.Write(p)
	}
}

func (f *frozen) Close() error {
	select {
	case <-f.closed:
	default:
		close(f.closed)
	}
	return f.Conn.Close()
}

func TestKeepaliveNoticesADeadLink(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		before := runtime.NumGoroutine()
		conn, err := h.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f := &frozen{conn, make(chan struct{}), make(chan struct{})}
		c, err := guest.Connect(t.Context(), guest.Target{
			Dial: func(context.Context) (net.Conn, error) { return f, nil }, User: h.user, Keys: h.keys,
		})
		if err != nil {
			t.Fatal(err)
		}
		watch := make(chan error, 1)
		go func() {
			watch <- c.Keepalive(t.Context(), guest.Silence{Every: 50 * time.Millisecond, Slow: time.Second, Limit: 2 * time.Second})
		}()
		u, err := c.DialUnix(t.Context(), h.docker)
		if err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-watch:
			t.Fatalf("gave up on a live link: %v", err)
		case <-time.After(500 * time.Millisecond):
		}
		close(f.freeze)
		go func() { _, _ = u.Write([]byte("GET / HTTP/1.0\r\n\r\n")) }() // stuck
		start := time.Now()
		if err := <-watch; !errors.Is(err, guest.ErrUnreachable) {
			t.Errorf("%v", err)
		}
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("noticed after %s", d)
		}
		if _, err := u.Read(make([]byte, 1)); !errors.Is(err, guest.ErrUnreachable) {
			t.Errorf("read from a lost connection: %v", err)
		}
		<-u.(*guest.UnixConn).Done()
		if err := u.(*guest.UnixConn).Err(); !errors.Is(err, guest.ErrUnreachable) {
			t.Errorf("%v", err)
		}
		<-c.Done()
		if _, err := c.DialUnix(t.Context(), h.docker); !errors.Is(err, guest.ErrUnreachable) {
			t.Errorf("dial: %v", err)
		}
		if _, err := c.Run(t.Context(), guest.Command{Line: "true"}); !errors.Is(err, guest.ErrUnreachable) {
			t.Errorf("run: %v", err)
		}
		settled(t, before)
	})
}

func TestKeepaliveEndsWithTheConnection(t *testing.T) {
	h := testServer(t)
	c := h.connect(t)
	watch := make(chan error, 1)
	go func() { watch <- c.Keepalive(t.Context(), guest.Silence{Every: time.Hour, Slow: time.Hour}) }()
	h.server.CloseConns()
	if err := <-watch; !errors.Is(err, guest.ErrUnreachable) {
		t.Error(err)
	}

	c = h.connect(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { watch <- c.Keepalive(ctx, guest.Silence{Every: time.Hour, Slow: time.Hour}) }()
	cancel()
	if err := <-watch; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if code, err := c.Run(t.Context(), guest.Command{Line: "true"}); code != 0 || err != nil {
		t.Errorf("the connection should be alive: %d %v", code, err)
	}
}

func TestDialUnix(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		c := h.connect(t)
		client := &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.DialUnix(ctx, h.docker) },
		}}
		defer client.CloseIdleConnections()
		resp, err := client.Get("http://engine/_ping")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if string(body) != "OK" || err != nil {
			t.Fatalf("%q %v", body, err)
		}

		if _, err := c.DialUnix(t.Context(), "/nowhere/docker.sock"); !errors.Is(err, guest.ErrRefused) || !strings.Contains(err.Error(), "/nowhere/docker.sock") {
			t.Errorf("no socket: %v", err)
		}
	})
}

func TestUnixConnHalfClose(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		u, err := h.connect(t).DialUnix(t.Context(), h.docker)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(u, "POST /test/hijack HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nping")
		if err := u.(*guest.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		all, err := io.ReadAll(u)
		if err != nil || !strings.HasSuffix(string(all), "\r\n\r\nping\nend after 4 bytes\n") {
			t.Errorf("%q %v", all, err)
		}
		<-u.(*guest.UnixConn).Done()
		if err := u.(*guest.UnixConn).Err(); err != nil {
			t.Errorf("closed in good order: %v", err)
		}
		if err := u.Close(); err != nil {
			t.Error(err)
		}
		if _, err := u.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after close: %v", err)
		}
		if err := u.SetDeadline(time.Now()); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("deadline: %v", err)
		}
	})
}

func TestDialUnixAbandoned(t *testing.T) {
	dialling, release := make(chan struct{}), make(chan struct{})
	var h *host
	h = testServer(t, func(o *guesttest.Options) {
		o.Sockets["/slow"] = func(ctx context.Context) (net.Conn, error) {
			close(dialling)
			<-release
			return h.engine.Dial(ctx)
		}
	})
	c := h.connect(t)
	if code, err := c.Run(t.Context(), guest.Command{Line: "true"}); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-dialling
		cancel()
	}()
	if _, err := c.DialUnix(ctx, "/slow"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(release) // now it arrives, too late for the caller
	settled(t, before)
}
