//go:build attack

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/ports"
)

// What devvm's processes may take, whatever the VM says to them, in bytes.
const (
	maxSupervisor = 64 << 20
	maxCommand    = 128 << 20
)

// attackBounds has root in a's VM put an engine of its own in the place of Docker's, under
// the socket's name, and restores it.
func (s *scene) attackBounds(t *testing.T, l lan, a, b victim) {
	s.section("Root in the VM poses as the Docker Engine")
	who := "root in the VM of a"
	inVM := func(script string) {
		t.Helper()
		must(t, a.run.argv("exec", "--", "sh", "-euc", script)...)
	}
	const restore = `umount /run/docker.sock 2>/dev/null || :; systemctl stop hostile.service 2>/dev/null || :`
	pose := func(how string) {
		inVM(restore + `
systemd-run -q --unit=hostile /usr/local/bin/attacker engine -say ` + how + ` /run/hostile.sock
n=0; until [ -S /run/hostile.sock ]; do n=$((n+1)); [ $n -lt 100 ]; sleep 0.1; done
mount --bind /run/hostile.sock /run/docker.sock`)
	}
	t.Cleanup(func() {
		_, err := command(context.WithoutCancel(t.Context()), nil, a.run.argv("exec", "--", "sh", "-c", restore)...)
		if err != nil {
			t.Errorf("give a its engine back: %v", err)
		}
	})

	// The controls: what an honest engine says is read, and what it publishes is open.
	text, _, code := s.measured(t, a, "nuke")
	s.attempt(t, "control", "the question of devvm nuke, of an honest engine", "names the container", text, code != 0 && strings.Contains(text, "web"))
	supervisor := s.supervisorOf(t, a)
	s.attempt(t, "control", "ports of a that are open, of an honest engine", "4", fmt.Sprint(supervisor.Ports), supervisor.Ports == 4)

	pose("ports")
	most, open, beyond, failed := int64(0), 0, false, 0
	for end := time.Now().Add(70 * time.Second); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		most = max(most, resident(t, supervisor.PID))
		n := loopbackListeners(t, l.host, supervisor.PID, 20_000, 40_000)
		if open = max(open, n); n > 0 && !beyond { // it has begun: some more rounds are enough
			beyond, end = true, time.Now().Add(20*time.Second)
		}
		if _, _, code := s.measured(t, b, "status"); code != 0 {
			failed++
		}
	}
	s.attempt(t, who, "publish 20,000 ports, others all the time", fmt.Sprintf("1 to %d ports open", ports.DefaultMost), fmt.Sprint(open), open > 0 && open <= ports.DefaultMost)
	s.attempt(t, who, "fill the supervisor's memory by ports", fmt.Sprintf("%d MiB at most", maxSupervisor>>20), fmt.Sprintf("%d MiB", most>>20), most <= maxSupervisor)
	s.attempt(t, who, "b's docker.sock meanwhile", "answers", fmt.Sprintf("%d times not", failed), failed == 0)
	listed := must(t, a.run.argv("ports")...)
	s.attempt(t, who, "devvm ports", "says that there are more", lastLine(listed), strings.Contains(listed, "[ports] most"))

	pose("flood")
	for _, args := range [][]string{{"nuke"}, {"status"}, {"ports"}} {
		begin := time.Now()
		_, used, _ := s.measured(t, a, args...)
		took := time.Since(begin)
		s.attempt(t, who, "fill the memory of devvm "+args[0], fmt.Sprintf("%d MiB, a minute at most", maxCommand>>20), fmt.Sprintf("%d MiB, %.0f s", used>>20, took.Seconds()), used <= maxCommand && took < time.Minute)
	}
	most = resident(t, supervisor.PID)
	s.attempt(t, who, "fill the supervisor's memory by lists", fmt.Sprintf("%d MiB at most", maxSupervisor>>20), fmt.Sprintf("%d MiB", most>>20), most <= maxSupervisor)

	inVM(restore)
	here := within(l.host).with(s.attacker)
	here.name = "the host itself"
	deadline := time.Now().Add(60 * time.Second)
	for s.supervisorOf(t, a).Ports != 4 && time.Now().Before(deadline) {
		time.Sleep(500 * time.Millisecond)
	}
	s.reads(t, here, "with its engine back, the published port", "tcp:127.0.0.1:"+portAll, "secret of a")
}

// measured runs devvm without a terminal, and returns what it says, how much memory it
// has taken and its exit code.
func (s *scene) measured(t *testing.T, v victim, args ...string) (text string, memory int64, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	argv := v.run.argv(args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	_ = cmd.Run() // the exit code says it
	if cmd.ProcessState == nil {
		t.Fatalf("%v does not start", argv)
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage) // with that of its children
	if !ok {
		t.Fatal("no usage")
	}
	return out.String(), usage.Maxrss << 10, cmd.ProcessState.ExitCode()
}

// supervisorOf is what status says of a project's supervisor.
func (s *scene) supervisorOf(t *testing.T, v victim) (found struct{ PID, Ports int }) {
	t.Helper()
	var status struct{ Supervisor struct{ PID, Ports int } }
	out, _ := command(t.Context(), nil, v.run.argv("status", "--json")...) // exit code 1: the engine does not answer
	if err := json.Unmarshal([]byte(out), &status); err != nil || status.Supervisor.PID == 0 {
		t.Fatalf("status of %s: %v\n%s", v.name, err, out)
	}
	return status.Supervisor
}

// resident is the memory of a process that is in use, in bytes.
func resident(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		t.Fatalf("process %d has ended", pid)
	}
	n, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// loopbackListeners counts the TCP ports of a range that listen on 127.0.0.1. The kernel
// prints its table in parts: the process that opens and closes ports is stopped meanwhile,
// or one that closes and one that opens between two parts would both count.
func loopbackListeners(t *testing.T, namespace string, pid int, from, to int64) (n int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatalf("stop the supervisor: %v", err)
	}
	table, err := command(t.Context(), nil, within(namespace).argv("cat", "/proc/net/tcp")...)
	if errors.Join(err, syscall.Kill(pid, syscall.SIGCONT)) != nil {
		t.Fatalf("read the host's ports: %v\n%s", err, table)
	}
	ip := netip.MustParseAddr("127.0.0.1").As4()
	want := fmt.Sprintf("%08X", binary.NativeEndian.Uint32(ip[:]))
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != "0A" {
			continue
		}
		at, port, _ := strings.Cut(f[1], ":")
		number, err := strconv.ParseInt(port, 16, 32)
		if at == want && err == nil && number >= from && number < to {
			n++
		}
	}
	return n
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndex(text, "\n")+1:]
}
