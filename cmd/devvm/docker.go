package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/project"
)

func (a *app) newDockerCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "docker [COMMAND ...]",
		Short: "Run the VM's own Docker client, with compose and buildx",
		Long: `Run the Docker client that is in the VM, for hosts without one. Its paths are
the VM's: it starts in the directory that this one is in the VM. If it is not
there, a build context comes through a pipe. Docker's own global flags come
after "--".`,
		Example: "  devvm docker ps\n  tar c . | devvm docker build -t app -",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withProject(func(ctx context.Context, s *project.Service, p project.Project) error {
				if a.guestDir(s, p) == "" && namesHere(args) {
					fmt.Fprintln(a.Err, "note: the VM does not have this directory: the client's relative paths are below /root there")
				}
				argv := append([]string{"docker"}, args...)
				err := a.runInGuest(ctx, s, p, guest.Command{Argv: argv}, a.InTerminal && a.OutTerminal)
				if err != nil && ctx.Err() == nil {
					if short := s.ShortOfRoom(ctx, p); short != "" {
						fmt.Fprintln(a.Err, "note:", short)
					}
				}
				return err
			})(cmd, nil)
		},
	}
	cmd.Flags().SetInterspersed(false) // flags after Docker's command are Docker's
	return cmd
}

// namesHere tells whether Docker's arguments look like they mean the current directory:
// relative paths, alone or before a colon, and compose's files.
func namesHere(args []string) bool {
	for i, arg := range args {
		if i == 0 && arg == "compose" {
			return true
		}
		_, value, flag := strings.Cut(arg, "=")
		if !flag {
			value = arg
		}
		if value == "." || value == ".." || strings.HasPrefix(value, "./") || strings.HasPrefix(value, "../") || strings.HasPrefix(value, ".:") {
			return true
		}
	}
	return false
}
