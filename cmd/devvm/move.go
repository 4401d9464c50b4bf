package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/dockercontext"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

func (a *app) newMoveCmd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "move [FROM]",
		Short: "Keep the VM of a directory that you renamed or moved",
		Long: `Run this in a directory that you renamed or moved. It keeps the VM that it had at
its old path, with everything in it. If devvm does not find the old path itself
(you copied the directory and removed the original), FROM names the old project or
path. A directory that still exists keeps its VM.

The VM is stopped; the next devvm up starts it with the directory at its new path.
Snapshots, and the memory of a suspended VM, are lost; devvm asks first.`,
		Example: `  mv ~/src/shop ~/src/store && cd ~/src/store && devvm move
  devvm move ~/src/shop`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
				return a.runMove(ctx, s, p, strings.Join(args, ""), yes)
			})(cmd, nil)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	return a.completes(cmd, formerWords)
}

func (a *app) runMove(ctx context.Context, s *project.Service, p state.Project, from string, yes bool) error {
	if isPath := strings.ContainsRune(from, filepath.Separator) || from == "." || from == ".."; isPath && !filepath.IsAbs(from) {
		dir, err := a.projectDir()
		if err != nil {
			return err
		}
		if from, err = filepath.Abs(filepath.Join(dir, from)); err != nil {
			return err
		}
	}
	former, found, err := s.Moves(ctx, p, from)
	if err != nil {
		return err
	}
	if !found || former.Dir == p.Dir {
		if err := s.MustExist(ctx, p); err != nil && !s.HasVM(p) {
			return err
		}
		a.Note("%s already has its VM", p.Dir)
		return a.moved(p, p)
	}
	if lost := lostByMove(former); lost != "" && !yes {
		if err := a.confirmLoss(ctx, fmt.Sprintf("The VM of %s becomes that of %s, without %s. Go ahead?", former.Dir, p.Dir, lost)); err != nil {
			return err
		}
	}
	if err := a.move(ctx, s, p, former); err != nil {
		return err
	}
	if !a.json {
		fmt.Fprintf(a.ErrLines(2), "%s now has the VM of %s; start it with: devvm up\n", p.Name, ui.Escape(former.Dir))
	}
	return a.moved(p, former.Project)
}

// moved prints the result for scripts.
func (a *app) moved(p, former state.Project) error {
	if !a.json {
		return nil
	}
	return a.JSONLine(struct {
		Type    string `json:"type"`
		Project string `json:"project"`
		Dir     string `json:"dir"`
		From    string `json:"from"`
	}{"result", p.Name, p.Dir, former.Name})
}

// move takes over a VM, and says what is not as before.
func (a *app) move(ctx context.Context, s *project.Service, p state.Project, from project.Former) error {
	if err := a.withProgress(ctx, func(pr *ui.Progress) error { return s.Move(ctx, p, from, pr) }); err != nil {
		return err
	}
	a.Note("recreate containers that bind files below %s (docker compose up --force-recreate)", from.Dir)
	a.Note("its docker.sock, its own address and its name for ssh are new: run eval \"$(devvm env)\" and devvm ssh --config again")
	return dockercontext.Move(ctx, from.Name, p.Name, s.Socket(p))
}

// lostByMove is what of a VM does not come along.
func lostByMove(from project.Former) string {
	var lost []string
	if from.State == vm.StateSaved {
		lost = append(lost, "its memory (it is suspended), as after a power cut")
	}
	if from.Snapshots > 0 {
		lost = append(lost, "its "+count(from.Snapshots, "snapshot"))
	}
	return strings.Join(lost, " and ")
}

// offerMove asks whether a directory that was renamed is to have the VM of its former path, where
// up would make a new one.
func (a *app) offerMove(ctx context.Context, s *project.Service, p state.Project) error {
	if !a.Interactive() {
		return nil
	}
	if s.HasVM(p) {
		return a.offerKeep(ctx, s, p)
	}
	former, found, err := s.Moves(ctx, p, "")
	if err != nil || !found {
		return err
	}
	without := lostByMove(former)
	if without != "" {
		without = ", without " + without
	}
	yes, err := a.Confirm(ctx, fmt.Sprintf("This directory was %s, which has a VM. Keep using that VM%s? (If not, devvm makes a new one.)", former.Dir, without))
	if err != nil || !yes {
		return err
	}
	return a.move(ctx, s, p, former)
}

// offerKeep asks whether a directory is to have the VM of another one, which was at its path.
func (a *app) offerKeep(ctx context.Context, s *project.Service, p state.Project) error {
	if !s.Replaced(p) {
		return nil
	}
	yes, err := a.Confirm(ctx, fmt.Sprintf("The VM of %s was made for another directory, which was renamed or removed. Use it for this one from now on?", p.Dir))
	if err != nil {
		return err
	}
	if !yes {
		return &ui.Error{
			Code: ui.ExitCancelled,
			Msg:  "nothing was done",
			Hint: "to keep the VM, run devvm move in the directory that was renamed; for a new VM here: devvm rm; devvm up",
		}
	}
	return s.Keep(ctx, p)
}
