package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newPruneCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Give back the room of images and templates that no VM uses",
		Long: `Remove all templates that no project's disk, nor the undo of one, lies on, and all
such images but the newest of each name. Nothing of a project is touched, and its
nuke is as quick as before; the up of a new project takes longer, if no other has a VM
of the same shape, because it makes its template again.`,
		Args: cobra.NoArgs,
		RunE: a.withProjects(func(ctx context.Context, s *project.Service, _ []string) error {
			freed, err := s.Prune(ctx, false)
			if err != nil {
				return err
			}
			if a.json {
				return a.JSON(freed)
			}
			fmt.Fprintf(a.Out, "templates: %s given back\nimages: %s given back\n", ui.Size(freed.Templates), ui.Size(freed.Images))
			return nil
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}
