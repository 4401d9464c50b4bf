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
		Short: "Show what takes room on this host's disk",
		Long: `Show what devvm keeps on this host's disk, by the blocks that the files really
take. A VM's disk holds only what differs from the template and image that it lies
on; those are counted once, and USERS says how many disks lie on them. The memory of
a suspended VM, in libvirt's own directory, is counted with its project.`,
		Args: cobra.NoArgs,
		RunE: a.withProjects(func(ctx context.Context, s *project.Service, _ []string) error {
			all, err := s.Ledger(ctx)
			if err != nil {
				return err
			}
			if a.json {
				return a.JSON(all)
			}
			var total int64
			t := a.Table("KIND", "NAME", "USED", "USERS", "NOTE", "DIRECTORY")
			for _, e := range all {
				users := ""
				if e.Users > 0 {
					users = fmt.Sprint(e.Users)
				}
				note := ""
				if e.Snapshots > 0 {
					note = fmt.Sprintf("%d snapshot(s)", e.Snapshots)
				}
				if e.Saved {
					note = strings.TrimPrefix(note+", suspended", ", ")
				}
				t.Row(e.Kind, e.Name, ui.Size(e.Used), users, note, e.Dir)
				total += e.Used
			}
			t.Row("total", "", ui.Size(total), "", "", "")
			return t.Flush()
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}
