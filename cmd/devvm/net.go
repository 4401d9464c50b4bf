package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/background"
	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/sandbox"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/usernet"
)

// newNetCmd is the hidden body of a VM's network process.
func (a *app) newNetCmd() *cobra.Command {
	var name, qemuUser string
	cmd := &cobra.Command{
		Use:    "net",
		Short:  "Run the network of a VM (devvm starts this itself, with the policy on standard input)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dirs, err := state.NewDirs(a.environment())
			if err != nil {
				return err
			}
			var policy egress.Policy
			if err := json.NewDecoder(cmd.InOrStdin()).Decode(&policy); err != nil {
				err = fmt.Errorf("read what the VM may reach: %w", err)
				background.Failed(err)
				return err
			}
			o, err := project.NetOptions(dirs, name, policy)
			if err != nil {
				background.Failed(err)
				return err
			}
			o.Log = slog.New(slog.NewJSONHandler(background.NewLog(os.Stderr), nil))
			o.Ready = background.Ready
			o.Confine = func() error {
				return project.Confine(project.NetPolicy(dirs, name), sandbox.Calls{Exec: true, Attributes: true}, o.Log)
			}
			if qemuUser != "" {
				o.QEMU = &background.Owner{}
				if _, err := fmt.Sscanf(qemuUser, "%d:%d", &o.QEMU.UID, &o.QEMU.GID); err != nil {
					return fmt.Errorf("--qemu-user %s: %w", qemuUser, err)
				}
			}
			if err := usernet.Run(cmd.Context(), o); err != nil {
				background.Failed(err)
				return err
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "project-name", "", "name of the project")
	cmd.Flags().StringVar(&qemuUser, "qemu-user", "", "uid:gid that QEMU runs as, if not ours")
	_ = cmd.MarkFlagRequired("project-name")
	return cmd
}
