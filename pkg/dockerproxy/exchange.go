package dockerproxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/relay"
)

// An exchange is a connection whose requests are looked at. Every byte passes as it came,
// unless a [Verdict] changes it; net/http's parser runs beside it, to find where requests
// and answers begin and end. A request is sent on when it is complete enough to be judged
// and all answers before it have ended, which costs nothing: the engine serves one at a
// time. As soon as the connection is something else than HTTP/1 (an upgrade, a hijacked stream, an answer
// that only its end ends, bytes that are not understood) it is a pipe for good.
type exchange struct {
	admit    AdmitFunc
	changing func() error
	explain  func(context.Context, string) string // nil: failures pass as they are
	failed   func(context.Context, string)        // nil: nobody wants to know
	client   net.Conn
	engine   net.Conn

	asked chan *http.Request // the request whose answer is due

	mu      sync.Mutex
	over    bool // the answer has ended
	pipe    bool // for good
	waiting bool // up waits for either, reading nothing
	wake    chan struct{}
}

func newExchange(admit AdmitFunc, changing func() error, client, engine net.Conn) *exchange {
	if changing == nil {
		changing = func() error { return nil }
	}
	return &exchange{
		admit: admit, changing: changing, client: client, engine: engine,
		asked: make(chan *http.Request, 1), wake: make(chan struct{}, 1),
	}
}

const (
	// maxHead bounds the head of a request or an answer that is looked at.
	maxHead = 1 << 20
	// admitTimeout bounds the judgement of a call.
	admitTimeout = 30 * time.Second
)

// errHead says that a head is too long to be looked at.
var errHead = errors.New("head is too long")

// tee reads from a connection and notes how that went, for the parsers' errors do not
// tell what was wrong with the connection and what with the bytes.
type tee struct {
	io.Reader
	each func([]byte) error // takes what was read
	left int                // bytes that may be read, when limited
	err  error              // of the connection
}

// Read implements io.Reader.
func (t *tee) Read(b []byte) (int, error) {
	if t.left <= 0 {
		return 0, errHead
	}
	n, err := t.Reader.Read(b)
	if t.left != unlimited {
		t.left -= n
	}
	if err == nil || n > 0 {
		if e := t.each(b[:n]); e != nil {
			err = e
		}
	}
	if err != nil {
		t.err = err
	}
	return n, err
}

const unlimited = int(^uint(0) >> 1)

// down passes the engine's answers on and follows them.
func (x *exchange) down(ctx context.Context) error {
	defer x.signal(true)
	a := &answers{x: x}
	t := &tee{Reader: x.engine, each: a.pass}
	r := bufio.NewReaderSize(t, 4<<10)
	for {
		t.left = maxHead
		a.holds = x.explain != nil
		framed, err := x.answer(ctx, t, r, a)
		if e := a.release(); e != nil && t.err == nil {
			t.err = e
		}
		switch {
		case errors.Is(t.err, io.EOF):
			return nil
		case t.err != nil:
			return t.err
		case err != nil || !framed:
			x.signal(true)
			return relay.Pass(x.client, x.engine) // all that was read has passed
		}
		x.signal(false)
	}
}

// answer reads one answer and says whether another can follow.
func (x *exchange) answer(ctx context.Context, t *tee, r *bufio.Reader, a *answers) (framed bool, err error) {
	if _, err := r.Peek(1); err != nil {
		return false, err
	}
	var req *http.Request
	select {
	case req = <-x.asked:
	default:
		return false, nil // nobody asked
	}
	for {
		resp, err := http.ReadResponse(r, req)
		if err != nil {
			return false, err
		}
		t.left = unlimited
		switch {
		case resp.StatusCode == http.StatusSwitchingProtocols, resp.ContentLength < 0 && len(resp.TransferEncoding) == 0:
			return false, nil
		case resp.StatusCode < http.StatusOK: // more is to come
			t.left = maxHead
			if err := a.release(); err != nil {
				return false, err
			}
			a.holds = x.explain != nil
			continue
		}
		if a.failure(resp) {
			return x.explained(ctx, resp, r, a)
		}
		if err := a.release(); err != nil {
			return false, err
		}
		end := new(ending)
		err = relay.Pass(end, resp.Body)
		if err == nil && x.failed != nil && progress(resp) {
			if message := end.failure(); message != "" {
				x.failed(ctx, message)
			}
		}
		return err == nil, errors.Join(err, resp.Body.Close())
	}
}

