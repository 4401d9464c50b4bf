package main

import (
	"context"

	"github.com/devvm/devvm/pkg/state"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newRestartCmd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "restart",
		Short: "Stop the project's VM cleanly and start it again",
		Long: `Stop the project's VM cleanly and start it again, as devvm down and devvm up do.
Settings that apply at a start are then in force. A VM that is off is started.`,
		Args: cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			return a.runRestart(ctx, s, p, yes)
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask when devvm.toml asks for more than you agreed to")
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	return cmd
}

func (a *app) runRestart(ctx context.Context, s *project.Service, p state.Project, yes bool) error {
	if err := s.MustExist(ctx, p); err != nil {
		return err
	}
	if err := a.agree(ctx, s, p, yes); err != nil { // before the VM is stopped
		return err
	}
	err := a.withProgress(ctx, func(pr *ui.Progress) error { return s.Restart(ctx, p, pr) })
	if err != nil {
		return err
	}
	return a.showUp(s, p, upOptions{})
}
