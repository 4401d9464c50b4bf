package usernet

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// unixListener is a unix socket at a path that is removed with it.
type unixListener struct {
	*net.UnixListener
	path string
	info fs.FileInfo
	once sync.Once
}

// Unfinished follows a socket's path in that of the directory in which it is made. A
// process that was killed just then leaves it; the next one, or who removes the socket for
// good, removes it.
const Unfinished = ".new"

// listenUnix makes a unix socket at path with mode 0600 and, if own is set, of
// another owner; nobody else can connect at any instant, and at no instant is
// there none once there was one. The caller holds the lock that makes it the
// only one to do so: what is at path is left over.
//
// The socket is made in a private directory beside path and renamed. It is
// bound through the directory's descriptor, as the 108 bytes that a socket's
// address may have are for path alone.
func listenUnix(path string, own bool, uid, gid int) (_ *unixListener, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("listen on %s: %w", path, err)
		}
	}()
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, errors.New("something else than a socket is there")
	}
	private := path + Unfinished
	defer os.RemoveAll(private)
	if err := errors.Join(os.RemoveAll(private), os.Mkdir(private, 0o700)); err != nil {
		return nil, err
	}
	dir, err := os.Open(private)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	made := filepath.Join(private, "s")
	bound := "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/s"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: bound, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer func() {
		if err != nil {
			_ = l.Close()
		}
	}()
	if err := os.Chmod(made, 0o600); err != nil {
		return nil, err
	}
	if own {
		if err := os.Lchown(made, uid, gid); err != nil {
			return nil, err
		}
	}
	info, err := os.Lstat(made)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(made, path); err != nil {
		return nil, err
	}
	return &unixListener{UnixListener: l, path: path, info: info}, nil
}

// Close stops listening and removes the socket, unless another is there by now.
func (l *unixListener) Close() error {
	l.once.Do(func() {
		if info, err := os.Lstat(l.path); err == nil && os.SameFile(info, l.info) {
			_ = os.Remove(l.path)
		}
	})
	err := l.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}
