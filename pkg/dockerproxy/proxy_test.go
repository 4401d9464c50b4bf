package dockerproxy_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/background"
	"github.com/devvm/devvm/pkg/condition"
	"github.com/devvm/devvm/pkg/dockerproxy"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/guest/guesttest"
)

// vm is a fake guest with a connection to it, as the supervisor has it.
type vm struct {
	engine *guesttest.Engine
	server *guesttest.Server
	client *guest.Client
	docker string
}

func newVM(t testing.TB) *vm {
	t.Helper()
	keys, err := guest.GenerateKeys(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	engine, err := guesttest.NewEngine(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	server, err := guesttest.NewServer(guesttest.Options{
		HostKey: keys.HostKeyPEM(), AuthorizedKeys: []byte(keys.AuthorizedKey()), Dir: t.TempDir(),
		Sockets: map[string]func(context.Context) (net.Conn, error){guesttest.DockerSocket: engine.Dial},
	})
	if err != nil {
		t.Fatal(err)
	}
	near, far := socketpair(t)
	served := make(chan struct{})
	go func() {
		server.ServeConn(context.Background(), far)
		close(served)
	}()
	c, err := guest.Connect(t.Context(), guest.Target{
		Keys: keys, Dial: func(context.Context) (net.Conn, error) { return near, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Close()
		<-served
	})
	// Both sides are up once a command has run.
	if code, err := c.Run(t.Context(), guest.Command{Line: "true"}); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	return &vm{engine, server, c, guesttest.DockerSocket}
}

// newOpenSSH is a vm with real sshd.
func newOpenSSH(t testing.TB) *vm {
	t.Helper()
	keys, err := guest.GenerateKeys(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	address, user := guesttest.OpenSSH(t, keys.HostKeyPEM(), []byte(keys.AuthorizedKey()))
	engine, err := guesttest.NewEngine(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.Close() })
	docker := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", docker)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = engine.Serve(l) }()
	c, err := guest.Connect(t.Context(), guest.Target{
		Keys: keys, User: user,
		Dial: func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", address) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &vm{engine: engine, client: c, docker: docker}
}

func bothServers(t *testing.T, f func(*testing.T, *vm)) {
	t.Run("guesttest", func(t *testing.T) { f(t, newVM(t)) })
	t.Run("OpenSSH", func(t *testing.T) { f(t, newOpenSSH(t)) })
}

func socketpair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return ends[0], ends[1]
}

func (v *vm) dial(ctx context.Context) (net.Conn, error) { return v.client.DialUnix(ctx, v.docker) }

// admitAll lets every call pass.
func admitAll(context.Context, dockerproxy.Call) (dockerproxy.Verdict, error) {
	return dockerproxy.Verdict{}, nil
}

// serve runs a proxy for the test, which looks at the requests, and gives its socket.
func serve(t testing.TB, opts dockerproxy.Options) (*dockerproxy.Proxy, string) {
	t.Helper()
	if opts.Admit == nil {
		opts.Admit = admitAll
	}
	return servePipe(t, opts)
}

// servePipe is serve for a proxy that may be a mere pipe.
func servePipe(t testing.TB, opts dockerproxy.Options) (*dockerproxy.Proxy, string) {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "docker.sock")
	l, err := background.Listen(sock, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := dockerproxy.New(opts)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- p.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if n := p.Active(); n != 0 {
			t.Errorf("%d connections left", n)
		}
		if _, err := os.Lstat(sock); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("socket left: %v", err)
		}
	})
	return p, sock
}

func httpClient(t testing.TB, sock string) *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", sock)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func connect(t testing.TB, sock string) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.UnixConn)
}

func settled(t *testing.T, want int) {
	t.Helper()
	ended := false
	defer func() {
		if !ended {
			buf := make([]byte, 1<<20)
			t.Logf("%d goroutines, want %d:\n%s", runtime.NumGoroutine(), want, buf[:runtime.Stack(buf, true)])
		}
	}()
	condition.Wait(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= want })
	ended = true
}

