package vm

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// place is a user's or root's surroundings below a short directory.
func place(t *testing.T, uid int, env map[string]string) surroundings {
	t.Helper()
	dir, err := os.MkdirTemp("", "vm") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return surroundings{
		getenv: func(name string) string { return env[name] },
		owns:   func(dir string) bool { return dir != "/theirs" },
		uid:    uid, home: filepath.Join(dir, "home"), run: filepath.Join(dir, "run"),
	}
}

func TestFindDaemon(t *testing.T) {
	none := map[string]string{}
	for what, c := range map[string]struct {
		uri, runtimeDir string
		uid             int
		env             map[string]string
		want            []string // HOME and RUN stand for the directories
		system          bool
		err             string
	}{
		"system":                  {uriSystem, "", 0, none, []string{"RUN/libvirt"}, true, ""},
		"system, as a user":       {uriSystem, "/run/user/1000", 1000, none, []string{"RUN/libvirt"}, true, ""},
		"session":                 {uriSession, "", 1000, none, []string{"HOME/.cache/libvirt"}, false, ""},
		"session, runtime":        {uriSession, "", 1000, map[string]string{"XDG_RUNTIME_DIR": "/r"}, []string{"/r/libvirt", "HOME/.cache/libvirt"}, false, ""},
		"session, their runtime":  {uriSession, "", 1000, map[string]string{"XDG_RUNTIME_DIR": "/theirs"}, []string{"HOME/.cache/libvirt"}, false, ""},
		"session, given runtime":  {uriSession, "/g", 1000, map[string]string{"XDG_RUNTIME_DIR": "/r"}, []string{"/g/libvirt", "HOME/.cache/libvirt"}, false, ""},
		"session, cache":          {uriSession, "", 1000, map[string]string{"XDG_CACHE_HOME": "/c"}, []string{"/c/libvirt"}, false, ""},
		"session of root":         {uriSession, "/run/user/0", 0, none, nil, false, "no session for root"},
		"test":                    {uriTest, "", 1000, none, []string{"HOME/.cache/libvirt"}, false, ""},
		"test, as root":           {uriTest, "", 0, none, []string{"RUN/libvirt"}, true, ""},
		"test, as root elsewhere": {uriTest, "/g", 0, none, []string{"/g/libvirt", "HOME/.cache/libvirt"}, false, ""},
		"another host":            {"qemu+ssh://x/system", "", 1000, none, nil, false, "works with"},
		"another hypervisor":      {"xen:///system", "", 1000, none, nil, false, "works with"},
	} {
		s := place(t, c.uid, c.env)
		d, err := findDaemon(c.uri, c.runtimeDir, s, quiet)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", what, err, c.err)
			}
			continue
		}
		var want []string
		for _, dir := range c.want {
			want = append(want, strings.NewReplacer("HOME", s.home, "RUN", s.run).Replace(dir))
		}
		if err != nil || !slices.Equal(d.dirs, want) || d.system != c.system {
			t.Errorf("%s: %v (system %v), %v; want %v", what, d.dirs, d.system, err, want)
		}
	}
	s := place(t, 1000, none)
	s.home = ""
	if _, err := findDaemon(uriSession, "", s, quiet); !errors.Is(err, ErrNoLibvirt) {
		t.Errorf("without a home: %v", err)
	}
}

// A home directory with a space in its name is where libvirtd cannot keep its log.
func TestFindDaemonSpace(t *testing.T) {
	for cache, c := range map[string]struct{ set, want string }{
		"/home/me/.cache":     {"", ""},
		"/home/me too/.cache": {"", "LIBVIRT_LOG_OUTPUTS=3:stderr"},
		"/home/me\ttoo":       {"", "LIBVIRT_LOG_OUTPUTS=3:stderr"},
		"/home/other me":      {"1:syslog:libvirtd", ""},
	} {
		s := place(t, 1000, map[string]string{"XDG_CACHE_HOME": cache, "LIBVIRT_LOG_OUTPUTS": c.set})
		d, err := findDaemon(uriSession, "", s, quiet)
		if err != nil || strings.Join(d.env, " ") != c.want {
			t.Errorf("%s: %q, %v; want %q", cache, d.env, err, c.want)
		}
	}
}

