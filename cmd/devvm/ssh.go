package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
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
		Long: `Open a shell in the VM, or run a command line in it. The shell starts in the
directory of the VM that is the current one here, or in /root if the VM does not
have it.

devvm ssh --config prints a Host block. With it in ~/.ssh/config, ssh, scp, rsync
and editors reach the VM as devvm-NAME. No port listens on this host: OpenSSH
connects through devvm.`,
		Example: `  devvm ssh
  devvm ssh -- 'docker ps | wc -l'
  devvm ssh --config >>~/.ssh/config`,
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
	cmd.Flags().BoolVar(&o.config, "config", false, "print a Host block for OpenSSH")
	cmd.Flags().BoolVar(&o.proxy, "proxy", false, "connect standard input and output to the VM's sshd, as the ProxyCommand of OpenSSH")
	cmd.Flags().BoolVarP(&o.noStdin, "no-stdin", "n", false, "give the command an empty standard input")
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
