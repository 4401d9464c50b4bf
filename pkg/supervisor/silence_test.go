package supervisor_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/guest/guesttest"
	"github.com/devvm/devvm/pkg/supervisor"
)

// stall holds what a VM says back while it is on, as one does that is out of memory. The
// connections stay.
type stall struct {
	mu sync.Mutex
	on chan struct{} // closed at the end; nil: not on
}

func (s *stall) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.on = make(chan struct{})
}

func (s *stall) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.on)
	s.on = nil
}

func (s *stall) wait(closed <-chan struct{}) {
	s.mu.Lock()
	on := s.on
	s.mu.Unlock()
	if on == nil {
		return
	}
	select {
	case <-on:
	case <-closed:
	}
}

// stalling is a connection to a VM that stalls.
type stalling struct {
	net.Conn
	*stall
	once   sync.Once
	closed chan struct{}
}

// Read implements [net.Conn].
func (c *stalling) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.wait(c.closed)
	return n, err
}

// Close implements [net.Conn].
func (c *stalling) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// startStalling is start with a VM that can stall.
func startStalling(t *testing.T, silence guest.Silence, wait time.Duration) (*fixture, *stall) {
	t.Helper()
	stalled := new(stall)
	f := start(t, func(_ *guesttest.Options, o *supervisor.Options) {
		o.Silence, o.WaitReady = silence, wait
		dial := o.Target.Dial
		o.Target.Dial = func(ctx context.Context) (net.Conn, error) {
			conn, err := dial(ctx)
			if err != nil {
				return nil, err
			}
			return &stalling{Conn: conn, stall: stalled, closed: make(chan struct{})}, nil
		}
	})
	f.until(t, supervisor.StateReady, 0)
	return f, stalled
}

// attach opens a stream into the VM that gives back each line.
func (f *fixture) attach(t *testing.T) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "unix", f.docker)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(conn)
	_, _ = io.WriteString(conn, "POST /test/hijack HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	for line := ""; line != "\r\n"; {
		if line, err = r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	return conn, r
}

// untilSlow waits until the VM is slow, or is not.
func (f *fixture) untilSlow(t *testing.T, want bool) supervisor.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var last supervisor.Status
	err := f.client.Watch(ctx, func(s supervisor.Status) bool {
		last = s
		return s.SlowSince.IsZero() == want
	})
	if err != nil {
		t.Fatalf("wait for slow %t: %v", want, err)
	}
	return last
}

// TestSilence: a VM that says nothing for many keepalives and then goes on has lost nobody.
// Meanwhile it is slow, and who comes anew is told so.
func TestSilence(t *testing.T) {
	t.Parallel()
	f, stalled := startStalling(t, guest.Silence{Every: 20 * time.Millisecond, Slow: 300 * time.Millisecond}, 500*time.Millisecond)
	var conns [3]net.Conn
	var readers [3]*bufio.Reader
	for i := range conns {
		conns[i], readers[i] = f.attach(t)
	}
	stalled.start()
	if st := f.untilSlow(t, true); st.State != supervisor.StateReady {
		t.Errorf("%+v", st)
	}
	for _, c := range conns { // on its way all the time
		_, _ = io.WriteString(c, "ping\n")
	}
	if err := engine.Ping(t.Context(), f.docker); err == nil || !strings.Contains(err.Error(), `the VM of project "app" is slow`) {
		t.Errorf("a new client is told: %v", err)
	}
	// A question is on its way for longer than ten keepalives.
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_ = f.client.Watch(short, func(s supervisor.Status) bool {
		if s.SlowSince.IsZero() {
			t.Errorf("heard again: %+v", s)
		}
		return true
	})
	stalled.end()
	st := f.untilSlow(t, false)
	if st.State != supervisor.StateReady || st.Redials != 0 {
		t.Errorf("%+v", st)
	}
	for i, r := range readers {
		if line, err := r.ReadString('\n'); line != "ping\n" || err != nil {
			t.Errorf("client %d got %q, %v", i, line, err)
		}
	}
	if err := engine.Ping(t.Context(), f.docker); err != nil {
		t.Error(err)
	}
}

// TestSilenceLimit: a VM that is never heard again is lost in the end, and its clients learn
// it, though no connection breaks.
func TestSilenceLimit(t *testing.T) {
	t.Parallel()
	f, stalled := startStalling(t, guest.Silence{Every: 20 * time.Millisecond, Slow: 100 * time.Millisecond, Limit: 2 * time.Second}, 0)
	_, r := f.attach(t)
	stalled.start()
	f.untilSlow(t, true)
	if _, err := r.ReadByte(); err == nil {
		t.Error("a stream out of a dead VM goes on")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := f.client.Watch(ctx, func(s supervisor.Status) bool {
		return s.State != supervisor.StateLost || !s.SlowSince.IsZero() || !strings.Contains(s.Error, "silent for")
	})
	if err != nil {
		t.Errorf("it is not lost: %v", err)
	}
	stalled.end()
	f.until(t, supervisor.StateReady, 1)
}
