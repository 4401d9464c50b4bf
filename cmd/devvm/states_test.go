package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

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
		if cmd, _, err := root.Find(row.command); err == nil && (got == 3 || got == 4) && cmd.Flags().Lookup("json") != nil {
			checkJSONCode(ts, got, row.command)
		}
		if want == 0 && slices.Contains([]string{"up", "restart", "suspend", "down", "nuke", "rm"}, row.command[0]) {
			enter()
		}
	}
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
