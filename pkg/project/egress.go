package project

import (
	"context"
	"errors"
	"fmt"

	"github.com/devvm/devvm/pkg/state"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/vm"
)

// enforce gives a network process that runs the policy of devvm.toml, unless it
// has it.
func (b *boot) enforce(ctx context.Context, net usernet.Status) error {
	now, next := net.Policy, b.cfg.Policy()
	if now == nil { // it is of a devvm that knew no other
		now = &egress.Policy{All: true, Offline: net.Offline}
	}
	if err := b.files.WritePolicy(next); err != nil {
		return err
	}
	if now.Equal(next) {
		return nil
	}
	cut, err := usernet.NewDialer(b.files.DialSocket()).SetPolicy(ctx, next)
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
func (s *Service) Egress(ctx context.Context, p state.Project) (usernet.Egress, error) {
	d, err := s.network(ctx, p)
	if err != nil {
		return usernet.Egress{}, err
	}
	e, err := d.Egress(ctx)
	return e, explainNetwork(err)
}

// FollowEgress calls use with each attempt so far and each to come, until ctx or
// the VM ends.
func (s *Service) FollowEgress(ctx context.Context, p state.Project, use func(usernet.Attempt) error) error {
	d, err := s.network(ctx, p)
	if err != nil {
		return err
	}
	return explainNetwork(d.FollowEgress(ctx, use))
}

// network is the way to the network process of a VM that runs.
func (s *Service) network(ctx context.Context, p state.Project) (*usernet.Dialer, error) {
	dom, err := s.get(ctx, p)
	if err != nil {
		return nil, err
	}
	if dom.State != vm.StateRunning {
		return nil, errNotRunning(p, dom.State)
	}
	return usernet.NewDialer(s.Dirs.Files(p.Name).DialSocket()), nil
}

func explainNetwork(err error) error {
	switch {
	case errors.Is(err, usernet.ErrNoNetwork):
		return &ui.Error{Msg: "the VM's network process is gone", Hint: "start another with: devvm up", Err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &ui.Error{Msg: "the VM's network process does not answer", Hint: "start another with: devvm up", Err: err}
	}
	return err
}
