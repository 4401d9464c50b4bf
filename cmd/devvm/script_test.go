package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vm/vmtest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"devvm":  func() { os.Exit(fakeDevvm()) },
		"fakevm": func() { os.Exit(fakeVM()) },

		"portserver": func() { os.Exit(portServer()) },
		"shareprobe": func() { os.Exit(shareProbe()) },
	})
}

// TestScript runs the command line against the fake hypervisor. The scripts in
// testdata/script are the manual of what devvm promises at its surface.
func TestScript(t *testing.T) {
	t.Parallel()
	runScripts(t, "testdata/script", "", nil)
}

// TestAudit is apart from the scripts that run at the same time: audit looks at all
// processes of devvm's that the user has. It works below a directory that nobody else
// can replace, because audit asks for that too.
func TestAudit(t *testing.T) {
	for _, dir := range []string{"/tmp", "/var/tmp", os.Getenv("HOME")} {
		if !replaceable(dir) {
			dir, err := os.MkdirTemp(dir, "dv") //nolint:usetesting // see above
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			runScripts(t, "testdata/audit", dir, nil)
			return
		}
	}
	t.Skip("other users can replace /tmp, /var/tmp and the home directory")
}

// replaceable tells whether anybody can put another directory in the place of one in dir
// or above it.
func replaceable(dir string) bool {
	var st unix.Stat_t
	if !filepath.IsAbs(dir) || unix.Lstat(dir, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return true
	}
	return st.Uid != 0 && int(st.Uid) != os.Getuid() || st.Mode&0o002 != 0 && st.Mode&unix.S_ISVTX == 0 ||
		dir != "/" && replaceable(filepath.Dir(dir))
}

// runScripts runs the scripts of dir. Their directories are in root; "": the usual one. The
// command states notes what it sees in codes.
func runScripts(t *testing.T, dir, root string, codes *stateCodes) {
	t.Helper()
	last := map[string]*hinted{} // by the script's directory
	var mu sync.Mutex
	of := func(f func(*hinted, *testscript.TestScript, bool, []string)) func(*testscript.TestScript, bool, []string) {
		return func(ts *testscript.TestScript, neg bool, args []string) {
			mu.Lock()
			h := last[ts.Getenv("WORK")]
			if h == nil {
				h = new(hinted)
				last[ts.Getenv("WORK")] = h
			}
			mu.Unlock()
			f(h, ts, neg, args)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		WorkdirRoot:         root,
		RequireExplicitExec: true,
		Setup:               func(e *testscript.Env) error { return setUpScript(e, root) },
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"fake":         cmdFake,
			"code":         cmdCode,
			"slay":         cmdSlay,
			"processes":    cmdProcesses,
			"eventually":   cmdEventually,
			"leftovers":    cmdLeftovers,
			"foreign-twin": cmdForeignTwin,
			"listen":       cmdListen,
			"opens":        cmdOpens,
			"states":       codes.states,
			"narrow":       cmdNarrow,
			"hint":         of((*hinted).hint),
			"advise":       of((*hinted).advise),
			"follow":       of((*hinted).follow),
			"instead":      of((*hinted).instead),
		},
	})
}

// setUpScript gives a script a home of its own, where VMs are booted but for the script
// named fork, and ends, when it is done, all
// processes that it started.
func setUpScript(e *testscript.Env, root string) error {
	// Unix sockets have short paths; a test's work directory need not.
	run, err := os.MkdirTemp(cmp.Or(root, "/tmp"), "dv")
	if err != nil {
		return err
	}
	home := filepath.Join(e.WorkDir, "home")
	data := filepath.Join(home, "data")
	for k, v := range map[string]string{
		"HOME": home, "XDG_DATA_HOME": data, "XDG_RUNTIME_DIR": run,
		"XDG_CACHE_HOME": filepath.Join(home, "cache"), "XDG_CONFIG_HOME": filepath.Join(home, "config"),
		"DATA": filepath.Join(data, "devvm"), "RUN": filepath.Join(run, "devvm"),
		fakeEnv: filepath.Join(e.WorkDir, "fake"), "SHELL": "/bin/bash", "TZ": "UTC",
	} {
		e.Setenv(k, v)
	}
	for _, dir := range []string{home, filepath.Join(e.WorkDir, "app"), filepath.Join(e.WorkDir, "other", "app")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := fakeImage(context.Background(), filepath.Join(data, "devvm", "images"), strings.HasSuffix(e.WorkDir, "-fork")); err != nil {
		return err
	}
	e.Cd = filepath.Join(e.WorkDir, "app")
	e.Defer(func() {
		for _, p := range ours(e.WorkDir) {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
		_ = os.RemoveAll(run)
	})
	return nil
}

// process is one that a script has started.
type process struct {
	pid  int
	argv string
}

// ours finds the processes of a script: those whose environment names its work
// directory, but for zombies.
func ours(work string) []process {
	var out []process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		env, err := os.ReadFile(filepath.Join(dir, "environ"))
		if err != nil || !bytes.Contains(env, []byte(fakeEnv+"="+filepath.Join(work, "fake")+"\x00")) {
			continue
		}
		argv, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || len(argv) == 0 {
			continue
		}
		out = append(out, process{pid, string(bytes.ReplaceAll(bytes.TrimRight(argv, "\x00"), []byte{0}, []byte{' '}))})
	}
	return out
}

// fake OP FAILURE makes an operation of the hypervisor fail ("" again: none);
// fake foreign NAME adds a domain that is not devvm's; fake flag NAME and
// fake unflag NAME set a switch of the fake VM.
func cmdFake(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.Getenv(fakeEnv)
	f := vmtest.NewFake(dir, vmtest.Options{})
	var err error
	switch {
	case len(args) != 2:
		ts.Fatalf("usage: fake OP FAILURE")
	case args[0] == "foreign":
		err = f.AddForeign(context.Background(), args[1])
	case args[0] == "flag":
		if err = os.MkdirAll(dir, 0o700); err == nil {
			err = os.WriteFile(filepath.Join(dir, args[1]), nil, 0o600)
		}
	case args[0] == "unflag":
		err = os.Remove(filepath.Join(dir, args[1]))
	default:
		err = f.Fail(args[0], args[1])
	}
	ts.Check(err)
}

// code N PROGRAM ARGS… runs a program that must end with that exit code.
func cmdCode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		got = -1
		var exit interface{ ExitCode() int }
		if errors.As(err, &exit) {
			got = exit.ExitCode()
		}
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s (%v)", got, args[0], err)
	}
}

