package dockerproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// MaxPath is the length of the longest path that a unix socket can have on
// Linux, in bytes.
const MaxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// Listen makes a unix socket at path that only the owner can connect to, from
// its first instant: mode 0600, in a directory of mode 0700, which it creates
// if need be. A socket that is there is replaced without a moment in between;
// the caller holds a lock that says that it is stale. Closing the listener
// removes the socket, unless another one has taken its place.
func Listen(path string) (net.Listener, error) {
	dir, base := filepath.Split(path)
	if base == "" {
		return nil, fmt.Errorf("listen on %q: no file name", path)
	}
	// Same length as path, so that one check does for both.
	fresh := dir + "~" + base[1:]
	if fresh == path {
		fresh = dir + "+" + base[1:]
	}
	if len(path) > MaxPath {
		return nil, fmt.Errorf("listen on %s: the path has %d bytes, and a unix socket's can have %d at most", path, len(path), MaxPath)
	}
	if err := privateDir(dir); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	for _, p := range []string{path, fresh} {
		if info, err := os.Lstat(p); err == nil && info.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("listen on %s: %s exists and is not a socket", path, p)
		}
	}
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}

	// On Linux a socket's file takes its mode from the socket, less the umask.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	l, err := config.Listen(context.Background(), "unix", fresh)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	unixListener := l.(*net.UnixListener)
	unixListener.SetUnlinkOnClose(false)
	info, err := os.Lstat(fresh)
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(fresh)
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &listener{UnixListener: unixListener, path: path, file: info}, nil
}

// privateDir makes sure that dir is a directory that is the caller's alone.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("directory %s is open to other users (mode %04o, want 0700)", dir, info.Mode().Perm())
	}
	return nil
}

// listener removes its socket when it is closed.
type listener struct {
	*net.UnixListener
	path string
	file fs.FileInfo
}

// Close implements [net.Listener].
func (l *listener) Close() error {
	if err := l.UnixListener.Close(); err != nil {
		return err
	}
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.file) {
		return os.Remove(l.path)
	}
	return nil
}

// transient says that an error of accept concerns one connection or passes.
func transient(err error) bool {
	for _, e := range []syscall.Errno{
		unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EINTR, unix.EAGAIN,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
