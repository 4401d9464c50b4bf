package vm

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A QEMU closes its monitor some time before it is gone. Who holds the other end does not
// hear of that before it is.
func TestEndHoldsMonitor(t *testing.T) {
	if socket := os.Getenv("DEVVM_TEST_MONITOR"); socket != "" {
		actQEMU(t, socket)
		return
	}
	socket := filepath.Join(t.TempDir(), "monitor.sock")
	qemu := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestEndHoldsMonitor$", "--", "-name", "guest="+DomainPrefix+"x,debug-threads=on")
	qemu.Env = append(os.Environ(), "DEVVM_TEST_MONITOR="+socket)
	out, err := qemu.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "listening" {
	}
	libvirt, err := (&net.Dialer{}).DialContext(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer libvirt.Close()
	for lines.Scan() && lines.Text() != "connected" {
	}
	pidfd, err := unix.PidfdOpen(qemu.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if fd, err := unix.PidfdGetfd(pidfd, 0, 0); err != nil {
		t.Skipf("here no process may have the files of another: %v", err)
	} else {
		_ = unix.Close(fd)
	}
	former := patienceReaped
	patienceReaped = time.Minute
	t.Cleanup(func() { patienceReaped = former })
	ended := make(chan error, 1)
	go func() { ended <- qemu.Wait() }()

	heard := make(chan error, 1)
	go func() {
		_, _ = io.Copy(io.Discard, libvirt)
		heard <- unix.Kill(qemu.Process.Pid, 0)
	}()
	if err := (process{pid: qemu.Process.Pid, name: "x"}).end(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-heard; !errors.Is(err, unix.ESRCH) {
		t.Errorf("libvirt hears of the end of a process that is there: %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// actQEMU is a process that closes its monitor when it is told to end, and then takes
// some time for that.
func actQEMU(t *testing.T, socket string) {
	t.Helper()
	told := make(chan os.Signal, 1)
	signal.Notify(told, unix.SIGTERM)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.WriteString("listening\n")
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = os.Stdout.WriteString("connected\n")
	<-told
	_ = conn.Close()
	time.Sleep(300 * time.Millisecond)
}
