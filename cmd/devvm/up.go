package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/dockercontext"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

type upOptions struct {
	context bool
	yes     bool
	cold    bool
	timeout time.Duration
}

func (a *app) newUpCmd() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the project's VM; make one if there is none",
		Long: `Start the project's VM, make one if there is none, and wait until Docker Engine
answers. Run it as often as you like: it leaves a running VM alone, and finishes
what an interrupted run left half done.`,
		Example: `  devvm up
  devvm up --context          # then: docker --context devvm-NAME ps
  devvm up --yes --json       # in a script`,
		Args: cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			if o.timeout < 0 {
				return &ui.Error{Code: ui.ExitUsage, Msg: "--timeout is below zero", Hint: "as in: devvm up --timeout 10m"}
			}
			s.Cold, s.Timeout = o.cold, o.timeout
			return a.runUp(ctx, s, p, o)
		}),
	}
	cmd.Flags().BoolVar(&o.context, "context", false, "also make a Docker context named devvm-NAME; your current context stays")
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask; agree to all that devvm.toml asks for, and to an unusual directory such as your home")
	cmd.Flags().BoolVar(&o.cold, "cold", false, "boot a new VM from its image instead of forking it from a template")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 0, "how long to wait for Docker Engine after the VM starts (default 2m, without KVM 6m)")
	cmd.Flags().Bool("json", false, "print progress as JSON lines")
	return cmd
}

func (a *app) runUp(ctx context.Context, s *project.Service, p state.Project, o upOptions) error {
	if what := s.Unusual(p); what != "" && !o.yes {
		ok, err := a.Confirm(ctx, fmt.Sprintf("This would make a VM for %s (%s). Go ahead?", what, p.Dir))
		if err != nil {
			return err
		}
		if !ok {
			return &ui.Error{Code: ui.ExitCancelled, Msg: "nothing was done", Hint: "run devvm up in a project's directory"}
		}
	}
	switch {
	case !o.yes:
		if err := a.offerMove(ctx, s, p); err != nil {
			return err
		}
	case s.Replaced(p):
		if err := s.Keep(ctx, p); err != nil {
			return err
		}
	}
	plan, err := a.plan(ctx, s, p, o.yes)
	if err != nil {
		return err
	}
	err = a.withProgress(ctx, func(pr *ui.Progress) error { return s.Up(ctx, p, plan, pr) })
	if err != nil {
		return err
	}
	if o.context {
		err := dockercontext.Create(ctx, p.Name, s.Socket(p))
		if errors.Is(err, dockercontext.ErrNoClient) {
			return &ui.Error{
				Msg:  "the VM is up, but this host has no Docker client to make a context for",
				Hint: "use the VM's own client (devvm docker …), or install one and run devvm up --context again",
			}
		}
		if err != nil {
			return err
		}
	}
	return a.showUp(s, p, o)
}

// mostAsked is how many lines of a question are shown.
const mostAsked = 200

// plan reads devvm.toml, and asks the user about what it wants that was not agreed to before.
func (a *app) plan(ctx context.Context, s *project.Service, p state.Project, yes bool) (project.Plan, error) {
	plan, err := s.Plan(p)
	if err != nil || len(plan.Beyond) == 0 {
		return plan, err
	}
	var b strings.Builder
	for _, sentence := range plan.Why {
		b.WriteString(ui.Escape(sentence) + "\n")
	}
	fmt.Fprintf(&b, "devvm.toml of %s asks for more than you agreed to:\n", ui.Escape(p.Dir))
	for _, line := range plan.Beyond[:min(mostAsked, len(plan.Beyond))] {
		b.WriteString("  " + ui.Escape(line) + "\n")
	}
	if more := len(plan.Beyond) - mostAsked; more > 0 {
		fmt.Fprintf(&b, "  … and %d more\n", more)
	}
	if yes {
		fmt.Fprintf(a.ErrLines(0), "%sagreed to, by --yes\n", b.String())
		return plan, s.Agree(ctx, p, plan)
	}
	ok, err := a.Confirm(ctx, b.String()+"Agree?")
	if err != nil {
		return plan, err
	}
	if !ok {
		return plan, &ui.Error{Code: ui.ExitCancelled, Msg: "you did not agree; nothing was done", Hint: "take it out of devvm.toml, or run devvm up again"}
	}
	return plan, s.Agree(ctx, p, plan)
}

// showUp ends a successful up by saying how to use the VM.
func (a *app) showUp(s *project.Service, p state.Project, o upOptions) error {
	if a.json {
		return a.JSONLine(struct {
			Type       string `json:"type"`
			Project    string `json:"project"`
			Dir        string `json:"dir"`
			DockerHost string `json:"docker_host"`
		}{"result", p.Name, p.Dir, "unix://" + s.Socket(p)})
	}
	use := `eval "$(devvm env)"`
	if o.context {
		use = "docker --context " + dockercontext.Name(p.Name) + " …   or   " + use
	}
	fmt.Fprintf(a.ErrLines(22), "\n%s is up. To use it:\n  %s\n  docker run …        any Docker client, unchanged (none here? devvm docker run …)\n  devvm ssh           a shell in the VM\n", ui.Escape(p.Name), use)
	return nil
}
