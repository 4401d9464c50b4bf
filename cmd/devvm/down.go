package main

import (
	"context"

	"github.com/devvm/devvm/pkg/state"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newDownCmd() *cobra.Command {
	var discard bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the project's VM cleanly; its disk stays",
		Args:  cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			return a.withProgress(ctx, func(pr *ui.Progress) error { return s.Down(ctx, p, discard, pr) })
		}),
	}
	cmd.Flags().BoolVar(&discard, "discard", false, "of a suspended VM, let its memory go: it boots next, as after a power cut")
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	return cmd
}
