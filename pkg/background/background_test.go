package background

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary play the background process.
func TestMain(m *testing.M) {
	switch os.Getenv("BACKGROUND_TEST") {
	case "ready":
		if sid, _, _ := syscall.Syscall(syscall.SYS_GETSID, 0, 0, 0); int(sid) != os.Getpid() {
			Failed(errors.New("no session of its own"))
			os.Exit(1)
		}
		if Ready() != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case "starter":
		_ = Start(context.Background(), Command{
			Path: os.Args[0],
			Env:  append(os.Environ(), "BACKGROUND_TEST=orphan"),
			Log:  os.Getenv("BACKGROUND_LOG"),
		})
		os.Exit(1)
	case "orphan":
		fmt.Println("started")
		gone := os.Getenv("BACKGROUND_LOG") + ".gone"
		for deadline := time.Now().Add(time.Minute); !exists(gone) && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		fmt.Println("ready:", Ready())
		os.Exit(0)
	case "failed":
		Failed(errors.New("port is taken"))
		os.Exit(1)
	case "silent":
		fmt.Println("panic: out of luck")
		os.Exit(3)
	case "stopped": // listens, and does no more
		if _, err := net.Listen("unix", os.Getenv("BACKGROUND_SOCKET")); err != nil {
			Failed(err)
			os.Exit(1)
		}
		_ = Ready()
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		time.Sleep(time.Hour) // until it is killed
	case "asleep":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	case "hang":
		time.Sleep(time.Hour) // until it is killed
	}
	os.Exit(m.Run())
}

func start(ctx context.Context, t *testing.T, role string) error {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Start(ctx, Command{
		Path: exe,
		Env:  append(os.Environ(), "BACKGROUND_TEST="+role),
		Log:  filepath.Join(t.TempDir(), "log"),
	})
}

func TestStart(t *testing.T) {
	for _, tt := range []struct{ role, want string }{
		{"ready", ""},
		{"failed", "port is taken"},
		{"silent", "out of luck"},
	} {
		t.Run(tt.role, func(t *testing.T) {
			err := start(t.Context(), t, tt.role)
			if tt.want == "" && err != nil {
				t.Fatal(err)
			}
			if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Fatalf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

// TestOrphan kills the process that called Start before the other is ready: that one
// must learn it, or it would serve where nobody looks for it.
func TestOrphan(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	starter := exec.CommandContext(t.Context(), os.Args[0])
	starter.Env = append(os.Environ(), "BACKGROUND_TEST=starter", "BACKGROUND_LOG="+log)
	if err := starter.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, log, "started")
	if err := starter.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = starter.Wait()
	if err := os.WriteFile(log+".gone", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	waitFor(t, log, "ready:")
	if b, _ := os.ReadFile(log); !strings.Contains(string(b), "no process waits") {
		t.Errorf("the orphan was told %q", b)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// waitFor waits until the file has a whole line that begins with the text.
func waitFor(t *testing.T, path, text string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		b, _ := os.ReadFile(path)
		if i := strings.Index("\n"+string(b), "\n"+text); i >= 0 && strings.Contains(string(b)[i:], "\n") {
			return
		}
	}
	t.Fatalf("%s never had a line %q", path, text)
}

// TestKill: a process that a signal has stopped listens on, and ends by force alone.
func TestKill(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "dv") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	if err := Kill(t.Context(), socket); err != nil {
		t.Errorf("nobody was there: %v", err)
	}
	t.Setenv("BACKGROUND_SOCKET", socket)
	if err := start(t.Context(), t, "stopped"); err != nil {
		t.Fatal(err)
	}
	pid, err := listener(t.Context(), socket)
	if err != nil || pid == 0 || pid == os.Getpid() {
		t.Fatalf("listener %d: %v", pid, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := Kill(ctx, socket); err != nil {
		t.Fatal(err)
	}
	if pid, err := listener(t.Context(), socket); err != nil || pid != 0 {
		t.Errorf("%d listens on: %v", pid, err)
	}
	if err := Kill(ctx, socket); err != nil {
		t.Errorf("it had ended: %v", err)
	}
}

// A process that never is ready, because a signal has stopped it, is not waited for.
func TestStartNeverReady(t *testing.T) {
	former := patienceReady
	patienceReady = 200 * time.Millisecond
	t.Cleanup(func() { patienceReady = former })
	if err := start(t.Context(), t, "asleep"); err == nil || !strings.Contains(err.Error(), "not ready within") {
		t.Fatalf("got %v", err)
	}
}

func TestStartCancelled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := start(ctx, t, "hang"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
}
