package vmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/vm"
)

// startable refuses what QEMU would not start with.
func (f *Fake) startable(spec vm.Spec, host vm.Host) error {
	files := []string{spec.Disk, spec.Kernel, spec.Initrd, spec.Seed}
	for _, path := range spec.Credentials {
		files = append(files, path)
	}
	if !vm.Reconnects(host) {
		// Stricter than QEMU, which would run without its network for good.
		files = append(files, spec.NetSocket)
	}
	for _, path := range files {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("process exited while connecting to monitor: %w", err)
		}
	}
	if spec.Console != "" {
		c, err := os.OpenFile(spec.Console, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("process exited while connecting to monitor: %w", err)
		}
		c.Close()
	}
	all, err := f.records()
	if err != nil {
		return err
	}
	for _, other := range all {
		f.settle(&other)
		if other.on() && other.Live.Disk == spec.Disk {
			return fmt.Errorf("process exited while connecting to monitor: Failed to get \"write\" lock on %s: is another process using the image?", spec.Disk)
		}
	}
	return nil
}

// launch starts the process that stands for QEMU. It must be on record before
// it does anything: should this process be killed in between, the other ends by
// itself.
func (f *Fake) launch(r *record, spec vm.Spec) error {
	b, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return err
	}
	specPath := filepath.Join(f.dir, "run", r.Name+".spec.json")
	if err := os.MkdirAll(filepath.Dir(specPath), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(specPath, b, 0o600); err != nil {
		return err
	}
	if err := os.Remove(f.offFile(r.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	argv := f.o.Command
	if len(argv) == 0 {
		argv = []string{"sleep", "2147483647"}
	}
	// The shell waits for a word from us, and for its end of file if we die.
	args := []string{"-c", `read -r go && exec "$@" <&3 3<&-`, "vm"}
	for _, a := range argv {
		args = append(args, strings.ReplaceAll(a, "{spec}", specPath))
	}
	gate, open, err := os.Pipe()
	if err != nil {
		return err
	}
	defer open.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		gate.Close()
		return err
	}
	defer null.Close()
	log, err := os.OpenFile(filepath.Join(f.dir, "run", r.Name+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		gate.Close()
		return err
	}
	defer log.Close()
	cmd := exec.Command("/bin/sh", args...) //nolint:noctx // it outlives this process
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = gate, log, log
	cmd.ExtraFiles = []*os.File{null}
	cmd.Env = append(os.Environ(), OffEnv+"="+f.offFile(r.Name))
	if r.State == vm.StateSaved {
		cmd.Env = append(cmd.Env, ResumedEnv+"=1")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	gate.Close()
	if err != nil {
		return fmt.Errorf("start the VM's process: %w", err)
	}
	go func() { _ = cmd.Wait() }() // reap it, should it end before us

	r.Reason = "booted"
	if r.State == vm.StateSaved {
		r.Reason = "resumed from its saved memory"
	}
	r.State, r.Live, r.Asked = vm.StateRunning, store(spec), false
	r.PID, r.Started = cmd.Process.Pid, startTime(cmd.Process.Pid)
	if err := f.write(*r); err != nil {
		return err
	}
	if _, err := open.WriteString("go\n"); err != nil {
		return fmt.Errorf("start the VM's process: %w", err)
	}
	return nil
}

func (f *Fake) offFile(domain string) string { return filepath.Join(f.dir, "run", domain+".off") }

// kill ends the VM's process and waits until it is gone.
func (f *Fake) kill(ctx context.Context, r record) error {
	if err := signal(r, unix.SIGKILL); err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for r.alive() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// signal sends the VM's process, and no other, a signal.
func signal(r record, sig syscall.Signal) error {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", r.PID, err)
	}
	defer unix.Close(fd)
	if !r.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", r.PID, err)
	}
	return nil
}

// stopped tells whether a signal has stopped the process.
func stopped(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && bytes.HasPrefix(b[bytes.LastIndexByte(b, ')')+1:], []byte(" T "))
}

// startTime is field 22 of /proc/PID/stat, empty for a process that is gone or
// waits to be reaped (proc_pid_stat(5)).
func startTime(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	// The command's name is in brackets and may hold anything.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 || string(fields[0]) == "Z" || string(fields[0]) == "X" {
		return ""
	}
	return string(fields[19])
}
