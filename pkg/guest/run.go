package guest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// Command is something to run in the guest.
type Command struct {
	// Argv is a program and its arguments, passed on byte for byte. Set either Argv or Line, or
	// neither for a login shell.
	Argv []string
	// Line is a command line for the user's shell in the guest.
	Line string
	// Env holds NAME=value entries, added to the guest's environment. Other processes in the
	// guest can see them.
	Env []string
	// Dir is the working directory; empty means Start, else the user's home. If it does not
	// exist, the command fails with exit code 126.
	Dir string
	// User is the user that the command runs as: USER or USER:GROUP, names or numbers, see
	// [IsUser]. Empty means the user that is logged in. If the user does not exist, the command
	// fails with exit code 126.
	User string
	// Start is a directory that the command starts in if it exists. Dir is relative to it.
	Start string

	// Stdin is copied to the command; nil means empty input. When the command ends during a
	// Read of Stdin, Run returns without waiting for it, and the data of that Read is lost.
	Stdin io.Reader
	// Stdout and Stderr take the command's output; nil discards it. They may be the same
	// writer.
	Stdout, Stderr io.Writer

	// TTY, if set, runs the command on a terminal: Stdout then takes both
	// outputs.
	TTY *Terminal

	// Tied ends a command that still runs when Run returns or the connection ends, even if this
	// process is killed and can send no signal. A command on a terminal loses the terminal
	// then, and does not need Tied.
	Tied bool
}

// Terminal describes the terminal that a command runs on.
type Terminal struct {
	// Term is the value of TERM; empty means "xterm-256color". If the guest does not know that
	// terminal, the command gets a similar one.
	Term string
	// Size is the initial size.
	Size Size
	// Resize, if set, delivers new sizes while the command runs.
	Resize <-chan Size
}

// Size of a terminal in characters.
type Size struct{ Columns, Rows int }

// Run runs a command in the guest and waits for it. The exit code is the command's: 128 + the
// signal's number for a command killed by a signal, as in a shell, and 127 for one that does
// not exist. An error means that the code is not known (it is then -1): the command could not
// be started, the connection was lost, Stdout or Stderr could not be written, or ctx ended.
//
// When ctx ends, the command and its descendants are sent TERM, and KILL if that does not end
// them. Run returns when they have ended, after 4 s at the latest. A command on a terminal
// loses its terminal instead.
func (c *Client) Run(ctx context.Context, cmd Command) (exitCode int, err error) {
	if cmd.TTY != nil {
		return c.run(ctx, cmd, "", nil)
	}
	// Closing the channel would leave the command running, and sshd does not pass signals to
	// root's processes. So the command's processes carry a mark by which they can be found.
	mark := rand.Text()
	if !cmd.Tied {
		return c.run(ctx, cmd, mark, nil)
	}
	t := c.tie(ctx, mark)
	defer t.close()
	code, err := c.run(ctx, cmd, mark, t)
	if err == nil {
		t.await()
	}
	return code, err
}

// tie is a program in the guest that ends the processes with a mark when its channel closes,
// unless it is released first.
type tie struct {
	client *Client
	line   string
	opened chan struct{}
	ch     ssh.Channel // valid once opened is closed
	err    error       // valid once opened is closed
	ended  chan struct{}
}

// tie starts to open the program's channel. It does not wait, because the command's own channel
// can be opened at the same time.
func (c *Client) tie(ctx context.Context, mark string) *tie {
	t := &tie{
		client: c,
		line: "read -r released && exit; " + fmt.Sprintf(endScript, markName, mark, "TERM") +
			fmt.Sprintf("; sleep %.1f; ", termTimeout.Seconds()) + fmt.Sprintf(endScript, markName, mark, "KILL"),
		opened: make(chan struct{}),
		ended:  make(chan struct{}),
	}
	go func() {
		defer close(t.opened)
		var reqs <-chan *ssh.Request
		if t.ch, reqs, t.err = c.open(ctx, "session", nil); t.err == nil {
			go func() {
				ssh.DiscardRequests(reqs)
				close(t.ended)
			}()
		}
	}()
	return t
}

// start starts the program. Call it before starting the command: sshd keeps that order.
func (t *tie) start() error {
	<-t.opened
	if t.err != nil {
		return t.err
	}
	if _, err := t.ch.SendRequest("exec", false, ssh.Marshal(struct{ Line string }{t.line})); err != nil {
		return t.client.lost()
	}
	return nil
}

