package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/vm/vmtest"
)

// TestKills kills one of devvm's processes, or the fake VM, at a random moment
// of a verb, again and again. The next up must converge each time, and nothing
// may be left after rm.
func TestKills(t *testing.T) {
	verbs := [][]string{{"up"}, {"up"}, {"nuke", "--yes"}, {"down"}, {"nuke", "--undo", "--yes"}, {"rm", "--yes"}}
	t.Run("boot", func(t *testing.T) { testKills(t, false, 60, verbs) })
	verbs = append(verbs, []string{"suspend"}, []string{"snapshot", "create"}, []string{"snapshot", "create", "kept"}, []string{"snapshot", "restore", "kept", "--yes"}, []string{"template", "build"})
	t.Run("fork", func(t *testing.T) { testKills(t, true, 200, verbs) })
	t.Run("stop", func(t *testing.T) { testStops(t, 40, verbs) })
}

// seeded is a source of choices; DEVVM_TEST_SEED repeats those of a run.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("DEVVM_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("DEVVM_TEST_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// testStops is testKills with SIGSTOP: the verb and the up after it end while the process is
// stopped, and say what to do next if they fail; when it goes on, up converges.
func testStops(t *testing.T, rounds int, verbs [][]string) {
	if testing.Short() {
		t.Skip("each waits for what never answers")
	}
	h := newHost(t, true)
	random := seeded(t)
	victims := []string{"self", "devvm supervisor", "devvm net", "fakevm", "devvm owner"}
	for round := range rounds {
		verb := verbs[random.IntN(len(verbs))]
		victim := victims[random.IntN(len(victims))]
		after := time.Duration(random.IntN(900)) * time.Millisecond
		what := fmt.Sprintf("round %d: %v, %s stopped after %v", round, verb, victim, after)
		cmd := h.command(verb...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-time.After(after):
		case err := <-ended:
			ended <- err
		}
		var stopped []int
		if victim == "self" {
			stopped = []int{cmd.Process.Pid}
		} else {
			for _, p := range h.processes(victim) {
				stopped = append(stopped, p.pid)
			}
		}
		for _, pid := range stopped {
			_ = syscall.Kill(pid, syscall.SIGSTOP)
		}
		proceed := func() {
			for _, pid := range stopped {
				_ = syscall.Kill(pid, syscall.SIGCONT)
			}
		}
		if victim != "self" {
			select {
			case <-ended:
			case <-time.After(2 * time.Minute):
				_ = cmd.Process.Signal(syscall.SIGQUIT)
				t.Fatalf("%s: hangs: %s", what, cmd.Stderr)
			}
		}
		if out, err := h.run("up"); err != nil && !strings.Contains(out, "hint: ") {
			t.Errorf("%s: up meanwhile: %v\n%s", what, err, out)
		}
		proceed()
		if victim == "self" {
			<-ended
		}
		var out string
		var err error
		for range 2 {
			if out, err = h.run("up"); err == nil {
				break
			}
		}
		if err != nil {
			t.Fatalf("%s: up: %v\n%s", what, err, out)
		}
		if out, err := h.run("status"); err != nil {
			t.Fatalf("%s: status: %v\n%s", what, err, out)
		}
	}
	if out, err := h.run("rm", "--yes"); err != nil {
		t.Fatalf("rm: %v\n%s", err, out)
	}
	h.expectNothing()
}

func testKills(t *testing.T, forks bool, rounds int, verbs [][]string) {
	if testing.Short() {
		rounds = 8
	}
	h := newHost(t, forks)
	random := seeded(t)
	victims := []string{"self", "devvm supervisor", "devvm net", "fakevm"}
	for round := range rounds {
		verb := verbs[random.IntN(len(verbs))]
		victim := victims[random.IntN(len(victims))]
		after := time.Duration(random.IntN(900)) * time.Millisecond
		what := fmt.Sprintf("round %d: %v, %s killed after %v", round, verb, victim, after)

		cmd := h.command(verb...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-time.After(after):
		case err := <-ended:
			ended <- err
		}
		if victim == "self" {
			_ = cmd.Process.Kill()
		} else {
			h.kill(victim)
		}
		// Without its victim the verb may fail, but it must end.
		select {
		case <-ended:
		case <-time.After(time.Minute):
			_ = cmd.Process.Signal(syscall.SIGQUIT)
			t.Fatalf("%s: hangs: %s", what, cmd.Stderr)
		}

		if forks && random.IntN(20) == 0 { // the next fork needs a template first
			_, _ = h.run("rm", "--yes")
			if out, err := h.run("prune"); err != nil {
				t.Fatalf("%s: prune: %v\n%s", what, err, out)
			}
		}
		if out, err := h.run("up"); err != nil {
			t.Fatalf("%s: up: %v\n%s", what, err, out)
		}
		if out, err := h.run("status"); err != nil {
			t.Fatalf("%s: status: %v\n%s", what, err, out)
		}
		for _, victim := range victims[1:] {
			found := h.processes(victim)
			for deadline := time.Now().Add(20 * time.Second); len(found) != 1 && time.Now().Before(deadline); found = h.processes(victim) {
				time.Sleep(20 * time.Millisecond) // one that is being started looks like the one that starts it
			}
			if len(found) != 1 {
				t.Fatalf("%s: %d processes %q: %v", what, len(found), victim, found)
			}
		}
	}
	if out, err := h.run("rm", "--yes"); err != nil {
		t.Fatalf("rm: %v\n%s", err, out)
	}
	h.expectNothing()
}

