package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/template"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newTemplateCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "template",
		Short: "Manage the saved VMs that new VMs are forked from",
		Long: `Manage templates. A template is a VM that was booted once and saved. A new VM is
forked from the template of its shape, in seconds. The shape is the image, the size,
the engine's settings and the provisioning, and the versions of QEMU, libvirt and
the kernel. devvm up makes a template when there is none.`,
		Example: `  devvm template ls
  devvm template build`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.newTemplateBuildCmd(), a.newTemplateLsCmd(), a.completes(a.newTemplateRmCmd(), templateWords), a.newTemplatePruneCmd())
	return cmd
}

func (a *app) newTemplateBuildCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "build",
		Short:   "Make the project's template before its first devvm up",
		Example: "  devvm template build",
		Args:    cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			var id string
			err := a.withProgress(ctx, func(pr *ui.Progress) (err error) {
				id, err = s.BuildTemplate(ctx, p, pr)
				return err
			})
			if err != nil {
				return err
			}
			if a.json {
				return a.JSONLine(struct {
					Type     string `json:"type"`
					Template string `json:"template"`
				}{"result", id})
			}
			fmt.Fprintln(a.Out, id)
			return nil
		}),
	}
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	return cmd
}

func (a *app) newTemplateLsCmd() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the templates",
		Example: "  devvm template ls",
		Args:    cobra.NoArgs,
		RunE: a.withProjects(func(ctx context.Context, s *project.Service, _ []string) error {
			all, err := s.Templates.List()
			if err != nil {
				return err
			}
			damaged, err := s.Templates.Damaged()
			if err != nil {
				return err
			}
			if quiet {
				for _, t := range all {
					fmt.Fprintln(a.Out, t.ID)
				}
				for _, d := range damaged {
					fmt.Fprintln(a.Out, d.ID)
				}
				return nil
			}
			used, unknown := s.TemplatesInUse(ctx)
			if unknown != nil { // each may be
				a.Note("%s", unknown.Error())
				used = map[string]bool{}
				for _, t := range all {
					used[t.ID] = true
				}
				for _, d := range damaged {
					used[d.ID] = true
				}
			}
			forkable, err := s.Forkable(ctx)
			if err != nil {
				return err
			}
			if a.json {
				type row struct {
					template.Manifest
					ID       string `json:"id"`
					Used     int64  `json:"used"`
					InUse    bool   `json:"in_use"`
					Warm     bool   `json:"warm"`
					Forkable bool   `json:"forkable"`
					Damaged  string `json:"damaged,omitempty"`
				}
				rows := []row{}
				for _, t := range all {
					rows = append(rows, row{t.Manifest, t.ID, t.Used(), used[t.ID], t.Warm(), forkable(t), ""})
				}
				for _, d := range damaged {
					rows = append(rows, row{ID: d.ID, Used: d.Used(), InUse: used[d.ID], Damaged: d.Err.Error()})
				}
				return a.JSON(rows)
			}
			table := a.Table("ID", "IMAGE", "CPUS", "MEMORY", "CREATED", "USED", "STATE")
			for _, t := range all {
				state := "ready"
				switch {
				case !t.Warm():
					state = "only its disk"
				case t.Version != template.Version:
					state = "of another devvm"
				case !forkable(t):
					state = "of another image, CPU, kernel, libvirt or QEMU"
				}
				switch {
				case unknown != nil:
					state += ", perhaps in use"
				case used[t.ID]:
					state += ", in use"
				}
				table.Row(t.ID, fmt.Sprintf("%.12s", t.Image), fmt.Sprint(t.CPUs), ui.Size(t.Shape.Memory), t.Created.Local().Format("2006-01-02 15:04"), ui.Size(t.Used()), state)
			}
			for _, d := range damaged {
				state := "damaged"
				if used[d.ID] {
					state += ", in use"
				}
				table.Row(d.ID, "", "", "", "", ui.Size(d.Used()), state)
				a.Note("template %s: %s; remove it with: devvm template rm %s", d.ID, d.Err.Error(), d.ID)
			}
			return table.Flush()
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	quietly(cmd, &quiet, "IDs")
	return cmd
}

func (a *app) newTemplateRmCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rm ID",
		Short:   "Remove a template; its disk stays while disks of VMs need it",
		Example: "  devvm template rm 3f1c9a7e5b20",
		Args:    cobra.ExactArgs(1),
		RunE: a.withProjects(func(ctx context.Context, s *project.Service, args []string) error {
			t, err := s.Templates.Remove(ctx, args[0], s.TemplatesInUse)
			switch {
			case errors.Is(err, template.ErrInUse):
				a.Note("no new VM is forked from %s; its disk stays, because VMs use it", t.ID)
			case errors.Is(err, template.ErrNotFound):
				return &ui.Error{Hint: "list them with: devvm template ls", Err: err}
			case err != nil:
				return err
			}
			if !a.json {
				return nil
			}
			return a.JSON(map[string]any{"removed": t.ID, "disk_stays": err != nil})
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

func (a *app) newTemplatePruneCmd() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:     "prune",
		Short:   "Remove templates that no new VM on this host can be forked from",
		Example: "  devvm template prune --dry-run",
		Args:    cobra.NoArgs,
		RunE: a.withProjects(func(ctx context.Context, s *project.Service, _ []string) error {
			freed, err := s.Prune(ctx, project.PruneOptions{KeepWarm: true, DryRun: dryRun})
			if err != nil {
				return err
			}
			if a.json {
				return a.JSON(freed)
			}
			_, err = fmt.Fprintln(a.Out, spaceFreed(freed.Templates, dryRun))
			return err
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "remove nothing; say how much space it would free")
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}
