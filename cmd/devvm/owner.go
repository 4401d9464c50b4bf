package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/sandbox"
)

// newOwnerCmd is the hidden body of the process that tells a supervisor, which is in a
// sandbox, who has a port.
func (a *app) newOwnerCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "owner",
		Short:  "Say who has a port (devvm starts this itself)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: a.withService(func(ctx context.Context, s *project.Service, _ []string) error {
			if err := sandbox.Deny(sandbox.Calls{Exec: true, Attributes: true}); err != nil {
				return err
			}
			return ports.ServeOwner(ctx, a.In, a.Out, s.ProjectOf)
		}),
	}
}
