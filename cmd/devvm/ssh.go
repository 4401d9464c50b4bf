package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/devvm/devvm/pkg/state"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/ui"
)

type sshOptions struct {
	config  bool
	proxy   bool
	noStdin bool
}

func (a *app) newSSHCmd() *cobra.Command {
	var o sshOptions
	cmd := &cobra.Command{
		Use:   "ssh [flags] [-- COMMAND ...]",
		Short: "Open a shell in the VM, or print a configuration for OpenSSH",
		Long: `Open a shell in the VM, or run a command line in the VM's shell. It starts in the
directory that this one is in the VM, if it is there, else in /root.

  devvm ssh --config >>~/.ssh/config

prints a Host block, after which ssh, scp, rsync and editors reach the VM as
devvm-<name>. No port listens on this host: OpenSSH connects through devvm.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (o.config || o.proxy) && len(args) > 0 {
				return &ui.Error{Code: ui.ExitUsage, Msg: fmt.Sprintf("ssh --config and --proxy run no command, but got %q", args[0]), Hint: "see: devvm ssh --help"}
			}
			return a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
				return a.runSSH(ctx, s, p, o, args)
			})(cmd, nil)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVar(&o.config, "config", false, "print an OpenSSH Host block")
	cmd.Flags().BoolVar(&o.proxy, "proxy", false, "be OpenSSH's ProxyCommand: connect standard input and output to the VM's sshd")
	cmd.Flags().BoolVarP(&o.noStdin, "no-stdin", "n", false, "leave standard input alone: the command gets an empty one")
	cmd.MarkFlagsMutuallyExclusive("config", "proxy", "no-stdin")
	return cmd
}

func (a *app) runSSH(ctx context.Context, s *project.Service, p state.Project, o sshOptions, args []string) error {
	switch {
	case o.config:
		keys, err := s.Keys(p)
		if err != nil {
			return err
		}
		return guest.SSHConfig(a.Out, guest.SSHHost{
			Name:  "devvm-" + p.Name,
			Keys:  keys,
			Proxy: []string{s.Exe, "--project", p.Name, "ssh", "--proxy"},
		})
	case o.proxy:
		return a.runProxy(ctx, s, p)
	}
	command := guest.Command{Line: strings.Join(args, " "), Stdin: a.In}
	if o.noStdin {
		command.Stdin = nil
	}
	return a.runInGuest(ctx, s, p, command, a.InTerminal && a.OutTerminal && !o.noStdin)
}

// runProxy carries bytes between OpenSSH and the VM's sshd.
func (a *app) runProxy(ctx context.Context, s *project.Service, p state.Project) error {
	conn, err := s.DialSSH(ctx, p)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() {
		_, _ = io.Copy(conn, a.In)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	if _, err = io.Copy(a.Out, conn); errors.Is(err, os.ErrClosed) || ctx.Err() != nil {
		return nil
	}
	return err
}
