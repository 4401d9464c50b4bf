package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/dockercontext"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newRmCmd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "rm",
		Short: "Remove the project's VM and all that devvm keeps for it",
		Long: `Remove the project's VM, its disk, the disk that nuke kept, its logs, sockets and
Docker context. This cannot be undone. The project's directory is not touched.`,
		Example: `  devvm rm
  devvm rm --project shop     # by name, if its directory is gone`,
		Args: cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			return a.runRm(ctx, s, p, yes)
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	return cmd
}

func (a *app) runRm(ctx context.Context, s *project.Service, p state.Project, yes bool) error {
	if !yes {
		loss, err := s.Loss(ctx, p)
		if err != nil {
			return err
		}
		if loss.VM || loss.Undo > 0 {
			if err := a.confirmLoss(ctx, describeLoss(p, loss, "")+"\nThere is no undo. Go ahead?"); err != nil {
				return err
			}
		}
	}
	err := a.withProgress(ctx, func(pr *ui.Progress) error { return s.Rm(ctx, p, pr) })
	if err != nil {
		return err
	}
	return dockercontext.Remove(ctx, p.Name)
}
