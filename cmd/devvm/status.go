package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

func (a *app) newStatusCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the project's VM and whether its engine answers",
		Long: `Show the state of the project's VM. If it runs, ask Docker Engine through
docker.sock, as any client would. The exit code is 0 if the engine answers, 1 if it
does not or provisioning has not finished, 3 if there is no VM, 4 if it does not
run.`,
		Example: `  devvm status
  until devvm status >/dev/null; do sleep 1; done`,
		Args: cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p state.Project) error {
			return a.runStatus(ctx, s, p)
		}),
	}
	cmd.Flags().Bool("json", false, "print JSON")
	return cmd
}

// runStatus prints the state. The exit code tells it, too: 0 the engine
// answers, 1 the VM runs and it does not, or is not provisioned, 3 and 4 as everywhere.
func (a *app) runStatus(ctx context.Context, s *project.Service, p state.Project) error {
	st, err := s.Status(ctx, p)
	if err != nil {
		return err
	}
	if a.json {
		if err := a.JSON(st); err != nil {
			return err
		}
	} else {
		showStatus(a.Lines(10), st)
	}
	switch {
	case st.State == project.StateAbsent:
		return ui.Exit(ui.ExitNoVM)
	case st.State != vm.StateRunning:
		return ui.Exit(ui.ExitNotRunning)
	case !st.Healthy || st.Unprovisioned:
		return ui.Exit(ui.ExitError)
	}
	return nil
}

func showStatus(w io.Writer, st project.Status) {
	line := func(label, format string, args ...any) {
		fmt.Fprintf(w, "%-9s %s\n", label, ui.Escape(fmt.Sprintf(format, args...)))
	}
	line("project", "%s", st.Project)
	gone := ""
	if st.DirGone {
		gone = "  (this directory is gone; if it moved, run devvm move there)"
	}
	line("dir", "%s%s", st.Dir, gone)
	state := st.State.String()
	if st.Reason != "" {
		state += " (" + st.Reason + ")"
	}
	if st.Slow {
		state += ", slow"
	}
	line("vm", "%s", state)
	if st.State == vm.StateRunning {
		if st.Healthy {
			line("engine", "Docker %s answers on docker.sock (%.0f ms)", st.Engine, st.Latency)
		} else {
			line("engine", "does NOT answer: %s", st.Problem)
		}
	}
	if st.Supervisor != nil && !st.Supervisor.Rebooted.IsZero() {
		line("rebooted", "%s, by a crash or a command in it (devvm logs --console)", st.Supervisor.Rebooted.Local().Format(time.DateTime))
	}
	if sup := st.Supervisor; sup != nil && time.Since(sup.ShortAt) < time.Hour {
		line("no room", "a pull, build or load failed at %s because the VM's disk was full: %s", sup.ShortAt.Local().Format(time.TimeOnly), machine.AdviceFull)
	}
	if st.Supervisor != nil && st.Supervisor.Alone {
		line("note", "a process of devvm's has ended (devvm owner): if the host's disk gets full, the VM does not resume by itself; devvm up starts it again")
	}
	if (st.State != vm.StateRunning || st.Healthy) && st.Problem != "" {
		line("problem", "%s", st.Problem)
	}
	if st.CPUs > 0 {
		accel := ""
		if st.Accel == vm.AccelTCG {
			accel = ", software emulation"
		}
		line("size", "%d CPUs, %s memory%s", st.CPUs, ui.Size(st.Memory), accel)
	}
	if sup := st.Supervisor; sup != nil && sup.Room != nil {
		r := sup.Room
		line("memory", "%s free of %s in the VM", ui.Size(r.MemoryFree), ui.Size(r.Memory))
		files := ""
		if r.Inodes > 0 {
			files = fmt.Sprintf(", room for %d more files", r.InodesFree)
		}
		line("vm disk", "%s free of %s%s", ui.Size(r.DiskFree), ui.Size(r.Disk), files)
	}
	line("disk", "%s used on this host%s", ui.Size(st.Used()), usedBy(st))
	if st.UndoUsed > 0 {
		line("undo", "%s kept for devvm nuke --undo", ui.Size(st.UndoUsed))
	}
	if st.Supervisor != nil {
		for _, f := range st.Supervisor.Files {
			mode := "read-only, "
			if f.Writable {
				mode = ""
			}
			line("files", "%s (%sby %s: %s)", f.Path, mode, strings.ToUpper(f.Transport), f.Why)
			if f.Unwatched {
				line("", "it has too many directories, and some are NOT watched: programs in the VM do not notice changes there (sysctl fs.inotify.max_user_watches)")
			}
		}
	}
	if st.Network != nil && st.Network.Policy != nil {
		line("egress", "%s", st.Network.Policy)
	}
	if st.Network != nil && st.Network.PingsRefused() > 0 {
		line("pings", "the VM's pings do not get out: this host does not let your group send any; to change that: sudo sysctl net.ipv4.ping_group_range='0 2147483647', then devvm down; devvm up")
	}
	for _, c := range st.Clashes {
		line("hidden", "%s; %s", c, machine.AdviceFor(c))
	}
	if st.Socket != "" {
		line("socket", "%s", st.Socket)
	}
	if sup := st.Supervisor; sup != nil {
		switch {
		case sup.PortsProblem != "":
			line("ports", "%d open; what is published now is NOT known: %s", sup.Ports, sup.PortsProblem)
		case sup.PortsNotOpen > 0:
			line("ports", "%d published, %d of them NOT open as published: devvm ports says why", max(sup.PortsPublished, sup.PortsNotOpen), sup.PortsNotOpen)
		case sup.Ports > 0:
			line("ports", "%d published (devvm ports)", sup.Ports)
		}
		for _, e := range sup.Exposures {
			line("exposed", "%s", exposed(e))
		}
	}
	if st.Next != "" {
		line("next", "%s", st.Next)
	}
}

// usedBy says what takes a project's room, if it is more than its disk.
func usedBy(st project.Status) string {
	var more []string
	if st.SavedUsed > 0 {
		more = append(more, ui.Size(st.SavedUsed)+" of that its saved memory")
	}
	if st.UndoUsed > 0 {
		more = append(more, ui.Size(st.UndoUsed)+" the undo")
	}
	if len(more) == 0 {
		return ""
	}
	return " (" + strings.Join(more, ", ") + ")"
}
