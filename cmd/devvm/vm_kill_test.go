//go:build vmtest

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/vm"
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
	k := &killer{survivor: newSurvivor(t, "")}
	t.Cleanup(func() { t.Log(k.summary()) })
	k.ready("at the beginning")
	for round := range rounds {
		k.round(round, syscall.SIGKILL)
		if round%5 == 4 {
			k.round(round, syscall.SIGSTOP)
		}
	}
	k.gone()
}

// killer kills and stops a survivor's processes.
type killer struct {
	*survivor
	killed, stopped int
	longestVerb     time.Duration
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
	after := time.Duration(k.random.Float64() * 1.2 * float64(k.usual(verb[0])))
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
		_ = sendSignal(sig, pid)
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
		_ = sendSignal(syscall.SIGCONT, pids...)
	}
	select {
	case err := <-ended:
		k.longestVerb = max(k.longestVerb, time.Since(start))
		what += fmt.Sprintf("; it ended after %s: %v", time.Since(start).Round(time.Millisecond), err)
	case <-time.After(verbPatience):
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
		_ = sendSignal(syscall.SIGCONT, pids...)
	}
	k.ready(what)
	k.check(what, verb)
	k.Logf("%s", what)
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
