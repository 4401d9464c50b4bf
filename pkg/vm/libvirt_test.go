package vm_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vm/vmtest"
)

// nobody is the user that a daemon of the tests runs as when they run as root:
// root's libvirtd is always the system's.
const nobody = 65534

// cacheHome is where the tests' daemons keep what they have found out about QEMU,
// which takes them seconds.
var cacheHome string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if cacheHome, err = os.MkdirTemp("", "devvm-cache-"); err != nil {
			panic(err)
		}
		defer os.RemoveAll(cacheHome)
		if os.Getuid() == 0 {
			if err := os.Chown(cacheHome, nobody, nobody); err != nil {
				panic(err)
			}
		}
		return m.Run()
	}())
}

// logger writes to the test's log.
func logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// libvirtd finds the daemon, or ends the test.
func libvirtd(t testing.TB) string {
	t.Helper()
	for _, path := range []string{"libvirtd", "/usr/sbin/libvirtd"} {
		if path, err := exec.LookPath(path); err == nil {
			return path
		}
	}
	const missing = "libvirtd is not installed (Debian and Ubuntu: package libvirt-daemon)"
	if os.Getenv("DEVVM_REQUIRE_LIBVIRT") == "1" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// privateDaemon gives the test a libvirt of its own, away from the user's, and
// returns its runtime directory. A user's daemon is started by Open.
func privateDaemon(t testing.TB) string {
	t.Helper()
	path := libvirtd(t)
	home, run := daemonDir(t), daemonDir(t)
	for name, dir := range map[string]string{"HOME": home, "XDG_RUNTIME_DIR": run, "XDG_CONFIG_HOME": home + "/config", "XDG_CACHE_HOME": cacheHome, "XDG_DATA_HOME": home + "/data"} {
		t.Setenv(name, dir)
	}
	if os.Getuid() == 0 {
		startDaemon(t, path)
	}
	t.Cleanup(func() { stopDaemon(t, run) })
	return run
}

// daemonDir makes a directory for a daemon of the tests.
func daemonDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "devvm-libvirt-") //nolint:usetesting // sockets need a short path, and root's daemon must be able to pass
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if os.Getuid() == 0 {
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// startDaemon starts a user's daemon from a test that runs as root.
func startDaemon(t testing.TB, path string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), path, "--daemon", "--timeout=120")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
}

// daemonPID reads the pid of the daemon with the runtime directory, 0: none.
func daemonPID(run string) int {
	b, err := os.ReadFile(filepath.Join(run, "libvirt", "libvirtd.pid"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0
	}
	if exe, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || strings.TrimSpace(string(exe)) != "libvirtd" {
		return 0
	}
	return pid
}

// stopDaemon ends the daemon and waits until it is gone.
func stopDaemon(t testing.TB, run string) {
	pid := daemonPID(run)
	if pid == 0 {
		return
	}
	// Killed while it examines QEMU it would leave one behind.
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Errorf("stop the test's libvirtd: %v", err)
	}
	for begin := time.Now(); daemonPID(run) == pid && running(pid); <-time.After(5 * time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Error("the test's libvirtd does not end")
			_ = syscall.Kill(pid, syscall.SIGKILL)
			return
		}
	}
}

// running is false for a process that only waits to be reaped.
func running(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && len(b) > 0
}

// open connects and closes at the end of the test.
func open(t testing.TB, o vm.Options) vm.Hypervisor {
	t.Helper()
	h, err := vm.Open(t.Context(), o, logger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func TestConformanceTestDriver(t *testing.T) {
	run := privateDaemon(t)
	o := vm.Options{URI: "test:///default", RuntimeDir: run}
	open(t, o) // the driver's domains last for as long as anybody is connected
	vmtest.Conformance(t, vmtest.Subject{
		Open: func(ctx context.Context) (vm.Hypervisor, error) { return vm.Open(ctx, o, logger(t)) },
		AddForeign: func(t *testing.T, domain string) {
			addForeign(t, o, libvirtxml.Domain{
				Type:   "test",
				Name:   domain,
				Memory: &libvirtxml.DomainMemory{Value: 1 << 16, Unit: "KiB"},
				OS:     &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Type: "hvm"}},
			})
		},
		Mock: true,
	})
}

// What the golden files say, libvirt understands: its schema has no place for
// an element or a value that it would ignore.
func TestSchema(t *testing.T) {
	h := open(t, vm.Options{URI: "test:///default", RuntimeDir: privateDaemon(t)})
	files, err := filepath.Glob("testdata/*.xml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		doc, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		// The test driver refuses other hypervisors' domains, but after the
		// schema.
		err = vm.Validate(t.Context(), h, string(doc))
		if err != nil && !strings.Contains(err.Error(), "could not find capabilities for") {
			t.Errorf("%s: %v", f, err)
		}
	}
	err = vm.Validate(t.Context(), h, `<domain type="test"><name>x</name><memory>65536</memory><os><type>hvm</type></os><nonsense/></domain>`)
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("the schema was not asked: %v", err)
	}
}

