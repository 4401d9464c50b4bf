package main

import (
	"context"

	"github.com/devvm/devvm/pkg/state"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newSuspendCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "suspend",
		Short: "Save the VM's memory and stop it; devvm up lets it go on",
		Long: `Save the memory of the project's VM on this host's disk and stop the VM. Running
containers stand still and go on, with the clock set right, at the next devvm up.
Connections into the VM end; docker.sock says so meanwhile.`,
		Args: cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			return a.withProgress(ctx, func(pr *ui.Progress) error { return s.Suspend(ctx, p, pr) })
		}),
	}
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	return cmd
}
