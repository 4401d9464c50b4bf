package project

import (
	"context"
	"errors"
	"io"
	"syscall"

	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vmnet"
)

// Egress returns what the project's VM has tried to reach since its network process started.
func (s *Service) Egress(ctx context.Context, p state.Project) (vmnet.Egress, error) {
	d, err := s.network(ctx, p)
	if err != nil {
		return vmnet.Egress{}, err
	}
	e, err := d.Egress(ctx)
	return e, explainNetwork(err)
}

// FollowEgress calls use with each attempt so far, then with each new one, until ctx or the VM ends.
func (s *Service) FollowEgress(ctx context.Context, p state.Project, use func(vmnet.Attempt) error) error {
	d, err := s.network(ctx, p)
	if err != nil {
		return err
	}
	var own error // use's, which says nothing of the network
	err = d.FollowEgress(ctx, func(at vmnet.Attempt) error { own = use(at); return own })
	if own != nil {
		return own
	}
	return explainNetwork(err)
}

// network returns a dialer for the network process of a running VM.
func (s *Service) network(ctx context.Context, p state.Project) (*vmnet.Dialer, error) {
	dom, err := s.get(ctx, p)
	if err != nil {
		return nil, err
	}
	if dom.State != vm.StateRunning {
		return nil, errNotRunning(p, dom.State)
	}
	return vmnet.NewDialer(s.Dirs.Files(p.Name).DialSocket()), nil
}

func explainNetwork(err error) error {
	switch {
	case errors.Is(err, vmnet.ErrNoNetwork), // or it ends while it is asked
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return &ui.Error{Msg: "the VM's network process is gone", Hint: "start another with: devvm up", Err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &ui.Error{Msg: "the VM's network process does not answer", Hint: "start another with: devvm up", Err: err}
	}
	return err
}
