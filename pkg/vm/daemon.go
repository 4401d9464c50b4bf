package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// surroundings is what of the process's environment decides where libvirt is.
type surroundings struct {
	getenv func(string) string
	uid    int
	home   string
	owns   func(dir string) bool // the directory is this user's
	run    string                // /run
	sbin   []string              // where system programs are, which users often do not have in their PATH
}

func processSurroundings() surroundings {
	home, err := os.UserHomeDir()
	if err != nil {
		home = ""
	}
	return surroundings{getenv: os.Getenv, uid: os.Getuid(), home: home, owns: ownDir, run: "/run", sbin: []string{"/usr/sbin", "/sbin", "/usr/local/sbin"}}
}

// ownDir tells whether a directory is this user's: XDG_RUNTIME_DIR may be somebody
// else's, as after su.
func ownDir(dir string) bool {
	var st unix.Stat_t
	return unix.Stat(dir, &st) == nil && int(st.Uid) == os.Getuid()
}

// daemon knows where libvirt's daemon for one URI listens and how to start it.
type daemon struct {
	dirs   []string // directories that may hold its sockets, the preferred first
	system bool
	uid    int      // of the user whose session it is
	env    []string // additions to the environment of a daemon that we start
	run    string
	sbin   []string
	log    *slog.Logger
}

// logOutputs is libvirt's variable for where its programs log (https://libvirt.org/logging.html).
const logOutputs = "LIBVIRT_LOG_OUTPUTS"

// socketNames are the sockets of the modular and of the monolithic daemon.
var socketNames = []string{"virtqemud-sock", "libvirt-sock"}

// findDaemon derives the daemon's places from the URI. runtimeDir overrides
// XDG_RUNTIME_DIR.
func findDaemon(uri, runtimeDir string, s surroundings, log *slog.Logger) (daemon, error) {
	d := daemon{uid: os.Getuid(), run: s.run, sbin: s.sbin, log: log}
	switch {
	case uri == uriSystem, uri == uriTest && s.uid == 0 && runtimeDir == "": // any daemon has the test driver
		d.system = true
		d.dirs = []string{filepath.Join(s.run, "libvirt")}
		return d, nil
	case uri == uriSession && s.uid == 0:
		return daemon{}, fmt.Errorf("%w: libvirt has no session for root; use %s", ErrNoLibvirt, uriSystem)
	case uri == uriSession, uri == uriTest:
	default:
		return daemon{}, fmt.Errorf("libvirt URI %q: devvm works with %s and %s only", uri, uriSession, uriSystem)
	}
	// libvirt looks at XDG_RUNTIME_DIR, else at the cache directory. A daemon
	// that was started without the former serves as well: two daemons of one
	// user would write to the same configuration.
	if runtimeDir == "" {
		runtimeDir = s.getenv("XDG_RUNTIME_DIR")
		if runtimeDir != "" && !s.owns(runtimeDir) {
			runtimeDir = ""
			d.env = append(d.env, "XDG_RUNTIME_DIR=") // nor is a daemon of ours to use it
		}
	}
	if runtimeDir != "" {
		d.dirs = append(d.dirs, filepath.Join(runtimeDir, "libvirt"))
		d.env = append(d.env, "XDG_RUNTIME_DIR="+runtimeDir)
	}
	cache := s.getenv("XDG_CACHE_HOME")
	if cache == "" && s.home != "" {
		cache = filepath.Join(s.home, ".cache")
	}
	if cache != "" {
		d.dirs = append(d.dirs, filepath.Join(cache, "libvirt"))
		// A daemon logs to a file there, and takes the file's name for several words if there
		// is a space in it: it then ends at once. In the background, this is no log.
		if strings.ContainsAny(cache, " \t") && s.getenv(logOutputs) == "" {
			d.env = append(d.env, logOutputs+"=3:stderr")
		}
	}
	if len(d.dirs) == 0 {
		return daemon{}, fmt.Errorf("%w: neither XDG_RUNTIME_DIR nor HOME is set", ErrNoLibvirt)
	}
	return d, nil
}

// dial connects to the daemon's socket, and starts the daemon first when none
// listens. dir is where the daemon keeps its sockets.
func (d daemon) dial(ctx context.Context) (conn net.Conn, dir string, err error) {
	conn, dir, err = d.dialRunning(ctx)
	var silent *silentError
	if !errors.As(err, &silent) {
		return conn, dir, err
	}
	if d.system && os.Geteuid() != 0 {
		return nil, "", fmt.Errorf("%w: no daemon listens (%w)", ErrNoLibvirt, err)
	}
	if d.system && d.systemd() {
		return nil, "", fmt.Errorf("%w: no daemon listens (%w); systemd runs here and starts libvirt by its socket: systemctl enable --now libvirtd.socket virtlogd.socket", ErrNoLibvirt, err)
	}
	return d.start(ctx)
}

// silentError says that no daemon listens on any socket, and what each said.
type silentError struct{ tried []string }

func (e *silentError) Error() string { return strings.Join(e.tried, "; ") }

