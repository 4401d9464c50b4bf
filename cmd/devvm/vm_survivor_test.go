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

	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/vm"
)

// What a survivor waits for at most.
const (
	verbPatience = 9 * time.Minute // six minutes for a boot without KVM, and what goes before
	upsPerRound  = 2               // the second up converges at the latest
)

// survivor is a project with a real VM that goes through faults. A token in a volume says
// whether anything was lost.
type survivor struct {
	*testing.T
	binary, dir, name string
	random            *rand.Rand
	seed              uint64
	token             string                   // in the volume
	took              map[string]time.Duration // by verb, when it was left alone

	again, lost, orphans, endless int
	longestUp                     time.Duration
}

// newSurvivor makes the project. data is a directory for all that devvm keeps, "" for the pass's own.
func newSurvivor(t *testing.T, data string) *survivor {
	t.Helper()
	binary, images := os.Getenv("DEVVM_TEST_BINARY"), os.Getenv("DEVVM_TEST_IMAGES")
	if binary == "" || images == "" {
		t.Fatal("run this by make")
	}
	if all := vmProcesses("qemu-system", vm.DomainPrefix); len(all) > 0 {
		t.Fatalf("VMs run that this would disturb, end them first: %s", commandLines(all))
	}
	v := &survivor{T: t, binary: binary, dir: filepath.Join(t.TempDir(), "app"), seed: uint64(time.Now().UnixNano()), took: map[string]time.Duration{}}
	if data == "" {
		data = os.Getenv("XDG_DATA_HOME")
	} else {
		t.Setenv("XDG_DATA_HOME", data)
		t.Setenv("XDG_CONFIG_HOME", filepath.Join(data, "config")) // where libvirt saves memory
		t.Setenv("XDG_STATE_HOME", filepath.Join(data, "state"))
		t.Setenv("XDG_CACHE_HOME", filepath.Join(data, "cache"))
	}
	if err := shareImages(images, filepath.Join(data, "devvm", "images")); err != nil {
		t.Fatal(err)
	}
	if seed, err := strconv.ParseUint(os.Getenv("DEVVM_TEST_SEED"), 10, 64); err == nil {
		v.seed = seed
	}
	v.random = rand.New(rand.NewPCG(v.seed, 0))
	t.Logf("seed %d", v.seed)
	if err := os.Mkdir(v.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v.dir, "devvm.toml"), []byte("cpus = 2\nmemory = \"2GiB\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := state.New(v.dir)
	if err != nil {
		t.Fatal(err)
	}
	v.name = p.Name
	t.Cleanup(func() {
		for _, pid := range vmProcesses(v.name) {
			_ = sendSignal(syscall.SIGCONT, pid)
		}
		_, _ = v.run("rm", "--yes")
	})
	return v
}

// usual is how long a verb takes.
func (v *survivor) usual(verb string) time.Duration {
	if took, known := v.took[verb]; known {
		return took
	}
	return 6 * time.Second
}

// gone waits until nothing of the project runs.
func (v *survivor) gone() {
	v.Helper()
	if out, err := v.run("rm", "--yes"); err != nil {
		v.Fatalf("rm: %v\n%s", err, out)
	}
	v.until("rm", func() error {
		if left := vmProcesses(v.name); len(left) > 0 {
			return fmt.Errorf("left running: %s", commandLines(left))
		}
		return nil
	})
}

// ready brings the VM up and looks at its processes.
func (v *survivor) ready(what string) {
	v.Helper()
	var out string
	var err error
	for n := range upsPerRound {
		start := time.Now()
		out, err = v.run("up")
		v.longestUp = max(v.longestUp, time.Since(start))
		if err == nil {
			break
		}
		if n == 0 {
			v.again++
			v.Logf("%s: the first up: %v\n%s", what, err, out)
		}
	}
	if err != nil {
		v.Fatalf("%s: up: %v\n%s", what, err, out)
	}
	if out, err := v.run("status"); err != nil {
		v.Fatalf("%s: status: %v\n%s", what, err, out)
	}
	if !v.until(what, func() error {
		for _, kind := range []string{"devvm supervisor", "devvm net", "qemu-system"} {
			if found := vmProcesses(kind); len(found) != 1 {
				return fmt.Errorf("%d processes %s: %s", len(found), kind, commandLines(found))
			}
		}
		return nil
	}) {
		v.orphans++
	}
	if v.token == "" {
		v.mark(what)
	}
}

const survivorMark = "/var/lib/docker/volumes/marker/_data/token"

// mark puts a new token into a volume of the VM.
func (v *survivor) mark(what string) {
	v.Helper()
	v.token = fmt.Sprintf("%016x", v.random.Uint64())
	if out, err := v.run("docker", "volume", "create", "marker"); err != nil {
		v.Fatalf("%s: volume create: %v\n%s", what, err, out)
	}
	if out, err := v.run("exec", "--", "sh", "-c", "echo "+v.token+" >"+survivorMark+" && sync"); err != nil {
		v.Fatalf("%s: write the token: %v\n%s", what, err, out)
	}
}

// check looks whether the token is there. A nuke has put it aside, and rm may have removed it.
func (v *survivor) check(what string, verb []string) {
	v.Helper()
	if v.has() {
		return
	}
	switch verb[0] {
	case "rm":
		v.mark(what)
		return
	case "nuke":
		if out, err := v.run("nuke", "--undo", "--yes"); err != nil {
			v.Fatalf("%s: undo: %v\n%s", what, err, out)
		}
		if v.has() {
			return
		}
	}
	v.lost++
	v.Errorf("%s: the token is lost", what)
	v.mark(what)
}

func (v *survivor) has() bool {
	out, err := v.run("exec", "--", "cat", survivorMark)
	return err == nil && strings.TrimSpace(out) == v.token
}

// until waits for a condition, for 30 s; it fails the test if that does not come.
func (v *survivor) until(what string, f func() error) bool {
	v.Helper()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return true
		}
	}
	v.Errorf("%s: %v", what, err)
	return false
}

func (v *survivor) devvm(args ...string) *exec.Cmd {
	cmd := exec.Command(v.binary, args...)
	cmd.Dir, cmd.Stderr = v.dir, new(bytes.Buffer)
	return cmd
}

// run runs devvm to its end and returns all that it said.
func (v *survivor) run(args ...string) (string, error) {
	v.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), verbPatience)
	defer cancel()
	cmd := v.devvm(args...)
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGQUIT) })
	defer stop()
	out, err := cmd.Output()
	said := string(out) + cmd.Stderr.(*bytes.Buffer).String()
	if ctx.Err() != nil {
		v.endless++
		v.Fatalf("%v hangs:\n%s", args, said)
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

func sendSignal(sig syscall.Signal, pids ...string) error {
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
