package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/doctor"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newDoctorCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this host, with the command that mends what is wrong",
		Long: `Check what devvm needs of this host. Each check says what was seen, what it
means and the exact command that mends it. Nothing is changed. The exit code is
5 if something keeps devvm up from working.`,
		Args: cobra.NoArgs,
		RunE: a.withService(func(ctx context.Context, s *project.Service, _ []string) error {
			return a.runDoctor(ctx, s)
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

func (a *app) runDoctor(ctx context.Context, s *project.Service) error {
	cfg, err := s.Config("") // the user's own defaults
	if err != nil {
		return err
	}
	findings := doctor.Run(ctx, doctor.Checks(doctor.System(), doctor.Options{
		Version:   version(),
		Program:   s.Exe,
		Libvirt:   s.Host,
		URI:       cfg.URI,
		Accel:     s.Accelerators.Choose,
		HaveImage: s.HaveImage,
		Leftovers: func(ctx context.Context) ([]doctor.Leftover, error) { return leftovers(ctx, s) },
		Data:      s.Dirs.Data,
		Runtime:   s.Dirs.Runtime,
		Work:      s.Images.Work(),
		Memory:    cfg.Memory,
		Socket:    s.Dirs.LongestSocket(),
		Unsafe:    s.Dirs.SecureAll(),
		Shared:    a.sharedHere(ctx, s),

		EngineProxies: a.engineProxies(ctx, s, cfg),
		ConfigFile:    filepath.Join(s.Dirs.Config, "config.toml"),
	}))
	if a.json {
		if err := a.JSON(findings); err != nil {
			return err
		}
	} else {
		a.showFindings(findings)
		a.showInstall(doctor.InstallPlan(ctx, doctor.System()))
	}
	if doctor.Blocks(findings) {
		return ui.Exit(ui.ExitHost)
	}
	return nil
}

// sharedHere are the directories that the VM of the project here has; none if there is no
// project, which is no matter for doctor.
func (a *app) sharedHere(ctx context.Context, s *project.Service) []string {
	p, err := a.find(ctx, s)
	if err != nil {
		return nil
	}
	return s.SharedDirs(p)
}

// engineProxies are the proxies of the engine of the project here, or of a new one by the
// user's own configuration.
func (a *app) engineProxies(ctx context.Context, s *project.Service, own config.Config) []string {
	cfg := own
	if p, err := a.find(ctx, s); err == nil {
		if here, err := s.Config(p.Dir); err == nil {
			cfg = here
		}
	}
	proxies, _ := cfg.Daemon["proxies"].(map[string]any)
	var out []string
	for key, value := range proxies {
		if value != "" {
			out = append(out, key)
		}
	}
	return out
}

// leftovers turns projects whose directory is gone into what doctor shows.
func leftovers(ctx context.Context, s *project.Service) ([]doctor.Leftover, error) {
	list, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	var out []doctor.Leftover
	for _, st := range list {
		if st.DirGone {
			out = append(out, doctor.Leftover{
				What: fmt.Sprintf("the VM of %s, whose directory is gone (%s)", st.Dir, ui.Size(st.DiskUsed+st.UndoUsed)),
				Fix:  "devvm --project " + st.Project + " rm",
			})
		}
	}
	return out, nil
}

// showInstall prints the one command that installs all that is missing.
func (a *app) showInstall(plan doctor.Plan) {
	if len(plan.Command) == 0 {
		return
	}
	command := strings.Join(plan.Command, " ")
	if len(plan.Update) > 0 {
		command = strings.Join(plan.Update, " ") + " && " + command
	}
	fmt.Fprintf(a.Out, "\nTo install all that is missing:\n  %s\n", command)
}

// showFindings prints a line for each check, and more where something is wrong.
func (a *app) showFindings(findings []doctor.Finding) {
	for _, f := range findings {
		fmt.Fprintf(a.Lines(25), "%-5s %-18s %s\n", f.Status, f.Name, ui.Escape(f.What))
		if f.Status == doctor.OK {
			continue
		}
		if f.Meaning != "" {
			fmt.Fprintf(a.Lines(25), "      %-18s %s\n", "", ui.Escape(f.Meaning))
		}
		for line := range strings.Lines(f.Fix) {
			fmt.Fprintf(a.Out, "      %-18s   %s\n", "", ui.Escape(strings.TrimSpace(line)))
		}
	}
}
