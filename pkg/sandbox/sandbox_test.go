package sandbox_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/sandbox"
)

// attempt is what a child process tries in a sandbox.
type attempt struct {
	Policy *sandbox.Policy // nil: none, as the control
	Calls  *sandbox.Calls
	Acts   []act
}

type act struct{ Verb, Path, To string }

// TestMain lets the test binary be the process in the sandbox: it prints a line for each
// act, what came of it.
func TestMain(m *testing.M) {
	text := os.Getenv("SANDBOX_TEST")
	if text == "" {
		os.Exit(m.Run())
	}
	var a attempt
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		panic(err)
	}
	if a.Policy != nil {
		if _, err := sandbox.Enter(*a.Policy); err != nil {
			panic(err)
		}
	}
	if a.Calls != nil {
		if err := sandbox.Deny(*a.Calls); err != nil {
			panic(err)
		}
	}
	for _, act := range a.Acts {
		fmt.Println(word(act.do()))
	}
	os.Exit(0)
}

// word is an outcome in a word.
func word(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func (a act) do() error {
	switch a.Verb {
	case "read":
		_, err := os.ReadFile(a.Path)
		return err
	case "list":
		_, err := os.ReadDir(a.Path)
		return err
	case "write":
		f, err := os.OpenFile(a.Path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err == nil {
			_, err = f.WriteString("written")
			f.Close()
		}
		return err
	case "remove":
		return os.Remove(a.Path)
	case "rename":
		return os.Rename(a.Path, a.To)
	case "link":
		return os.Link(a.Path, a.To)
	case "chmod":
		return os.Chmod(a.Path, 0o600)
	case "truncate":
		return os.Truncate(a.Path, 0)
	case "device":
		return unix.Mknod(a.Path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
	case "run":
		return exec.Command(a.Path).Run()
	case "fds":
		_, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", os.Getppid()))
		return err
	case "signal":
		return unix.Kill(os.Getppid(), 0)
	case "thread": // of another process
		return unix.Tgkill(os.Getppid(), os.Getppid(), 0)
	case "preempt": // as Go's scheduler does
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		return unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGURG)
	case "tcp":
		c, err := net.Dial("tcp", a.Path)
		if err == nil {
			c.Close()
		}
		return err
	case "unix":
		c, err := net.Dial("unix", a.Path)
		if err == nil {
			c.Close()
		}
		return err
	case "ring":
		_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 0, 0, 0)
		if errno != 0 {
			return errno
		}
	case "crypto": // a kind of socket that nobody here needs
		fd, err := unix.Socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
		if err == nil {
			unix.Close(fd)
		}
		return err
	case "threads": // all of them are in it
		lines, err := filepath.Glob("/proc/self/task/*/status")
		if err != nil {
			return err
		}
		for _, path := range lines {
			b, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if !strings.Contains(string(b), "NoNewPrivs:\t1") || !strings.Contains(string(b), "Seccomp:\t2") {
				return fmt.Errorf("%s is free", path)
			}
		}
	case "more threads": // of the C library's making, in a build with cgo
		var all, ready sync.WaitGroup
		ready.Add(32)
		for range 32 {
			all.Go(func() {
				runtime.LockOSThread() // and ends with the goroutine
				ready.Done()
				ready.Wait()
			})
		}
		all.Wait()
	default:
		return fmt.Errorf("unknown act %q", a.Verb)
	}
	return nil
}

// try runs the attempt in a process of its own.
func try(t *testing.T, a attempt) []string {
	t.Helper()
	text, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "SANDBOX_TEST="+string(text))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// needLandlock skips a test where the kernel has none.
func needLandlock(t *testing.T, least int) {
	t.Helper()
	if abi, err := sandbox.Supported(); err != nil || abi < least {
		t.Skipf("Landlock's ABI here is %d, %v", abi, err)
	}
}

// home makes a user's home with a key, and the data of two projects.
func home(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "sandbox") //nolint:usetesting // no test's directory is below one that a policy has
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, name := range []string{".ssh/id_test", "data/one/disk", "data/one/key", "data/two/disk", "src/a/file", "src/b/file", "ro/file"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestSandbox compares what a process can do in a sandbox and out of it.
func TestSandbox(t *testing.T) {
	needLandlock(t, 3)
	for _, tt := range []struct {
		act     act
		control string
		within  string
	}{
		{act{Verb: "read", Path: ".ssh/id_test"}, "ok", "EACCES"},
		{act{Verb: "write", Path: ".ssh/authorized_keys"}, "ok", "EACCES"},
		{act{Verb: "truncate", Path: ".ssh/id_test"}, "ok", "EPERM"},
		{act{Verb: "chmod", Path: ".ssh/id_test"}, "ok", "EPERM"},
		{act{Verb: "list", Path: ""}, "ok", "EACCES"},
		{act{Verb: "remove", Path: "data/two/disk"}, "ok", "EACCES"},
		{act{Verb: "read", Path: "data/one/disk"}, "ok", "ok"},
		{act{Verb: "write", Path: "data/one/disk"}, "ok", "ok"},
		{act{Verb: "read", Path: "data/one/key"}, "ok", "EACCES"},
		{act{Verb: "read", Path: "ro/file"}, "ok", "ok"},
		{act{Verb: "write", Path: "ro/file"}, "ok", "EACCES"},
		{act{Verb: "list", Path: "src/a"}, "ok", "ok"},
		{act{Verb: "rename", Path: "src/a/file", To: "src/b/moved"}, "ok", "ok"},
		{act{Verb: "link", Path: "data/one/disk", To: "src/disk"}, "ok", "EXDEV"},
		{act{Verb: "fds"}, "ok", "EACCES"},
		{act{Verb: "run", Path: "/bin/true"}, "ok", "EPERM"},
		{act{Verb: "crypto"}, "", "EPERM"}, // not each kernel has it
		{act{Verb: "ring"}, "", "EPERM"},
		{act{Verb: "signal"}, "ok", "EPERM"},
		{act{Verb: "threads"}, "", "ok"},
		{act{Verb: "more threads"}, "ok", "ok"},
	} {
		t.Run(tt.act.Verb+" "+tt.act.Path, func(t *testing.T) {
			for _, within := range []bool{false, true} {
				dir := home(t)
				a := attempt{Acts: []act{tt.act}}
				if !filepath.IsAbs(tt.act.Path) {
					a.Acts[0].Path, a.Acts[0].To = filepath.Join(dir, tt.act.Path), filepath.Join(dir, tt.act.To)
				}
				want := tt.control
				if within {
					want = tt.within
					a.Calls = &sandbox.Calls{Exec: true, Attributes: true}
					a.Policy = &sandbox.Policy{
						Read:  []string{filepath.Join(dir, "ro"), "/proc/self/task", filepath.Join(dir, "missing")},
						Write: []string{filepath.Join(dir, "data/one/disk"), filepath.Join(dir, "src")},

						Devices: []string{"/dev/null"}, // os/exec's
					}
				}
				if got := try(t, a)[0]; got != want && want != "" {
					t.Errorf("in a sandbox %v: got %s, want %s", within, got, want)
				}
			}
		})
	}
}

// TestSockets: a process that gives up sockets makes none, of whatever kind, and one that
// does not makes those that it may.
func TestSockets(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := home(t)
	path := filepath.Join(dir, "s")
	u, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	acts := []act{{Verb: "tcp", Path: l.Addr().String()}, {Verb: "unix", Path: path}}
	for _, tt := range []struct {
		name  string
		calls *sandbox.Calls
		want  string
	}{
		{"control", nil, "ok ok"},
		{"kept", &sandbox.Calls{Exec: true}, "ok ok"},
		{"given up", &sandbox.Calls{Sockets: true}, "EPERM EPERM"},
	} {
		if got := strings.Join(try(t, attempt{Calls: tt.calls, Acts: acts}), " "); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// TestSignals: a process that starts none signals no other one, whatever Landlock knows of that,
// and Go's scheduler still works.
func TestSignals(t *testing.T) {
	acts := []act{{Verb: "signal"}, {Verb: "thread"}, {Verb: "preempt"}}
	for _, tt := range []struct {
		name  string
		calls *sandbox.Calls
		want  string
	}{
		{"control", nil, "ok ok ok"},
		{"given up", &sandbox.Calls{Exec: true}, "EPERM EPERM ok"},
	} {
		if got := strings.Join(try(t, attempt{Calls: tt.calls, Acts: acts}), " "); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// TestTCP: a policy without TCP denies it, where the kernel knows how to.
func TestTCP(t *testing.T) {
	needLandlock(t, 4)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for allowed, want := range map[bool]string{true: "ok", false: "EACCES"} {
		got := try(t, attempt{Policy: &sandbox.Policy{TCP: allowed}, Acts: []act{{Verb: "tcp", Path: l.Addr().String()}}})[0]
		if got != want {
			t.Errorf("TCP %v: got %s, want %s", allowed, got, want)
		}
	}
}