func TestManyRequests(t *testing.T) {
	bothServers(t, func(t *testing.T, v *vm) {
		p, sock := serve(t, dockerproxy.Options{Dial: v.dial})
		before := runtime.NumGoroutine()
		c := httpClient(t, sock)
		var all sync.WaitGroup
		for i := range 200 {
			all.Go(func() {
				body := bytes.Repeat([]byte("x"), 1000+i*17)
				resp, err := c.Post("http://docker/test/upload", "", bytes.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				defer func() { _ = resp.Body.Close() }()
				var n int
				if err := json.NewDecoder(resp.Body).Decode(&n); err != nil || n != len(body) {
					t.Error(n, len(body), err)
				}
			})
		}
		all.Wait()
		c.CloseIdleConnections()
		condition.Wait(t, "connections end", func() bool { return p.Active() == 0 && v.engine.Requests() == 0 })
		settled(t, before)
	})
}

func TestManyOpenConnections(t *testing.T) {
	const n = 300
	v := newVM(t)
	p, sock := serve(t, dockerproxy.Options{Dial: v.dial})
	conns := make([]*net.UnixConn, n)
	for i := range conns {
		conns[i] = connect(t, sock)
	}
	// Each is served while all others are open.
	for i, c := range conns {
		_, _ = io.WriteString(c, "GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(i, resp, err)
		}
	}
	if p.Active() != n {
		t.Errorf("%d active, want %d", p.Active(), n)
	}
}

const upgrade = "POST /test/hijack HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"

func TestHijackWithHalfClose(t *testing.T) {
	bothServers(t, func(t *testing.T, v *vm) {
		p, sock := serve(t, dockerproxy.Options{Dial: v.dial})
		c := connect(t, sock)
		_, _ = io.WriteString(c, upgrade)
		in := bufio.NewReader(c)
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatal(resp, err)
		}
		for range 3 { // a dialogue first
			_, _ = io.WriteString(c, "ping")
			b := make([]byte, 4)
			if _, err := io.ReadFull(in, b); err != nil || string(b) != "ping" {
				t.Fatalf("%q %v", b, err)
			}
		}
		data := bytes.Repeat([]byte("0123456789"), 30000)
		go func() {
			_, _ = c.Write(data)
			_ = c.CloseWrite()
		}()
		all, err := io.ReadAll(in)
		want := fmt.Sprintf("%s\nend after %d bytes\n", data, len(data)+12)
		if err != nil || string(all) != want {
			t.Errorf("%d bytes, want %d, end %q, %v", len(all), len(want), all[max(0, len(all)-30):], err)
		}
		// The client has not closed yet, and yet both ends have ended.
		condition.Wait(t, "the connection ends", func() bool { return p.Active() == 0 })
	})
}

// halves is an engine's side whose two directions the test holds.
func halves(t *testing.T) (dockerproxy.DialFunc, chan *net.UnixConn) {
	accepted := make(chan *net.UnixConn, 1)
	return func(context.Context) (net.Conn, error) {
		near, far := socketpair(t)
		accepted <- far.(*net.UnixConn)
		t.Cleanup(func() { _ = far.Close() })
		return near, nil
	}, accepted
}

func TestHalfCloseBothWays(t *testing.T) {
	t.Run("pipe", func(t *testing.T) { testHalfCloseBothWays(t, nil) })
	t.Run("looking", func(t *testing.T) { testHalfCloseBothWays(t, admitAll) })
}

