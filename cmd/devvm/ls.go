package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newLsCmd() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List all projects of this user that have a VM, or the disk of one",
		Args:    cobra.NoArgs,
		RunE: a.withProjects(func(ctx context.Context, s *project.Service, _ []string) error {
			list, err := s.List(ctx)
			if err != nil {
				return err
			}
			if a.json {
				return a.JSON(list)
			}
			if quiet {
				for _, st := range list {
					fmt.Fprintln(a.Out, st.Project)
				}
				return nil
			}
			t := a.Table("NAME", "STATE", "MEMORY", "DISK", "DIRECTORY")
			for _, st := range list {
				dir, memory := st.Dir, ""
				if st.DirGone {
					dir += "  (gone; devvm move or rm)"
				}
				if st.Memory > 0 {
					memory = ui.Size(st.Memory)
				}
				state := st.State.String()
				if st.Unprovisioned {
					state += ", not provisioned"
				}
				if st.State == project.StateAbsent && st.UndoUsed > 0 {
					state += ", undo kept"
				}
				if st.Problem != "" {
					state += ", damaged"
					a.Note("%s: %s; %s", st.Project, st.Problem, st.Next)
				}
				t.Row(st.Project, state, memory, ui.Size(st.Used()), dir)
			}
			return t.Flush()
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	quietly(cmd, &quiet, "names")
	return cmd
}

// quietly gives a command that lists things the flag that prints only what they are called by.
func quietly(cmd *cobra.Command, quiet *bool, what string) {
	cmd.Flags().BoolVarP(quiet, "quiet", "q", false, "print only the "+what)
	cmd.MarkFlagsMutuallyExclusive("quiet", "json")
}
