package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

func (a *app) newSnapshotCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Keep states of the project's VM and return to them",
		Example: `  devvm snapshot create before-upgrade
  devvm snapshot restore before-upgrade`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.newSnapshotCreateCmd(), a.newSnapshotLsCmd(), a.completes(a.newSnapshotRestoreCmd(), a.snapshotWords), a.completes(a.newSnapshotRmCmd(), a.snapshotWords))
	return cmd
}

// withSnapshot runs f for the project at hand and the snapshot that is named.
func (a *app) withSnapshot(f func(ctx context.Context, s *project.Service, p state.Project, name string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		name := ""
		if len(args) > 0 {
			name = args[0]
		}
		return a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			return f(ctx, s, p, name)
		})(cmd, args)
	}
}

func (a *app) newSnapshotCreateCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create [NAME]",
		Short: "Keep the VM's disk and, if it runs, its memory",
		Long: `Keep the disk of the project's VM and, if it runs, its memory. Both are stored in
the VM's disk. A running VM pauses meanwhile, and connections into it end. Without
NAME, the name is made from the time.

Snapshots belong to the VM. They are lost when you nuke it; nuke --undo does not
bring them back.`,
		Example: `  devvm snapshot create
  devvm snapshot create before-upgrade`,
		Args: cobra.MaximumNArgs(1),
		RunE: a.withSnapshot(func(ctx context.Context, s *project.Service, p state.Project, name string) error {
			err := a.withProgress(ctx, func(pr *ui.Progress) (err error) {
				name, err = s.CreateSnapshot(ctx, p, name, pr)
				return err
			})
			if err != nil {
				return err
			}
			if a.json {
				return a.JSONLine(struct {
					Type     string `json:"type"`
					Snapshot string `json:"snapshot"`
				}{"result", name})
			}
			fmt.Fprintln(a.Out, name)
			return nil
		}),
	}
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	return cmd
}

func (a *app) newSnapshotLsCmd() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the VM's snapshots",
		Example: "  devvm snapshot ls",
		Args:    cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			all, err := s.Snapshots(ctx, p)
			if err != nil {
				return err
			}
			if a.json {
				type row struct {
					Name    string `json:"name"`
					Created string `json:"created"`
					Memory  bool   `json:"memory"`
				}
				rows := []row{}
				for _, one := range all {
					rows = append(rows, row{one.Name, one.Created.UTC().Format("2006-01-02T15:04:05Z"), one.Memory})
				}
				return a.JSON(rows)
			}
			if quiet {
				for _, one := range all {
					fmt.Fprintln(a.Out, one.Name)
				}
				return nil
			}
			t := a.Table("NAME", "CREATED", "OF")
			for _, one := range all {
				t.Row(one.Name, one.Created.Local().Format("2006-01-02 15:04:05"), snapshotOf(one))
			}
			return t.Flush()
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	quietly(cmd, &quiet, "names")
	return cmd
}

func snapshotOf(s vm.Snapshot) string {
	if s.Memory {
		return "disk and memory"
	}
	return "disk"
}

func (a *app) newSnapshotRestoreCmd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "restore NAME",
		Short: "Return the VM to a snapshot",
		Long: `Return the VM to a snapshot. What has changed in the VM since then is lost. Other
snapshots stay.`,
		Example: "  devvm snapshot restore before-upgrade",
		Args:    cobra.ExactArgs(1),
		RunE: a.withSnapshot(func(ctx context.Context, s *project.Service, p state.Project, name string) error {
			if !yes {
				if err := s.HasSnapshot(ctx, p, name); err != nil {
					return err
				}
				loss, err := s.Loss(ctx, p)
				if err != nil {
					return err
				}
				loss.Snapshots, loss.Undo = 0, 0 // they stay
				if err := a.confirmLoss(ctx, describeLoss(p, loss, "")+"\nThe VM returns to snapshot "+name+". Go ahead?"); err != nil {
					return err
				}
			}
			return a.withProgress(ctx, func(pr *ui.Progress) error { return s.RestoreSnapshot(ctx, p, name, pr) })
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	return cmd
}

func (a *app) newSnapshotRmCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rm NAME",
		Short:   "Remove a snapshot; the VM stays as it is",
		Example: "  devvm snapshot rm before-upgrade",
		Args:    cobra.ExactArgs(1),
		RunE: a.withSnapshot(func(ctx context.Context, s *project.Service, p state.Project, name string) error {
			if err := s.DeleteSnapshot(ctx, p, name); err != nil || !a.json {
				return err
			}
			return a.JSON(map[string]string{"removed": name})
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}
