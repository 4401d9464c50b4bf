package vmtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/vm"
)

// Subject is a hypervisor under test, and what the suite cannot do by itself.
type Subject struct {
	// Open connects. The suite calls it more than once and expects to find
	// the same VMs.
	Open func(ctx context.Context) (vm.Hypervisor, error)
	// AddForeign makes a domain of the full name that devvm did not make, and
	// removes it when the test ends.
	AddForeign func(t *testing.T, domain string)
	// Dir is where the VMs' files are made; empty: the test's own directory.
	Dir string
	// MakeDisk makes a disk that a VM starts from; nil: any file will do.
	MakeDisk func(t *testing.T, path string)
	// Mock says that there are no processes and no files behind the VMs.
	Mock bool
	// Transient says that the VMs are gone when all connections are.
	Transient bool
	// Patience is how long one start, stop or save may take; 0: 10 s.
	Patience time.Duration
}

// Conformance runs the suite. It leaves no VM behind, and touches none but its
// own, which are named conformance-….
func Conformance(t *testing.T, s Subject) {
	if s.Patience == 0 {
		s.Patience = 10 * time.Second
	}
	c := &suite{Subject: s}
	h, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	c.h = h
	for _, test := range []struct {
		name string
		run  func(*suite, *testing.T)
		real bool // needs processes, memory and files
	}{
		{"Absent", (*suite).absent, false},
		{"Define", (*suite).define, false},
		{"Redefine", (*suite).redefine, false},
		{"BadSpec", (*suite).badSpec, false},
		{"SameUUID", (*suite).sameUUID, false},
		{"List", (*suite).list, false},
		{"Files", (*suite).files, false},
		{"Foreign", (*suite).foreign, false},
		{"Lifecycle", (*suite).lifecycle, false},
		{"DefineRunning", (*suite).defineRunning, false},
		{"NoDisk", (*suite).noDisk, true},
		{"DiskInUse", (*suite).diskInUse, true},
		{"Save", (*suite).save, false},
		{"Fork", (*suite).fork, true},
		{"ForkRefused", (*suite).forkRefused, true},
		{"Snapshot", (*suite).snapshot, false},
		{"Killed", (*suite).killed, true},
		{"Stopped", (*suite).stopped, true},
		{"Wait", (*suite).wait, false},
		{"Cancelled", (*suite).cancelled, false},
		{"Concurrent", (*suite).concurrent, false},
		{"Reopen", (*suite).reopen, false},
	} {
		if !test.real || !s.Mock {
			t.Run(test.name, func(t *testing.T) { test.run(c, t) })
		}
	}
}

type suite struct {
	Subject
	h     vm.Hypervisor
	specs int
}

// spec makes a VM's files and describes it. The VM is removed when the test
// ends.
func (s *suite) spec(t *testing.T) vm.Spec {
	t.Helper()
	dir := t.TempDir()
	if s.Dir != "" {
		var err error
		if dir, err = os.MkdirTemp(s.Dir, "vm-"); err != nil { //nolint:usetesting // QEMU must be able to pass
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o777); err != nil { // QEMU may run as another user
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
	}
	s.specs++
	spec := vm.Spec{
		Name:    fmt.Sprintf("conformance-%d-%d", os.Getpid(), s.specs),
		UUID:    fmt.Sprintf("7b1f0e66-1f0c-4b52-%04x-%012x", s.specs&0xffff, os.Getpid()),
		Project: "/home/who/a \xff\x01<b>&\"é\n%41",
		Image:   "sha256:1234",
		CPUs:    1,
		Memory:  64 << 20,
		Accel:   vm.AccelTCG,
		Disk:    filepath.Join(dir, "disk, é.qcow2"),
		Console: filepath.Join(dir, "console.log"),
		MAC:     "52:54:00:12:34:56",
	}
	if s.MakeDisk != nil {
		s.MakeDisk(t, spec.Disk)
	} else if err := os.WriteFile(spec.Disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.remove(t, spec.Name) })
	return spec
}

