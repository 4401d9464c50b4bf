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

// A supervisor runs in a sandbox. From there it can reach neither libvirt nor the parts of /proc
// that say who has a port, and it can list only the directories that the VM has. Its aide, `devvm
// owner`, does that for it, and nothing else: it says who has a port, whether a directory holds only
// sockets, and whether the VM is paused because a write failed, and it resumes such a VM.

// The questions for an aide.
const (
	askOwner   = "owner"   // ports.Key → string
	askSockets = "sockets" // path of a directory → bool
	askPaused  = "paused"  // → bool
	askProceed = "proceed" // → bool
)

// patienceAide is how long the aide may take to find an answer: libvirt may hang.
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

// stuck reports whether the VM is paused because a write failed. If proceed is set, it resumes it.
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

// Aide is a supervisor's connection to its aide. It is safe for concurrent use.
type Aide struct{ *aide.Client }

// StartAide starts the aide of a project's supervisor. Close ends it.
func (s *Service) StartAide(name string) (Aide, error) {
	cmd := exec.Command(s.Exe, "owner", "--project-name", name) //nolint:noctx // it ends with the pipes
	cmd.Dir = "/"
	client, err := aide.Start(cmd)
	return Aide{client}, err
}

// Owner is ports.Owner. It returns "" if the aide does not know.
func (a Aide) Owner(ctx context.Context, k ports.Key) string {
	var who string
	_ = a.Ask(ctx, askOwner, k, &who) // then nobody knows
	return who
}

// Sockets is supervisor.HoldsSockets. It returns false if the aide does not know.
func (a Aide) Sockets(ctx context.Context, dir string) (yes bool) {
	_ = a.Ask(ctx, askSockets, dir, &yes) // then it is a directory like others
	return yes
}

// Paused reports whether the VM is paused because a write failed.
func (a Aide) Paused(ctx context.Context) (paused bool, err error) {
	err = a.Ask(ctx, askPaused, nil, &paused)
	return paused, err
}

// Proceed resumes such a VM.
func (a Aide) Proceed(ctx context.Context) error {
	return a.Ask(ctx, askProceed, nil, new(bool))
}
