package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
)

func (a *app) newInspectCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "inspect",
		Aliases: []string{"info"},
		Short:   "Show the project's VM as JSON, like devvm status --json",
		Example: "  devvm inspect | jq -r .state",
		Args:    cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			a.json = true
			return a.runStatus(ctx, s, p)
		}),
	}
	alwaysOn(cmd, "json", "", "print JSON, as it always does")
	_ = cmd.Flags().MarkHidden("json")
	return cmd
}
