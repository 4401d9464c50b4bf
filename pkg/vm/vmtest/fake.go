// Package vmtest holds a hypervisor without VMs and the conformance suite that
// it shares with the real one.
//
// [Fake] keeps its domains as files, so that several processes see the same
// ones, and refuses what libvirt refuses. A started VM is a process of the
// test's choice. [Conformance] says what a [vm.Hypervisor] must do. Nothing but
// tests may import this package, and it imports of devvm only vm and lock.
package vmtest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

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
