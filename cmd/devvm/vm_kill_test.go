//go:build vmtest

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/vm"
)

// Bounds of a round of TestVMKills: no wait is longer than the longest that has an end.
const (
	killPatience = 9 * time.Minute // for a verb: six minutes for a boot without KVM, and what goes before
	upsPerRound  = 2               // the second up converges at the latest
)

// TestVMKills is TestKills with real VMs: a process is killed, or stopped, at a random moment of a
// verb. The second up after that converges at the latest, one process of each kind is there, and
// a file in a volume is as it was. DEVVM_TEST_ROUNDS is how often a process is killed; a fifth as
// often one is stopped. DEVVM_TEST_SEED repeats a run's choices.
func TestVMKills(t *testing.T) {
	rounds, err := strconv.Atoi(os.Getenv("DEVVM_TEST_ROUNDS"))
	if err != nil || rounds == 0 {
		t.Skip("takes hours: make kills, or DEVVM_TEST_ROUNDS=10 make kills")
	}
	if all := vmProcesses("qemu-system", vm.DomainPrefix); len(all) > 0 {
		t.Fatalf("VMs run that this would kill, end them first: %s", commandLines(all))
	}
	k := newKiller(t)
	t.Cleanup(func() { t.Log(k.summary()) })
	k.ready("at the beginning")
	for round := range rounds {
		k.round(round, syscall.SIGKILL)
		if round%5 == 4 {
			k.round(round, syscall.SIGSTOP)
		}
	}
	if out, err := k.run("rm", "--yes"); err != nil {
		t.Fatalf("rm: %v\n%s", err, out)
	}
	k.until("rm", func() error {
		if left := vmProcesses(k.name); len(left) > 0 {
			return fmt.Errorf("left running: %s", commandLines(left))
		}
		return nil
	})
}

// killer is a project whose processes are killed.
type killer struct {
	*testing.T
	binary, dir, name string
	random            *rand.Rand
	seed              uint64
	token             string                   // in the volume
	took              map[string]time.Duration // by verb, when it was left alone

	killed, stopped, again, lost, orphans, endless int
	longestVerb, longestUp                         time.Duration
}

