package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/background"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

type logsOptions struct {
	follow                                          bool
	console, engine, supervisor, network, provision bool
	tail                                            int // lines; less than 0: all
}

func (a *app) newLogsCmd() *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "Show the logs of Docker Engine, the VM's console or devvm",
		Example: `  devvm logs -f
  devvm logs --console -n 50`,
		Args: cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			if o.tail < -1 {
				return &ui.Error{Code: ui.ExitUsage, Msg: fmt.Sprintf("--tail %d is not a number of lines", o.tail), Hint: "as in: --tail 100, or -1 for all"}
			}
			return a.runLogs(ctx, s, p, o)
		}),
	}
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "keep printing until Ctrl-C")
	f.IntVarP(&o.tail, "tail", "n", -1, "print the last `lines` only; -1 prints all")
	f.BoolVar(&o.engine, "engine", false, "Docker Engine in the VM (default)")
	f.BoolVar(&o.console, "console", false, "the guest's serial console")
	f.BoolVar(&o.supervisor, "supervisor", false, "the process that serves docker.sock")
	f.BoolVar(&o.network, "network", false, "the process that runs the VM's network")
	f.BoolVar(&o.provision, "provision", false, "the last provisioning")
	cmd.MarkFlagsMutuallyExclusive("engine", "console", "supervisor", "network", "provision")
	return cmd
}

func (a *app) runLogs(ctx context.Context, s *project.Service, p state.Project, o logsOptions) error {
	logs := s.Logs(p)
	path := ""
	switch {
	case o.console:
		path = logs.Console
	case o.supervisor:
		path = logs.Supervisor
	case o.network:
		path = logs.Network
	case o.provision:
		path = logs.Provision
	}
	out, errs := ui.Foreign(a.Out, a.OutTerminal), ui.Foreign(a.Err, a.ErrTerminal)
	defer out.Close()
	defer errs.Close()
	if path != "" {
		err := background.ShowLog(ctx, path, out, o.tail, o.follow)
		if errors.Is(err, fs.ErrNotExist) {
			if none := s.MustExist(ctx, p); none != nil {
				return none
			}
			return &ui.Error{Msg: "there is no such log yet: " + path, Hint: "the VM has not run, or has written nothing yet: devvm status"}
		}
		return err
	}
	client, err := s.Look(ctx, p)
	if err != nil {
		return err
	}
	defer client.Close()
	argv := []string{"journalctl", "--no-pager", "--output=short-iso", "--unit=docker.service", "--unit=containerd.service"}
	switch {
	case o.tail >= 0:
		argv = append(argv, fmt.Sprintf("--lines=%d", o.tail))
	case o.follow:
		argv = append(argv, "--lines=100")
	}
	if o.follow {
		argv = append(argv, "--follow")
	}
	code, err := client.Run(ctx, guest.Command{Argv: argv, Stdout: out, Stderr: errs})
	if o.follow && ctx.Err() != nil {
		return nil // Ctrl-C is how that ends
	}
	if err != nil {
		return fmt.Errorf("read the engine's log: %w", err)
	}
	if code != 0 {
		return ui.Exit(code)
	}
	return nil
}