// signal tells up that an answer has ended, or that the connection is a pipe now.
func (x *exchange) signal(pipe bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.over = true
	x.pipe = x.pipe || pipe
	if x.waiting {
		_ = x.client.SetReadDeadline(time.Unix(1, 0)) // ends the wait, no more
	}
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// up judges the client's requests and passes them on.
func (x *exchange) up(ctx context.Context) error {
	s := &sender{x: x}
	s.tee = &tee{Reader: x.client, each: func(b []byte) error {
		s.held = append(s.held, b...)
		return nil
	}}
	s.r = bufio.NewReaderSize(s.tee, 4<<10)
	defer s.finish()
	for {
		s.tee.left = maxHead
		req, err := http.ReadRequest(s.r)
		s.tee.left = unlimited
		if err == nil && req.ProtoMajor == 1 {
			err = s.request(ctx, req)
		} else if err == nil {
			err = http.ErrNotSupported
		}
		var refused *closing
		var write *relay.WriteError
		switch {
		case err == nil:
		case errors.As(err, &refused), errors.As(err, &write):
			return err
		case errors.Is(s.tee.err, io.EOF):
			return s.all()
		case s.tee.err != nil:
			return s.tee.err
		default:
			return s.pass()
		}
		pipe, err := x.await(s.r.Buffered() > 0)
		s.finish()
		switch {
		case errors.Is(err, io.EOF):
			return s.all()
		case err != nil:
			return err
		case pipe:
			return s.pass()
		}
	}
}

// closing says that a client was refused and its connection must end.
type closing struct{ error }

// sender is the client's direction of an exchange.
type sender struct {
	x    *exchange
	tee  *tee
	r    *bufio.Reader
	held []byte // read from the client and not sent on
	done func() // of the call under way; nil if there is none
}

// finish says that the answer to the call under way has ended.
func (s *sender) finish() {
	if s.done != nil {
		s.done()
		s.done = nil
	}
}

// parsed is how much of what is held the parser has taken.
func (s *sender) parsed() int { return len(s.held) - s.r.Buffered() }

// Write implements io.Writer for what the parser gives: it sends the bytes that this was
// made from.
func (s *sender) Write(b []byte) (int, error) {
	if err := s.send(s.parsed()); err != nil {
		return 0, err
	}
	return len(b), nil
}

// send sends the first n bytes that are held.
func (s *sender) send(n int) error {
	_, err := s.x.engine.Write(s.held[:n])
	s.drop(n)
	if err != nil {
		return &relay.WriteError{Err: err}
	}
	return nil
}

// drop forgets the first n bytes that are held.
func (s *sender) drop(n int) {
	left := s.held[n:]
	if cap(s.held) > 256<<10 {
		s.held = nil
	}
	s.held = append(s.held[:0], left...)
}

// all sends all that is held, which may be anything.
func (s *sender) all() error {
	if len(s.held) == 0 {
		return nil
	}
	if err := s.x.changing(); err != nil {
		return err
	}
	return s.send(len(s.held))
}

// pass is all, and then a pipe.
func (s *sender) pass() error {
	if err := s.x.changing(); err != nil {
		return err
	}
	if err := s.all(); err != nil {
		return err
	}
	return relay.Pass(s.x.engine, s.x.client)
}

// request sends one request on, unless it is refused. The error may be the parser's,
// which means that what is held is not understood.
func (s *sender) request(ctx context.Context, req *http.Request) error {
	if reads := (req.Method == http.MethodGet || req.Method == http.MethodHead) && req.Header.Get("Upgrade") == ""; !reads {
		if err := s.x.changing(); err != nil {
			return &closing{err}
		}
	}
	call, checked := callOf(req)
	if !checked {
		return s.forward(req)
	}
	// Who expects to be asked for the body is asked by the engine.
	early := req.Header.Get("Expect") != ""
	if early {
		s.x.asked <- req
		if err := s.send(s.parsed()); err != nil {
			return err
		}
	}
	head := s.parsed()
	body, err := io.ReadAll(io.LimitReader(req.Body, maxCall+1))
	if err != nil {
		if !early {
			s.x.asked <- req
		}
		return err
	}
	if len(body) <= maxCall && call.readConfig(body) == nil {
		judging, cancel := context.WithTimeout(ctx, admitTimeout)
		verdict, err := s.x.admit(judging, call)
		cancel()
		s.done = verdict.Done
		if err == nil && len(verdict.Edits) > 0 {
			err = s.rewrite(req, head, body, verdict.Edits)
		}
		if err != nil {
			return s.refuse(req, err, early)
		}
	}
	if early {
		return s.body(req)
	}
	return s.forward(req)
}

// rewrite changes strings in the body of a request that is held as a whole, but for its
// first bytes if they have been sent: head is how many bytes of it come before the body.
func (s *sender) rewrite(req *http.Request, head int, body []byte, edits []Edit) error {
	text, err := edit(body, edits)
	if err == nil {
		text, err = reframe(req, s.held[:head], text)
	}
	if err != nil && !slices.ContainsFunc(edits, func(e Edit) bool { return !e.Optional }) {
		return nil
	}
	if err != nil {
		return &Refusal{Status: http.StatusBadRequest, Message: "devvm has to change a path or a port in this request, and cannot: " + err.Error()}
	}
	s.held = append(text, s.held[s.parsed():]...)
	return nil
}

// forward sends a request on, as far as it is read already and then the rest.
func (s *sender) forward(req *http.Request) error {
	s.x.asked <- req
	return s.body(req)
}

func (s *sender) body(req *http.Request) error {
	if err := s.send(s.parsed()); err != nil {
		return err
	}
	err := relay.Pass(s, req.Body)
	if err == nil { // the end of the body has no bytes of its own to announce it
		err = s.send(s.parsed())
	}
	return err
}

// refuse answers in the engine's place: nothing of it is on its way. The engine never
// hears of the request, but for the head of one that was sent early.
func (s *sender) refuse(req *http.Request, cause error, early bool) error {
	s.drop(s.parsed())
	if err := writeRefusal(s.x.client, req, cause, early); err != nil {
		return &closing{err}
	}
	if early || req.Close {
		return &closing{cause}
	}
	s.x.signal(false) // nothing to wait for
	return nil
}

// await waits for the end of the answer. It says whether the connection is a pipe from
// now on, or io.EOF if the client has ended its side meanwhile. more says that bytes of
// the client's wait already.
func (x *exchange) await(more bool) (pipe bool, err error) {
	raw, ok := x.client.(syscall.Conn)
	if ok && !more {
		x.mu.Lock()
		x.waiting = !x.over
		wait := x.waiting
		x.mu.Unlock()
		if wait {
			err = readable(raw)
			x.mu.Lock()
			x.waiting = false
			if x.over {
				_ = x.client.SetReadDeadline(time.Time{})
				err = nil
			}
			x.mu.Unlock()
			if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				return false, err
			}
		}
	}
	for {
		x.mu.Lock()
		over, pipe := x.over, x.pipe
		x.over = false
		x.mu.Unlock()
		if over {
			return pipe, nil
		}
		<-x.wake
	}
}

// readable waits until a socket has something to read; io.EOF: nothing more will come.
func readable(c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var peek error
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		for {
			n, _, peek = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if !errors.Is(peek, unix.EINTR) {
				return !errors.Is(peek, unix.EAGAIN)
			}
		}
	})
	switch {
	case err != nil:
		return err
	case peek != nil:
		return os.NewSyscallError("read", peek)
	case n == 0:
		return io.EOF
	}
	return nil
}
