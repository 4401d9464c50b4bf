package project

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"time"

	"github.com/devvm/devvm/pkg/aide"
	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/vm"
)

// A supervisor is in a sandbox, from which it reaches neither libvirt nor the parts of /proc that
// say who has a port, and lists no directory but those that the VM has. Its aide, `devvm owner`,
// looks there for it, and does nothing else: it says who has a port, whether a directory holds
// sockets alone and whether the VM is paused because a write has failed, and lets such a VM go on.

// What an aide is asked.
const (
	askOwner   = "owner"   // ports.Key → string
	askSockets = "sockets" // path of a directory → bool
	askPaused  = "paused"  // → bool
	askProceed = "proceed" // → bool
)

// patienceAide is for the aide to find an answer: libvirt may hang.
const patienceAide = 10 * time.Second

// ServeAide answers the questions of a project's supervisor until there are no more.
func (s *Service) ServeAide(ctx context.Context, name string, questions io.Reader, answers io.Writer) error {
	bounded := func(f func(context.Context, json.RawMessage) (any, error)) aide.Handler {
		return func(ctx context.Context, q json.RawMessage) (any, error) {
			ctx, cancel := context.WithTimeout(ctx, patienceAide)
			defer cancel()
			return f(ctx, q)
		}
	}
	return aide.Serve(ctx, questions, answers, map[string]aide.Handler{
		askOwner: bounded(func(ctx context.Context, q json.RawMessage) (any, error) {
			var k ports.Key
			if err := json.Unmarshal(q, &k); err != nil {
				return nil, err
			}
			return ports.Owner(ctx, k, s.ProjectOf), nil
		}),
		askSockets: bounded(func(_ context.Context, q json.RawMessage) (any, error) {
			var dir string
			if err := json.Unmarshal(q, &dir); err != nil {
				return nil, err
			}
			return supervisor.HoldsSockets(dir), nil
		}),
		askPaused:  bounded(func(ctx context.Context, _ json.RawMessage) (any, error) { return s.stuck(ctx, name, false) }),
		askProceed: bounded(func(ctx context.Context, _ json.RawMessage) (any, error) { return s.stuck(ctx, name, true) }),
	})
}

// stuck tells whether the VM is paused by a write that failed, and lets it go on.
func (s *Service) stuck(ctx context.Context, name string, proceed bool) (bool, error) {
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

// Aide is what a supervisor has of its aide. It is safe for concurrent use.
type Aide struct{ *aide.Client }

// StartAide starts the aide of a project's supervisor. Close ends it.
func (s *Service) StartAide(name string) (Aide, error) {
	cmd := exec.Command(s.Exe, "owner", "--project-name", name) //nolint:noctx // it ends with the pipes
	cmd.Dir = "/"
	client, err := aide.Start(cmd)
	return Aide{client}, err
}

// Owner is ports.Owner; "" if the aide does not know.
func (a Aide) Owner(ctx context.Context, k ports.Key) string {
	var who string
	_ = a.Ask(ctx, askOwner, k, &who) // then nobody knows
	return who
}

// Sockets is supervisor.HoldsSockets; false if the aide does not know.
func (a Aide) Sockets(ctx context.Context, dir string) (yes bool) {
	_ = a.Ask(ctx, askSockets, dir, &yes) // then it is a directory like others
	return yes
}

// Paused tells whether the VM is paused because of a write that failed.
func (a Aide) Paused(ctx context.Context) (paused bool, err error) {
	err = a.Ask(ctx, askPaused, nil, &paused)
	return paused, err
}

// Proceed lets a VM go on that is.
func (a Aide) Proceed(ctx context.Context) error {
	return a.Ask(ctx, askProceed, nil, new(bool))
}
