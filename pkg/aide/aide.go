// Package aide lets a process in a sandbox ask one outside of it.
//
// The process outside is the aide. The one that is to be confined starts it first ([Start]) and
// asks it by name ([Client.Ask]); the aide answers what it has a [Handler] for ([Serve]). Who
// asks may have been taken over, so what it says is bounded: a message is a line of 4 KiB at
// most, and eight questions at most are answered at a time. A line that is longer, or no
// question, ends the aide.
//
// An aide that has ended is not replaced, for the one that asks cannot start programs any more:
// each question then fails with [ErrEnded]. The package imports no other package of devvm.
package aide

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

const (
	// mostMessage bounds a line. A pipe takes as much in one piece or not at all (PIPE_BUF,
	// pipe(7)), so that a write that is given up leaves no half of a line.
	mostMessage = 4 << 10
	mostError   = 1 << 10 // bytes of an error's text
	mostAtOnce  = 8       // questions that are being answered

	// patience is for an answer, if the one that asks has no less.
	patience = 20 * time.Second
	// patienceEnd is for the aide to end when nobody asks any more.
	patienceEnd = 2 * time.Second
)

// question is one, as a line of JSON.
type question struct {
	N    uint64          // which one
	Ask  string          // name of its Handler
	Body json.RawMessage `json:",omitempty"`
}

// answer is that to question N.
type answer struct {
	N    uint64
	Err  string          `json:",omitempty"`
	Body json.RawMessage `json:",omitempty"`
}

// Handler answers a kind of question. Its answer must fit into a message.
type Handler func(ctx context.Context, question json.RawMessage) (answer any, err error)

// Serve answers questions by the handlers of their names until there are no more, and cancels
// those that are under way then.
func Serve(ctx context.Context, questions io.Reader, answers io.Writer, handlers map[string]Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	var owned sync.WaitGroup
	defer owned.Wait()
	defer cancel()
	var writing sync.Mutex
	slots := make(chan struct{}, mostAtOnce)
	lines := bufio.NewScanner(questions)
	lines.Buffer(make([]byte, mostMessage), mostMessage)
	for lines.Scan() {
		var q question
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			return fmt.Errorf("read question: %w", err)
		}
		slots <- struct{}{}
		owned.Go(func() {
			defer func() { <-slots }()
			line := reply(ctx, q, handlers[q.Ask])
			writing.Lock()
			defer writing.Unlock()
			_, _ = answers.Write(line) // nobody reads any more: nor do questions come
		})
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read question: %w", err)
	}
	return nil
}

// reply is the line that answers a question.
func reply(ctx context.Context, q question, handler Handler) []byte {
	a := answer{N: q.N}
	var body any
	err := fmt.Errorf("unknown question %q", q.Ask)
	if handler != nil {
		body, err = handler(ctx, q.Body)
	}
	if err == nil {
		a.Body, err = json.Marshal(body)
	}
	if err != nil {
		a.Err = err.Error()
		a.Err = a.Err[:min(len(a.Err), mostError)]
	}
	line, err := json.Marshal(a)
	if err != nil || len(line) >= mostMessage {
		line, _ = json.Marshal(answer{N: q.N, Err: "the answer is too long"}) // a number and a text
	}
	return append(line, '\n')
}

// ErrEnded says that there is no aide any more.
var ErrEnded = errors.New("the process outside of the sandbox has ended")

// Client asks an aide. It is safe for concurrent use.
type Client struct {
	questions io.WriteCloser
	answers   io.ReadCloser
	ended     chan struct{}
	wait      func() // for the aide's end, but not for ever

	turn chan struct{} // to write: full while somebody does

	mu      sync.Mutex
	n       uint64
	waiting map[uint64]chan answer
}

// New returns a Client that writes questions and reads answers, until Close.
func New(questions io.WriteCloser, answers io.ReadCloser) *Client {
	c := &Client{questions: questions, answers: answers, ended: make(chan struct{}), turn: make(chan struct{}, 1), waiting: map[uint64]chan answer{}}
	go c.read() // ends with answers
	return c
}

// Start runs the command as an aide that asks at standard input and answers at standard output.
func Start(cmd *exec.Cmd) (*Client, error) {
	questions, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	ours, theirs, err := os.Pipe()
	if err != nil {
		_ = questions.Close()
		return nil, err
	}
	cmd.Stdout = theirs
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	c := New(questions, ours)
	gone := make(chan struct{})
	go func() { // ends with the aide
		defer close(gone)
		_ = cmd.Wait()
	}()
	c.wait = func() {
		select {
		case <-gone:
		case <-time.After(patienceEnd):
		}
	}
	return c, nil
}

// read gives answers to who waits for them.
func (c *Client) read() {
	defer close(c.ended)
	lines := bufio.NewScanner(c.answers)
	lines.Buffer(make([]byte, mostMessage), mostMessage)
	for lines.Scan() {
		var a answer
		if json.Unmarshal(lines.Bytes(), &a) != nil {
			return
		}
		c.mu.Lock()
		waiting := c.waiting[a.N]
		delete(c.waiting, a.N)
		c.mu.Unlock()
		if waiting != nil { // else nobody waits for it any more
			waiting <- a
		}
	}
}

// Ask asks the handler of a name and puts its answer into the pointer. It fails when ctx ends,
// after 20 s, and with ErrEnded.
func (c *Client) Ask(ctx context.Context, name string, about, into any) error {
	if err := c.ask(ctx, name, about, into); err != nil {
		return fmt.Errorf("ask outside of the sandbox (%s): %w", name, err)
	}
	return nil
}

func (c *Client) ask(ctx context.Context, name string, about, into any) error {
	body, err := json.Marshal(about)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	got := make(chan answer, 1)
	c.mu.Lock()
	c.n++
	n := c.n
	c.waiting[n] = got
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, n)
	}()
	line, err := json.Marshal(question{n, name, body})
	if err != nil {
		return err
	}
	if err := c.write(ctx, append(line, '\n')); err != nil {
		return err
	}
	select {
	case a := <-got:
		if a.Err != "" {
			return errors.New(a.Err)
		}
		return json.Unmarshal(a.Body, into)
	case <-c.ended:
		return ErrEnded
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// write sends a line in one piece, as long as ctx lets it.
func (c *Client) write(ctx context.Context, line []byte) error {
	if len(line) > mostMessage {
		return errors.New("the question is too long")
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if pipe, ok := c.questions.(interface{ SetWriteDeadline(t time.Time) error }); ok {
		late := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			defer close(late)
			_ = pipe.SetWriteDeadline(time.Unix(1, 0)) // which has passed
		})
		defer func() {
			if !stop() {
				<-late
				_ = pipe.SetWriteDeadline(time.Time{})
			}
		}()
	}
	_, err := c.questions.Write(line)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("%w: %w", ErrEnded, err)
}

// Ended is closed when the aide has ended.
func (c *Client) Ended() <-chan struct{} { return c.ended }

// Close ends the aide. One that does not end at once it leaves alone.
func (c *Client) Close() error {
	err := errors.Join(c.questions.Close(), c.answers.Close())
	<-c.ended
	if c.wait != nil {
		c.wait()
	}
	return err
}
