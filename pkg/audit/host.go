package audit

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Host is the machine to examine. [System] is the one that this process runs on; tests make
// others.
type Host struct {
	Root string // replaces "/"
	UID  int    // the user who examines
	PID  int    // the examining process, which is not examined itself
	Exe  string // the program of this process, as /proc shows it

	// Exec runs a program and returns its standard output.
	Exec func(ctx context.Context, name string, args ...string) (string, error)
	// Network reads the kernel's links, addresses, routes and rules.
	Network func() ([]Part, error)
}

// System is the machine that this process runs on.
func System() Host {
	exe, _ := os.Readlink("/proc/self/exe") // without it, processes are recognized by name
	return Host{Root: "/", UID: os.Getuid(), PID: os.Getpid(), Exe: exe, Exec: run, Network: network}
}

// execPatience is how long a program that lists rules may take.
const execPatience = 3 * time.Second

func run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, execPatience)
	defer cancel()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/local/sbin", "/usr/sbin", "/sbin") {
		if path := filepath.Join(dir, name); filepath.IsAbs(dir) && unix.Access(path, unix.X_OK) == nil {
			name = path
			break
		}
	}
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if said := strings.TrimSpace(errs.String()); said != "" {
			err = fmt.Errorf("%w: %s", err, said)
		}
		return "", fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return out.String(), nil
}

// path maps a path of the host to its place below Root.
func (h Host) path(elem ...string) string {
	return filepath.Join(append([]string{h.Root}, elem...)...)
}

func (h Host) read(elem ...string) ([]byte, error) { return os.ReadFile(h.path(elem...)) }

// text reads a small text file, "" if it cannot be read.
func (h Host) text(elem ...string) string {
	b, err := h.read(elem...)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
