package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newPruneCmd() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Give back the room of images and templates that no VM uses",
		Long: `Remove all templates that no project's disk, nor the undo of one, lies on, and all
such images but the newest of each name. Nothing of a project is touched, and its
nuke is as quick as before; the up of a new project takes longer, if no other has a VM
of the same shape, because it makes its template again.`,
		Args: cobra.NoArgs,
		RunE: a.withProjects(func(ctx context.Context, s *project.Service, _ []string) error {
			freed, err := s.Prune(ctx, project.PruneOptions{DryRun: dryRun})
			if err != nil {
				return err
			}
			if a.json {
				return a.JSON(freed)
			}
			_, err = fmt.Fprintf(a.Out, "templates: %s\nimages: %s\n", givenBack(freed.Templates, dryRun), givenBack(freed.Images, dryRun))
			return err
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say how much it would be, and remove nothing")
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

// givenBack says how much room is free now, or would be.
func givenBack(bytes int64, dryRun bool) string {
	if dryRun {
		return ui.Size(bytes) + " would be given back"
	}
	return ui.Size(bytes) + " given back"
}
