package main

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

func (a *app) newExposeCmd() *cobra.Command {
	var to string
	var stop bool
	var duration time.Duration
	cmd := &cobra.Command{
		Use:   "expose [PORT]",
		Short: "Open a published port to others on the network, for a time",
		Long: `Open a port that a container publishes to a range of addresses, and to no one else,
for a limited time. It closes by itself, or with --stop, down, nuke and rm. Nothing
in devvm.toml can expose a port. Without PORT, list what is exposed.`,
		Example: `  devvm expose 8080 --to 192.168.1.0/24 --for 2h
  devvm expose --stop 8080
  devvm expose --stop         # all ports`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		port, err := exposePort(args)
		if err != nil {
			return err
		}
		var prefix netip.Prefix
		switch given := cmd.Flags().Changed("to") || cmd.Flags().Changed("for"); {
		case stop && given:
			return &ui.Error{Code: ui.ExitUsage, Msg: "expose --stop takes neither --to nor --for: it ends all exposures of the port", Hint: "as in: devvm expose --stop 8080"}
		case stop:
		case port == 0 && given:
			return &ui.Error{Code: ui.ExitUsage, Msg: "expose --to and --for need a port", Hint: "name the port of this host as devvm ports shows it, as in: devvm expose 8080 --to 192.168.1.0/24"}
		case port == 0:
		default:
			if prefix, err = exposeRange(to); err != nil {
				return err
			}
			if err := (ports.Exposure{Port: port, To: prefix.Masked(), Until: time.Now().Add(duration)}).Check(time.Now()); err != nil || duration < time.Second {
				return badExposure(err, duration)
			}
		}
		return a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			switch {
			case stop:
				return a.runConceal(ctx, s, p, port)
			case port == 0:
				r, err := s.Ports(ctx, p)
				if err != nil {
					return err
				}
				return a.showExposures(r)
			}
			if prefix.Bits() == 0 {
				a.Warning("%s lets in everyone who can reach this host, on any network that it joins", prefix)
			}
			r, err := s.Expose(ctx, p, port, prefix, duration)
			if err != nil {
				return err
			}
			return a.showExposures(r)
		})(cmd, args)
	}
	cmd.Flags().StringVar(&to, "to", "", "let in this `range` of addresses, such as 192.168.1.0/24, or a single address")
	cmd.Flags().DurationVar(&duration, "for", time.Hour, "close the port after this `time`, such as 2h or 30m")
	cmd.Flags().BoolVar(&stop, "stop", false, "close the port now; without a port, close all")
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

// badExposure says what is wrong with one that nothing could be exposed by.
func badExposure(err error, duration time.Duration) error {
	if duration >= 0 && duration < time.Second {
		return &ui.Error{Code: ui.ExitUsage, Msg: fmt.Sprintf("--for %s is too short: the minimum is 1s", duration), Hint: "as in: --for 2h (to close it sooner: devvm expose --stop)"}
	}
	return &ui.Error{Code: ui.ExitUsage, Msg: err.Error(), Hint: "see: devvm expose --help"}
}

func exposePort(args []string) (uint16, error) {
	if len(args) == 0 {
		return 0, nil
	}
	port, err := strconv.ParseUint(args[0], 10, 16)
	if err != nil || port == 0 {
		return 0, &ui.Error{Code: ui.ExitUsage, Msg: fmt.Sprintf("%q is not a port", args[0]), Hint: "name the port of this host as devvm ports shows it, such as 8080"}
	}
	return uint16(port), nil
}

func exposeRange(to string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(to); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(to)
	if err != nil {
		return prefix, &ui.Error{Code: ui.ExitUsage, Msg: fmt.Sprintf("--to %q is not a range of addresses", to), Hint: "say who may come in, such as --to 192.168.1.0/24"}
	}
	return prefix, nil
}

func (a *app) runConceal(ctx context.Context, s *project.Service, p state.Project, port uint16) error {
	n, err := s.Conceal(ctx, p, port)
	if err != nil {
		return err
	}
	if a.json {
		return a.JSON(map[string]int{"ended": n})
	}
	if n == 0 {
		fmt.Fprintln(a.Err, "nothing was exposed")
	} else {
		fmt.Fprintf(a.Err, "ended: %d\n", n)
	}
	return nil
}

func (a *app) showExposures(r ports.Report) error {
	if a.json {
		return a.JSON(r.Exposures)
	}
	for _, e := range r.Exposures {
		fmt.Fprintln(a.Out, exposed(e))
	}
	return nil
}

// exposed describes an exposure in one line.
func exposed(e ports.Exposed) string {
	at := make([]string, len(e.Addresses))
	for i, a := range e.Addresses {
		at[i] = a.String()
	}
	where := strings.Join(at, ", ")
	if where == "" {
		where = "nowhere now: no container publishes it, or this host has no address there"
	}
	return fmt.Sprintf("port %d is open to %s until %s (%s)", e.Port, e.To, e.Until.Local().Format("2006-01-02 15:04 MST"), where)
}
