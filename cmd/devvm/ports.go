package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newPortsCmd() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "ports",
		Short: "Show published ports and where they are open on this host",
		Long: `Show the ports that the project's running containers publish, the addresses of
this host on which they are open, and if one is not, why. Only this host can reach
them, except those marked LAN (see devvm expose). Every port is also open on the
project's own address, so two projects can both publish 5432.`,
		Example: `  devvm ports
  devvm ports --watch --json | jq .`,
		Args: cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			if watch {
				err := s.WatchPorts(ctx, p, a.showPortsAgain)
				if errors.Is(err, context.Canceled) { // Ctrl-C is how it ends
					err = nil
				}
				return err
			}
			r, err := s.Ports(ctx, p)
			if err != nil {
				return err
			}
			if a.json {
				return a.JSON(r)
			}
			return a.showPorts(r)
		}),
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "show every change until Ctrl-C")
	cmd.Flags().Bool("json", false, "print JSON; with --watch, one line per change")
	return cmd
}

// showPortsAgain shows one report of many.
func (a *app) showPortsAgain(r ports.Report) {
	if a.json {
		_ = a.JSONLine(r)
		return
	}
	if a.OutTerminal {
		fmt.Fprint(a.Out, "\x1b[H\x1b[2J")
	}
	_ = a.showPorts(r)
	if !a.OutTerminal {
		fmt.Fprintln(a.Out)
	}
}

func (a *app) showPorts(r ports.Report) error {
	fmt.Fprintf(a.Out, "own address  %s\n", r.Address)
	t := a.Table("CONTAINER", "PORT", "HOST", "STATE", "CONNS", "IN", "OUT")
	for _, p := range r.Ports {
		var host []string
		for _, b := range p.Addresses {
			switch {
			case b.State != ports.StateOpen:
			case b.Exposed:
				host = append(host, b.Address.String()+"(LAN)")
			default:
				host = append(host, b.Address.String())
			}
		}
		t.Row(p.Container, fmt.Sprintf("%d/%s", p.Port, p.Protocol), strings.Join(host, ","), p.State,
			fmt.Sprint(p.Connections), ui.Size(p.Sent), ui.Size(p.Received))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, p := range r.Ports {
		if p.Problem != "" {
			fmt.Fprintf(a.Lines(2), "%s %d/%s: %s\n", ui.Escape(p.Container), p.Port, p.Protocol, ui.Escape(p.Problem))
		}
	}
	if r.More > 0 {
		fmt.Fprintf(a.Lines(2), "%d more published ports are not open: the project may open %d on this host ([ports] most in devvm.toml)\n", r.More, r.Most)
	}
	for _, e := range r.Exposures {
		fmt.Fprintln(a.Lines(2), exposed(e))
	}
	return nil
}
