package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/project"
)

func (a *app) newDockerCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "docker [COMMAND ...]",
		Short: "Run the VM's own Docker client, with compose and buildx",
		Long: `Run the Docker client that is in the VM, for hosts without one. Its paths are
the VM's: a build context comes through a pipe. Docker's own global flags come
after "--".`,
		Example: "  devvm docker ps\n  tar c . | devvm docker build -t app -",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withProject(func(ctx context.Context, s *project.Service, p project.Project) error {
				argv := append([]string{"docker"}, args...)
				return a.runInGuest(ctx, s, p, guest.Command{Argv: argv}, a.InTerminal && a.OutTerminal)
			})(cmd, nil)
		},
	}
	cmd.Flags().SetInterspersed(false) // flags after Docker's command are Docker's
	return cmd
}
