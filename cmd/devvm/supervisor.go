package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/background"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/sandbox"
	"github.com/devvm/devvm/pkg/supervisor"
)

// newSupervisorCmd is the hidden body of a project's supervisor.
func (a *app) newSupervisorCmd() *cobra.Command {
	var name string
	var emulated, forked bool
	cmd := &cobra.Command{
		Use:    "supervisor",
		Short:  "Serve a project's docker.sock (devvm starts this itself)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			supervisor.LimitMemory()
			s, err := a.service()
			if err != nil {
				return err
			}
			o, err := s.SupervisorOptions(name, emulated)
			if err == nil {
				o.Log = slog.New(slog.NewJSONHandler(background.NewLog(os.Stderr), nil))
				o.Ready, o.Forked, o.WaitReady = background.Ready, forked, a.ready
				err = superviseConfined(cmd.Context(), s, name, o)
			}
			if err != nil {
				background.Failed(err)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&name, "project-name", "", "name of the project")
	cmd.Flags().BoolVar(&emulated, "emulated", false, "the VM runs under software emulation")
	cmd.Flags().BoolVar(&forked, "forked", false, "the VM was forked from another one's memory")
	_ = cmd.MarkFlagRequired("project-name")
	return cmd
}

// superviseConfined supervises from a sandbox, with an aide outside of it.
func superviseConfined(ctx context.Context, s *project.Service, name string, o supervisor.Options) error {
	policy, err := s.SupervisorPolicy(name)
	if err != nil {
		return err
	}
	background.Withhold()
	aide, err := s.StartAide(name)
	if err != nil {
		return fmt.Errorf("start the process that looks outside of the sandbox: %w", err)
	}
	defer aide.Close()
	o.Ports.Owner, o.Alone = aide.Owner, aide.Ended()
	o.Disk.Paused, o.Disk.Proceed = aide.Paused, aide.Proceed
	o.Guard.Sockets = aide.Sockets
	o.Confine = func() error { return project.Confine(policy, sandbox.Calls{Exec: true}, o.Log) }
	return supervisor.Run(ctx, o)
}
