package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/background"
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
				o.Ready, o.Forked = background.Ready, forked
				err = supervisor.Run(cmd.Context(), o)
			}
			if err != nil {
				background.Failed(err)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&name, "project-name", "", "name of the project")
	cmd.Flags().BoolVar(&emulated, "emulated", false, "the VM runs under software emulation")
	cmd.Flags().BoolVar(&forked, "forked", false, "the VM goes on from another one's memory")
	_ = cmd.MarkFlagRequired("project-name")
	return cmd
}
