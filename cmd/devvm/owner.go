package main

import (
	"context"
	"os"
	"sync"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/sandbox"
)

// newOwnerCmd is the hidden body of the process that does for a supervisor, which is in a
// sandbox, what takes the world outside: it says who has a port, by standard input and output,
// and whether the VM is paused, by descriptors 3 and 4.
func (a *app) newOwnerCmd() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:    "owner",
		Short:  "Say who has a port, and let a paused VM go on (devvm starts this itself)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: a.withService(func(ctx context.Context, s *project.Service, _ []string) error {
			if err := sandbox.Deny(sandbox.Calls{Exec: true, Attributes: true}); err != nil {
				return err
			}
			questions, answers := os.NewFile(3, "questions"), os.NewFile(4, "answers")
			var serving sync.WaitGroup
			defer serving.Wait() // until the supervisor has closed all pipes, by its end at the latest
			serving.Go(func() { _ = s.ServeResumer(ctx, name, questions, answers) })
			return ports.ServeOwner(ctx, a.In, a.Out, s.ProjectOf)
		}),
	}
	cmd.Flags().StringVar(&name, "project-name", "", "name of the project")
	_ = cmd.MarkFlagRequired("project-name")
	return cmd
}