// dialRunning tries each socket once; if nobody listens the error is a
// silentError.
func (d daemon) dialRunning(ctx context.Context) (conn net.Conn, dir string, err error) {
	var dialer net.Dialer
	var silent silentError
	for _, dir := range d.dirs {
		for _, name := range socketNames {
			path := filepath.Join(dir, name)
			conn, err := dialer.DialContext(ctx, "unix", path)
			switch {
			case err == nil:
				if err := d.vet(conn, path); err != nil {
					conn.Close()
					return nil, "", err
				}
				return conn, dir, nil
			case ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded): // the latter is a moment early
				<-ctx.Done()
				return nil, "", context.Cause(ctx)
			case errors.Is(err, fs.ErrPermission):
				return nil, "", fmt.Errorf("%w: %s: permission denied (is this user in the group libvirt?)", ErrNoLibvirt, path)
			}
			var errno syscall.Errno
			if !errors.As(err, &errno) || errno != syscall.ENOENT && errno != syscall.ECONNREFUSED && errno != syscall.ENOTDIR {
				return nil, "", err // somebody may well listen
			}
			silent.tried = append(silent.tried, fmt.Sprintf("%s: %v", path, errno))
		}
	}
	return nil, "", &silent
}

// vet refuses a session that another user serves: it would be told of this user's VMs and
// decide what is run for them. The system's sockets are in a directory of root's, who has
// no session.
func (d daemon) vet(conn net.Conn, path string) error {
	if d.system || d.uid == 0 {
		return nil
	}
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("who listens on %s: %w", path, err)
	}
	if int(peer.Uid) != d.uid {
		return fmt.Errorf("%w: the libvirt at %s is of uid %d, not of this user (uid %d); remove it or set XDG_RUNTIME_DIR to a directory of yours", ErrNoLibvirt, path, peer.Uid, d.uid)
	}
	return nil
}

// listens reports whether a socket in the preferred directory accepts.
func (d daemon) listens(ctx context.Context, name string) bool {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.dirs[0], name))
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func (d daemon) systemd() bool {
	info, err := os.Lstat(filepath.Join(d.run, "systemd/system"))
	return err == nil && info.IsDir()
}

// retryDial is the pause between looks at a socket or a lock that somebody
// else is about to make or to free.
const retryDial = 20 * time.Millisecond

// start runs the daemon, as libvirt's own clients do for a user, and connects.
func (d daemon) start(ctx context.Context) (net.Conn, string, error) {
	dir := d.dirs[0]
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", fmt.Errorf("%w: make directory for the daemon: %w", ErrNoLibvirt, err)
	}
	// libvirt's clients take this lock while they start a daemon. It is an
	// fcntl lock: flock would not meet it.
	unlock, err := lockFile(ctx, filepath.Join(dir, "libvirtd.lock"))
	if err != nil {
		return nil, "", fmt.Errorf("wait for libvirt's lock: %w", err)
	}
	defer unlock()
	if conn, dir, err := d.dialRunning(ctx); err == nil {
		return conn, dir, nil // somebody else was quicker
	}
	if d.system && !d.listens(ctx, "virtlogd-sock") {
		// Nobody starts it on demand without systemd, and libvirtd wants it
		// for the guest's console.
		if err := d.spawn(ctx, "virtlogd"); err != nil {
			d.log.WarnContext(ctx, "start virtlogd", "err", err)
		}
	}
	var failures []string
	for _, program := range []string{"libvirtd", "virtqemud"} {
		err := d.spawn(ctx, program)
		if ctx.Err() != nil {
			return nil, "", context.Cause(ctx)
		}
		if err == nil {
			return d.await(ctx)
		}
		failures = append(failures, err.Error())
		if errors.Is(err, exec.ErrNotFound) {
			continue
		}
		// It is installed but did not start. A daemon that another program
		// has just started is a reason; a second kind of daemon would only
		// confuse.
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if conn, dir, err := d.await(short); err == nil {
			return conn, dir, nil
		}
		break
	}
	return nil, "", fmt.Errorf("%w: %s", ErrNoLibvirt, strings.Join(failures, "; "))
}

// await connects to the daemon that was just started.
func (d daemon) await(ctx context.Context) (net.Conn, string, error) {
	silent := &silentError{}
	for {
		conn, dir, err := d.dialRunning(ctx)
		if err == nil || ctx.Err() == nil && !errors.As(err, &silent) {
			return conn, dir, err
		}
		if pause(ctx, retryDial) != nil {
			return nil, "", fmt.Errorf("%w: the daemon was started but does not listen (%w): %w", ErrNoLibvirt, silent, context.Cause(ctx))
		}
	}
}

// spawn starts a libvirt program in the background and returns when it serves.
// With --daemon its parent ends then, or says why it cannot; with --timeout it
// leaves after two minutes without clients and VMs.
func (d daemon) spawn(ctx context.Context, program string) error {
	path, err := d.find(program)
	if err != nil {
		return err
	}
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, path, "--daemon", "--timeout=120") // the parent only: the daemon is on its own by then
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), d.env...)
	cmd.Stderr = &output
	// A session of its own: Ctrl-C on the terminal ends us, not the daemon.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second
	d.log.InfoContext(ctx, "starting libvirt's daemon", "path", path)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start %s: %w: %s", path, err, strings.TrimSpace(output.String()))
	}
	return nil
}

// find finds a program of the system.
func (d daemon) find(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	for _, dir := range d.sbin {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: %w", program, exec.ErrNotFound)
}

// inProcess keeps two goroutines from holding one fcntl lock: it belongs to the
// process, and closing any descriptor of the file drops it.
var inProcess = make(chan struct{}, 1)

// lockFile takes a write lock on the whole file in fcntl's manner.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	select {
	case inProcess <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() {
		if err != nil {
			<-inProcess
		}
	}()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if err == nil {
			return func() { f.Close(); <-inProcess }, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if err := pause(ctx, retryDial); err != nil {
			f.Close()
			return nil, err
		}
	}
}