// host is a made-up home with the fake hypervisor, outside of testscript.
type host struct {
	*testing.T
	dir, runtime, data string

	uid      int             // that devvm runs as; 0: this process's
	precious map[string]bool // see golden
}

func newHost(t *testing.T, forks bool) *host {
	t.Helper()
	return newHostAt(t, forks, "")
}

// newHostAt is newHost with its data in another directory; "": its own.
func newHostAt(t *testing.T, forks bool, data string) *host {
	t.Helper()
	h := &host{T: t, dir: t.TempDir(), data: data}
	if data == "" {
		h.data = filepath.Join(h.dir, "data")
	}
	run, err := os.MkdirTemp("/tmp", "dv") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	h.runtime = run
	t.Cleanup(func() {
		h.kill("")
		_ = os.RemoveAll(run)
	})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"devvm", "fakevm"} {
		copyFile(t, self, filepath.Join(h.dir, "bin", name))
	}
	if err := os.Mkdir(filepath.Join(h.dir, "app"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := fakeImage(t.Context(), filepath.Join(h.data, "devvm", "images"), forks); err != nil {
		t.Fatal(err)
	}
	return h
}

// copyFile copies a program: a link's name would not be its own.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(dst, src)
	if cerr := dst.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		t.Fatal(err)
	}
}

// command is devvm on this host, in the project's directory.
func (h *host) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(h.dir, "bin", "devvm"), args...)
	cmd.Dir = filepath.Join(h.dir, "app")
	cmd.Stderr = new(bytes.Buffer)
	if h.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(h.uid), Gid: uint32(h.uid)}}
	}
	cmd.Env = []string{
		"PATH=" + filepath.Join(h.dir, "bin") + ":" + os.Getenv("PATH"),
		"HOME=" + h.dir, "XDG_DATA_HOME=" + h.data, "XDG_RUNTIME_DIR=" + h.runtime,
		"XDG_CACHE_HOME=" + filepath.Join(h.dir, "cache"), "XDG_CONFIG_HOME=" + filepath.Join(h.dir, "config"),
		fakeEnv + "=" + filepath.Join(h.dir, "fake"), "TZ=UTC",
	}
	return cmd
}

// run runs devvm to its end and returns all that it said.
func (h *host) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(h.Context(), time.Minute)
	defer cancel()
	cmd := h.command(args...)
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) })
	defer stop()
	out, err := cmd.Output()
	return string(out) + cmd.Stderr.(*bytes.Buffer).String(), err
}

// processes returns this host's processes whose command line has the text.
func (h *host) processes(text string) []process {
	var out []process
	for _, p := range ours(h.dir) {
		if strings.Contains(p.argv, text) {
			out = append(out, p)
		}
	}
	return out
}

// kill sends SIGKILL to the processes whose command line has the text.
func (h *host) kill(text string) {
	for _, p := range h.processes(text) {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
}

// expectNothing fails unless every trace of the project is gone.
func (h *host) expectNothing() {
	h.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for len(ours(h.dir)) > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if left := ours(h.dir); len(left) > 0 {
		h.Errorf("left running: %v", left)
	}
	doms, err := vmtest.NewFake(filepath.Join(h.dir, "fake"), vmtest.Options{}).List(h.Context())
	if err != nil || len(doms) > 0 {
		h.Errorf("domains left: %v, %v", doms, err)
	}
	for _, dir := range []string{filepath.Join(h.data, "devvm", "projects"), filepath.Join(h.runtime, "devvm", "net")} {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) > 0 {
			h.Errorf("left in %s: %v, %v", dir, entries, err)
		}
	}
}
