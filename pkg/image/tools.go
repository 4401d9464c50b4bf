package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/file"
)

// packageOf names the Debian package of each program that this package runs.
var packageOf = map[string]string{
	"mmdebstrap": "mmdebstrap",
	"mke2fs":     "e2fsprogs",
	"qemu-img":   "qemu-utils",
	"newuidmap":  "uidmap",
	"tar":        "tar",
}

// ToolError says that a program, or a file that a program needs, is not there.
type ToolError struct {
	Tool    string
	Package string // the Debian package that brings it
}

// Error implements error.
func (e *ToolError) Error() string {
	return fmt.Sprintf("%s is not installed (Debian package %s)", e.Tool, e.Package)
}

// SpaceError says that a file system has too little room, found out before any
// work was done.
type SpaceError struct {
	Dir        string
	Need, Have int64 // bytes
}

// Error implements error.
func (e *SpaceError) Error() string {
	const mib = 1 << 20
	return fmt.Sprintf("%s has %d MiB free, %d MiB are needed", e.Dir, e.Have/mib, e.Need/mib)
}

// CommandError says that a program ran and failed.
type CommandError struct {
	Command string
	Output  string // the last lines of its messages
	Err     error
}

// Error implements error.
func (e *CommandError) Error() string {
	if e.Output == "" {
		return fmt.Sprintf("%s: %v", e.Command, e.Err)
	}
	return fmt.Sprintf("%s: %v: %s", e.Command, e.Err, e.Output)
}

// Unwrap gives the reason.
func (e *CommandError) Unwrap() error { return e.Err }

// tool finds a program on PATH or in the administrator's directories.
func (s *Store) tool(name string) (string, error) {
	for _, dir := range filepath.SplitList(os.Getenv("PATH") + string(filepath.ListSeparator) + s.sbin) {
		if !filepath.IsAbs(dir) {
			continue
		}
		p := filepath.Join(dir, name)
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", &ToolError{Tool: name, Package: packageOf[name]}
}

// env is the environment of the programs: ours, in English, with sbin.
func (s *Store) env(more []string) []string {
	env := append(os.Environ(), "LC_ALL=C.UTF-8", "PATH="+os.Getenv("PATH")+":"+s.sbin)
	return append(env, more...)
}

// checkSpace fails with *SpaceError if dir's file system, dir need not exist
// yet, has less than need bytes for this user.
func checkSpace(dir string, need int64) error {
	have, err := file.Free(dir)
	if err == nil && have < need {
		err = &SpaceError{Dir: dir, Need: need, Have: have}
	}
	return err
}

// command is a program whose messages go to a log and whose end can be waited
// for. It runs in a process group of its own, which ends with ctx: politely
// first, so that mmdebstrap can unmount and remove what it made.
type command struct {
	*exec.Cmd
	name string
	tail *tail
}

func (s *Store) command(ctx context.Context, sc *scratch, log io.Writer, name string, args ...string) (*command, error) {
	bin, err := s.tool(name)
	if err != nil {
		return nil, err
	}
	c := &command{Cmd: exec.CommandContext(ctx, bin, args...), name: name, tail: &tail{}}
	c.Env = s.env([]string{"TMPDIR=" + sc.path("tmp")})
	c.Dir = "/"
	c.Stderr = io.MultiWriter(log, c.tail)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGTERM) }
	c.WaitDelay = 20 * time.Second
	c.ExtraFiles = []*os.File{sc.lock} // so the lock outlives us as long as the program works there
	return c, nil
}

// wait is Wait with an error that says which program failed and why.
func (c *command) wait(ctx context.Context) error {
	err := c.Wait()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		if c.Process != nil {
			_ = unix.Kill(-c.Process.Pid, unix.SIGKILL) // what SIGTERM left of the group
		}
		return context.Cause(ctx)
	}
	return &CommandError{Command: c.name, Output: c.tail.String(), Err: err}
}

// tail keeps the last lines that are written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const (
	tailBytes = 4096
	tailLines = 6
)

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > tailBytes {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-tailBytes:]...)
	}
	return len(p), nil
}

// String gives the last lines, without empty ones.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	for line := range bytes.Lines(t.buf) {
		if s := strings.TrimSpace(string(line)); s != "" {
			lines = append(lines, s)
		}
	}
	if len(lines) > tailLines {
		lines = lines[len(lines)-tailLines:]
	}
	return strings.Join(lines, "\n")
}
