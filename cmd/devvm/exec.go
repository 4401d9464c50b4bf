package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/ui"
)

type execOptions struct {
	tty bool
	dir string
	env []string
}

func (a *app) newExecCmd() *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:   "exec [flags] -- COMMAND [ARG ...]",
		Short: "Run a command in the VM",
		Long: `Run a command in the VM as root. Standard input, output, error and the exit
code are the command's own; there is no terminal unless -t asks for one. It
starts in the directory that this one is in the VM, if it is there, else in /root.`,
		Example: "  devvm exec -- uname -a\n  tar c . | devvm exec -- tar x -C /tmp",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withProject(func(ctx context.Context, s *project.Service, p project.Project) error {
				return a.runInGuest(ctx, s, p, guest.Command{Argv: args, Dir: o.dir, Env: o.env}, o.tty)
			})(cmd, nil)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&o.tty, "tty", "t", false, "run it on a terminal")
	cmd.Flags().StringVarP(&o.dir, "workdir", "w", "", "the command's `directory` in the VM, from where it starts")
	cmd.Flags().StringArrayVarP(&o.env, "env", "e", nil, "set `NAME=VALUE` for the command")
	return cmd
}

// runInGuest runs a command in the VM with this process's streams. The
// command's exit code becomes devvm's.
func (a *app) runInGuest(ctx context.Context, s *project.Service, p project.Project, cmd guest.Command, tty bool) error {
	client, err := s.Connect(ctx, p)
	if err != nil {
		return err
	}
	defer client.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.In, a.Out, os.Stderr
	if cmd.Start = a.guestDir(s, p); cmd.Start != "" {
		if err := s.Serves(ctx, p); err != nil {
			return err
		}
	}
	if tty {
		restore, err := a.terminal(ctx, &cmd)
		if err != nil {
			return err
		}
		defer restore()
	}
	code, err := client.Run(ctx, cmd)
	if err != nil {
		return err
	}
	if code != 0 {
		return ui.Exit(code)
	}
	return nil
}

// guestDir is where the VM has the current directory, "" if it does not.
func (a *app) guestDir(s *project.Service, p project.Project) string {
	dir, err := a.projectDir()
	if err != nil {
		return ""
	}
	return s.GuestDir(p, dir)
}

// terminal gives the command a terminal like ours, and puts ours into raw mode
// until restore is called.
func (a *app) terminal(ctx context.Context, cmd *guest.Command) (restore func(), err error) {
	fd := int(os.Stdin.Fd())
	size := func() guest.Size {
		columns, rows, err := term.GetSize(fd)
		if err != nil {
			return guest.Size{Columns: 80, Rows: 24}
		}
		return guest.Size{Columns: columns, Rows: rows}
	}
	resize := make(chan guest.Size, 1)
	cmd.TTY = &guest.Terminal{Term: a.getenv("TERM"), Size: size(), Resize: resize}
	if !a.InTerminal {
		return func() {}, nil // -t without a terminal here, as with docker exec -t
	}
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, syscall.SIGWINCH)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-winch:
				select {
				case resize <- size():
				case <-ctx.Done():
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		signal.Stop(winch)
		cancel()
		<-done
		_ = term.Restore(fd, state)
	}, nil
}
