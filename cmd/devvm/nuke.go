package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

type nukeOptions struct {
	project.NukeOptions
	yes bool
}

func (a *app) newNukeCmd() *cobra.Command {
	var o nukeOptions
	cmd := &cobra.Command{
		Use:   "nuke",
		Short: "Replace the project's VM with a pristine one",
		Long: `Destroy the project's VM with everything in it, and start a pristine one. The old
disk is kept until the next nuke: devvm nuke --undo puts it back. The project's
directory on this host is not touched.`,
		Example: `  devvm nuke
  devvm nuke --undo
  devvm up --yes && devvm nuke --yes    # in a script`,
		Args: cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			return a.runNuke(ctx, s, p, o)
		}),
	}
	cmd.Flags().BoolVar(&o.NoUp, "no-up", false, "do not make a new VM")
	cmd.Flags().BoolVar(&o.Undo, "undo", false, "put back the VM that the last nuke replaced")
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	return cmd
}

func (a *app) runNuke(ctx context.Context, s *project.Service, p state.Project, o nukeOptions) error {
	if !o.yes {
		if !o.NoUp && a.Interactive() && s.Exists(p) { // else Nuke refuses what was not agreed to
			plan, err := a.plan(ctx, s, p, false)
			if err != nil {
				return err
			}
			o.Plan = &plan
		}
		var err error
		if o.Unused, err = a.confirmNuke(ctx, s, p, o.Undo); err != nil {
			return err
		}
	}
	return a.withProgress(ctx, func(pr *ui.Progress) error { return s.Nuke(ctx, p, o.NukeOptions, pr) })
}

// confirmNuke asks, if there is something to lose; unused says that there is not.
func (a *app) confirmNuke(ctx context.Context, s *project.Service, p state.Project, undo bool) (unused bool, err error) {
	loss, err := s.Loss(ctx, p)
	switch {
	case err != nil:
		return false, err
	case !loss.VM:
		return true, nil
	case undo && loss.Undo == 0: // Nuke refuses
		return false, nil
	case undo:
		earlier := loss.Undo
		loss.Undo = 0 // it is not lost
		return false, a.confirmLoss(ctx, describeLoss(p, loss, notUndone)+fmt.Sprintf("\nThis disk is kept, and the earlier VM (disk: %s) comes back. Go ahead?", ui.Size(earlier)))
	default:
		return false, a.confirmLoss(ctx, describeLoss(p, loss, notUndone)+"\nThis disk is kept until the next nuke (devvm nuke --undo puts it back). Go ahead?")
	}
}

// confirmLoss asks; that the answer is no is an error with its own exit code.
func (a *app) confirmLoss(ctx context.Context, question string) error {
	ok, err := a.Confirm(ctx, question)
	if err != nil {
		return err
	}
	if !ok {
		return &ui.Error{Code: ui.ExitCancelled, Msg: "nothing was done"}
	}
	return nil
}

// notUndone is what nuke says of snapshots.
const notUndone = ", which an undo does not bring back"

// describeLoss names what is in a VM that is about to go, and says more of its snapshots.
func describeLoss(p state.Project, loss project.Loss, snapshots string) string {
	var b strings.Builder
	if !loss.VM {
		fmt.Fprintf(&b, "The disk of %s (%s) that an earlier nuke kept (%s) is deleted for good.", p.Name, ui.Escape(p.Dir), ui.Size(loss.Undo))
		return b.String()
	}
	fmt.Fprintf(&b, "Everything in the VM of %s (%s) is lost:\n", p.Name, ui.Escape(p.Dir))
	switch {
	case loss.TooMuch:
		b.WriteString("  its containers, images and volumes (too many to list)\n")
	case !loss.Known:
		b.WriteString("  its containers, images and volumes (the engine does not answer, so they cannot be listed)\n")
	default:
		u := loss.Usage
		item := func(one string, names []string, size int64) {
			if len(names) == 0 {
				return
			}
			const most = 8
			list := strings.Join(names[:min(most, len(names))], ", ")
			if len(names) > most {
				list += fmt.Sprintf(" and %d more", len(names)-most)
			}
			about := ""
			if u.Sized {
				about = " (" + ui.Size(size) + ")"
			}
			fmt.Fprintf(&b, "  %s%s: %s\n", count(len(names), one), about, ui.Escape(list))
		}
		var names []string
		var size int64
		for _, c := range u.Containers {
			names, size = append(names, c.Name), size+c.Size
		}
		item("container", names, size)
		names, size = nil, 0
		for _, i := range u.Images {
			names, size = append(names, i.Name), size+i.Size
		}
		item("image", names, size)
		names, size = nil, 0
		for _, v := range u.Volumes {
			name := v.Name
			if u.Sized {
				name += " " + ui.Size(v.Size)
			}
			names, size = append(names, name), size+v.Size
		}
		item("volume", names, size)
		if len(u.Containers)+len(u.Images)+len(u.Volumes) == 0 {
			b.WriteString("  no containers, images or volumes\n")
		}
	}
	if loss.Snapshots > 0 {
		fmt.Fprintf(&b, "  %s%s\n", count(loss.Snapshots, "snapshot"), snapshots)
	}
	fmt.Fprintf(&b, "  disk: %s", ui.Size(loss.Disk))
	if loss.Undo > 0 {
		fmt.Fprintf(&b, "\nAn older disk (%s), kept by an earlier nuke, is deleted for good.", ui.Size(loss.Undo))
	}
	return b.String()
}

// count is a number of things in words.
func count(n int, one string) string {
	if n != 1 {
		one += "s"
	}
	return fmt.Sprintf("%d %s", n, one)
}