// A daemon that hangs breaks the calls whose contexts end, and no others; one
// that is killed is replaced by another.
func TestDaemonHangsAndDies(t *testing.T) {
	run := privateDaemon(t)
	h := open(t, vm.Options{URI: "test:///default", RuntimeDir: run})
	ctx := t.Context()
	if _, err := h.List(ctx); err != nil {
		t.Fatal(err)
	}

	pid := daemonPID(run)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	patient := make(chan error, 1)
	go func() {
		_, err := h.List(ctx)
		patient <- err
	}()
	for what, call := range map[string]func(context.Context) error{
		"Get":    func(ctx context.Context) error { _, err := h.Get(ctx, "x"); return err },
		"Host":   func(ctx context.Context) error { _, err := h.Host(ctx); return err },
		"Start":  func(ctx context.Context) error { return h.Start(ctx, "x") },
		"Wait":   func(ctx context.Context) error { _, err := h.Wait(ctx, "x", vm.StateRunning); return err },
		"Define": func(ctx context.Context) error { return h.Define(ctx, vm.Spec{Name: "x"}) },
		"Open": func(ctx context.Context) error {
			_, err := vm.Open(ctx, vm.Options{URI: "test:///default", RuntimeDir: run}, logger(t))
			return err
		},
	} {
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		begin := time.Now()
		if err := call(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want a deadline exceeded", what, err)
		}
		cancel()
		if took := time.Since(begin); took > 20*time.Second {
			t.Errorf("%s: took %v", what, took)
		}
	}
	_, err := vm.Open(ctx, vm.Options{URI: "test:///default", RuntimeDir: run, Timeout: 100 * time.Millisecond}, logger(t))
	if !errors.Is(err, vm.ErrNoLibvirt) {
		t.Errorf("Open with a time limit: %v, want ErrNoLibvirt", err)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-patient; err != nil {
		t.Errorf("a patient call: %v", err)
	}
	if _, err := h.List(ctx); err != nil {
		t.Errorf("when it goes on: %v", err)
	}

	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for running(pid) {
		<-time.After(time.Millisecond)
	}
	if os.Getuid() == 0 {
		startDaemon(t, libvirtd(t))
	}
	if _, err := h.List(ctx); err != nil {
		t.Errorf("after it was killed: %v", err)
	}
	if now := daemonPID(run); now == 0 || now == pid {
		t.Errorf("the daemon is %d, and was %d", now, pid)
	}
}

// A daemon that does not answer any more ends every call by itself, with a reason; one that
// only takes its time does not.
func TestDaemonStopped(t *testing.T) {
	run := privateDaemon(t)
	const timeout = 6 * time.Second
	h := open(t, vm.Options{URI: "test:///default", RuntimeDir: run, Timeout: timeout})
	ctx := t.Context()
	if _, err := h.List(ctx); err != nil {
		t.Fatal(err)
	}
	pid := daemonPID(run)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	calls := map[string]func() error{
		"Get":     func() error { _, err := h.Get(ctx, "x"); return err },
		"List":    func() error { _, err := h.List(ctx); return err },
		"Files":   func() error { _, err := h.Files(ctx); return err },
		"Start":   func() error { return h.Start(ctx, "x") },
		"Save":    func() error { return h.Save(ctx, "x") },
		"Destroy": func() error { return h.Destroy(ctx, "x") },
		"Wait":    func() error { _, err := h.Wait(ctx, "x", vm.StateRunning); return err },
	}
	type result struct {
		what string
		took time.Duration
		err  error
	}
	results := make(chan result, len(calls))
	for what, call := range calls {
		go func() {
			begin := time.Now()
			err := call()
			results <- result{what, time.Since(begin), err}
		}()
	}
	for range calls {
		r := <-results
		t.Logf("%s: %v after %v", r.what, r.err, r.took)
		if !errors.Is(r.err, vm.ErrNoLibvirt) || !strings.Contains(r.err.Error(), "answer") || r.took > 10*timeout {
			t.Errorf("%s: %v after %v, want ErrNoLibvirt soon", r.what, r.err, r.took)
		}
	}
	// It goes on while a patient call waits: longer than a call is quiet, shorter than a
	// daemon may be silent.
	patient := make(chan error, 1)
	go func() {
		_, err := h.List(ctx)
		patient <- err
	}()
	<-time.After(timeout / 2)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-patient; err != nil {
		t.Errorf("when it goes on: %v", err)
	}
}

// A libvirt that finds no QEMU, and one that has no driver for what is asked.
func TestHalfInstalled(t *testing.T) {
	libvirtd(t)
	t.Setenv("PATH", "/nonexistent")
	cache := cacheHome
	cacheHome = daemonDir(t) // what this daemon finds is not for the others
	t.Cleanup(func() { cacheHome = cache })
	run := privateDaemon(t)
	h, err := vm.OpenURI(t.Context(), "qemu:///session", run)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.Host(t.Context()); !errors.Is(err, vm.ErrNoQEMU) {
		t.Errorf("Host: %v, want ErrNoQEMU", err)
	}
	if _, err := vm.OpenURI(t.Context(), "xen:///session", run); !errors.Is(err, vm.ErrNoLibvirt) || !strings.Contains(err.Error(), "driver is not installed") {
		t.Errorf("%v, want ErrNoLibvirt", err)
	}
}

// addForeign defines a domain as somebody else's program would.
func addForeign(t *testing.T, o vm.Options, d libvirtxml.Domain) {
	t.Helper()
	doc, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	undefine, err := vm.DefineForeign(t.Context(), o, doc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := undefine(); err != nil {
			t.Errorf("remove the foreign domain: %v", err)
		}
	})
}

// ls and status must be quick with many projects.
func BenchmarkList100(b *testing.B) {
	h := open(b, vm.Options{URI: "test:///default", RuntimeDir: privateDaemon(b)})
	for n := range 100 {
		err := h.Define(b.Context(), vm.Spec{
			Name: fmt.Sprintf("bench-%d", n), UUID: fmt.Sprintf("7b1f0e66-1f0c-4b52-9999-%012x", n),
			Project: "/home/who/p", Image: "0123456789abcdef",
			CPUs: 1, Memory: 1 << 30, Accel: vm.AccelTCG,
			Disk: "/home/who/disk.qcow2", Kernel: "/k", Initrd: "/i", Cmdline: "c", Console: "/c",
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if all, err := h.List(b.Context()); err != nil || len(all) != 100 {
			b.Fatal(len(all), err)
		}
	}
}
