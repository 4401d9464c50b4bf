package project

import (
	"context"

	"github.com/devvm/devvm/pkg/state"

	"github.com/devvm/devvm/pkg/ui"
)

// MustExist is no error if the project has a VM, in whatever state.
func (s *Service) MustExist(ctx context.Context, p state.Project) error {
	_, err := s.get(ctx, p)
	return err
}

// Restart stops the project's VM and starts it again. What is wrong with its devvm.toml shows
// before it is stopped.
func (s *Service) Restart(ctx context.Context, p state.Project, pr *ui.Progress) error {
	cfg, err := s.checkConfig(p, false)
	if err == nil {
		_, _, err = s.grantedShares(p, cfg)
	}
	if err != nil {
		return err
	}
	if err := s.Down(ctx, p, false, pr); err != nil {
		return err
	}
	return s.Up(ctx, p, pr)
}
