// Package vmtest holds a hypervisor without VMs and the conformance suite that
// it shares with the real one.
//
// [Fake] keeps its domains as files, so that several processes see the same
// ones, and refuses what libvirt refuses. A started VM is a process of the
// test's choice. [Conformance] says what a [vm.Hypervisor] must do. Nothing but
// tests may import this package, and it imports of devvm only vm and lock.
package vmtest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/lock"
	"github.com/devvm/devvm/pkg/vm"
)

// Options of a [Fake].
type Options struct {
	// Command is the argv of the process that stands for QEMU. Each argument
	// "{spec}" becomes the path of a JSON file with the vm.Spec. Empty: a
	// process that does nothing until it is killed.
	Command []string
	// Host is what the fake says of itself; zero fields get defaults. The file
	// host.json in the fake's directory overrides both.
	Host vm.Host
}

// Fake is a [vm.Hypervisor] whose state is the files in a directory. Any
// number of processes may use one directory; a kill -9 of any of them at any
// moment leaves it in order.
//
// Its VMs obey these rules, in place of an ACPI button and an exit status:
// Shutdown sends the process SIGTERM, Destroy and Save send SIGKILL. A process
// that ends by itself has powered off if it has made the file named by the
// environment variable [OffEnv], else it has crashed. A VM that resumes from its
// saved state is started with [ResumedEnv] set to 1.
type Fake struct {
	dir    string
	o      Options
	closed chan struct{}
}

// Environment of a fake VM's process, see [Fake].
const (
	OffEnv     = "DEVVM_FAKE_OFF"
	ResumedEnv = "DEVVM_FAKE_RESUMED"
)

// Operations that [Fake.Fail] can make fail.
const (
	OpDefine   = "define"
	OpStart    = "start"
	OpShutdown = "shutdown"
	OpDestroy  = "destroy"
	OpSave     = "save"
	OpFreeze   = "freeze"
	OpFork     = "fork"
	OpSnapshot = "snapshot"
	OpRevert   = "revert"
	OpUndefine = "undefine"
	OpGet      = "get"
	OpList     = "list"
	OpPause    = "pause" // its content is a vm.Halt, with which each running VM is paused
)

// Failures for [Fake.Fail]; any other text is the message of an error without a
// kind.
const (
	FailKVM     = "kvm"     // as if KVM did not work; only for VMs with vm.AccelKVM
	FailNoSpace = "nospace" // no space left on the host
	FailMemory  = "memory"  // QEMU rejects the saved memory
	FailLost    = "lost"    // the connection breaks before anything is done
	FailLate    = "late"    // it is done, then the connection breaks
	FailHang    = "hang"    // nothing happens until the context ends
	// FailHeld is for OpSave: the memory is being saved until the failure is taken back, also
	// when the process that has asked for it is gone.
	FailHeld = "held"
)

// NewFake returns a fake on the directory, which is made if need be.
func NewFake(dir string, o Options) *Fake {
	return &Fake{dir: dir, o: o, closed: make(chan struct{})}
}

// record is one domain on disk.
type record struct {
	Name    string     `json:"name"` // of the domain, with the prefix
	Foreign bool       `json:"foreign,omitempty"`
	Spec    storedSpec `json:"spec"`
	Live    storedSpec `json:"live"` // what the running VM was started with
	State   vm.State   `json:"state"`
	Reason  string     `json:"reason,omitempty"`
	PID     int        `json:"pid,omitempty"`
	Started string     `json:"started,omitempty"` // the process's start time, to tell it from a successor in its pid
	Asked   bool       `json:"asked,omitempty"`   // to shut down
	Halt    vm.Halt    `json:"halt,omitempty"`    // of a paused VM, whose process runs on unless it is stopped
	Saving  bool       `json:"saving,omitempty"`  // its memory, see FailHeld
	Resumes bool       `json:"resumes,omitempty"` // its process has yet to be told: who is in a sandbox cannot

	Snapshots []vm.Snapshot `json:"snapshots,omitempty"`
}

// storedSpec survives JSON with the bytes of a path that is not UTF-8.
type storedSpec struct {
	vm.Spec
	ProjectBytes []byte
}

