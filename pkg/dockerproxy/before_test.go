package dockerproxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/dockerproxy"
)

// hold is a judge that lets all calls pass and holds back the answers to them.
type hold struct {
	entered chan struct{}
	release chan struct{}
	left    chan error // why a hold ended; nil: by release
	done    chan struct{}
}

func newHold() *hold {
	return &hold{make(chan struct{}, 10), make(chan struct{}, 10), make(chan error, 10), make(chan struct{}, 10)}
}

func (h *hold) admit(context.Context, dockerproxy.Call) (dockerproxy.Verdict, error) {
	return dockerproxy.Verdict{
		BeforeAnswer: func(ctx context.Context) {
			h.entered <- struct{}{}
			select {
			case <-h.release:
				h.left <- nil
			case <-ctx.Done():
				h.left <- ctx.Err()
			}
		},
		Done: func() { h.done <- struct{}{} },
	}, nil
}

// arrived tells whether anything is there to read.
func arrived(t *testing.T, c *net.UnixConn) (yes bool) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		yes = n > 0 || !errors.Is(err, unix.EAGAIN)
	})
	if err != nil {
		t.Fatal(err)
	}
	return yes
}

// TestBeforeAnswer: the answer to a call that has succeeded passes when its verdict lets it,
// and every other answer at once; each byte for byte.
func TestBeforeAnswer(t *testing.T) {
	t.Parallel()
	const start = "/v1.45/containers/web/start"
	const notFound = "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"
	old := func(method, path string) string { return method + " " + path + " HTTP/1.0\r\n\r\n" }
	for name, c := range map[string]struct {
		ask, answer string
		held        bool
	}{
		"start":                {request("POST", start, ""), noContent, true},
		"restart":              {request("POST", "/containers/web/restart?t=1", ""), noContent, true},
		"runs already":         {request("POST", start, ""), "HTTP/1.1 304 Not Modified\r\n\r\n", true},
		"after others":         {request("POST", start, ""), "HTTP/1.1 102 Processing\r\n\r\n" + noContent, true},
		"with a body":          {request("POST", start, ""), "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", true},
		"chunked":              {request("POST", start, ""), okChunked, true},
		"asked for its body":   {strings.Replace(request("POST", start, ""), "\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n", 1), noContent, true},
		"HTTP/1.0":             {old("POST", start), "HTTP/1.0 204 No Content\r\n\r\n", true},
		"HTTP/1.0 without end": {old("POST", start), "HTTP/1.0 200 OK\r\n\r\n{}", true},
		"error":                {request("POST", start, ""), notFound, false},
		"failure":              {request("POST", start, ""), "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", false},
		"upgrade":              {request("POST", start, ""), "HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\nraw", false},
		"no HTTP":              {request("POST", start, ""), "garbage\r\n\r\n", false},
		"HEAD":                 {request("HEAD", start, ""), "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false},
		"another call":         {request("POST", "/containers/web/pause", ""), noContent, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, slow := range []bool{false, true} {
				dial, accepted := halves(t)
				h := newHold()
				_, sock := serve(t, dockerproxy.Options{Dial: dial, Admit: h.admit})
				client := connect(t, sock)
				_, _ = io.WriteString(client, c.ask)
				engine := <-accepted
				read(t, engine, c.ask)
				head := c.answer
				if before, final, ok := strings.Cut(c.answer, "102 Processing\r\n\r\n"); ok {
					before += "102 Processing\r\n\r\n"
					_, _ = io.WriteString(engine, before)
					read(t, client, before)
					head = final
				}
				step := len(head)
				if slow {
					step = 1
				}
				for rest := head; len(rest) > 0; rest = rest[min(step, len(rest)):] {
					_, _ = io.WriteString(engine, rest[:min(step, len(rest))])
				}
				if c.held {
					<-h.entered
					if arrived(t, client) {
						t.Error("the client had the answer before")
					}
					h.release <- struct{}{}
				}
				read(t, client, head)
				_ = engine.CloseWrite()
				if rest, err := io.ReadAll(client); len(rest) > 0 || err != nil {
					t.Errorf("then %q, %v", rest, err)
				}
				if len(h.entered) > 0 {
					t.Error("an answer was held that should not be")
				}
			}
		})
	}
}

// TestBeforeAnswerKept: on a connection that is used again, answers keep their order and each
// is held by its own verdict; what is sent ahead waits as it does without.
func TestBeforeAnswerKept(t *testing.T) {
	t.Parallel()
	start, look := request("POST", "/containers/web/start", ""), request("GET", "/containers/json", "")
	for _, ahead := range []bool{false, true} {
		var r raw
		h := newHold()
		_, sock := serve(t, dockerproxy.Options{Admit: h.admit, Dial: r.dial(t, func(req *http.Request) string {
			if req.Method == http.MethodGet {
				return okChunked
			}
			return noContent
		})})
		client := connect(t, sock)
		const n = 3
		if ahead {
			_, _ = io.WriteString(client, strings.Repeat(start+look, n))
		}
		for i := range n {
			if !ahead {
				_, _ = io.WriteString(client, start)
			}
			<-h.entered
			if arrived(t, client) {
				t.Error("the client had the answer before")
			}
			if got := r.bytes(); got != strings.Repeat(start+look, i)+start {
				t.Errorf("the engine got %q", got)
			}
			if !ahead { // while the proxy waits for it
				_, _ = io.WriteString(client, look)
			}
			h.release <- struct{}{}
			read(t, client, noContent+okChunked)
		}
		for range n {
			<-h.done
		}
		_ = client.Close()
	}
}

// TestBeforeAnswerTime: an answer is not held for good.
func TestBeforeAnswerTime(t *testing.T) {
	t.Parallel()
	var r raw
	h := newHold()
	_, sock := serve(t, dockerproxy.Options{Admit: h.admit, Dial: r.dial(t, func(*http.Request) string { return noContent })})
	client := connect(t, sock)
	_, _ = io.WriteString(client, request("POST", "/containers/web/start", ""))
	<-h.entered
	read(t, client, noContent)
	if err := <-h.left; !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	<-h.done
}

// TestBeforeAnswerGone: whoever goes meanwhile, the client or the link to the engine, ends the
// wait, and nothing is left of it.
func TestBeforeAnswerGone(t *testing.T) {
	for _, who := range []string{"client", "link"} {
		t.Run(who, func(t *testing.T) {
			h := newHold()
			l := &link{done: make(chan struct{})}
			var r raw
			dial := r.dial(t, func(*http.Request) string { return noContent })
			_, sock := serve(t, dockerproxy.Options{Admit: h.admit, Dial: func(ctx context.Context) (net.Conn, error) {
				c, err := dial(ctx)
				l.UnixConn = c.(*net.UnixConn)
				return l, err
			}})
			before := runtime.NumGoroutine()
			client := connect(t, sock)
			_, _ = io.WriteString(client, request("POST", "/containers/web/start", ""))
			<-h.entered
			if who == "client" {
				_ = client.Close()
			} else {
				close(l.done)
			}
			if err := <-h.left; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			<-h.done
			_ = client.Close()
			settled(t, before)
		})
	}
}

// link is a connection to the engine that can be lost.
type link struct {
	*net.UnixConn
	done chan struct{}
}

func (l *link) Done() <-chan struct{} { return l.done }
func (l *link) Err() error            { return errors.New("the link is lost") }