// release tells the program that the command has ended by itself. Processes that the command
// left in the background then stay.
func (t *tie) release() {
	go func() { // the link may be stuck
		<-t.opened
		if t.err == nil {
			_, _ = t.ch.Write([]byte("\n"))
		}
	}()
}

// await waits until the program has read its release. It must not see the connection end before
// that.
func (t *tie) await() {
	select {
	case <-t.ended:
	case <-time.After(releaseTimeout):
	}
}

// close closes the channel, which ends a command that still runs.
func (t *tie) close() {
	go func() { // the link may be stuck
		<-t.opened
		if t.err == nil {
			_ = t.ch.Close()
		}
	}()
}

// endScript sends a signal to the processes that carry a mark.
const endScript = `grep -lszx '%s=%s' /proc/[0-9]*/environ | while read -r f; do
f=${f#/proc/}; kill -%s "${f%%/environ}"; done 2>/dev/null`

// markName is the environment variable that holds a command's mark.
const markName = "DEVVM_COMMAND"

func (c *Client) run(ctx context.Context, cmd Command, mark string, t *tie) (exitCode int, err error) {
	line, err := cmd.shellLine(mark)
	if err != nil {
		return -1, fmt.Errorf("run in the VM: %w", err)
	}
	ch, reqs, err := c.open(ctx, "session", nil)
	if err != nil {
		return -1, fmt.Errorf("run in the VM: %w", err)
	}
	s := &session{client: c, ch: ch, tie: t, ended: make(chan struct{})}
	go s.watch(reqs)

	code, err := s.run(ctx, cmd, line)
	if ctx.Err() != nil && mark != "" {
		s.stop(mark)
	}
	go func() { _ = ch.Close() }() // do not wait: the link may be stuck
	if err != nil {
		return -1, fmt.Errorf("run in the VM: %w", err)
	}
	return code, nil
}

// session is one command on its channel.
type session struct {
	client *Client
	ch     ssh.Channel
	tie    *tie // nil: none

	ended  chan struct{} // the channel is closed in both directions
	status int           // valid after ended; -1: none came
}

// watch collects the exit status until the channel is closed.
func (s *session) watch(reqs <-chan *ssh.Request) {
	s.status = -1
	for req := range reqs {
		switch req.Type {
		case "exit-status":
			var m struct{ Status uint32 }
			if ssh.Unmarshal(req.Payload, &m) == nil {
				s.exited(int(m.Status & 0xff))
			}
		case "exit-signal":
			var m struct {
				Signal string
				Core   bool
				Error  string
				Lang   string
			}
			if ssh.Unmarshal(req.Payload, &m) == nil {
				s.exited(128 + signalNumber(m.Signal))
			}
		}
		_ = req.Reply(false, nil)
	}
	close(s.ended)
}

// exited records that the command has ended. Processes that it left running may still write.
func (s *session) exited(code int) {
	again := s.status >= 0 // a guest can send any number of these
	s.status = code
	if s.tie != nil && !again {
		s.tie.release()
	}
}

func (s *session) run(ctx context.Context, cmd Command, line string) (int, error) {
	started := make(chan error, 1)
	go func() { started <- s.start(cmd.TTY, line) }()
	select {
	case err := <-started:
		if err != nil {
			return -1, err
		}
	case <-ctx.Done():
		return -1, ctx.Err()
	}

	if cmd.Stdin == nil {
		_ = s.ch.CloseWrite()
	} else {
		go func() {
			// Do not wait for this: the reader may block for ever. An error of the writer means
			// that the command has stopped reading, which it may do.
			_, _ = io.Copy(struct{ io.Writer }{s.ch}, cmd.Stdin)
			_ = s.ch.CloseWrite()
		}()
	}
	if cmd.TTY != nil && cmd.TTY.Resize != nil {
		go s.resize(cmd.TTY.Resize)
	}

	stdout, stderr := outputs(cmd.Stdout, cmd.Stderr)
	defer stdout.stopped.Store(true)
	copies := make(chan error, 2)
	pass := func(w io.Writer, r io.Reader) {
		_, err := io.Copy(w, r)
		copies <- err
	}
	go pass(stdout, s.ch)
	go pass(stderr, s.ch.Stderr())
	for range 2 {
		select {
		case err := <-copies:
			if err != nil {
				return -1, fmt.Errorf("pass on the output: %w", err)
			}
		case <-ctx.Done():
			return -1, ctx.Err()
		}
	}
	select {
	case <-s.ended:
	case <-ctx.Done():
		return -1, ctx.Err()
	}
	switch {
	case s.status >= 0:
		return s.status, nil
	case s.client.link.broken.Load():
		return -1, s.client.lost()
	}
	return -1, errors.New("the command ended without an exit status")
}