func testHalfCloseBothWays(t *testing.T, admit dockerproxy.AdmitFunc) {
	dial, accepted := halves(t)
	p, sock := servePipe(t, dockerproxy.Options{Dial: dial, Admit: admit})

	t.Run("engine first", func(t *testing.T) {
		c, e := connect(t, sock), <-accepted
		_, _ = io.WriteString(e, "bye")
		_ = e.CloseWrite()
		if all, err := io.ReadAll(c); string(all) != "bye" || err != nil {
			t.Errorf("%q %v", all, err)
		}
		// The other direction still works.
		_, _ = io.WriteString(c, "more")
		_ = c.CloseWrite()
		if all, err := io.ReadAll(e); string(all) != "more" || err != nil {
			t.Errorf("%q %v", all, err)
		}
		condition.Wait(t, "the connection ends", func() bool { return p.Active() == 0 })
	})
	t.Run("engine closes without reading, answer arrives", func(t *testing.T) {
		c, e := connect(t, sock), <-accepted
		go func() { _, _ = io.Copy(c, zeros{}) }()
		_, _ = io.ReadFull(e, make([]byte, 100))
		_, _ = io.WriteString(e, "HTTP/1.1 400 Bad Request\r\n\r\n")
		_ = e.CloseWrite()
		line, err := bufio.NewReader(c).ReadString('\n')
		if line != "HTTP/1.1 400 Bad Request\r\n" || err != nil {
			t.Errorf("%q %v", line, err)
		}
		_ = e.Close()
		_ = c.Close()
		condition.Wait(t, "the connection ends", func() bool { return p.Active() == 0 })
	})
	t.Run("client hangs up", func(t *testing.T) {
		c, e := connect(t, sock), <-accepted
		_, _ = io.WriteString(c, "x")
		_ = c.Close()
		if all, err := io.ReadAll(e); string(all) != "x" || err != nil {
			t.Errorf("%q %v", all, err)
		}
		// Nothing was half-closed: there is nobody to answer to.
		condition.Wait(t, "the connection ends", func() bool { return p.Active() == 0 })
		if _, err := e.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
			t.Errorf("write to a client that is gone: %v", err)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestClientThatDiesEndsTheRequest(t *testing.T) {
	bothServers(t, func(t *testing.T, v *vm) {
		p, sock := serve(t, dockerproxy.Options{Dial: v.dial})
		c := connect(t, sock)
		_, _ = io.WriteString(c, "GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
		condition.Wait(t, "the request arrives", func() bool { return v.engine.Requests() == 1 })
		_ = c.Close()
		condition.Wait(t, "the request ends", func() bool { return v.engine.Requests() == 0 && p.Active() == 0 })
	})
}

// TestSlowReader checks that a client that reads slowly stops the engine, and
// that nothing piles up in between but SSH's window.
func TestSlowReader(t *testing.T) {
	const total = 300 << 20
	var sent atomic.Int64
	dial := func(context.Context) (net.Conn, error) {
		near, far := socketpair(t)
		go func() {
			defer func() { _ = far.Close() }()
			for b := make([]byte, 64<<10); sent.Load() < total; {
				n, err := far.Write(b)
				sent.Add(int64(n))
				if err != nil {
					return
				}
			}
		}()
		return near, nil
	}
	_, sock := serve(t, dockerproxy.Options{Dial: dial})
	c := connect(t, sock)
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	var read, most int64
	buf := make([]byte, 1<<20)
	for read < total {
		n, err := c.Read(buf)
		read += int64(n)
		if err != nil {
			t.Fatal(err)
		}
		if ahead := sent.Load() - read; ahead > 8<<20 {
			t.Fatalf("%d bytes in between", ahead)
		}
		if read/(64<<20) != (read-int64(n))/(64<<20) {
			most = max(most, heap()-before)
		}
	}
	if most > 4<<20 {
		t.Errorf("the heap grew by %d bytes", most)
	}
	if n, err := c.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Error(n, err)
	}
}

// TestStalledReaders checks what clients that do not read at all cost when the
// engine's side is SSH: a window each, and no harm to others.
func TestStalledReaders(t *testing.T) {
	v := newVM(t)
	_, sock := serve(t, dockerproxy.Options{Dial: v.dial})
	for range 5 {
		c := connect(t, sock)
		_, _ = fmt.Fprintf(c, "GET /test/download?bytes=%d HTTP/1.1\r\nHost: x\r\n\r\n", 100<<20)
		if _, err := c.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	resp, err := httpClient(t, sock).Get("http://docker/_ping")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("a ping beside stalled readers took %s", d)
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > 64<<20 { // both ends of SSH are in this process
		t.Errorf("heap %d MB", m.HeapAlloc>>20)
	}
}

func TestUnavailable(t *testing.T) {
	const message = "devvm: the VM of this project is not running; start it with: devvm up"
	down := func(context.Context) (net.Conn, error) {
		return nil, fmt.Errorf("dial: %w", dockerproxy.ErrDown)
	}
	before := runtime.NumGoroutine()
	p, sock := serve(t, dockerproxy.Options{
		Dial: down, WaitReady: time.Hour, Unavailable: func() string { return message },
	})

	t.Run("http", func(t *testing.T) {
		c := httpClient(t, sock)
		for name, req := range map[string]func() (*http.Response, error){
			"GET":  func() (*http.Response, error) { return c.Get("http://docker/v1.45/containers/json") },
			"HEAD": func() (*http.Response, error) { return c.Head("http://docker/_ping") },
			"POST": func() (*http.Response, error) {
				return c.Post("http://docker/build", "application/x-tar", bytes.NewReader(make([]byte, 8<<20)))
			},
			"POST, no length": func() (*http.Response, error) {
				return c.Post("http://docker/build", "application/x-tar", io.LimitReader(zeros{}, 8<<20))
			},
		} {
			resp, err := req()
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Content-Type") != "application/json" || err != nil {
				t.Errorf("%s: %v %v", name, resp, err)
			}
			if want := `{"message":"` + message + `"}`; name != "HEAD" && string(body) != want {
				t.Errorf("%s: %s", name, body)
			}
		}
	})
	t.Run("moby client", func(t *testing.T) {
		c, err := client.New(client.WithHost("unix://" + sock))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, err = c.ContainerList(t.Context(), client.ContainerListOptions{})
		if err == nil || !strings.Contains(err.Error(), message) {
			t.Error(err)
		}
	})
	t.Run("not HTTP", func(t *testing.T) {
		c := connect(t, sock)
		_, _ = io.WriteString(c, "what is this\r\n\r\n")
		_ = c.CloseWrite()
		if all, err := io.ReadAll(c); err != nil || !strings.Contains(string(all), message) {
			t.Errorf("%q %v", all, err)
		}
	})
	t.Run("says nothing and goes", func(t *testing.T) {
		c := connect(t, sock)
		_ = c.CloseWrite()
		if all, err := io.ReadAll(c); err != nil || len(all) != 0 {
			t.Errorf("%q %v", all, err)
		}
	})
	condition.Wait(t, "connections end", func() bool { return p.Active() == 0 })
	settled(t, before+2) // Serve, and the clean-up's
}

func TestWaitsForTheLink(t *testing.T) {
	v := newVM(t)
	var attempts atomic.Int64
	_, sock := serve(t, dockerproxy.Options{WaitReady: 10 * time.Second, Dial: func(ctx context.Context) (net.Conn, error) {
		if attempts.Add(1) < 4 {
			return nil, errors.New("link is down")
		}
		return v.dial(ctx)
	}})
	resp, err := httpClient(t, sock).Get("http://docker/_ping")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	_ = resp.Body.Close()
	if n := attempts.Load(); n != 4 {
		t.Errorf("%d attempts", n)
	}
}

func TestWaitIsBounded(t *testing.T) {
	for name, dial := range map[string]dockerproxy.DialFunc{
		"fails": func(context.Context) (net.Conn, error) { return nil, errors.New("no route to the VM") },
		"hangs": func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, fmt.Errorf("no answer from the VM: %w", ctx.Err())
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, sock := serve(t, dockerproxy.Options{Dial: dial, WaitReady: 200 * time.Millisecond, DialTimeout: 200 * time.Millisecond})
			start := time.Now()
			resp, err := httpClient(t, sock).Get("http://docker/_ping")
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), "the VM") {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
			if d := time.Since(start); d < 200*time.Millisecond || d > 20*time.Second {
				t.Errorf("took %s", d)
			}
		})
	}
}

