package project

import (
	"context"

	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

// MustExist returns an error if the project has no VM. Its state does not matter.
func (s *Service) MustExist(ctx context.Context, p state.Project) error {
	_, err := s.get(ctx, p)
	return err
}

// Restart stops the project's VM and starts it again. If the plan is not valid, the VM keeps running.
func (s *Service) Restart(ctx context.Context, p state.Project, plan Plan, pr *ui.Progress) error {
	if err := s.checkPlan(ctx, p, plan); err != nil {
		return err
	}
	if err := s.Down(ctx, p, false, pr); err != nil {
		return err
	}
	return s.Up(ctx, p, plan, pr)
}
