package lock_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"

	"github.com/devvm/devvm/pkg/lock"
)

// TestMain lets the test binary hold a lock.
func TestMain(m *testing.M) {
	if path := os.Getenv("LOCK_TEST"); path != "" {
		try, held := flock.New(path).TryLock, path+".held"
		if os.Getenv("LOCK_TEST_SHARED") != "" {
			try, held = flock.New(path).TryRLock, path+"."+strconv.Itoa(os.Getpid())+".held"
		}
		if ok, err := try(); err != nil || !ok {
			os.Exit(1)
		}
		_ = os.WriteFile(held, nil, 0o600)
		time.Sleep(time.Hour) // until it is killed
	}
	os.Exit(m.Run())
}

// hold starts a process that has the lock, for itself alone if nothing is added to its
// environment.
func hold(t *testing.T, path string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(append(os.Environ(), "LOCK_TEST="+path), env...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		for _, held := range []string{path + ".held", path + "." + strconv.Itoa(cmd.Process.Pid) + ".held"} {
			if _, err := os.Stat(held); err == nil {
				return cmd
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("the lock was never taken")
		}
	}
}

// A wait for a process that was stopped ends and names it; for one that runs it does not, and
// gets the lock when that is gone.
func TestWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	holder := hold(t, path)
	if pid, err := lock.Holder(path); err != nil || pid != holder.Process.Pid {
		t.Fatalf("Holder: %d, %v, want %d", pid, err, holder.Process.Pid)
	}
	if pid := lock.Stopped(path); pid != 0 {
		t.Errorf("%d runs", pid)
	}
	if err := holder.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for _, shared := range []bool{false, true} {
		l := flock.New(path)
		defer l.Close()
		err := lock.Wait(t.Context(), l, shared, 5*time.Millisecond)
		stopped, ok := errors.AsType[*lock.StoppedError](err)
		if !ok || stopped.PID != holder.Process.Pid || stopped.Hint() == "" {
			t.Fatalf("shared %v: %v, want a StoppedError of %d", shared, err, holder.Process.Pid)
		}
	}
	if err := holder.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	l := flock.New(path)
	defer l.Close()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := lock.Wait(short, l, false, 5*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the holder runs: %v", err)
	}
	got := make(chan error, 1)
	go func() { got <- lock.Wait(t.Context(), l, false, 5*time.Millisecond) }()
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("the holder is gone: %v", err)
	}
}

// Of several processes that share a lock, each can be the one that was stopped.
func TestStoppedOfSeveral(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	for range 3 {
		holder := hold(t, path, "LOCK_TEST_SHARED=1")
		if pid := lock.Stopped(path); pid != 0 {
			t.Errorf("%d runs", pid)
		}
		if err := holder.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); lock.Stopped(path) != holder.Process.Pid; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("stopped is %d, want %d", lock.Stopped(path), holder.Process.Pid)
			}
		}
		if err := holder.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); lock.Stopped(path) != 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		}
	}
}