func store(s vm.Spec) storedSpec { return storedSpec{Spec: s, ProjectBytes: []byte(s.Project)} }

func (s storedSpec) spec() vm.Spec {
	s.Project = string(s.ProjectBytes)
	return s.Spec
}

// AddForeign makes a domain that devvm did not make. Its name is the whole one.
func (f *Fake) AddForeign(ctx context.Context, domain string) error {
	return f.locked(ctx, func() error {
		return f.write(record{Name: domain, Foreign: true, State: vm.StateStopped})
	})
}

// Fail makes an operation fail in every process until the failure is "" again.
// It is the content of the file fail/OP in the fake's directory.
func (f *Fake) Fail(op, failure string) error {
	path := filepath.Join(f.dir, "fail", op)
	if failure == "" {
		err := os.Remove(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(failure), 0o600)
}

// failure carries out the failures that come before the operation, and returns
// an error for those that come after it.
func (f *Fake) failure(ctx context.Context, op string, accel vm.Accel) (before, after error) {
	b, _ := os.ReadFile(filepath.Join(f.dir, "fail", op)) // none: it shall not fail
	switch text := strings.TrimSpace(string(b)); text {
	case "":
		return nil, nil
	case FailKVM:
		if accel != vm.AccelKVM {
			return nil, nil
		}
		return fmt.Errorf("%w: failed to initialize kvm: Permission denied", vm.ErrAccel), nil
	case FailNoSpace:
		return fmt.Errorf("write: %w", syscall.ENOSPC), nil
	case FailMemory:
		return fmt.Errorf("%w: load of migration failed: Invalid argument", vm.ErrMemory), nil
	case FailLost:
		return vm.ErrConnectionLost, nil
	case FailLate:
		return nil, vm.ErrConnectionLost
	case FailHang:
		<-ctx.Done()
		return context.Cause(ctx), nil
	case FailHeld:
		return nil, nil // see Save
	default:
		return errors.New(text), nil
	}
}

// fails tells whether an operation is to fail in the way.
func (f *Fake) fails(op, failure string) bool {
	b, _ := os.ReadFile(filepath.Join(f.dir, "fail", op)) // none: it shall not fail
	return strings.TrimSpace(string(b)) == failure
}

// Host implements vm.Hypervisor.
func (f *Fake) Host(ctx context.Context) (vm.Host, error) {
	if err := f.usable(ctx); err != nil {
		return vm.Host{}, err
	}
	h := f.o.Host
	h.URI = cmp.Or(h.URI, "fake:///session")
	h.Libvirt = cmp.Or(h.Libvirt, "9.0.0")
	h.QEMU = cmp.Or(h.QEMU, "7.2.22")
	h.QEMUUser = cmp.Or(h.QEMUUser, -1)
	h.QEMUGroup = cmp.Or(h.QEMUGroup, -1)
	if b, err := os.ReadFile(filepath.Join(f.dir, "host.json")); err == nil {
		if err := json.Unmarshal(b, &h); err != nil {
			return vm.Host{}, fmt.Errorf("read host.json: %w", err)
		}
	}
	return h, nil
}

// Define implements vm.Hypervisor.
func (f *Fake) Define(ctx context.Context, spec vm.Spec) error {
	host, err := f.Host(ctx)
	if err != nil {
		return err
	}
	if _, err := vm.DomainXML(spec, host); err != nil {
		return err
	}
	return f.operate(ctx, OpDefine, spec.Name, func(r *record) error {
		if spec.Accel == vm.AccelKVM && !host.KVMListed {
			return fmt.Errorf("%w: emulator does not support virt type 'kvm'", vm.ErrAccel)
		}
		all, err := f.records()
		if err != nil {
			return err
		}
		for _, other := range all {
			if other.Spec.UUID == spec.UUID && other.Name != vm.DomainPrefix+spec.Name {
				return fmt.Errorf("domain %q already exists with uuid %s", other.Name, spec.UUID)
			}
		}
		if r.Name == "" {
			*r = record{Name: vm.DomainPrefix + spec.Name, State: vm.StateStopped}
		} else if r.Spec.UUID != spec.UUID {
			return fmt.Errorf("domain %q already exists with uuid %s", r.Name, r.Spec.UUID)
		}
		r.Spec = store(spec)
		return nil
	})
}

// Get implements vm.Hypervisor.
func (f *Fake) Get(ctx context.Context, name string) (vm.Domain, error) {
	var d vm.Domain
	err := f.operate(ctx, OpGet, name, func(r *record) error {
		d = r.domain()
		return nil
	})
	return d, err
}

// List implements vm.Hypervisor.
func (f *Fake) List(ctx context.Context) ([]vm.Domain, error) {
	before, after := f.failure(ctx, OpList, "")
	if before != nil {
		return nil, fmt.Errorf("list VMs: %w", before)
	}
	var out []vm.Domain
	err := f.locked(ctx, func() error {
		all, err := f.records()
		if err != nil {
			return err
		}
		for _, r := range all {
			if !r.Foreign {
				f.settle(&r)
				out = append(out, r.domain())
			}
		}
		return after
	})
	if err != nil {
		return nil, fmt.Errorf("list VMs: %w", err)
	}
	slices.SortFunc(out, func(a, b vm.Domain) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Files implements vm.Hypervisor.
func (f *Fake) Files(ctx context.Context) (map[string][]string, error) {
	before, after := f.failure(ctx, OpList, "")
	if before != nil {
		return nil, fmt.Errorf("list files: %w", before)
	}
	out := map[string][]string{}
	err := f.locked(ctx, func() error {
		all, err := f.records()
		if err != nil {
			return err
		}
		for _, r := range all {
			var named []string
			for _, spec := range []vm.Spec{r.Spec.spec(), r.Live.spec()} {
				named = append(named, append(spec.Backing, spec.Disk, spec.Kernel, spec.Initrd)...)
			}
			slices.Sort(named)
			out[strings.TrimPrefix(r.Name, vm.DomainPrefix)] = slices.DeleteFunc(slices.Compact(named), func(path string) bool { return path == "" })
		}
		return after
	})
	if err != nil {
		return nil, fmt.Errorf("list files: %w", err)
	}
	return out, nil
}

// Start implements vm.Hypervisor.
func (f *Fake) Start(ctx context.Context, name string) error {
	host, err := f.Host(ctx)
	if err != nil {
		return err
	}
	return f.operate(ctx, OpStart, name, func(r *record) error {
		switch r.State {
		case vm.StateRunning:
			return nil
		case vm.StatePaused:
			return f.proceed(r)
		default:
		}
		spec := r.Spec.spec()
		if err := f.startable(spec, host); err != nil {
			return err
		}
		return f.launch(r, spec)
	})
}

// Proceed implements vm.Hypervisor.
func (f *Fake) Proceed(ctx context.Context, name string, why vm.Halt) error {
	return f.operate(ctx, OpStart, name, func(r *record) error {
		if r.State != vm.StatePaused || r.Halt != why {
			return nil
		}
		return f.proceed(r)
	})
}

// proceed lets a paused VM go on.
func (f *Fake) proceed(r *record) error {
	switch {
	case r.Halt == vm.HaltSignal:
		return signal(*r, unix.SIGCONT)
	case r.Saving:
		return errors.New("domain is not running")
	case f.fails(OpPause, string(r.Halt)): // for the same reason, at once
		return nil
	}
	r.State, r.Halt, r.Reason, r.Resumes = vm.StateRunning, "", "resumed", true
	return nil
}

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

// Shutdown implements vm.Hypervisor.
func (f *Fake) Shutdown(ctx context.Context, name string) error {
	return f.operate(ctx, OpShutdown, name, func(r *record) error {
		if err := r.needsRunning(); err != nil {
			return err
		}
		r.Asked = true
		if err := f.write(*r); err != nil {
			return err
		}
		return signal(*r, unix.SIGTERM)
	})
}

// Destroy implements vm.Hypervisor.
func (f *Fake) Destroy(ctx context.Context, name string) error {
	return f.operate(ctx, OpDestroy, name, func(r *record) error {
		if !r.on() {
			return nil
		}
		if err := f.kill(ctx, *r); err != nil {
			return err
		}
		r.off(vm.StateStopped, "stopped by force")
		return nil
	})
}

// Save implements vm.Hypervisor.
func (f *Fake) Save(ctx context.Context, name string) error {
	err := f.operate(ctx, OpSave, name, func(r *record) error {
		if err := r.needsRunning(); err != nil {
			return err
		}
		if f.fails(OpSave, FailHeld) {
			r.State, r.Halt, r.Reason, r.Saving = vm.StatePaused, vm.HaltPassing, "its memory is being saved", true
			return signal(*r, unix.SIGSTOP)
		}
		if err := f.kill(ctx, *r); err != nil {
			return err
		}
		r.off(vm.StateSaved, "its memory is saved")
		return nil
	})
	if err != nil || !f.fails(OpSave, FailHeld) {
		return err
	}
	_, err = f.Wait(ctx, name, vm.StateSaved)
	return err
}

// DropSaved implements vm.Hypervisor.
func (f *Fake) DropSaved(ctx context.Context, name string) error {
	return f.operate(ctx, OpSave, name, func(r *record) error {
		if r.State == vm.StateSaved {
			r.off(vm.StateStopped, "its saved memory was dropped")
		}
		return nil
	})
}

// Freeze implements vm.Hypervisor. The memory of a fake VM is its spec.
func (f *Fake) Freeze(ctx context.Context, name, path string) error {
	return f.operate(ctx, OpFreeze, name, func(r *record) error {
		if err := r.needsRunning(); err != nil {
			return err
		}
		b, err := json.Marshal(r.Live)
		if err != nil {
			return err
		}
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = file.Write(b)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
		if err := f.kill(ctx, *r); err != nil {
			return err
		}
		r.off(vm.StateStopped, "its memory was saved")
		return nil
	})
}

// Fork implements vm.Hypervisor.
func (f *Fake) Fork(ctx context.Context, spec vm.Spec, memory, scratch string, meanwhile func(context.Context) error) error {
	if err := f.Undefine(ctx, spec.Name); err != nil && !errors.Is(err, vm.ErrNotFound) {
		return err
	}
	if err := f.Define(ctx, spec); err != nil {
		return err
	}
	if err := meanwhile(ctx); err != nil {
		return err
	}
	host, err := f.Host(ctx)
	if err != nil {
		return err
	}
	return f.operate(ctx, OpFork, spec.Name, func(r *record) error {
		if r.on() {
			return vm.ErrRunning
		}
		b, err := os.ReadFile(memory)
		if err != nil {
			return err
		}
		var saved storedSpec
		if err := json.Unmarshal(b, &saved); err != nil {
			return fmt.Errorf("%w: %w", vm.ErrMemory, err)
		}
		if saved.CPUs != spec.CPUs || saved.Memory != spec.Memory || saved.Accel != spec.Accel {
			return fmt.Errorf("%w: it is of another machine", vm.ErrMemory)
		}
		if err := os.WriteFile(scratch, b, 0o600); err != nil {
			return err
		}
		if err := f.startable(spec, host); err != nil {
			return err
		}
		r.State = vm.StateSaved // it resumes
		return f.launch(r, spec)
	})
}

// Snapshot implements vm.Hypervisor. A fake VM's snapshot is its name.
func (f *Fake) Snapshot(ctx context.Context, name, snapshot string) error {
	return f.operate(ctx, OpSnapshot, name, func(r *record) error {
		if slices.ContainsFunc(r.Snapshots, func(s vm.Snapshot) bool { return s.Name == snapshot }) {
			return fmt.Errorf("domain snapshot %s already exists", snapshot)
		}
		if r.Halt == vm.HaltSignal {
			return vm.ErrStopped
		}
		r.Snapshots = append(r.Snapshots, vm.Snapshot{Name: snapshot, Created: time.Now(), Memory: r.State == vm.StateRunning})
		return nil
	})
}

// Snapshots implements vm.Hypervisor.
func (f *Fake) Snapshots(ctx context.Context, name string) ([]vm.Snapshot, error) {
	var out []vm.Snapshot
	err := f.operate(ctx, OpGet, name, func(r *record) error {
		out = slices.Clone(r.Snapshots)
		return nil
	})
	return out, err
}

// Revert implements vm.Hypervisor.
func (f *Fake) Revert(ctx context.Context, name, snapshot string) error {
	host, err := f.Host(ctx)
	if err != nil {
		return err
	}
	return f.operate(ctx, OpRevert, name, func(r *record) error {
		if r.on() {
			return vm.ErrRunning
		}
		i := slices.IndexFunc(r.Snapshots, func(s vm.Snapshot) bool { return s.Name == snapshot })
		if i < 0 {
			return vm.ErrNoSnapshot
		}
		if !r.Snapshots[i].Memory {
			r.off(vm.StateStopped, "from a snapshot")
			return nil
		}
		if err := f.startable(r.Spec.spec(), host); err != nil {
			return err
		}
		r.State = vm.StateSaved // it resumes
		return f.launch(r, r.Spec.spec())
	})
}

// DeleteSnapshot implements vm.Hypervisor.
func (f *Fake) DeleteSnapshot(ctx context.Context, name, snapshot string) error {
	return f.operate(ctx, OpSnapshot, name, func(r *record) error {
		n := len(r.Snapshots)
		r.Snapshots = slices.DeleteFunc(r.Snapshots, func(s vm.Snapshot) bool { return s.Name == snapshot })
		if len(r.Snapshots) == n {
			return vm.ErrNoSnapshot
		}
		return nil
	})
}

// Undefine implements vm.Hypervisor.
func (f *Fake) Undefine(ctx context.Context, name string) error {
	return f.operate(ctx, OpUndefine, name, func(r *record) error {
		if r.on() {
			return vm.ErrRunning
		}
		for _, path := range []string{f.offFile(r.Name), filepath.Join(f.dir, "run", r.Name+".spec.json"), filepath.Join(f.dir, "run", r.Name+".log"), f.path(r.Name)} {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		*r = record{}
		return nil
	})
}

// Wait implements vm.Hypervisor.
func (f *Fake) Wait(ctx context.Context, name string, states ...vm.State) (vm.Domain, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		d, err := f.Get(ctx, name)
		if err != nil || slices.Contains(states, d.State) {
			return d, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return d, fmt.Errorf("wait for VM %s to be %v: %w", name, states, context.Cause(ctx))
		}
	}
}

// Close implements vm.Hypervisor.
func (f *Fake) Close() error {
	select {
	case <-f.closed:
	default:
		close(f.closed)
	}
	return nil
}

func (f *Fake) usable(ctx context.Context) error {
	select {
	case <-f.closed:
		return net.ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	default:
		return nil
	}
}

// operate runs one operation on one domain under the lock and keeps what it
// does to the record. A domain that is not there is an empty record for
// OpDefine and an error for all others.
func (f *Fake) operate(ctx context.Context, op, name string, do func(*record) error) error {
	err := f.operation(ctx, op, name, do)
	if err != nil {
		return fmt.Errorf("%s VM %s: %w", op, name, err)
	}
	return nil
}

func (f *Fake) operation(ctx context.Context, op, name string, do func(*record) error) error {
	accel := vm.AccelTCG
	if r, err := f.read(vm.DomainPrefix + name); err == nil {
		accel = r.Spec.Accel
	}
	before, after := f.failure(ctx, op, accel)
	if before != nil {
		return before
	}
	return f.locked(ctx, func() error {
		r, err := f.read(vm.DomainPrefix + name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && op == OpDefine:
		case errors.Is(err, fs.ErrNotExist):
			return vm.ErrNotFound
		case err != nil:
			return err
		case r.Foreign:
			return vm.ErrForeign
		}
		was := r
		f.settle(&r)
		if err := do(&r); err != nil {
			return err
		}
		if r.Name != "" && fmt.Sprint(was) != fmt.Sprint(r) {
			if err := f.write(r); err != nil {
				return err
			}
		}
		return after
	})
}

// locked runs do while no other process or goroutine does the like.
func (f *Fake) locked(ctx context.Context, do func() error) error {
	if err := f.usable(ctx); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(f.dir, "domains"), 0o700); err != nil {
		return err
	}
	l := flock.New(filepath.Join(f.dir, "lock"))
	if err := lock.Wait(ctx, l, false, 2*time.Millisecond); err != nil {
		return fmt.Errorf("lock the fake hypervisor: %w", err)
	}
	defer func() { _ = l.Unlock() }() // closing the file, which it also does, unlocks it
	return do()
}

func (f *Fake) path(domain string) string {
	return filepath.Join(f.dir, "domains", domain+".json")
}

func (f *Fake) read(domain string) (record, error) {
	var r record
	b, err := os.ReadFile(f.path(domain))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(b, &r)
}

func (f *Fake) records() ([]record, error) {
	entries, err := os.ReadDir(filepath.Join(f.dir, "domains"))
	if err != nil {
		return nil, err
	}
	var all []record
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue // what a killed process has left
		}
		r, err := f.read(name)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// write replaces the record as a whole.
func (f *Fake) write(r record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	tmp := f.path(r.Name) + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, f.path(r.Name))
}

// on reports whether the VM has a process.
func (r *record) on() bool { return r.State == vm.StateRunning || r.State == vm.StatePaused }

// needsRunning refuses what only a VM that runs can do.
func (r *record) needsRunning() error {
	switch {
	case r.Halt == vm.HaltSignal:
		return vm.ErrStopped
	case r.State != vm.StateRunning:
		return vm.ErrNotRunning
	}
	return nil
}

// settle notices that the process of a running VM has ended or was stopped, that a save that
// was held goes on, and what pauses it.
func (f *Fake) settle(r *record) {
	if !r.on() {
		return
	}
	if r.Saving {
		if !f.fails(OpSave, FailHeld) {
			_ = signal(*r, unix.SIGKILL)
			r.off(vm.StateSaved, "its memory is saved")
			return
		}
		if r.alive() {
			return
		}
	}
	if r.alive() {
		b, _ := os.ReadFile(filepath.Join(f.dir, "fail", OpPause)) // none: nothing pauses it
		why := vm.Halt(strings.TrimSpace(string(b)))
		if r.Resumes && signal(*r, unix.SIGCONT) == nil {
			r.Resumes = false
		}
		switch stopped := stopped(r.PID); {
		case r.Resumes:
		case r.State == vm.StateRunning && why != "":
			r.State, r.Halt, r.Reason = vm.StatePaused, why, "disk I/O error"
			_ = signal(*r, unix.SIGSTOP)
		case r.State == vm.StateRunning && stopped:
			r.State, r.Halt, r.Reason = vm.StatePaused, vm.HaltSignal, "QEMU is stopped by a signal"
		case r.Halt == vm.HaltSignal && !stopped:
			r.State, r.Halt, r.Reason = vm.StateRunning, "", "it goes on"
		}
		return
	}
	if _, err := os.Stat(f.offFile(r.Name)); err == nil || r.Asked {
		r.off(vm.StateStopped, "powered off")
	} else {
		r.off(vm.StateCrashed, "QEMU crashed or was killed")
	}
}

func (r *record) off(state vm.State, reason string) {
	r.State, r.Reason, r.PID, r.Started, r.Asked = state, reason, 0, "", false
	r.Halt, r.Saving, r.Resumes = "", false, false
	r.Live = storedSpec{}
}

func (r *record) domain() vm.Domain {
	spec := r.Spec.spec()
	if r.on() {
		spec = r.Live.spec()
	}
	return vm.Domain{
		Name: spec.Name, UUID: spec.UUID, Project: spec.Project, Config: spec.Config, Image: spec.Image,
		State: r.State, Reason: r.Reason, Halt: r.Halt,
		CPUs: spec.CPUs, Memory: spec.Memory, Accel: spec.Accel, Disk: spec.Disk, PID: r.PID,
	}
}

func (r *record) alive() bool { return r.PID != 0 && startTime(r.PID) == r.Started }

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
