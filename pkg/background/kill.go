package background

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/lock"
)

// patienceDeath is how long a process may take that was killed: one that waits for a disk
// or a file server ends when that answers.
const patienceDeath = 20 * time.Second

// Kill ends the process that listens on a unix socket, whatever that is doing, and waits
// until it is gone. That nobody listens is no error.
func Kill(ctx context.Context, socket string) error {
	return kill(ctx, func() (int, error) { return listener(ctx, socket) })
}

// KillHolder is Kill for the process that holds the lock (flock(2)) on a file: it is found
// where its socket has been removed.
func KillHolder(ctx context.Context, path string) error {
	return kill(ctx, func() (int, error) { return lock.Holder(path) })
}

// kill ends the process that find finds, before and after it is held on to.
func kill(ctx context.Context, find func() (int, error)) error {
	pid, err := find()
	if err != nil || pid == 0 {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	// The descriptor names the process if that had the number before and after.
	if again, err := find(); err != nil || again != pid {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patienceDeath, fmt.Errorf("it was killed %s ago and is still there (what does it wait for? ps -o stat,wchan -p %d)", patienceDeath, pid))
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0) // pidfd_open(2)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the end of process %d: %w", pid, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of process %d: %w", pid, context.Cause(ctx))
		}
	}
}

// listener returns the process that listens on a unix socket (SO_PEERCRED, unix(7)), 0 if
// nobody does.
func listener(ctx context.Context, socket string) (int, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, fmt.Errorf("who listens on %s: %w", socket, err)
	}
	if peer.Pid == 0 {
		return 0, fmt.Errorf("who listens on %s is a process of another PID namespace", socket)
	}
	return int(peer.Pid), nil
}
