package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newDownCmd() *cobra.Command {
	var discard bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Shut down the project's VM; its disk stays",
		Long: `Shut down the project's VM. Its disk stays, with all containers, images and
volumes. devvm up starts it again.`,
		Example: `  devvm down
  devvm down --discard        # a suspended VM: give up its memory`,
		Args: cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			return a.withProgress(ctx, func(pr *ui.Progress) error { return s.Down(ctx, p, discard, pr) })
		}),
	}
	cmd.Flags().BoolVar(&discard, "discard", false, "give up the memory of a suspended VM; it then boots as after a power cut")
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	return cmd
}
