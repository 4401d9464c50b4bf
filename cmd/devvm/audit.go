package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/audit"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newAuditCmd() *cobra.Command {
	var save, since string
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Prove that the host is untouched and nobody else reaches devvm",
		Long: `Compare this host with what it was before devvm's first VM of this boot: firewall
rules of both backends, links, addresses, routes, rules, sysctls. List every listener
that belongs to devvm, as the kernel shows it, and check the modes and owners of its
sockets, keys and directories. The exit code is 1 if a promise is broken.

Only root can read firewall rules. To compare them too, as root before devvm's VMs run
and again while they do: devvm audit --save FILE, devvm audit --since FILE. Root's audit
looks at the processes of all users.`,
		Args: cobra.NoArgs,
		RunE: a.withService(func(ctx context.Context, s *project.Service, _ []string) error {
			if save != "" {
				return s.SaveHost(ctx, save)
			}
			return a.runAudit(ctx, s, since)
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	cmd.Flags().StringVar(&save, "save", "", "write the host's fingerprint to this `file`, and no more")
	cmd.Flags().StringVar(&since, "since", "", "compare with the fingerprint in this `file`")
	cmd.MarkFlagsMutuallyExclusive("save", "since")
	return cmd
}

func (a *app) runAudit(ctx context.Context, s *project.Service, since string) error {
	r, err := s.Audit(ctx, since)
	if err != nil {
		return err
	}
	if a.json {
		err = a.JSON(r)
	} else {
		err = a.showAudit(r)
	}
	if err == nil && !r.Pass {
		return ui.Exit(ui.ExitError)
	}
	return err
}

// showAudit prints the findings, the listeners and the verdict.
func (a *app) showAudit(r audit.Report) error {
	out := a.Lines(30)
	for _, f := range r.Findings {
		fmt.Fprintf(out, "%-8s %-20s %s\n", f.Status, f.Name, ui.Escape(f.What))
		if f.Meaning != "" {
			fmt.Fprintf(out, "%29s %s\n", "", ui.Escape(f.Meaning))
		}
		for _, d := range f.Details {
			fmt.Fprintf(a.Lines(34), "%29s   %s\n", "", ui.Escape(d))
		}
		for line := range strings.Lines(f.Fix) { // a command, which is copied as a whole
			fmt.Fprintf(a.Out, "%29s   %s\n", "", ui.Escape(strings.TrimSpace(line)))
		}
	}
	if len(r.Listeners) > 0 {
		fmt.Fprintln(a.Out)
		t := a.Table("PROTO", "ADDRESS", "VERDICT", "PROCESS", "PID", "PROJECT", "DIRECTORY")
		for _, l := range r.Listeners {
			proto, address, _ := strings.Cut(l.String(), " ")
			t.Row(proto, address, l.Verdict, l.Process.Kind, fmt.Sprint(l.Process.PID), l.Process.Project, l.Dir)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	verdict := "pass"
	if unread := r.Unread(); len(unread) > 0 {
		verdict += ", as far as " + r.User + " can see (not " + strings.Join(unread, ", ") + ")"
	}
	if !r.Pass {
		verdict = "FAIL"
	}
	fmt.Fprintf(a.Lines(2), "\n%s\n", verdict)
	return nil
}
