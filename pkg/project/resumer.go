package project

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/devvm/devvm/pkg/vm"
)

// A supervisor is in a sandbox from which libvirt cannot be reached. Whether its VM is paused
// because the host's disk is full, and that it is to go on, is a matter of a process outside,
// which does that and nothing else for it.

// resumerQuestion is what a Resumer asks.
type resumerQuestion struct {
	N       int  // of the question
	Proceed bool // let the VM go on
}

// resumerAnswer answers one.
type resumerAnswer struct {
	N      int
	Paused bool
	Err    string
}

// patienceResumer is for libvirt to say how the VM is.
const patienceResumer = 10 * time.Second

// ServeResumer answers the questions of a [Resumer] about a project's VM until there are no more.
func (s *Service) ServeResumer(ctx context.Context, name string, questions io.Reader, answers io.Writer) error {
	for d := json.NewDecoder(questions); ; {
		var q resumerQuestion
		err := d.Decode(&q)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read question: %w", err)
		}
		a := resumerAnswer{N: q.N}
		if a.Paused, err = s.lookResumable(ctx, name, q.Proceed); err != nil {
			a.Err = err.Error()
		}
		if err := json.NewEncoder(answers).Encode(a); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

// lookResumable tells whether the VM is paused by a write that failed, and lets it go on.
func (s *Service) lookResumable(ctx context.Context, name string, proceed bool) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, patienceResumer)
	defer cancel()
	hv, err := s.Open(ctx)
	if err != nil {
		return false, err
	}
	defer hv.Close()
	dom, err := hv.Get(ctx, name)
	if errors.Is(err, vm.ErrNotFound) {
		return false, nil
	}
	if err != nil || dom.State != vm.StatePaused || dom.Halt != vm.HaltIO {
		return false, err
	}
	if proceed {
		return true, hv.Proceed(ctx, name, vm.HaltIO)
	}
	return true, nil
}

// Resumer asks a process that runs ServeResumer. It is safe for concurrent use.
type Resumer struct {
	mu        sync.Mutex
	questions *os.File
	answers   *os.File
	read      *bufio.Reader
	n         int
}

// NewResumer returns a Resumer that has the other ends of the process's pipes. Close ends what
// serves them.
func NewResumer(questions, answers *os.File) *Resumer {
	return &Resumer{questions: questions, answers: answers, read: bufio.NewReader(answers)}
}

// Paused tells whether the VM is paused because of a write that failed.
func (r *Resumer) Paused(_ context.Context) (bool, error) { return r.ask(false) }

// Proceed lets a VM go on that is.
func (r *Resumer) Proceed(_ context.Context) error {
	_, err := r.ask(true)
	return err
}

func (r *Resumer) ask(proceed bool) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
	err := errors.Join(
		r.questions.SetWriteDeadline(time.Now().Add(time.Second)),
		r.answers.SetReadDeadline(time.Now().Add(2*patienceResumer)),
		json.NewEncoder(r.questions).Encode(resumerQuestion{r.n, proceed}),
	)
	for err == nil {
		var line []byte
		var a resumerAnswer
		if line, err = r.read.ReadBytes('\n'); err == nil {
			err = json.Unmarshal(line, &a)
		}
		switch {
		case err != nil:
		case a.N != r.n: // of a question that nobody waits for any more
		case a.Err != "":
			return a.Paused, errors.New(a.Err)
		default:
			return a.Paused, nil
		}
	}
	return false, fmt.Errorf("ask how the VM is: %w", err)
}

// Close implements io.Closer.
func (r *Resumer) Close() error { return errors.Join(r.questions.Close(), r.answers.Close()) }
