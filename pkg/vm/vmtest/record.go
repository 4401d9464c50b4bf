package vmtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/lock"
	"github.com/devvm/devvm/pkg/vm"
)

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
		Name: spec.Name, UUID: spec.UUID, Project: spec.Project, Image: spec.Image,
		State: r.State, Reason: r.Reason, Halt: r.Halt,
		CPUs: spec.CPUs, Memory: spec.Memory, Accel: spec.Accel, Disk: spec.Disk, PID: r.PID,
	}
}

func (r *record) alive() bool { return r.PID != 0 && startTime(r.PID) == r.Started }
