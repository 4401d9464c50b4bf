package vmtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/vm"
)

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
