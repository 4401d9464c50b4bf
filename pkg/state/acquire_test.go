package state

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/condition"
	"github.com/devvm/devvm/pkg/lock"
	"github.com/devvm/devvm/pkg/ui"
)

// holderEnv names the directory of the data of a project that a process of the tests' locks.
const holderEnv = "DEVVM_STATE_TEST_HOLDER"

// TestMain lets the test's program be the holder of a lock.
func TestMain(m *testing.M) {
	data := os.Getenv(holderEnv)
	if data == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := Dirs{Data: data}.Files(holderName).Acquire(ctx, "down", nil)
	if err != nil {
		os.Exit(1)
	}
	<-ctx.Done()
	_ = l.Close()
}

const holderName = "app-12345678"

// hold has another process lock the project until the test is over.
func hold(t *testing.T) (Files, *os.Process) {
	t.Helper()
	data := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), holderEnv+"="+data)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	f := Dirs{Data: data}.Files(holderName)
	condition.Wait(t, "the other process has the lock", func() bool {
		return f.holder() == "down, pid "+strconv.Itoa(cmd.Process.Pid)
	})
	return f, cmd.Process
}

// TestAcquireStopped: a holder that a signal has stopped is named, with the way to go on, and is
// waited for in vain only for so long.
func TestAcquireStopped(t *testing.T) {
	t.Parallel()
	f, holder := hold(t)
	if _, err := f.Acquire(t.Context(), "up", nil); ui.ExitCode(err) != ui.ExitBusy ||
		err.Error() != "another devvm command (down, pid "+strconv.Itoa(holder.Pid)+") is running for this project" ||
		ui.Hint(err) != "wait until it is done, then run the command again" {
		t.Errorf("%v, hint %q", err, ui.Hint(err))
	}
	if err := holder.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	condition.Wait(t, "the holder has stopped", func() bool { return lock.Stopped(f.Lock) == holder.Pid })
	for name, waiting := range map[string]func(string){"without waiting": nil, "waiting": func(string) {}} {
		_, err := f.Acquire(t.Context(), "up", waiting)
		if ui.ExitCode(err) != ui.ExitBusy || !strings.Contains(err.Error(), "(down, pid "+strconv.Itoa(holder.Pid)+") for this project is stopped by a signal (Ctrl-Z, SIGSTOP)") ||
			!strings.Contains(ui.Hint(err), "kill -CONT "+strconv.Itoa(holder.Pid)) {
			t.Errorf("%s: %v, hint %q", name, err, ui.Hint(err))
		}
	}
}

// TestAcquireKilled: a lock ends with its holder, whatever that has left in the file.
func TestAcquireKilled(t *testing.T) {
	t.Parallel()
	f, process := hold(t)
	waits := make(chan string, 1)
	done := make(chan error, 1)
	go func() {
		l, err := f.Acquire(t.Context(), "up", func(who string) { waits <- who })
		if err == nil {
			err = l.Close()
		}
		done <- err
	}()
	if who := <-waits; who != "down, pid "+strconv.Itoa(process.Pid) {
		t.Errorf("it waits for %s", who)
	}
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	var h holder
	b, err := os.ReadFile(f.Lock)
	if err != nil || json.Unmarshal(b, &h) != nil || h.Verb != "up" || h.PID != os.Getpid() {
		t.Errorf("the lock says %s, %v", b, err)
	}
}

// TestAcquireCancelled: Ctrl-C ends a wait.
func TestAcquireCancelled(t *testing.T) {
	f := testPaths(t)
	l, err := f.Acquire(t.Context(), "nuke", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	_, err = f.Acquire(ctx, "up", func(string) { cancel() })
	if !errors.Is(err, context.Canceled) || !strings.HasPrefix(err.Error(), "wait for nuke, pid ") || ui.ExitCode(err) != ui.ExitCancelled {
		t.Errorf("%v, exit code %d", err, ui.ExitCode(err))
	}
}

// TestAcquireHostile: what stands in the lock decides nothing, and what stands in its place is
// named.
func TestAcquireHostile(t *testing.T) {
	f := testPaths(t)
	l, err := f.Acquire(t.Context(), "up", nil)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(f.Lock)
	if err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		writeFile(t, f.Lock, string(whole[:n]))
		_, err := f.Acquire(t.Context(), "down", nil)
		if ui.ExitCode(err) != ui.ExitBusy || !strings.Contains(err.Error(), "(of unknown pid)") {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	writeFile(t, f.Lock, "\x00 no JSON")
	if l, err = f.Acquire(t.Context(), "down", nil); err != nil {
		t.Fatal(err)
	}
	// A lock whose file is gone is of another file than the next one's.
	if !sameFile(l, f.Lock) || os.Remove(f.Lock) != nil || sameFile(l, f.Lock) {
		t.Error("a file that is gone is the same")
	}
	next, err := f.Acquire(t.Context(), "up", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	_ = next.Close()

	if err := errors.Join(os.Remove(f.Lock), os.Mkdir(f.Lock, 0o700)); err != nil {
		t.Fatal(err)
	}
	d := Dirs{Data: filepath.Dir(filepath.Dir(f.Root))}
	_, err = f.Acquire(t.Context(), "up", nil)
	if !errors.Is(err, unix.EISDIR) || !strings.HasPrefix(err.Error(), "lock project: ") || !strings.Contains(ui.Hint(d.Explain(err)), "mv "+f.Lock+" ") {
		t.Errorf("a directory: %v, hint %q", err, ui.Hint(d.Explain(err)))
	}
	if err := errors.Join(os.RemoveAll(f.Root), os.WriteFile(f.Root, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	_, err = f.Acquire(t.Context(), "up", nil)
	if !errors.Is(err, unix.ENOTDIR) || !strings.HasPrefix(err.Error(), "make project directory: ") || !strings.Contains(ui.Hint(d.Explain(err)), "mv "+f.Root+" ") {
		t.Errorf("a file for a project: %v, hint %q", err, ui.Hint(d.Explain(err)))
	}
}