func TestLinkCutInMidStream(t *testing.T) {
	v := newVM(t)
	p, sock := serve(t, dockerproxy.Options{Dial: v.dial})
	before := runtime.NumGoroutine()

	idle, busy, stalled := connect(t, sock), connect(t, sock), connect(t, sock)
	_, _ = io.WriteString(idle, upgrade)
	if _, err := idle.Read(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(busy, "POST /test/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n")
	uploading := make(chan struct{})
	go func() {
		_, _ = busy.Write(make([]byte, 1<<20))
		close(uploading)
		_, _ = io.Copy(busy, zeros{})
	}()
	<-uploading
	_, _ = fmt.Fprintf(stalled, "GET /test/download?bytes=%d HTTP/1.1\r\nHost: x\r\n\r\n", 1<<40)
	if _, err := stalled.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}

	start := time.Now()
	v.server.CloseConns()
	if _, err := io.ReadAll(idle); err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Error(err)
	}
	condition.Wait(t, "all connections end", func() bool { return p.Active() == 0 })
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %s", d)
	}
	for _, c := range []net.Conn{idle, busy, stalled} {
		_ = c.Close()
	}
	settled(t, before)
}

func TestServeEndsWithItsContext(t *testing.T) {
	v := newVM(t)
	sock := filepath.Join(t.TempDir(), "docker.sock")
	l, err := background.Listen(sock, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	p := dockerproxy.New(dockerproxy.Options{Dial: v.dial})
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- p.Serve(ctx, l) }()
	c := connect(t, sock)
	_, _ = io.WriteString(c, upgrade)
	if _, err := c.Read(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error(n, err)
	}
	if _, err := net.Dial("unix", sock); err == nil {
		t.Error("the socket still answers")
	}
	settled(t, before)
}

