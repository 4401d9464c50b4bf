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
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// engineDead is the state of a VM that runs and whose Docker Engine does not start.
const engineDead = "engine dead"

// vmStates are the states of a VM, as in the table of docs/scripting.md.
var vmStates = []string{"no VM", "down", "suspended", "running", engineDead}

// stateCommands are the commands of that table: all that need a VM, and up.
var stateCommands = []string{
	"status", "inspect", "ports",
	"expose", "expose 8080 --to 198.51.100.7", "expose --stop",
	"egress",
	"exec -n true", "ssh -n true", "ssh --config", "ssh --proxy", "docker -n version", "cp vm:/etc/hostname -",
	"logs", "logs --console", "logs --supervisor",
	"snapshot create", "snapshot ls", "snapshot restore none --yes", "snapshot rm none",
	"nuke --undo --yes",
	"up", "restart", "suspend", "down", "nuke", "nuke --yes", "rm", "rm --yes", "move",
}

// stateCodes are the exit codes that were seen: by command and state.
type stateCodes struct {
	mu   sync.Mutex
	seen map[[2]string]string
}

// Each command ends, in each state of the VM, as the table in docs/scripting.md says. -update
// writes the table.
func TestStates(t *testing.T) {
	t.Parallel()
	codes := &stateCodes{seen: map[[2]string]string{}}
	t.Run("scripts", func(t *testing.T) { runScripts(t, "testdata/states", "", codes) })
	file := filepath.Join("..", "..", "docs", "scripting.md")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- by go test ./cmd/devvm -run TestStates -update -->\n", "<!-- end -->\n"
	before, rest, ok := strings.Cut(string(b), begin)
	was, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", file)
	}
	had := readStates(was)
	var table strings.Builder
	fmt.Fprintf(&table, "\n| command | %s |\n|---%s|\n", strings.Join(vmStates, " | "), strings.Repeat("|---", len(vmStates)))
	for _, command := range stateCommands {
		fmt.Fprintf(&table, "| `%s` |", command)
		for _, state := range vmStates {
			at := [2]string{command, state}
			code, ran := codes.seen[at]
			switch {
			case !ran: // -run chose other states, or the script of this one has failed
				code = had[at]
			case code != had[at] && !*update:
				t.Errorf("%s: devvm %s ends with %q, in docs/scripting.md it is %q", state, command, code, had[at])
			}
			table.WriteString(" " + code + " |")
		}
		table.WriteString("\n")
	}
	table.WriteString("\n")
	switch {
	case table.String() == was || t.Failed():
	case *update:
		if err := os.WriteFile(file, []byte(before+begin+table.String()+end+after), 0o600); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the table of docs/scripting.md is another one (-update writes it):\n%s", cmp.Diff(was, table.String()))
	}
}

// readStates reads the cells of the table.
func readStates(table string) map[[2]string]string {
	cells := map[[2]string]string{}
	for line := range strings.Lines(table) {
		row := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(row) != len(vmStates)+1 {
			continue
		}
		for i, state := range vmStates {
			cells[[2]string{strings.Trim(row[0], " `"), state}] = strings.TrimSpace(row[i+1])
		}
	}
	return cells
}

// states STATE [PART OF] runs each command of the table on a VM in that state: without a terminal,
// on one and with --json. With PART OF it is a part of the commands: where they wait more than they
// work, several scripts are sooner done.
func (c *stateCodes) states(ts *testscript.TestScript, _ bool, args []string) {
	state := args[0]
	if !slices.Contains(vmStates, state) {
		ts.Fatalf("there is no state %q, but %q", state, vmStates)
	}
	part, of := 1, 1
	if len(args) == 3 {
		_, err := fmt.Sscan(args[1]+" "+args[2], &part, &of)
		ts.Check(err)
	}
	must := func(args ...string) { ts.Check(ts.Exec("devvm", args...)) }
	if state != "no VM" {
		must("up")
		must("exec", "true")
	}
	if state == engineDead { // by the settings of its next start
		ts.Check(os.WriteFile(filepath.Join(ts.Getenv(fakeEnv), "ready"), []byte("300ms"), 0o600))
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
		default:
			return
		}
		if state != "no VM" && state != engineDead { // nuke and rm ask nothing of a VM that nobody has used
			must("up")
			must("exec", "true")
			switch state {
			case "down":
				must("down")
			case "suspended":
				must("suspend")
			}
		}
	}
	enter()
	root := newApp(&ui.Streams{}, os.Getenv, nil).newRootCmd()
	for i, command := range stateCommands {
		if i%of != part-1 {
			continue
		}
		words := strings.Fields(command)
		after := func() {
			if slices.Contains([]string{"up", "restart", "suspend", "down", "nuke", "rm"}, words[0]) {
				enter()
			}
			if command == "snapshot create" && state != "no VM" { // the next one may have the same name
				must("snapshot", "ls", "-q")
				for _, name := range strings.Fields(ts.ReadFile("stdout")) {
					must("snapshot", "rm", name)
				}
			}
		}
		cmd, _, err := root.Find(words)
		ts.Check(err)
		plain := devvmCode(ts, words...)
		after()
		terminal := onTerminal(ts, words)
		after()
		cell := strconv.Itoa(plain)
		if words[0] == "docker" && (plain < 3 || plain > 6) {
			cell = "Docker's"
		} else if terminal != plain {
			cell += ", on a terminal " + strconv.Itoa(terminal)
		}
		if cmd.Flags().Lookup("json") != nil {
			checkJSONCode(ts, plain, words)
			after()
		}
		c.mu.Lock()
		c.seen[[2]string{command, state}] = cell
		c.mu.Unlock()
	}
}

// onTerminal runs devvm on a terminal of its own, where what it asks is answered with no, and returns its exit code.
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
	_, err = control.WriteString("n\n\x04") // and the end of its input
	ts.Check(err)
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

// checkJSONCode runs a command with --json, too: the same code, and what is refused because of the
// VM's state says so in an error on standard output that has a hint.
func checkJSONCode(ts *testscript.TestScript, code int, command []string) {
	command = append(slices.Clone(command), "--json")
	if got := devvmCode(ts, command...); got != code {
		ts.Fatalf("devvm %q ends with %d, without --json with %d", command, got, code)
	}
	if code == 0 || command[0] == "status" || command[0] == "inspect" {
		return // the state is the answer
	}
	var said struct {
		Type, Hint string
		Code       int
	}
	out := ts.ReadFile("stdout")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &said); err != nil || said.Type != "error" || said.Code != code || said.Hint == "" {
		ts.Fatalf("devvm %q says %q (%v)", command, out, err)
	}
}

// Each command is in the table, or is one that needs no VM.
func TestStatesAll(t *testing.T) {
	need := map[string]bool{}
	for _, name := range strings.Fields("ls env config df doctor audit init trust version prune completion help image template") {
		need["devvm "+name] = false
	}
	root := newApp(&ui.Streams{}, os.Getenv, func(context.Context, vm.Options, *slog.Logger) (vm.Hypervisor, error) { return nil, nil }).newRootCmd()
	for _, command := range stateCommands {
		cmd, _, err := root.Find(strings.Fields(command))
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