func newKiller(t *testing.T) *killer {
	t.Helper()
	binary, images := os.Getenv("DEVVM_TEST_BINARY"), os.Getenv("DEVVM_TEST_IMAGES")
	if binary == "" || images == "" {
		t.Fatal("run this by make kills")
	}
	if err := shareImages(images, filepath.Join(os.Getenv("XDG_DATA_HOME"), "devvm", "images")); err != nil {
		t.Fatal(err)
	}
	k := &killer{T: t, binary: binary, dir: filepath.Join(t.TempDir(), "app"), seed: uint64(time.Now().UnixNano()), took: map[string]time.Duration{}}
	if seed, err := strconv.ParseUint(os.Getenv("DEVVM_TEST_SEED"), 10, 64); err == nil {
		k.seed = seed
	}
	k.random = rand.New(rand.NewPCG(k.seed, 0))
	t.Logf("seed %d", k.seed)
	if err := os.Mkdir(k.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(k.dir, "devvm.toml"), []byte("cpus = 2\nmemory = \"2GiB\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := project.New(k.dir)
	if err != nil {
		t.Fatal(err)
	}
	k.name = p.Name
	t.Cleanup(func() {
		for _, pid := range vmProcesses(k.name) {
			_ = k.signal(syscall.SIGCONT, pid)
		}
		_, _ = k.run("rm", "--yes")
	})
	return k
}

func (k *killer) summary() string {
	return fmt.Sprintf("kills: seed %d: %d killed, %d stopped; %d lost, %d orphans, %d without an end; the second up was needed %d times; the longest verb took %s, the longest up %s",
		k.seed, k.killed, k.stopped, k.lost, k.orphans, k.endless, k.again, k.longestVerb.Round(time.Second), k.longestUp.Round(time.Second))
}

// killVerbs are what is interrupted. Nothing but rm may lose what is in the VM.
var killVerbs = [][]string{
	{"up"},
	{"up"},
	{"down"},
	{"down"},
	{"suspend"},
	{"suspend"},
	{"nuke", "--yes"},
	{"nuke", "--undo", "--yes"},
	{"snapshot", "create"},
	{"snapshot", "create", "kept"},
	{"snapshot", "restore", "kept", "--yes"},
	{"snapshot", "rm", "kept"},
	{"rm", "--yes"},
	{"status"},
	{"template", "build"},
}

// killVictims are who is killed: the verb itself, and what works for the VM.
var killVictims = []string{"verb", "verb", "supervisor", "net", "qemu", "libvirtd"}

// round kills or stops one process in one verb, and looks what that has done.
func (k *killer) round(n int, sig syscall.Signal) {
	k.Helper()
	verb := killVerbs[k.random.IntN(len(killVerbs))]
	victim := killVictims[k.random.IntN(len(killVictims))]
	usual, known := k.took[verb[0]]
	if !known {
		usual = 6 * time.Second
	}
	after := time.Duration(k.random.Float64() * 1.2 * float64(usual))
	what := fmt.Sprintf("round %d: %s, %s gets %s after %s", n, strings.Join(verb, " "), victim, map[syscall.Signal]string{syscall.SIGKILL: "SIGKILL", syscall.SIGSTOP: "SIGSTOP"}[sig], after.Round(time.Millisecond))

	cmd := k.devvm(verb...)
	start := time.Now()
	if err := cmd.Start(); err != nil {
		k.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-time.After(after):
	case err := <-ended: // it was quicker: what it has left is killed
		if err == nil {
			k.took[verb[0]] = time.Since(start)
		}
		ended <- err
	}
	pids := k.victims(victim, cmd.Process.Pid)
	for _, pid := range pids {
		_ = k.signal(sig, pid)
	}
	stopped := sig == syscall.SIGSTOP
	if stopped {
		k.stopped++
	} else {
		k.killed++
	}
	if stopped && victim == "verb" { // who comes after it must not wait for it
		if out, err := k.run("up"); err == nil || code(err) == 6 {
			what += fmt.Sprintf("; meanwhile up: %v", err)
		} else {
			what += fmt.Sprintf("; meanwhile up: %v: %s", err, out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:])
		}
		_ = k.signal(syscall.SIGCONT, pids...)
	}
	select {
	case err := <-ended:
		k.longestVerb = max(k.longestVerb, time.Since(start))
		what += fmt.Sprintf("; it ended after %s: %v", time.Since(start).Round(time.Millisecond), err)
	case <-time.After(killPatience):
		k.endless++
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		k.Fatalf("%s: hangs: %s", what, cmd.Stderr)
	}
	if stopped { // while it is, up ends as well
		out, err := k.run("up")
		what += fmt.Sprintf("; up meanwhile: %v", err)
		if err != nil && !strings.Contains(out, "hint: ") {
			k.Errorf("%s: no next step:\n%s", what, out)
		}
		_ = k.signal(syscall.SIGCONT, pids...)
	}
	k.ready(what)
	k.check(what, verb)
	k.Logf("%s", what)
}

// ready brings the VM up and looks at its processes.
func (k *killer) ready(what string) {
	k.Helper()
	var out string
	var err error
	for n := range upsPerRound {
		start := time.Now()
		out, err = k.run("up")
		k.longestUp = max(k.longestUp, time.Since(start))
		if err == nil {
			break
		}
		if n == 0 {
			k.again++
			k.Logf("%s: the first up: %v\n%s", what, err, out)
		}
	}
	if err != nil {
		k.Fatalf("%s: up: %v\n%s", what, err, out)
	}
	if out, err := k.run("status"); err != nil {
		k.Fatalf("%s: status: %v\n%s", what, err, out)
	}
	if !k.until(what, func() error {
		for _, kind := range []string{"devvm supervisor", "devvm net", "qemu-system"} {
			if found := vmProcesses(kind); len(found) != 1 {
				return fmt.Errorf("%d processes %s: %s", len(found), kind, commandLines(found))
			}
		}
		return nil
	}) {
		k.orphans++
	}
	if k.token == "" {
		k.mark(what)
	}
}

const killMark = "/var/lib/docker/volumes/marker/_data/token"

// mark puts a new token into a volume of the VM.
func (k *killer) mark(what string) {
	k.Helper()
	k.token = fmt.Sprintf("%016x", k.random.Uint64())
	if out, err := k.run("docker", "volume", "create", "marker"); err != nil {
		k.Fatalf("%s: volume create: %v\n%s", what, err, out)
	}
	if out, err := k.run("exec", "--", "sh", "-c", "echo "+k.token+" >"+killMark+" && sync"); err != nil {
		k.Fatalf("%s: write the token: %v\n%s", what, err, out)
	}
}

// check looks whether the token is there. A nuke has put it aside, and rm may have removed it.
func (k *killer) check(what string, verb []string) {
	k.Helper()
	if k.has() {
		return
	}
	switch verb[0] {
	case "rm":
		k.mark(what)
		return
	case "nuke":
		if out, err := k.run("nuke", "--undo", "--yes"); err != nil {
			k.Fatalf("%s: undo: %v\n%s", what, err, out)
		}
		if k.has() {
			return
		}
	}
	k.lost++
	k.Errorf("%s: the token is lost", what)
	k.mark(what)
}

func (k *killer) has() bool {
	out, err := k.run("exec", "--", "cat", killMark)
	return err == nil && strings.TrimSpace(out) == k.token
}

// victims are the processes of a kind. A verb that makes a template has others than the project's.
func (k *killer) victims(victim string, verb int) []string {
	switch victim {
	case "verb":
		return []string{strconv.Itoa(verb)}
	case "qemu":
		return vmProcesses("qemu-system", vm.DomainPrefix)
	case "libvirtd":
		return append(vmProcesses("libvirtd", "--daemon"), vmProcesses("virtqemud", "--daemon")...)
	}
	return vmProcesses("devvm " + victim)
}

func (k *killer) signal(sig syscall.Signal, pids ...string) error {
	var errs []error
	for _, text := range pids {
		pid, err := strconv.Atoi(text)
		if err == nil {
			err = syscall.Kill(pid, sig)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// until waits for a condition, for 30 s; it fails the test if that does not come.
func (k *killer) until(what string, f func() error) bool {
	k.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return true
		}
	}
	k.Errorf("%s: %v", what, err)
	return false
}

func (k *killer) devvm(args ...string) *exec.Cmd {
	cmd := exec.Command(k.binary, args...)
	cmd.Dir, cmd.Stderr = k.dir, new(bytes.Buffer)
	return cmd
}

// run runs devvm to its end and returns all that it said.
func (k *killer) run(args ...string) (string, error) {
	k.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), killPatience)
	defer cancel()
	cmd := k.devvm(args...)
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) })
	defer stop()
	out, err := cmd.Output()
	said := string(out) + cmd.Stderr.(*bytes.Buffer).String()
	if ctx.Err() != nil {
		k.endless++
		k.Fatalf("%v hangs:\n%s", args, said)
	}
	return said, err
}

func code(err error) int {
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}

// commandLines shows processes.
func commandLines(pids []string) string {
	var out []string
	for _, pid := range pids {
		b, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
		line := string(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
		out = append(out, pid+" "+line[:min(len(line), 200)])
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}
