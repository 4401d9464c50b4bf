package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newSuspendCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "suspend",
		Short: "Save the VM's memory and stop it; devvm up resumes it",
		Long: `Save the memory of the project's VM on this host's disk and stop the VM. The next
devvm up resumes it: its containers continue where they were, and its clock is set.
Connections into the VM end. Until then, docker.sock tells clients that the VM is
suspended.`,
		Example: "  devvm suspend",
		Args:    cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			return a.withProgress(ctx, func(pr *ui.Progress) error { return s.Suspend(ctx, p, pr) })
		}),
	}
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	return cmd
}
