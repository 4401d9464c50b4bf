package background

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// MaxPath is the length of the longest path that a unix socket can have on Linux, in bytes.
const MaxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// Owner is a user and a group.
type Owner struct{ UID, GID int }

// Listener is a unix socket at a path. Closing it removes the socket, unless another one has
// taken its place.
type Listener struct {
	*net.UnixListener
	path string
	file fs.FileInfo
	once sync.Once
}

// Unfinished is the name under which [Listen] makes a socket. A process that was killed just then
// leaves it: the next one removes it, or whoever removes the socket for good.
func Unfinished(path string) string {
	dir, base := filepath.Split(path)
	first := "~"
	if base[:1] == first {
		first = "+"
	}
	return dir + first + base[1:] // as long as path, so that MaxPath holds for both
}

// Listen makes a unix socket at path with mode 0600, from its first instant. Owner, unless nil,
// is another one that it is given to before it is at path; only root can. A socket that is there
// is replaced without a moment in between: the caller holds a lock that says that it is stale.
func Listen(path string, owner *Owner) (_ *Listener, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("listen on %s: %w", path, err)
		}
	}()
	if filepath.Base(path) == "." || path[len(path)-1] == filepath.Separator {
		return nil, errors.New("no file name")
	}
	if len(path) > MaxPath {
		return nil, fmt.Errorf("the path has %d bytes, and a unix socket's can have %d at most", len(path), MaxPath)
	}
	fresh := Unfinished(path)
	for _, p := range []string{path, fresh} {
		if info, err := os.Lstat(p); err == nil && info.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("%s exists and is not a socket", p)
		}
	}
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// On Linux a socket's file takes its mode from the socket, less the umask.
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	l, err := config.Listen(context.Background(), "unix", fresh)
	if err != nil {
		return nil, err
	}
	made := &Listener{UnixListener: l.(*net.UnixListener), path: path}
	made.SetUnlinkOnClose(false)
	if made.file, err = os.Lstat(fresh); err == nil && owner != nil {
		err = os.Lchown(fresh, owner.UID, owner.GID)
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		_ = l.Close()
		_ = os.Remove(fresh)
		return nil, err
	}
	return made, nil
}

// Close stops listening and removes the socket. Closing it again does nothing.
func (l *Listener) Close() error {
	l.once.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.file) {
			_ = os.Remove(l.path)
		}
	})
	if err := l.UnixListener.Close(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// PrivateDir sees to it that a directory is there and the caller's alone.
func PrivateDir(dir string) error {
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
