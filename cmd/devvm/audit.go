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
		Short: "Check that this host is unchanged and only you reach devvm",
		Long: `Compare this host with what it was before devvm's first VM of this boot: firewall
rules of both backends, links, addresses, routes, rules, sysctls. List every socket
that devvm listens on, as the kernel shows it. Check the modes and owners of its
sockets, keys and directories. The exit code is 1 if a check fails.

Only root can read firewall rules. To compare them too, run audit --save as root
before VMs run, and audit --since while they do. Root's audit looks at the processes
of all users.`,
		Example: `  devvm audit
  sudo devvm audit --save before.json
  sudo devvm audit --since before.json`,
		Args: cobra.NoArgs,
		RunE: a.withService(func(ctx context.Context, s *project.Service, _ []string) error {
			if save != "" {
				return s.SaveHost(ctx, save)
			}
			return a.runAudit(ctx, s, since)
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	cmd.Flags().StringVar(&save, "save", "", "write the host's fingerprint to this `file`, and do nothing else")
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