// start requests a terminal, if there is one, then the command.
func (s *session) start(tty *Terminal, line string) error {
	if s.tie != nil {
		if err := s.tie.start(); err != nil {
			return err
		}
	}
	if tty != nil {
		term := tty.Term
		if term == "" {
			term = "xterm-256color"
		}
		// One mode, IUTF8 (RFC 8160); the others keep the guest's defaults.
		const modes = "\x2a\x00\x00\x00\x01\x00"
		err := s.request("pty-req", ssh.Marshal(struct {
			Term                         string
			Columns, Rows, Width, Height uint32
			Modes                        string
		}{Term: term, Columns: dimension(tty.Size.Columns), Rows: dimension(tty.Size.Rows), Modes: modes}))
		if err != nil {
			return err
		}
	}
	if line == "" {
		return s.request("shell", nil)
	}
	return s.request("exec", ssh.Marshal(struct{ Line string }{line}))
}

func (s *session) request(name string, payload []byte) error {
	ok, err := s.ch.SendRequest(name, true, payload)
	if err != nil {
		return s.client.lost()
	}
	if !ok {
		return fmt.Errorf("%w: %s", ErrRefused, name)
	}
	return nil
}

func (s *session) resize(sizes <-chan Size) {
	for {
		select {
		case <-s.ended:
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			_, _ = s.ch.SendRequest("window-change", false, ssh.Marshal(struct {
				Columns, Rows, Width, Height uint32
			}{Columns: dimension(size.Columns), Rows: dimension(size.Rows)}))
		}
	}
}

// How long a cancelled command has to end: after TERM, and in total.
const (
	termTimeout = 2500 * time.Millisecond
	stopTimeout = 4 * time.Second
	// releaseTimeout is how long a released tie has to end.
	releaseTimeout = 2 * time.Second
)

// stop ends the processes that carry the mark.
func (s *session) stop(mark string) {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	killAfter := time.After(termTimeout)
	for _, signal := range []string{"TERM", "KILL"} {
		_, _ = s.client.run(ctx, Command{Line: fmt.Sprintf(endScript, markName, mark, signal)}, "", nil)
		select {
		case <-s.ended:
			return
		case <-killAfter:
		case <-ctx.Done():
			return
		}
	}
	select {
	case <-s.ended:
	case <-ctx.Done():
	}
}

func dimension(n int) uint32 { return uint32(min(max(n, 0), 1<<15)) }

// output is a writer that may be nil or shared, and that can be stopped.
type output struct {
	turn    *sync.Mutex
	stopped *atomic.Bool
	w       io.Writer
}

// outputs makes the writers of both streams. Writes take turns only if both go to the same
// writer: a caller that reads one stream first must not block the other.
func outputs(stdout, stderr io.Writer) (out, errOut *output) {
	stopped := new(atomic.Bool)
	out = &output{new(sync.Mutex), stopped, stdout}
	errOut = &output{new(sync.Mutex), stopped, stderr}
	if same(stdout, stderr) {
		errOut.turn = out.turn
	}
	return out, errOut
}

func same(a, b io.Writer) bool {
	defer func() { _ = recover() }() // the type cannot be compared
	return a == b
}

// Write implements [io.Writer].
func (o *output) Write(p []byte) (int, error) {
	if o.w == nil {
		return len(p), nil
	}
	o.turn.Lock()
	defer o.turn.Unlock()
	if o.stopped.Load() {
		return 0, io.ErrClosedPipe
	}
	return o.w.Write(p)
}

// signalNumber is the number of a signal named as in RFC 4254, without SIG. OpenSSH adds a
// suffix to names that the RFC does not list.
func signalNumber(name string) int {
	name, _, _ = strings.Cut(name, "@")
	return map[string]int{
		"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7,
		"FPE": 8, "KILL": 9, "USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13,
		"ALRM": 14, "TERM": 15,
	}[name]
}