// session returns a user's daemon whose runtime directory is made.
func sessionDaemon(t *testing.T) (daemon, string) {
	t.Helper()
	s := place(t, 1000, nil)
	dir := filepath.Join(s.run, "user")
	if err := os.MkdirAll(filepath.Join(dir, "libvirt"), 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := findDaemon(uriSession, dir, s, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return d, d.dirs[0]
}

func listen(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// A session that another user serves is not this user's.
func TestDialVets(t *testing.T) {
	d, dir := sessionDaemon(t)
	listen(t, filepath.Join(dir, "libvirt-sock"))
	conn, _, err := d.dialRunning(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	d.uid++ // as if this were another's
	if _, _, err := d.dialRunning(t.Context()); !errors.Is(err, ErrNoLibvirt) || !strings.Contains(err.Error(), "not of this user") {
		t.Errorf("another user's libvirt: %v", err)
	}
}

func TestDialPrefers(t *testing.T) {
	d, dir := sessionDaemon(t)
	listen(t, filepath.Join(d.dirs[1], "libvirt-sock")) // started without XDG_RUNTIME_DIR
	check := func(want string) {
		t.Helper()
		conn, dir, err := d.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got := conn.RemoteAddr().String(); got != want || dir != filepath.Dir(want) {
			t.Errorf("dialled %s in %s, want %s", got, dir, want)
		}
	}
	check(filepath.Join(d.dirs[1], "libvirt-sock"))
	listen(t, filepath.Join(dir, "libvirt-sock"))
	check(filepath.Join(dir, "libvirt-sock"))
	listen(t, filepath.Join(dir, "virtqemud-sock"))
	check(filepath.Join(dir, "virtqemud-sock"))
}

// fakeProgram puts a shell script in libvirtd's place, and nothing in others'.
func fakeProgram(t *testing.T, name, script string) {
	t.Helper()
	bin := t.TempDir()
	if script != "" {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
}

func TestDialStarts(t *testing.T) {
	t.Run("not installed", func(t *testing.T) {
		d, _ := sessionDaemon(t)
		fakeProgram(t, "libvirtd", "")
		_, _, err := d.dial(t.Context())
		if !errors.Is(err, ErrNoLibvirt) || !strings.Contains(err.Error(), "libvirtd is not installed") || !strings.Contains(err.Error(), "virtqemud is not installed") {
			t.Errorf("%v", err)
		}
	})
	t.Run("does not start", func(t *testing.T) {
		d, dir := sessionDaemon(t)
		fakeProgram(t, "libvirtd", `echo "out of luck: $* $XDG_RUNTIME_DIR" >&2; exit 3`)
		_, _, err := d.dial(t.Context())
		if want := "out of luck: --daemon --timeout=120 " + filepath.Dir(dir); !errors.Is(err, ErrNoLibvirt) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	})
	t.Run("starts and does not listen", func(t *testing.T) {
		d, _ := sessionDaemon(t)
		fakeProgram(t, "libvirtd", "exit 0")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _, err := d.dial(ctx)
		if !errors.Is(err, ErrNoLibvirt) || !strings.Contains(err.Error(), "does not listen") || !strings.Contains(err.Error(), "libvirt-sock: no such file") {
			t.Errorf("%v", err)
		}
	})
	t.Run("hangs", func(t *testing.T) {
		d, _ := sessionDaemon(t)
		fakeProgram(t, "libvirtd", "while :; do :; done")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, _, err := d.dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
	t.Run("of another", func(t *testing.T) { // the pid file is taken, the socket comes soon
		d, dir := sessionDaemon(t)
		fakeProgram(t, "libvirtd", "echo 'Unable to obtain pidfile' >&2; exit 1")
		ready := time.AfterFunc(200*time.Millisecond, func() { listen(t, filepath.Join(dir, "libvirt-sock")) })
		defer ready.Stop()
		conn, _, err := d.dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	})
}

func TestDialSystem(t *testing.T) {
	fakeProgram(t, "libvirtd", "echo started >&2; exit 1")
	s := place(t, 1000, nil)
	d, err := findDaemon(uriSystem, "", s, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if _, _, err := d.dial(t.Context()); err == nil || !strings.Contains(err.Error(), "started") {
			t.Errorf("root without systemd: %v, want it started", err)
		}
		if err := os.MkdirAll(filepath.Join(s.run, "systemd", "system"), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, _, err := d.dial(t.Context()); !errors.Is(err, ErrNoLibvirt) || !strings.Contains(err.Error(), "systemctl enable --now libvirtd.socket") {
			t.Errorf("root with systemd: %v", err)
		}
		return
	}
	if _, _, err := d.dial(t.Context()); !errors.Is(err, ErrNoLibvirt) || strings.Contains(err.Error(), "started") {
		t.Errorf("a user: %v", err)
	}
	path := filepath.Join(d.dirs[0], "libvirt-sock")
	listen(t, path)
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.dial(t.Context()); !errors.Is(err, ErrNoLibvirt) || !strings.Contains(err.Error(), "group libvirt") {
		t.Errorf("a user who may not: %v", err)
	}
}

// libvirt's own programs hold the lock in fcntl's manner.
func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "libvirtd.lock")
	unlock, err := lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := lockFile(short, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second goroutine: %v", err)
	}
	// It is still held, as any process would see that asks for it in fcntl's
	// manner. A lock of an open file description is one, even in this process.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // at the end: it drops the process's lock
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("another took the lock: %v", err)
	}
	unlock()
	unlock, err = lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if _, err := lockFile(t.Context(), filepath.Join(path, "x")); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("no directory: %v", err)
	}
}
