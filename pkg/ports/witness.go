package ports

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
)

// Who has a port stands in /proc/PID/fd of its process, where the kernel lets nobody look
// from a sandbox. A process that is started before the sandbox is entered can, and does
// nothing else.

// ServeOwner answers the questions of a [Witness] until there are no more.
func ServeOwner(ctx context.Context, questions io.Reader, answers io.Writer, project func(ctx context.Context, pid int) string) error {
	d := json.NewDecoder(questions)
	for {
		var k Key
		err := d.Decode(&k)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read question: %w", err)
		}
		asking, cancel := context.WithTimeout(ctx, lookupTime)
		who := Owner(asking, k, project)
		cancel()
		if err := json.NewEncoder(answers).Encode(who); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

// Witness asks a process that runs ServeOwner. It is safe for concurrent use.
type Witness struct {
	mu        sync.Mutex
	questions *os.File
	answers   *os.File
	read      *bufio.Reader
	broken    bool
}

// NewWitness returns a Witness that has the other ends of the process's pipes. Close ends
// the process.
func NewWitness(questions, answers *os.File) *Witness {
	return &Witness{questions: questions, answers: answers, read: bufio.NewReader(answers)}
}

// Owner is [Owner] in the other process; "" if that is gone.
func (w *Witness) Owner(ctx context.Context, k Key) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken {
		return ""
	}
	deadline, _ := ctx.Deadline() // none: as long as it takes
	var who string
	err := errors.Join(w.answers.SetReadDeadline(deadline), json.NewEncoder(w.questions).Encode(k))
	if err == nil {
		var line []byte
		if line, err = w.read.ReadBytes('\n'); err == nil {
			err = json.Unmarshal(line, &who)
		}
	}
	if err != nil {
		w.broken = true // what comes next may answer this one
		return ""
	}
	return who
}

// Close implements io.Closer.
func (w *Witness) Close() error { return errors.Join(w.questions.Close(), w.answers.Close()) }
