package background

import (
	"context"
	"errors"
	"fmt"
	"os"
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
		Ready()
		os.Exit(0)
	case "failed":
		Failed(errors.New("port is taken"))
		os.Exit(1)
	case "silent":
		fmt.Println("panic: out of luck")
		os.Exit(3)
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

func TestStartCancelled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := start(ctx, t, "hang"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
}
