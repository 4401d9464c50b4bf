package share

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share/internal/watch"
)

// Run runs a command in the VM, as root.
type Run func(ctx context.Context, argv []string, stdin io.Reader, stdout io.Writer) error

//go:embed agent.pl
var agentScript string

// agentCommand finds the numbers of the system calls utimensat, fadvise64, statx,
// inotify_init1 and inotify_add_watch, and runs the agent.
const agentCommand = `case $(uname -m) in x86_64) n='280 221 332 294 254' ;; *) n='88 223 291 26 27' ;; esac; exec perl -e "$1" "$2" $n "$3"`

// agentUID is the agent's user in the VM. Nobody else has it. Nothing that this user asks for
// is ever carried out, whether an agent runs or not.
const agentUID = 0xdeaf0e57

// end notes that a directory is gone for good.
func (m *mirror) end(ino uint64, born unix.StatxTimestamp) {
	m.mu.Lock()
	m.ended.put(goneDir{ino, hashTime(born)}, struct{}{})
	m.mu.Unlock()
}

// take returns the next changes, at most so many. No name goes away twice in them, because the
// agent finds what is gone by its name.
func (m *mirror) take(most int) []watch.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, going := 0, map[string]bool{}
	for ; n < min(most, len(m.pending)); n++ {
		x := m.pending[n]
		if x.Op != watch.Remove && x.Op != watch.Rename {
			continue
		}
		if going[x.Path] {
			break
		}
		going[x.Path] = true
	}
	events := m.pending[:n:n]
	m.pending = m.pending[n:]
	return events
}

// Mirror tells watchers in the VM what the host changes, until ctx ends or an agent ends. That
// includes what has changed since the last agent ended. Only one Mirror may run at a time.
func (s *Server) Mirror(ctx context.Context, run Run) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, len(s.exports))
	running := 0
	for _, e := range s.exports {
		m := e.mirror()
		if m == nil {
			continue
		}
		running++
		go func() { failed <- m.repeat(ctx, run) }()
	}
	var first error
	for range running {
		if err := <-failed; err != nil && first == nil {
			first = err
		}
		cancel()
	}
	return first
}

// repeat runs an agent.
func (m *mirror) repeat(ctx context.Context, run Run) error {
	m.attended(true)
	defer m.attended(false)
	defer m.setGhosts(nil)
	defer m.ahead.attend(false)
	// The agent ends when its input does. To kill it would take longer.
	running, kill := context.WithCancel(context.WithoutCancel(ctx))
	in, toAgent := io.Pipe()
	fromAgent, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		argv := []string{"sh", "-c", agentCommand, "agent", agentScript, strconv.FormatUint(agentUID, 10), m.e.Target}
		err := run(running, argv, in, out)
		if err == nil {
			err = errors.New("it ended")
		}
		err = fmt.Errorf("the agent for %s in the VM: %w", m.e.Target, err)
		_ = in.CloseWithError(err)
		_ = out.CloseWithError(err)
		ended <- err
	}()
	defer func() {
		_ = toAgent.Close()
		_ = fromAgent.Close()
		late := time.AfterFunc(agentGrace, kill)
		<-ended
		late.Stop()
		kill()
	}()
	// An agent that neither reads nor answers must not block the end.
	defer context.AfterFunc(ctx, func() { _ = errors.Join(fromAgent.Close(), toAgent.Close()) })()
	answers := bufio.NewReader(fromAgent) // an answer must fit into the buffer
	fresh := false
	for {
		var err error
		if fresh { // after each freshen comes a batch, so that watchers are not starved
			fresh = false
		} else {
			fresh, err = m.freshen(toAgent, answers)
		}
		if fresh || err != nil {
			// go on with a batch, or return the error below
		} else if events := m.take(batchSize); len(events) > 0 {
			if err = m.send(toAgent, answers, events); err == nil {
				m.repeated()
			}
		} else if dirs := m.takeAhead(); len(dirs) > 0 {
			err = m.sendAhead(toAgent, answers, dirs)
		} else {
			select {
			case <-m.news:
				continue
			case err := <-ended:
				ended <- err
				if ctx.Err() != nil { // that is why it ended
					return nil
				}
				return err
			case <-ctx.Done():
				return nil
			}
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
	}
}

// send makes the agent repeat a batch, and waits until it is done.
func (m *mirror) send(w io.Writer, answers *bufio.Reader, events []watch.Event) error {
	m.ahead.attend(false)
	m.setGhosts(m.ghostsOf(events))
	defer m.setGhosts(nil)
	var words []string
	for _, x := range events {
		words = append(words, m.words(x)...)
	}
	return m.order(w, answers, words)
}

// sendAhead makes the agent list directories, and waits until it is done.
func (m *mirror) sendAhead(w io.Writer, answers *bufio.Reader, dirs []string) error {
	var words []string
	for _, dir := range dirs {
		words = append(words, "list", dir)
	}
	err := m.order(w, answers, words)
	m.ahead.dismiss(dirs...)
	m.ahead.attend(err == nil)
	return err
}

// order sends words to the agent, and waits until it has done what they say.
func (m *mirror) order(w io.Writer, answers *bufio.Reader, words []string) error {
	var b bytes.Buffer
	for _, word := range append(words, "sync") {
		b.WriteString(word)
		b.WriteByte(0)
	}
	if _, err := w.Write(b.Bytes()); err != nil {
		return err
	}
	answer, err := answers.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) || err == nil && string(answer) != ".\n" {
		err = fmt.Errorf("the agent for %s in the VM says what it should not", m.e.Target)
	}
	return err
}

// setGhosts sets the objects that are gone but must be found.
func (m *mirror) setGhosts(ghosts map[ghostKey]ghost) {
	m.mu.Lock()
	m.ghosts, m.attempt = ghosts, attempt{}
	m.mu.Unlock()
}

// words tell the agent about an event.
func (m *mirror) words(x watch.Event) []string {
	switch x.Op {
	case watch.Create:
		if x.Dir {
			return []string{"mkdir", x.Path}
		}
		if to, ok := m.e.linkAt(x.Path); ok {
			return []string{"symlink", x.Path, to}
		}
		return []string{"create", x.Path}
	case watch.Modify:
		if x.Dir {
			return nil
		}
		if m.wroteLately(x.Path) {
			return []string{"modify", x.Path, "follow", x.Path}
		}
		return []string{"modify", x.Path}
	case watch.Attrib:
		return []string{"attrib", x.Path}
	case watch.Remove:
		if x.Dir {
			return []string{"rmdir", x.Path}
		}
		return []string{"remove", x.Path}
	case watch.Rename:
		return []string{"rename", x.Path, x.To}
	}
	return nil
}
