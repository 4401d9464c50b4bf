package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/background"
	"github.com/devvm/devvm/pkg/ports"
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
				o.Ready, o.Forked = background.Ready, forked
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
	cmd.Flags().BoolVar(&forked, "forked", false, "the VM goes on from another one's memory")
	_ = cmd.MarkFlagRequired("project-name")
	return cmd
}

// superviseConfined supervises from a sandbox, with a process outside of it that says who
// has a port.
func superviseConfined(ctx context.Context, s *project.Service, name string, o supervisor.Options) error {
	policy, err := s.SupervisorPolicy(name)
	if err != nil {
		return err
	}
	owner, err := startOwner(s.Exe, name)
	if err != nil {
		return fmt.Errorf("start the process that says who has a port: %w", err)
	}
	defer owner.end()
	o.Ports.Owner = owner.witness.Owner
	o.Disk.Paused, o.Disk.Proceed = owner.resumer.Paused, owner.resumer.Proceed
	o.Confine = func() error { return project.Confine(policy, sandbox.Calls{Exec: true}, o.Log) }
	return supervisor.Run(ctx, o)
}

// owner is a process `devvm owner`.
type owner struct {
	witness *ports.Witness
	resumer *project.Resumer
	wait    func() error
}

// end ends the process, by the end of its pipes.
func (o owner) end() { _ = errors.Join(o.witness.Close(), o.resumer.Close(), o.wait()) }

// startOwner starts `devvm owner`, which ends with the pipes to it.
func startOwner(exe, name string) (owner, error) {
	var pipes []*os.File // the ends of both, in turn: to be read, to be written
	for range 4 {
		r, w, err := os.Pipe()
		if err != nil {
			for _, f := range pipes {
				_ = f.Close()
			}
			return owner{}, err
		}
		pipes = append(pipes, r, w)
	}
	o := owner{witness: ports.NewWitness(pipes[1], pipes[2]), resumer: project.NewResumer(pipes[5], pipes[6])}
	background.Withhold()
	cmd := exec.Command(exe, "owner", "--project-name", name) //nolint:noctx // it ends with the pipes
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.ExtraFiles = pipes[0], pipes[3], []*os.File{pipes[4], pipes[7]}
	err := cmd.Start()
	for _, theirs := range []int{0, 3, 4, 7} {
		_ = pipes[theirs].Close()
	}
	if err != nil {
		return owner{}, errors.Join(err, o.witness.Close(), o.resumer.Close())
	}
	o.wait = cmd.Wait
	return o, nil
}
