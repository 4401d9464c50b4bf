package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/devvm/devvm/pkg/guest"
)

// flushCommand is a shell that writes the guest's caches for each line. It waits for
// them: under emulation to start one takes most of the time that a sync does.
const flushCommand = "while read -r _; do sync && echo; done"

// flushGrace is how long the shell may take to end with its input.
const flushGrace = time.Second

// flush has a shell in the guest wait for [supervisor.sync], until ctx ends or the
// shell does.
func (s *supervisor) flush(ctx context.Context, link *guest.Client) {
	running, kill := context.WithCancel(context.WithoutCancel(ctx))
	in, toShell := io.Pipe()
	fromShell, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := link.Run(running, guest.Command{Argv: []string{"sh", "-c", flushCommand}, Stdin: in, Stdout: out})
		err = errors.Join(err, errors.New("the shell that syncs has ended"))
		_ = in.CloseWithError(err)
		_ = out.CloseWithError(err)
		ended <- err
	}()
	defer func() {
		_ = toShell.Close() // it ends by that; to kill it takes longer
		_ = fromShell.Close()
		late := time.AfterFunc(flushGrace, kill)
		<-ended
		late.Stop()
		kill()
	}()
	defer context.AfterFunc(ctx, func() { _ = errors.Join(fromShell.Close(), toShell.Close()) })()
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-ended:
			ended <- err
			return
		case done := <-s.flushes:
			_, err := io.WriteString(toShell, "\n")
			if err == nil {
				_, err = io.ReadFull(fromShell, make([]byte, 1))
			}
			done <- err
			if err != nil {
				return
			}
		}
	}
}

// sync makes the guest write its caches.
func (s *supervisor) sync(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case s.flushes <- done:
		select {
		case err := <-done:
			if err == nil {
				return nil
			}
			s.Log.InfoContext(ctx, "sync", "err", err) // another try, by a command of its own
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	default: // no shell waits
	}
	s.mu.Lock()
	link := s.link
	s.mu.Unlock()
	if link == nil {
		return errors.New("the VM does not answer")
	}
	code, err := link.Run(ctx, guest.Command{Argv: []string{"sync"}})
	if err == nil && code != 0 {
		err = fmt.Errorf("sync: exit code %d", code)
	}
	return err
}