// scripted is a listener whose Accept the test writes.
type scripted struct {
	net.Listener
	accept func() (net.Conn, error)
}

func (s scripted) Accept() (net.Conn, error) { return s.accept() }

func TestOutOfFileDescriptors(t *testing.T) {
	v := newVM(t)
	sock := filepath.Join(t.TempDir(), "docker.sock")
	l, err := background.Listen(sock, nil)
	if err != nil {
		t.Fatal(err)
	}
	var attempts atomic.Int64
	p := dockerproxy.New(dockerproxy.Options{Dial: v.dial})
	served := make(chan error, 1)
	start := time.Now()
	go func() {
		served <- p.Serve(t.Context(), scripted{l, func() (net.Conn, error) {
			if attempts.Add(1) <= 4 {
				return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", unix.EMFILE)}
			}
			return l.Accept()
		}})
	}()
	resp, err := httpClient(t, sock).Get("http://docker/_ping")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	_ = resp.Body.Close()
	if d := time.Since(start); d < 70*time.Millisecond || d > 20*time.Second {
		t.Errorf("backed off for %s", d)
	}
	_ = l.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}

	// What does not pass ends it.
	other := errors.New("broken listener")
	l, err = background.Listen(sock, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Serve(t.Context(), scripted{l, func() (net.Conn, error) { return nil, other }}); !errors.Is(err, other) {
		t.Error(err)
	}
}

// TestDescriptorLimit says who raises the soft limit: the Go runtime does.
func TestDescriptorLimit(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur+1 < limit.Max {
		t.Errorf("soft limit %d, hard limit %d", limit.Cur, limit.Max)
	}
}
