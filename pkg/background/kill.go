package background

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Kill ends the process that listens on a unix socket, whatever that is doing, and waits
// until it is gone. That nobody listens is no error.
func Kill(ctx context.Context, socket string) error {
	return kill(ctx, func() (int, error) { return listener(ctx, socket) })
}

// KillHolder is Kill for the process that holds the lock (flock(2)) on a file: it is found
// where its socket has been removed.
func KillHolder(ctx context.Context, lock string) error {
	return kill(ctx, func() (int, error) { return holder(lock) })
}

// holder returns the process that has the file locked, 0 if none that can be seen from here
// does: one that /proc/locks names (proc_locks(5)) and that has the file open. The device
// stands there in a form that not every file system shares with stat(2).
func holder(path string) (int, error) {
	file, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	st, ok := file.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, nil
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0, err
	}
	suffix := ":" + strconv.FormatUint(st.Ino, 10)
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line) // 1: FLOCK ADVISORY WRITE 1234 fe:00:5678 0 EOF
		if len(f) < 6 || f[1] != "FLOCK" || !strings.HasSuffix(f[5], suffix) {
			continue
		}
		pid, err := strconv.Atoi(f[4])
		if err == nil && pid > 0 && pid != os.Getpid() && opens(pid, file) {
			return pid, nil
		}
	}
	return 0, nil
}

// opens tells whether a process has the file open.
func opens(pid int, file fs.FileInfo) bool {
	open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false
	}
	for _, fd := range open {
		if info, err := os.Stat(fd); err == nil && os.SameFile(info, file) {
			return true
		}
	}
	return false
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
