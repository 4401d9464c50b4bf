package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newDfCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "df",
		Short: "Show what devvm takes on this host's disk",
		Long: `Show what devvm keeps on this host's disk, by the blocks that the files take. A
VM's disk holds only what differs from its template and image. Those are counted
once; USERS is how many disks need each. The memory of a suspended VM, in libvirt's
own directory, counts with its project. What a running VM has free on its own disk
is at most a minute old.`,
		Example: "  devvm df",
		Args:    cobra.NoArgs,
		RunE: a.withProjects(func(ctx context.Context, s *project.Service, _ []string) error {
			all, err := s.Ledger(ctx)
			if err != nil {
				return err
			}
			if a.json {
				return a.JSON(all)
			}
			var total int64
			unread := false
			t := a.Table("KIND", "NAME", "USED", "USERS", "NOTE", "DIRECTORY")
			for _, e := range all {
				users := ""
				if e.Users > 0 {
					users = fmt.Sprint(e.Users)
				}
				if e.AtLeast {
					users = fmt.Sprintf("%d or more", e.Users)
				}
				if e.Damaged != "" {
					a.Note("%s %s: %s", e.Kind, e.Name, e.Damaged)
				}
				unread = unread || e.AtLeast
				note := ""
				if e.Snapshots > 0 {
					note = fmt.Sprintf("%d snapshot(s)", e.Snapshots)
				}
				if e.Saved {
					note = strings.TrimPrefix(note+", suspended", ", ")
				}
				if e.Damaged != "" {
					note = strings.TrimPrefix(note+", damaged", ", ")
				}
				if e.Room != nil {
					note = strings.TrimPrefix(fmt.Sprintf("%s, %s free in the VM", note, ui.Size(e.Room.DiskFree)), ", ")
				}
				t.Row(e.Kind, e.Name, ui.Size(e.Used), users, note, e.Dir)
				total += e.Used
			}
			t.Row("total", "", ui.Size(total), "", "", "")
			if unread {
				a.Note("a disk that cannot be read may need any image or template; prune removes none until that disk can be read or is gone")
			}
			return t.Flush()
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}
