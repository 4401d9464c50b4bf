package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/project"
)

type sshOptions struct {
	config bool
	proxy  bool
}

func (a *app) newSSHCmd() *cobra.Command {
	var o sshOptions
	cmd := &cobra.Command{
		Use:        "ssh [flags] [-- COMMAND ...]",
		SuggestFor: []string{"shell", "attach"},
		Short:      "Open a shell in the VM, or print a configuration for OpenSSH",
		Long: `Open a shell in the VM, or run a command line in the VM's shell. It starts in the
directory that this one is in the VM, if it is there, else in /root.

  devvm ssh --config >>~/.ssh/config

prints a Host block, after which ssh, scp, rsync and editors reach the VM as
devvm-<name>. No port listens on this host: OpenSSH connects through devvm.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withProject(func(ctx context.Context, s *project.Service, p project.Project) error {
				return a.runSSH(ctx, s, p, o, args)
			})(cmd, nil)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVar(&o.config, "config", false, "print an OpenSSH Host block")
	cmd.Flags().BoolVar(&o.proxy, "proxy", false, "be OpenSSH's ProxyCommand: connect standard input and output to the VM's sshd")
	cmd.MarkFlagsMutuallyExclusive("config", "proxy")
	return cmd
}

func (a *app) runSSH(ctx context.Context, s *project.Service, p project.Project, o sshOptions, args []string) error {
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
	return a.runInGuest(ctx, s, p, guest.Command{Line: strings.Join(args, " ")}, a.InTerminal && a.OutTerminal)
}

// runProxy carries bytes between OpenSSH and the VM's sshd.
func (a *app) runProxy(ctx context.Context, s *project.Service, p project.Project) error {
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
