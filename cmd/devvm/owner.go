package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/sandbox"
)

// newOwnerCmd is the hidden body of a supervisor's aide, which does for it what takes the world
// outside of its sandbox.
func (a *app) newOwnerCmd() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:    "owner",
		Short:  "Find who holds a port, and resume a paused VM (devvm starts this itself)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: a.withService(func(ctx context.Context, s *project.Service, _ []string) error {
			if err := sandbox.Deny(sandbox.Calls{Exec: true, Attributes: true}); err != nil {
				return err
			}
			return s.ServeAide(ctx, name, a.In, a.Out)
		}),
	}
	cmd.Flags().StringVar(&name, "project-name", "", "name of the project")
	_ = cmd.MarkFlagRequired("project-name")
	return cmd
}
