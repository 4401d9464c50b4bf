package project

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/vm"
)

// The policy that a VM's network process enforces is kept in egress.json, from where the
// process takes it when it starts. It is one that the user has agreed to, see agreed.go.

// readPolicy returns the policy that the network process has, or starts with; fs.ErrNotExist
// if there never was any. A file that cannot be understood allows nothing.
func (f paths) readPolicy() (egress.Policy, error) {
	b, err := os.ReadFile(f.egress())
	if err != nil {
		return egress.Policy{}, err
	}
	var p egress.Policy
	if json.Unmarshal(b, &p) != nil {
		p = egress.Policy{}
	}
	return p, nil
}

func (f paths) writePolicy(p egress.Policy) error {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", f.egress(), err)
	}
	return file.Replace(f.egress(), append(b, '\n'), 0o600)
}

// enforce gives a network process that runs the policy of devvm.toml, unless it
// has it.
func (b *boot) enforce(ctx context.Context, net usernet.Status) error {
	now, next := net.Policy, b.cfg.Policy()
	if now == nil { // it is of a devvm that knew no other
		now = &egress.Policy{All: true, Offline: net.Offline}
	}
	if err := b.files.writePolicy(next); err != nil {
		return err
	}
	if now.Equal(next) {
		return nil
	}
	cut, err := usernet.NewDialer(b.files.dialSocket()).SetPolicy(ctx, next)
	if err != nil {
		return &ui.Error{
			Msg:  "the running VM's network does not take the policy of " + config.FileName,
			Hint: "start the VM afresh: devvm down && devvm up",
			Err:  err,
		}
	}
	note := "the VM now reaches: " + next.String()
	if next.Offline {
		note = "the VM is offline from now on"
	}
	if cut > 0 {
		note += fmt.Sprintf(" (%d connections were cut)", cut)
	}
	b.progress.Note("%s", note)
	return nil
}

// Egress returns what the project's VM has asked for on the network since its
// network process started.
func (s *Service) Egress(ctx context.Context, p Project) (usernet.Egress, error) {
	d, err := s.network(ctx, p)
	if err != nil {
		return usernet.Egress{}, err
	}
	e, err := d.Egress(ctx)
	return e, explainNetwork(err)
}

// FollowEgress calls use with each attempt so far and each to come, until ctx or
// the VM ends.
func (s *Service) FollowEgress(ctx context.Context, p Project, use func(usernet.Attempt) error) error {
	d, err := s.network(ctx, p)
	if err != nil {
		return err
	}
	var own error // use's, which says nothing of the network
	err = d.FollowEgress(ctx, func(at usernet.Attempt) error { own = use(at); return own })
	if own != nil {
		return own
	}
	return explainNetwork(err)
}

// network is the way to the network process of a VM that runs.
func (s *Service) network(ctx context.Context, p Project) (*usernet.Dialer, error) {
	dom, err := s.get(ctx, p)
	if err != nil {
		return nil, err
	}
	if dom.State != vm.StateRunning {
		return nil, errNotRunning(p, dom.State)
	}
	return usernet.NewDialer(s.Dirs.paths(p.Name).dialSocket()), nil
}

func explainNetwork(err error) error {
	switch {
	case errors.Is(err, usernet.ErrNoNetwork), // or it ends while it is asked
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return &ui.Error{Msg: "the VM's network process is gone", Hint: "start another with: devvm up", Err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &ui.Error{Msg: "the VM's network process does not answer", Hint: "start another with: devvm up", Err: err}
	}
	return err
}
