package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// stateTable is the table of exit codes: by command, then by the state of the VM.
type stateTable struct {
	states []string
	rows   []stateRow
}

type stateRow struct {
	command []string
	codes   map[string]string // "3", or words for a code that is another program's
}

// readStates reads the table in docs/scripting.md.
func readStates() (stateTable, error) {
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", "scripting.md"))
	if err != nil {
		return stateTable{}, err
	}
	var t stateTable
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.Trim(cells[i], " ")
		}
		switch {
		case cells[0] == "command":
			t.states = cells[1:]
		case t.states == nil || strings.HasPrefix(cells[0], "-"):
		case len(cells) != len(t.states)+1:
			return t, nil
		default:
			row := stateRow{strings.Fields(strings.Trim(cells[0], "`")), map[string]string{}}
			for i, state := range t.states {
				row.codes[state] = cells[i+1]
			}
			t.rows = append(t.rows, row)
		}
	}
	return t, nil
}

// states STATE runs each command of the table on a VM in that state.
func cmdStates(ts *testscript.TestScript, _ bool, args []string) {
	table, err := readStates()
	ts.Check(err)
	state := args[0]
	if !slices.Contains(table.states, state) || len(table.rows) < 20 {
		ts.Fatalf("the table has states %q and %d rows", table.states, len(table.rows))
	}
	must := func(args ...string) { ts.Check(ts.Exec("devvm", args...)) }
	if state != "no VM" {
		must("up")
	}
	if state == engineDead { // by the settings of its next start
		must("exec", "true")
		ts.Check(os.WriteFile(ts.MkAbs("devvm.toml"), []byte("[docker.daemon]\nnonsense = true\n"), 0o600))
		must("down")
		_ = devvmCode(ts, "up", "--yes")
	}
	enter := func() { // from whatever the command before has left
		is := devvmCode(ts, "status")
		switch {
		case state == "no VM" && is != 3:
			must("rm", "--yes")
		case state == "down" && is != 4:
			must("up")
			must("down")
		case state == "suspended" && is != 4:
			must("up")
			must("suspend")
		case state == "running" && is != 0:
			must("up")
		case state == engineDead && is != 1:
			if code := devvmCode(ts, "up", "--yes"); code != 1 {
				ts.Fatalf("up of a VM whose engine does not start ends with %d", code)
			}
		}
	}
	enter()
	root := newApp(&ui.Streams{}, os.Getenv, nil).newRootCmd()
	for _, row := range table.rows {
		want, err := strconv.Atoi(row.codes[state])
		got := devvmCode(ts, row.command...)
		switch {
		case err != nil && (got < 3 || got > 6), err == nil && got == want: // another program's code
		default:
			ts.Logf("%s: devvm %s ends with %d, want %s", state, strings.Join(row.command, " "), got, row.codes[state])
			ts.Fatalf("the table of docs/scripting.md is wrong, or devvm")
		}
		if got == 3 || got == 4 {
			if cmd, _, err := root.Find(row.command); err == nil && cmd.Flags().Lookup("json") != nil {
				checkJSONCode(ts, got, row.command)
			}
			if code := onTerminal(ts, row.command); code != got {
				ts.Fatalf("devvm %q ends with %d on a terminal, else with %d", row.command, code, got)
			}
		}
		if (want == 0 || state == engineDead) && slices.Contains([]string{"up", "restart", "suspend", "down", "nuke", "rm"}, row.command[0]) {
			enter()
		}
	}
}

// engineDead is the state of a VM that runs and whose Docker Engine does not start.
const engineDead = "engine dead"

// onTerminal runs devvm on a terminal of its own, where nobody answers, and returns its exit code.
func onTerminal(ts *testscript.TestScript, args []string) int {
	control, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	ts.Check(err)
	defer control.Close()
	number, err := unix.IoctlGetInt(int(control.Fd()), unix.TIOCGPTN)
	ts.Check(err)
	ts.Check(unix.IoctlSetPointerInt(int(control.Fd()), unix.TIOCSPTLCK, 0))
	terminal, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	ts.Check(err)
	defer terminal.Close()
	program, err := exec.LookPath("devvm") // testscript's, which is first in PATH
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = ts.MkAbs(".")
	for _, name := range []string{"HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "PATH", "WORK", "TMPDIR", fakeEnv} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	cmd.Env = append(cmd.Env, "TERM=xterm")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	ts.Check(cmd.Start())
	_ = terminal.Close()
	go func() { _, _ = io.Copy(io.Discard, control) }() // ends with the command
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode()
}

// devvmCode runs devvm and returns its exit code.
func devvmCode(ts *testscript.TestScript, args ...string) int {
	err := ts.Exec("devvm", args...)
	if err == nil {
		return 0
	}
	var exit interface{ ExitCode() int }
	if !errors.As(err, &exit) {
		ts.Fatalf("devvm %q: %v", args, err)
	}
	return exit.ExitCode()
}

// checkJSONCode runs a command that is refused with --json, too: the same code, and on
// standard output, if it is an error that is said.
func checkJSONCode(ts *testscript.TestScript, code int, command []string) {
	command = append(slices.Clone(command), "--json")
	if got := devvmCode(ts, command...); got != code {
		ts.Fatalf("devvm %q ends with %d, without --json with %d", command, got, code)
	}
	var said struct {
		Type, Hint string
		Code       int
	}
	out := ts.ReadFile("stdout")
	if command[0] == "status" || command[0] == "inspect" {
		return // the state is the answer
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &said); err != nil || said.Type != "error" || said.Code != code || said.Hint == "" {
		ts.Fatalf("devvm %q says %q (%v)", command, out, err)
	}
}

// Each command is in the table, or is one that needs no VM.
func TestStatesAll(t *testing.T) {
	table, err := readStates()
	if err != nil {
		t.Fatal(err)
	}
	need := map[string]bool{}
	for _, name := range strings.Fields("ls env config df doctor audit init trust version prune completion help image template") {
		need["devvm "+name] = false
	}
	root := newApp(&ui.Streams{}, os.Getenv, func(context.Context, vm.Options, *slog.Logger) (vm.Hypervisor, error) { return nil, nil }).newRootCmd()
	for _, row := range table.rows {
		cmd, _, err := root.Find(row.command)
		if err != nil {
			t.Fatal(err)
		}
		need[cmd.CommandPath()] = true
	}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if _, ok := need[cmd.CommandPath()]; ok || cmd.Hidden {
			return
		}
		if !cmd.HasSubCommands() {
			t.Errorf("%s is not in the table of docs/scripting.md", cmd.CommandPath())
		}
		for _, below := range cmd.Commands() {
			walk(below)
		}
	}
	walk(root)
}
