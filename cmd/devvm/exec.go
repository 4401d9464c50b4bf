package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

type execOptions struct {
	tty     bool
	noStdin bool
	dir     string
	user    string
	env     []string
}

func (a *app) newExecCmd() *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:   "exec [flags] -- COMMAND [ARG ...]",
		Short: "Run a command in the VM",
		Long: `Run a command in the VM as root. Standard input, output, standard error and the
exit code are the command's own. Use -t for a terminal. The command starts in the
directory of the VM that is the current one here, or in /root if the VM does not
have it.

As with ssh, the command gets standard input even if it does not want it: in a loop
that reads lines, use -n. When devvm ends, even killed, the command ends too. What a
command leaves in the background when it ends by itself keeps running.`,
		Example: `  devvm exec -- uname -a
  devvm exec -it -- bash
  tar c . | devvm exec -- tar x -C /tmp
  while read -r name; do devvm exec -n -- id "$name"; done <names`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			command, err := a.execCommand(args, o)
			if err != nil {
				return err
			}
			return a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
				return a.runInGuest(ctx, s, p, command, o.tty)
			})(cmd, nil)
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	alwaysOn(cmd, "interactive", "i", "pass on standard input (always done without -n)")
	cmd.Flags().BoolVarP(&o.noStdin, "no-stdin", "n", false, "give the command an empty standard input")
	cmd.Flags().StringVarP(&o.user, "user", "u", "", "run as this `USER[:GROUP]` of the VM, by name or number (default root)")
	cmd.Flags().StringVarP(&o.dir, "workdir", "w", "", "run in this `directory` of the VM; a relative one is below where the command starts")
	cmd.Flags().StringArrayVarP(&o.env, "env", "e", nil, "set `NAME=VALUE` for the command; NAME alone passes on the value here, if it is set")
	cmd.MarkFlagsMutuallyExclusive("no-stdin", "tty")
	cmd.MarkFlagsMutuallyExclusive("no-stdin", "interactive")
	return cmd
}

// execCommand is what exec is to run.
func (a *app) execCommand(args []string, o execOptions) (guest.Command, error) {
	c := guest.Command{Argv: args, Dir: o.dir, User: o.user}
	if o.user != "" && !guest.IsUser(o.user) {
		return c, &ui.Error{Code: ui.ExitUsage, Msg: fmt.Sprintf("--user %q is not a user", o.user), Hint: "name a user of the VM, or give the number: --user USER or USER:GROUP"}
	}
	for _, entry := range o.env {
		name, _, given := strings.Cut(entry, "=")
		if !guest.IsName(name) {
			return c, &ui.Error{Code: ui.ExitUsage, Msg: fmt.Sprintf("--env %q does not begin with the name of a variable", entry), Hint: "as in: -e NAME=VALUE, or -e NAME to pass on its value here"}
		}
		if !given {
			value, set := os.LookupEnv(name)
			if !set {
				continue
			}
			entry += "=" + value
		}
		c.Env = append(c.Env, entry)
	}
	if !o.noStdin {
		c.Stdin = a.In
	}
	return c, nil
}

// runInGuest runs a command in the VM with this process's outputs. It ends with this
// process, and its exit code becomes devvm's.
func (a *app) runInGuest(ctx context.Context, s *project.Service, p state.Project, cmd guest.Command, tty bool) error {
	client, err := s.Connect(ctx, p)
	if err != nil {
		return err
	}
	defer client.Close()
	cmd.Stdout, cmd.Stderr, cmd.Tied = a.Out, os.Stderr, true
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
func (a *app) guestDir(s *project.Service, p state.Project) string {
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