func (s *suite) remove(t *testing.T, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), s.Patience)
	defer cancel()
	if err := s.h.Destroy(ctx, name); err != nil && !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("clean up: %v", err)
	}
	if err := s.h.Undefine(ctx, name); err != nil && !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("clean up: %v", err)
	}
}

// ctx bounds one test.
func (s *suite) ctx(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*s.Patience)
	t.Cleanup(cancel)
	return ctx
}

// defined defines a new VM.
func (s *suite) defined(ctx context.Context, t *testing.T) vm.Spec {
	t.Helper()
	spec := s.spec(t)
	if err := s.h.Define(ctx, spec); err != nil {
		t.Fatal(err)
	}
	return spec
}

// started defines and starts a new VM.
func (s *suite) started(ctx context.Context, t *testing.T) vm.Spec {
	t.Helper()
	spec := s.defined(ctx, t)
	if err := s.h.Start(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	return spec
}

// expect reads the VM and compares all but Reason and PID.
func (s *suite) expect(ctx context.Context, t *testing.T, spec vm.Spec, state vm.State) vm.Domain {
	t.Helper()
	got, err := s.h.Get(ctx, spec.Name)
	if err != nil {
		t.Fatal(err)
	}
	want := vm.Domain{
		Name: spec.Name, UUID: spec.UUID, Project: spec.Project, Image: spec.Image,
		State: state, Reason: got.Reason, CPUs: spec.CPUs, Memory: spec.Memory, Accel: spec.Accel,
		Disk: spec.Disk, PID: got.PID, Saved: got.Saved,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("VM (-want +got):\n%s", diff)
	}
	switch {
	case s.Mock:
	case state == vm.StateRunning && got.PID == 0:
		t.Error("it runs without a process")
	case state != vm.StateRunning && got.PID != 0:
		t.Errorf("it is %s and has a process, %d", got.State, got.PID)
	case state != vm.StateSaved && got.Saved != 0:
		t.Errorf("it is %s and has %d bytes of saved memory", got.State, got.Saved)
	}
	return got
}

// operations are all methods that take a name.
func (s *suite) operations(ctx context.Context, name string) map[string]error {
	get := func(_ vm.Domain, err error) error { return err }
	return map[string]error{
		"Get":      get(s.h.Get(ctx, name)),
		"Start":    s.h.Start(ctx, name),
		"Shutdown": s.h.Shutdown(ctx, name),
		"Destroy":  s.h.Destroy(ctx, name),
		"Save":     s.h.Save(ctx, name),
		"Undefine": s.h.Undefine(ctx, name),
		"Wait":     get(s.h.Wait(ctx, name, vm.StateStopped)),
	}
}

func (s *suite) absent(t *testing.T) {
	for op, err := range s.operations(s.ctx(t), "conformance-none") {
		if !errors.Is(err, vm.ErrNotFound) {
			t.Errorf("%s: %v, want ErrNotFound", op, err)
		}
	}
}

func (s *suite) define(t *testing.T) {
	ctx := s.ctx(t)
	host, err := s.h.Host(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if host.URI == "" || host.Libvirt == "" || host.QEMU == "" {
		t.Errorf("host without identity: %+v", host)
	}
	spec := s.defined(ctx, t)
	s.expect(ctx, t, spec, vm.StateStopped)
	if err := s.h.Undefine(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	if _, err := s.h.Get(ctx, spec.Name); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("after Undefine: %v, want ErrNotFound", err)
	}
	if _, err := os.Stat(spec.Disk); err != nil {
		t.Errorf("Undefine took the disk: %v", err)
	}
}

func (s *suite) redefine(t *testing.T) {
	ctx := s.ctx(t)
	spec := s.defined(ctx, t)
	if err := s.h.Define(ctx, spec); err != nil {
		t.Errorf("the same again: %v", err)
	}
	spec.CPUs, spec.Memory = 2, 96<<20
	if err := s.h.Define(ctx, spec); err != nil {
		t.Fatal(err)
	}
	s.expect(ctx, t, spec, vm.StateStopped)
	other := spec
	other.UUID = "7b1f0e66-1f0c-4b52-ffff-ffffffffffff"
	if err := s.h.Define(ctx, other); err == nil {
		t.Error("another UUID for the same name was taken")
	}
	s.expect(ctx, t, spec, vm.StateStopped)
}

func (s *suite) badSpec(t *testing.T) {
	ctx := s.ctx(t)
	for what, spoil := range map[string]func(*vm.Spec){
		"no CPU":        func(s *vm.Spec) { s.CPUs = 0 },
		"no memory":     func(s *vm.Spec) { s.Memory = 0 },
		"no UUID":       func(s *vm.Spec) { s.UUID = "" },
		"relative disk": func(s *vm.Spec) { s.Disk = "disk.qcow2" },
		"disk \\xff":    func(s *vm.Spec) { s.Disk = "/\xff" },
		"accelerator":   func(s *vm.Spec) { s.Accel = "warp" },
		"credential":    func(s *vm.Spec) { s.Credentials = map[string]string{"x": "not/absolute"} },
	} {
		spec := s.spec(t)
		spoil(&spec)
		if err := s.h.Define(ctx, spec); err == nil {
			t.Errorf("%s: taken", what)
		}
		if _, err := s.h.Get(ctx, spec.Name); !errors.Is(err, vm.ErrNotFound) {
			t.Errorf("%s: %v, want nothing defined", what, err)
		}
	}
}

func (s *suite) sameUUID(t *testing.T) {
	ctx := s.ctx(t)
	first, second := s.defined(ctx, t), s.spec(t)
	second.UUID = first.UUID
	if err := s.h.Define(ctx, second); err == nil {
		t.Error("one UUID for two VMs was taken")
	}
	s.expect(ctx, t, first, vm.StateStopped)
}

func (s *suite) list(t *testing.T) {
	ctx := s.ctx(t)
	s.AddForeign(t, "conformance-other")
	s.AddForeign(t, vm.DomainPrefix+"conformance-other")
	want := []string{s.defined(ctx, t).Name, s.defined(ctx, t).Name, s.started(ctx, t).Name}
	slices.Sort(want)
	all, err := s.h.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range all {
		one, err := s.h.Get(ctx, d.Name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(one, d); diff != "" {
			t.Errorf("%s: Get and List differ (-Get +List):\n%s", d.Name, diff)
		}
		if slices.Contains(want, d.Name) || d.Name == "conformance-other" {
			got = append(got, d.Name)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func (s *suite) files(t *testing.T) {
	ctx := s.ctx(t)
	spec := s.spec(t)
	spec.Backing = []string{filepath.Join(filepath.Dir(spec.Disk), "template, é"), filepath.Join(filepath.Dir(spec.Disk), "image")}
	if err := s.h.Define(ctx, spec); err != nil {
		t.Fatal(err)
	}
	running := s.started(ctx, t)
	if err := s.h.Snapshot(ctx, running.Name, "one"); err != nil {
		t.Fatal(err)
	}
	expect := func(name string, want ...string) {
		t.Helper()
		all, err := s.h.Files(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range want {
			if !slices.Contains(all[name], path) {
				t.Errorf("VM %s names %q, want %s among them", name, all[name], path)
			}
		}
	}
	expect(spec.Name, append(spec.Backing, spec.Disk)...)
	expect(running.Name, running.Disk)
	if err := s.h.Save(ctx, running.Name); err != nil {
		t.Fatal(err)
	}
	expect(running.Name, running.Disk)
}

func (s *suite) foreign(t *testing.T) {
	ctx := s.ctx(t)
	spec := s.spec(t)
	t.Run("a domain of that name", func(t *testing.T) {
		s.AddForeign(t, vm.DomainPrefix+spec.Name)
		ops := s.operations(ctx, spec.Name)
		ops["Define"] = s.h.Define(ctx, spec)
		ops["again"] = s.h.Destroy(ctx, spec.Name) // it must still be there
		for op, err := range ops {
			if !errors.Is(err, vm.ErrForeign) {
				t.Errorf("%s: %v, want ErrForeign", op, err)
			}
		}
	})
}

func (s *suite) lifecycle(t *testing.T) {
	ctx := s.ctx(t)
	spec := s.defined(ctx, t)
	for op, err := range map[string]error{
		"Shutdown": s.h.Shutdown(ctx, spec.Name),
		"Save":     s.h.Save(ctx, spec.Name),
	} {
		if !errors.Is(err, vm.ErrNotRunning) {
			t.Errorf("%s of a stopped VM: %v, want ErrNotRunning", op, err)
		}
	}
	if err := s.h.Destroy(ctx, spec.Name); err != nil {
		t.Errorf("Destroy of a stopped VM: %v", err)
	}
	for range 2 {
		for range 2 { // the second finds it running
			if err := s.h.Start(ctx, spec.Name); err != nil {
				t.Fatal(err)
			}
			if d := s.expect(ctx, t, spec, vm.StateRunning); d.Reason == "" {
				t.Error("it runs without a reason")
			}
		}
		if err := s.h.Undefine(ctx, spec.Name); !errors.Is(err, vm.ErrRunning) {
			t.Errorf("Undefine of a running VM: %v, want ErrRunning", err)
		}
		for range 2 {
			if err := s.h.Destroy(ctx, spec.Name); err != nil {
				t.Fatal(err)
			}
			if d := s.expect(ctx, t, spec, vm.StateStopped); d.Reason == "" {
				t.Error("it is off without a reason")
			}
		}
	}
	if !s.Mock {
		if _, err := os.Stat(spec.Console); err != nil {
			t.Errorf("no console log: %v", err)
		}
	}
	if err := s.h.Start(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	if err := s.h.Shutdown(ctx, spec.Name); err != nil { // a real guest without an OS never hears it
		t.Errorf("Shutdown: %v", err)
	}
}

func (s *suite) defineRunning(t *testing.T) {
	ctx := s.ctx(t)
	was := s.started(ctx, t)
	next := was
	next.CPUs, next.Memory = 2, 96<<20
	if err := s.h.Define(ctx, next); err != nil {
		t.Fatal(err)
	}
	s.expect(ctx, t, was, vm.StateRunning)
	if err := s.h.Destroy(ctx, was.Name); err != nil {
		t.Fatal(err)
	}
	s.expect(ctx, t, next, vm.StateStopped)
	if err := s.h.Start(ctx, was.Name); err != nil {
		t.Fatal(err)
	}
	s.expect(ctx, t, next, vm.StateRunning)
}

func (s *suite) noDisk(t *testing.T) {
	ctx := s.ctx(t)
	spec := s.defined(ctx, t)
	if err := os.Rename(spec.Disk, spec.Disk+".away"); err != nil {
		t.Fatal(err)
	}
	err := s.h.Start(ctx, spec.Name)
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, vm.ErrAccel) {
		t.Errorf("Start: %v, want fs.ErrNotExist", err)
	}
	s.expect(ctx, t, spec, vm.StateStopped)
	if err := os.Rename(spec.Disk+".away", spec.Disk); err != nil {
		t.Fatal(err)
	}
	if err := s.h.Start(ctx, spec.Name); err != nil {
		t.Errorf("Start with the disk back: %v", err)
	}
}

func (s *suite) diskInUse(t *testing.T) {
	ctx := s.ctx(t)
	first, second := s.started(ctx, t), s.spec(t)
	second.Disk = first.Disk
	if err := s.h.Define(ctx, second); err != nil {
		t.Fatal(err)
	}
	if err := s.h.Start(ctx, second.Name); err == nil {
		t.Error("two VMs run on one disk")
	}
	s.expect(ctx, t, first, vm.StateRunning)
	s.expect(ctx, t, second, vm.StateStopped)
}

func (s *suite) save(t *testing.T) {
	ctx := s.ctx(t)
	spec := s.started(ctx, t)
	if err := s.h.Save(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	s.expect(ctx, t, spec, vm.StateSaved)
	if err := s.h.Destroy(ctx, spec.Name); err != nil {
		t.Errorf("Destroy of a saved VM: %v", err)
	}
	s.expect(ctx, t, spec, vm.StateSaved)
	if err := s.h.Start(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	s.expect(ctx, t, spec, vm.StateRunning)
	if err := s.h.Save(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is none
		if err := s.h.DropSaved(ctx, spec.Name); err != nil {
			t.Fatal(err)
		}
		s.expect(ctx, t, spec, vm.StateStopped)
	}
	if err := s.h.Start(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	if err := s.h.DropSaved(ctx, spec.Name); err != nil {
		t.Errorf("DropSaved of a running VM: %v", err)
	}
	s.expect(ctx, t, spec, vm.StateRunning)
	if err := s.h.Save(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	if err := s.h.Undefine(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	if err := s.h.Define(ctx, spec); err != nil {
		t.Fatal(err)
	}
	s.expect(ctx, t, spec, vm.StateStopped) // the image went with the old definition
}

// frozen is a VM that Freeze has stopped, and the file with its memory.
func (s *suite) frozen(ctx context.Context, t *testing.T) (vm.Spec, string) {
	t.Helper()
	spec := s.started(ctx, t)
	memory := spec.Disk + ".memory"
	if err := s.h.Freeze(ctx, spec.Name, memory); err != nil {
		t.Fatal(err)
	}
	s.expect(ctx, t, spec, vm.StateStopped)
	if err := s.h.Freeze(ctx, spec.Name, memory+"2"); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("Freeze of a stopped VM: %v, want ErrNotRunning", err)
	}
	if err := s.h.Undefine(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	return spec, memory
}

func nothing(context.Context) error { return nil }

// Two VMs go on from one memory, and neither uses it up.
func (s *suite) fork(t *testing.T) {
	ctx := s.ctx(t)
	was, memory := s.frozen(ctx, t)
	scratch := memory + ".scratch"
	for range 2 { // the second time with the copy that the first has left
		next := s.spec(t)
		next.CPUs, next.Memory = was.CPUs, was.Memory
		if err := s.h.Fork(ctx, next, memory, scratch, nothing); err != nil {
			t.Fatal(err)
		}
		s.expect(ctx, t, next, vm.StateRunning)
		if _, err := os.Stat(scratch); err != nil {
			t.Errorf("the copy of the memory is not left: %v", err)
		}
		if err := s.h.Fork(ctx, next, memory, scratch, nothing); !errors.Is(err, vm.ErrRunning) {
			t.Errorf("Fork of a running VM: %v, want ErrRunning", err)
		}
	}

	again := s.spec(t)
	again.CPUs, again.Memory = was.CPUs, was.Memory
	if err := s.h.Define(ctx, again); err != nil {
		t.Fatal(err)
	}
	if err := s.h.Snapshot(ctx, again.Name, "old"); err != nil {
		t.Fatal(err)
	}
	if err := s.h.Fork(ctx, again, memory, scratch, nothing); err != nil {
		t.Fatal(err)
	}
	if left, err := s.h.Snapshots(ctx, again.Name); err != nil || len(left) > 0 {
		t.Errorf("Fork in place of a stopped VM leaves its snapshots: %v, %v", left, err)
	}
}

func (s *suite) forkRefused(t *testing.T) {
	ctx := s.ctx(t)
	was, memory := s.frozen(ctx, t)
	next := s.spec(t)
	next.CPUs, next.Memory = was.CPUs, 2*was.Memory
	if err := s.h.Fork(ctx, next, memory, next.Disk+".scratch", nothing); !errors.Is(err, vm.ErrMemory) {
		t.Errorf("Fork of another shape: %v, want ErrMemory", err)
	}
	next.Memory = was.Memory
	if err := os.WriteFile(memory, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.h.Fork(ctx, next, memory, next.Disk+".scratch", nothing); !errors.Is(err, vm.ErrMemory) {
		t.Errorf("Fork of nonsense: %v, want ErrMemory", err)
	}
	s.expect(ctx, t, next, vm.StateStopped)
	left, err := filepath.Glob(next.Disk + ".scratch*")
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func (s *suite) snapshot(t *testing.T) {
	ctx := s.ctx(t)
	spec := s.started(ctx, t)
	if err := s.h.Snapshot(ctx, spec.Name, "running"); err != nil {
		t.Fatal(err)
	}
	if err := s.h.Snapshot(ctx, spec.Name, "running"); err == nil {
		t.Error("two snapshots of one name")
	}
	s.expect(ctx, t, spec, vm.StateRunning)
	if err := s.h.Revert(ctx, spec.Name, "running"); !errors.Is(err, vm.ErrRunning) {
		t.Errorf("Revert of a running VM: %v, want ErrRunning", err)
	}
	if err := s.h.Destroy(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	if err := s.h.Snapshot(ctx, spec.Name, "stopped"); err != nil {
		t.Fatal(err)
	}
	all, err := s.h.Snapshots(ctx, spec.Name)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, one := range all {
		got[one.Name] = one.Memory
	}
	if diff := cmp.Diff(map[string]bool{"running": !s.Mock, "stopped": false}, got); diff != "" && !s.Mock {
		t.Errorf("snapshots (-want +got):\n%s", diff)
	}
	if err := s.h.Revert(ctx, spec.Name, "running"); err != nil {
		t.Fatal(err)
	}
	s.expect(ctx, t, spec, vm.StateRunning)
	if err := s.h.Destroy(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	if err := s.h.Revert(ctx, spec.Name, "stopped"); err != nil {
		t.Fatal(err)
	}
	s.expect(ctx, t, spec, vm.StateStopped)
	if err := s.h.DeleteSnapshot(ctx, spec.Name, "running"); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"Revert":         s.h.Revert(ctx, spec.Name, "running"),
		"DeleteSnapshot": s.h.DeleteSnapshot(ctx, spec.Name, "running"),
	} {
		if !errors.Is(err, vm.ErrNoSnapshot) {
			t.Errorf("%s of a snapshot that is gone: %v, want ErrNoSnapshot", what, err)
		}
	}
	// The definition goes with all that was kept beside it.
	if err := s.h.Undefine(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
}

func (s *suite) killed(t *testing.T) {
	ctx := s.ctx(t)
	spec := s.started(ctx, t)
	d := s.expect(ctx, t, spec, vm.StateRunning)
	if err := unix.Kill(d.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d, err := s.h.Wait(ctx, spec.Name, vm.StateStopped, vm.StateCrashed)
	if err != nil {
		t.Fatal(err)
	}
	if d.State != vm.StateCrashed || d.Reason == "" {
		t.Errorf("it is %s (%s), want crashed", d.State, d.Reason)
	}
	if err := s.h.Start(ctx, spec.Name); err != nil {
		t.Errorf("Start after a crash: %v", err)
	}
	s.expect(ctx, t, spec, vm.StateRunning)
}

// A QEMU that a signal has stopped is no reason to wait for ever: it is told from one that
// runs, goes on when that is asked for, and ends when that is.
func (s *suite) stopped(t *testing.T) {
	ctx := s.ctx(t)
	spec := s.started(ctx, t)
	stop := func() {
		t.Helper()
		d := s.expect(ctx, t, spec, vm.StateRunning)
		if err := unix.Kill(d.PID, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Kill(d.PID, unix.SIGCONT) })
		d, err := s.h.Wait(ctx, spec.Name, vm.StatePaused)
		if err != nil || d.Halt != vm.HaltSignal || d.Reason == "" {
			t.Fatalf("it is %s (%s, %q), %v", d.State, d.Reason, d.Halt, err)
		}
	}
	stop()
	if err := s.h.Shutdown(ctx, spec.Name); !errors.Is(err, vm.ErrStopped) { // nobody in the VM hears of it
		t.Errorf("Shutdown: %v, want ErrStopped", err)
	}
	if err := s.h.Start(ctx, spec.Name); err != nil {
		t.Errorf("Start: %v", err)
	}
	s.expect(ctx, t, spec, vm.StateRunning)
	stop()
	if err := s.h.Proceed(ctx, spec.Name, vm.HaltIO); err != nil {
		t.Errorf("Proceed with another halt: %v", err)
	}
	if d, err := s.h.Get(ctx, spec.Name); err != nil || d.Halt != vm.HaltSignal {
		t.Errorf("Proceed with another halt: it is %s (%q), %v", d.State, d.Halt, err)
	}
	if err := s.h.Proceed(ctx, spec.Name, vm.HaltSignal); err != nil {
		t.Errorf("Proceed: %v", err)
	}
	s.expect(ctx, t, spec, vm.StateRunning)
	stop()
	if err := s.h.Destroy(ctx, spec.Name); err != nil {
		t.Errorf("Destroy: %v", err)
	}
	s.expect(ctx, t, spec, vm.StateStopped)
	if err := s.h.Proceed(ctx, spec.Name, vm.HaltSignal); err != nil {
		t.Errorf("Proceed of a VM that is off: %v", err)
	}
	s.expect(ctx, t, spec, vm.StateStopped)
}

func (s *suite) wait(t *testing.T) {
	ctx := s.ctx(t)
	spec := s.started(ctx, t)
	if d, err := s.h.Wait(ctx, spec.Name, vm.StateStopped, vm.StateRunning); err != nil || d.State != vm.StateRunning {
		t.Errorf("for what is: %v, %v", d.State, err)
	}

	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := s.h.Wait(short, spec.Name, vm.StateStopped); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("in vain: %v, want a deadline exceeded", err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("in vain: took %v", took)
	}

	type result struct {
		d   vm.Domain
		err error
	}
	done := make(chan result, 1)
	go func() {
		d, err := s.h.Wait(ctx, spec.Name, vm.StateStopped)
		done <- result{d, err}
	}()
	if err := s.h.Destroy(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r.err != nil || r.d.State != vm.StateStopped {
		t.Errorf("for what comes: %v, %v", r.d.State, r.err)
	}
}

func (s *suite) cancelled(t *testing.T) {
	ctx := s.ctx(t)
	spec := s.started(ctx, t)
	gone, cancel := context.WithCancel(ctx)
	cancel()
	ops := s.operations(gone, spec.Name)
	ops["Define"] = s.h.Define(gone, spec)
	_, ops["List"] = s.h.List(gone)
	for op, err := range ops {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", op, err)
		}
	}
	s.expect(ctx, t, spec, vm.StateRunning)
}

func (s *suite) concurrent(t *testing.T) {
	ctx := s.ctx(t)
	steady := s.started(ctx, t)
	var specs []vm.Spec
	for range 3 {
		specs = append(specs, s.spec(t))
	}
	var wg sync.WaitGroup
	for _, spec := range specs {
		wg.Go(func() {
			for range 3 {
				for what, op := range map[string]error{
					"Define": s.h.Define(ctx, spec),
				} {
					if op != nil {
						t.Errorf("%s: %v", what, op)
					}
				}
				if _, err := s.h.List(ctx); err != nil {
					t.Errorf("List: %v", err)
				}
				if err := s.h.Undefine(ctx, spec.Name); err != nil {
					t.Errorf("Undefine: %v", err)
				}
			}
		})
		wg.Go(func() { // one that gives up all the time must not harm the others
			for range 10 {
				short, cancel := context.WithTimeout(ctx, time.Millisecond)
				_, _ = s.h.List(short)
				cancel()
				if d, err := s.h.Get(ctx, steady.Name); err != nil || d.State != vm.StateRunning {
					t.Errorf("Get: %v, %v", d.State, err)
				}
			}
		})
	}
	wg.Wait()
}

func (s *suite) reopen(t *testing.T) {
	ctx := s.ctx(t)
	spec := s.started(ctx, t)
	other, err := s.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Transient {
		if d, err := other.Get(ctx, spec.Name); err != nil || d.State != vm.StateRunning {
			t.Errorf("from another connection: %v, %v", d.State, err)
		}
	}
	if err := other.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
	if _, err := other.Get(ctx, spec.Name); err == nil {
		t.Error("a closed connection answers")
	}
	s.expect(ctx, t, spec, vm.StateRunning)
}
