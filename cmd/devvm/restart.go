package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newRestartCmd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "restart",
		Short: "Shut down the project's VM and start it again",
		Long: `Shut down the project's VM and start it again, like devvm down and devvm up.
Settings that apply at the next start take effect. A VM that is off is started.`,
		Example: "  devvm restart",
		Args:    cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			return a.runRestart(ctx, s, p, yes)
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "agree to all that devvm.toml asks for")
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	return cmd
}

func (a *app) runRestart(ctx context.Context, s *project.Service, p state.Project, yes bool) error {
	if err := s.MustExist(ctx, p); err != nil {
		return err
	}
	plan, err := a.plan(ctx, s, p, yes) // before the VM is stopped
	if err != nil {
		return err
	}
	err = a.withProgress(ctx, func(pr *ui.Progress) error { return s.Restart(ctx, p, plan, pr) })
	if err != nil {
		return err
	}
	return a.showUp(s, p, upOptions{})
}
