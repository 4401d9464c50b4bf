package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vmnet"
)

func (a *app) newEgressCmd() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "egress",
		Short: "Show what the VM asked for on the network: allowed, refused",
		Long: `Show what the VM has asked for on the network since it started: connections, and
names that it may not look up. The last column is the line below [network] in
devvm.toml that would allow what was refused, from the next devvm up on. If nothing
can allow it, the reason is there in brackets.`,
		Example: `  devvm egress
  devvm egress --follow`,
		Args: cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			if follow {
				return a.followEgress(ctx, s, p)
			}
			return a.showEgress(ctx, s, p)
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "keep printing until Ctrl-C")
	cmd.Flags().Bool("json", false, "print JSON; with --follow, one line per attempt")
	return cmd
}

func (a *app) showEgress(ctx context.Context, s *project.Service, p state.Project) error {
	e, err := s.Egress(ctx, p)
	if err != nil {
		return err
	}
	if a.json {
		return a.JSON(e)
	}
	t := a.Table("LAST", "COUNT", "WHAT", "WHERE", "RESULT", "TO ALLOW IT")
	for _, at := range e.Attempts {
		t.Row(at.Last.Local().Format(time.TimeOnly), strconv.FormatUint(at.Count, 10), at.Protocol, destination(at), result(at), allowBy(at))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if e.Forgotten > 0 {
		a.Note("%d earlier attempts are not listed: the journal keeps the latest", e.Forgotten)
	}
	return nil
}

func (a *app) followEgress(ctx context.Context, s *project.Service, p state.Project) error {
	err := s.FollowEgress(ctx, p, func(at vmnet.Attempt) error {
		if a.json {
			return a.JSONLine(at)
		}
		line := fmt.Sprintf("%s  %5d  %-4s  %-40s  %s  %s", at.Last.Local().Format(time.TimeOnly), at.Count, at.Protocol, destination(at), result(at), allowBy(at))
		_, err := fmt.Fprintln(a.Lines(4), ui.Escape(strings.TrimRight(line, " ")))
		return err
	})
	if err != nil && ctx.Err() == nil {
		return err
	}
	return nil // Ctrl-C is how --follow ends
}

// destination names where an attempt went.
func destination(at vmnet.Attempt) string {
	where := at.Name
	if where == "" {
		where = at.Address
	}
	if at.Port != 0 {
		where = net.JoinHostPort(where, strconv.Itoa(int(at.Port)))
	}
	return where
}

func result(at vmnet.Attempt) string {
	if at.Allowed {
		return "allowed"
	}
	return "refused"
}

// allowBy is what to write below [network], or why that would not help.
func allowBy(at vmnet.Attempt) string {
	switch {
	case at.Allowed:
		return ""
	case at.Allow == nil:
		return "(" + at.Reason + ")"
	case at.Allow.Key == "mode":
		return at.Allow.Line
	}
	return at.Allow.Key + " + " + at.Allow.Entry
}
