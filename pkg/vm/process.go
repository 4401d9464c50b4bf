package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is the QEMU of one domain; pid 0: there is none.
type process struct {
	pid  int
	name string // of the VM, to know it again
}

// findProcess reads the file in which libvirt notes the pid of a domain's QEMU
// and removes it when that has ended. known is false if this user may not look,
// or libvirt keeps such files elsewhere.
func findProcess(pidFile, name string) (p process, known bool) {
	b, err := os.ReadFile(pidFile)
	if errors.Is(err, fs.ErrNotExist) {
		_, err := os.Stat(filepath.Dir(pidFile))
		return process{}, err == nil
	}
	if err != nil {
		return process{}, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 0 {
		return process{}, true
	}
	p = process{pid: pid, name: name}
	if p.alive() {
		return p, true
	}
	// The number may be somebody else's by now, or a process that this user
	// may not see (proc's hidepid).
	return process{}, !errors.Is(unix.Kill(pid, 0), unix.EPERM)
}

// alive reports whether the pid still is that of the VM's QEMU. A zombie has no
// command line and is not alive.
func (p process) alive() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	if err != nil {
		return false
	}
	// libvirt: -name guest=NAME,debug-threads=on
	args := bytes.Split(b, []byte{0})
	for i := range args[:max(0, len(args)-1)] {
		guest, _, _ := strings.Cut(string(args[i+1]), ",")
		if string(args[i]) == "-name" && guest == "guest="+DomainPrefix+p.name {
			return true
		}
	}
	return false
}

// stopped reports whether a signal has stopped the process (proc_pid_stat(5)); one that a
// debugger has stopped is not.
func (p process) stopped() bool {
	if p.pid == 0 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return false
	}
	// The command's name is in brackets and may hold anything.
	after := b[bytes.LastIndexByte(b, ')')+1:]
	return bytes.HasPrefix(after, []byte(" T "))
}

// proceed lets a process go on that a signal has stopped.
func (p process) proceed() error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.pid, err)
	}
	defer unix.Close(fd)
	if !p.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGCONT, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("let process %d go on: %w", p.pid, err)
	}
	return nil
}

// kill ends the process, if there is one, and waits until it is gone.
func (p process) kill(ctx context.Context) error { return p.end(ctx, unix.SIGKILL) }

// end sends the process a signal that ends it, if there is one, and waits until it is
// gone. Until then libvirt's connection to it stays open: libvirt takes its end for that
// of QEMU, and looks again after 200 ms if QEMU is still there (virProcessKillPainfully).
// No VM could have the name before.
func (p process) end(ctx context.Context, signal unix.Signal) error {
	if p.pid == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", p.pid, err)
	}
	defer unix.Close(fd)
	if !p.alive() { // the descriptor now names whom we asked about, or nobody of ours
		return nil
	}
	monitor := p.holdMonitor(fd)
	defer func() {
		for _, held := range monitor {
			_ = unix.Close(held)
		}
	}()
	if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	_ = unix.PidfdSendSignal(fd, unix.SIGCONT, nil, 0) // one that is stopped would not see it
	for !hasEnded(fd) {
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
	if len(monitor) > 0 {
		awaitReaped(ctx, fd)
	}
	return nil
}

// hasEnded tells whether the process of a pidfd has ended, with all of its threads
// (pidfd_open(2)).
func hasEnded(pidfd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	return n == 1 && err == nil
}

// patienceReaped bounds how long the parent of a process that has ended may take to
// notice: it may have other things to do.
var patienceReaped = 100 * time.Millisecond

// awaitReaped waits until the parent of a process that has ended knows that.
func awaitReaped(ctx context.Context, pidfd int) {
	ctx, cancel := context.WithTimeout(ctx, patienceReaped)
	defer cancel()
	for unix.PidfdSendSignal(pidfd, 0, nil, 0) == nil {
		if pause(ctx, time.Millisecond) != nil {
			return
		}
	}
}

// holdMonitor opens the process's end of libvirt's connection to it, so that the
// connection lives as long as what is returned. There is none if this user may not look
// (ptrace(2), PTRACE_MODE_ATTACH).
func (p process) holdMonitor(pidfd int) (held []int) {
	dir := fmt.Sprintf("/proc/%d/fd", p.pid)
	entries, _ := os.ReadDir(dir) // it may be gone
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		n, nerr := strconv.Atoi(e.Name())
		if err != nil || nerr != nil || !strings.HasPrefix(target, "socket:") {
			continue
		}
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue
		}
		if isMonitor(fd) {
			held = append(held, fd)
		} else {
			_ = unix.Close(fd)
		}
	}
	return held
}

// isMonitor tells whether a socket is QEMU's end of a connection by libvirt's monitor.
func isMonitor(fd int) bool {
	at, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	path, ok := at.(*unix.SockaddrUnix)
	if !ok || filepath.Base(path.Name) != "monitor.sock" {
		return false
	}
	_, err = unix.Getpeername(fd) // the one that listens has none
	return err == nil
}
