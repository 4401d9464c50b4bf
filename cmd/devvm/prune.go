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
		Short: "Free the disk space of images and templates that no VM uses",
		Long: `Remove every template and image that no disk needs: no project's disk, and none
that devvm nuke --undo brings back. The newest image of each name stays. Projects
are not touched, and nuke stays as fast. The next up of a new project takes longer if no
other VM has its shape, because it makes its template again.`,
		Example: `  devvm prune --dry-run
  devvm prune`,
		Args: cobra.NoArgs,
		RunE: a.withProjects(func(ctx context.Context, s *project.Service, _ []string) error {
			freed, err := s.Prune(ctx, project.PruneOptions{DryRun: dryRun})
			if err != nil {
				return err
			}
			if a.json {
				return a.JSON(freed)
			}
			_, err = fmt.Fprintf(a.Out, "templates: %s\nimages: %s\n", spaceFreed(freed.Templates, dryRun), spaceFreed(freed.Images, dryRun))
			return err
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "remove nothing; say how much space it would free")
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

// spaceFreed says how much space was freed, or would be.
func spaceFreed(bytes int64, dryRun bool) string {
	if dryRun {
		return ui.Size(bytes) + " would be freed"
	}
	return ui.Size(bytes) + " freed"
}