// match returns the script's processes whose command line has all the words.
func match(ts *testscript.TestScript, words []string) []process {
	var out []process
next:
	for _, p := range ours(ts.Getenv("WORK")) {
		for _, w := range words {
			if !strings.Contains(p.argv, w) {
				continue next
			}
		}
		out = append(out, p)
	}
	return out
}

// slay [-stop|-cont] WORDS… sends SIGKILL, or SIGSTOP or SIGCONT, to the processes whose
// command line has the words.
func cmdSlay(ts *testscript.TestScript, _ bool, args []string) {
	signal := syscall.SIGKILL
	switch args[0] {
	case "-stop":
		signal, args = syscall.SIGSTOP, args[1:]
	case "-cont":
		signal, args = syscall.SIGCONT, args[1:]
	}
	found := match(ts, args)
	if len(found) == 0 {
		ts.Fatalf("no process with %q", args)
	}
	for _, p := range found {
		ts.Check(syscall.Kill(p.pid, signal))
	}
}

// processes N WORDS… waits until N processes have the words in their command
// lines.
func cmdProcesses(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	wait(ts, func() error {
		if found := match(ts, args[1:]); len(found) != want {
			return fmt.Errorf("%d processes with %q, want %d: %v", len(found), args[1:], want, found)
		}
		return nil
	})
}

// eventually PROGRAM ARGS… runs a program again and again until it succeeds.
func cmdEventually(ts *testscript.TestScript, neg bool, args []string) {
	wait(ts, func() error {
		err := ts.Exec(args[0], args[1:]...)
		if neg {
			if err == nil {
				return fmt.Errorf("%q goes on to succeed", args)
			}
			return nil
		}
		return err
	})
}

// wait tries f until it succeeds or 20 s have gone.
func wait(ts *testscript.TestScript, f func() error) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// leftovers fails if anything of any project is left: processes, sockets,
// files, domains.
func cmdLeftovers(ts *testscript.TestScript, _ bool, _ []string) {
	wait(ts, func() error {
		if left := ours(ts.Getenv("WORK")); len(left) > 0 {
			return fmt.Errorf("left running: %v", left)
		}
		return nil
	})
	doms, err := vmtest.NewFake(ts.Getenv(fakeEnv), vmtest.Options{}).List(context.Background())
	ts.Check(err)
	if len(doms) > 0 {
		ts.Fatalf("domains left: %v", doms)
	}
	for _, dir := range []string{filepath.Join(ts.Getenv("DATA"), "projects"), ts.Getenv("RUN")} {
		err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || path == dir || path == filepath.Join(dir, "net") {
				return err
			}
			return fmt.Errorf("left behind: %s", path)
		})
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			ts.Fatalf("%v", err)
		}
	}
}

// opens N FILE COMMAND... runs a command, and fails unless the file is opened N times meanwhile,
// by whichever process.
func cmdOpens(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: opens N FILE COMMAND...")
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	ts.Check(err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, ts.MkAbs(args[1]), unix.IN_OPEN|unix.IN_CLOSE)
	ts.Check(err)
	ts.Check(ts.Exec(args[2], args[3:]...))
	events := make([]byte, 64<<10)
	n, err := unix.Read(fd, events)
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		ts.Check(err)
	}
	// Two openings that nothing closes in between count as one (inotify(7)). Events of a file
	// that is watched itself have no name, so that all have one size.
	opened := 0
	for b := events[:max(n, 0)]; len(b) >= unix.SizeofInotifyEvent; b = b[unix.SizeofInotifyEvent:] {
		if binary.NativeEndian.Uint32(b[4:])&unix.IN_OPEN != 0 {
			opened++
		}
	}
	if strconv.Itoa(opened) != args[0] {
		ts.Fatalf("%s was opened %d times, want %s", args[1], opened, args[0])
	}
}

// listen VARIABLE accepts connections on a port of the host's loopback until the
// script ends, and sets the variable to its number.
func cmdListen(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	ts.Defer(func() { _ = l.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Setenv(args[0], port)
}

// foreign-twin makes a domain that has the name of the current directory's
// project and is not devvm's.
func cmdForeignTwin(ts *testscript.TestScript, _ bool, _ []string) {
	p, err := state.New(ts.Getenv("WORK") + "/app")
	ts.Check(err)
	ts.Check(vmtest.NewFake(ts.Getenv(fakeEnv), vmtest.Options{}).AddForeign(context.Background(), vm.DomainPrefix+p.Name))
}
