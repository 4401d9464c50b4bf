package project

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// snapshotName matches valid names of snapshots. libvirt and QEMU use them, and so do command lines.
var snapshotName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// CreateSnapshot keeps the state of the project's VM under a name. "" makes a name from the time. It
// returns the name.
func (s *Service) CreateSnapshot(ctx context.Context, p state.Project, name string, pr *ui.Progress) (string, error) {
	if name == "" {
		name = time.Now().Format("2006-01-02.150405")
	}
	if !snapshotName.MatchString(name) {
		return "", &ui.Error{
			Code: ui.ExitUsage,
			Msg:  fmt.Sprintf("%q is not a name for a snapshot", name),
			Hint: "use up to 64 letters, digits, dots, dashes and underscores",
		}
	}
	err := s.locked(ctx, p, "snapshot", func(hv vm.Hypervisor, dom vm.Domain) error {
		dom, err := s.outlast(ctx, hv, p, dom, pr)
		if err != nil {
			return err
		}
		if isStopping(s.Dirs.Files(p.Name), dom) {
			return errStopping(p)
		}
		if dom.State != vm.StateRunning && dom.State != vm.StateStopped {
			return &ui.Error{
				Code: ui.ExitNotRunning,
				Msg:  fmt.Sprintf("a VM that is %s cannot be snapshotted", dom.State),
				Hint: "resume it with: devvm up",
			}
		}
		all, err := hv.Snapshots(ctx, p.Name)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(all, func(o vm.Snapshot) bool { return o.Name == name }) {
			return &ui.Error{
				Msg:  fmt.Sprintf("there is a snapshot named %s already", name),
				Hint: "choose another name, or remove it with: devvm snapshot rm " + name,
			}
		}
		what := "keep the VM's disk"
		if dom.State == vm.StateRunning {
			what = "keep the VM's disk and memory"
			if err := s.CheckRoomForMemory(s.Dirs.Data, dom); err != nil {
				return err
			}
			// After a restore, a connection that is in the snapshot would have no other end.
			if err := s.Daemons(p).Rest(ctx); err != nil {
				return err
			}
			defer s.takeUp(ctx, p)
		}
		if err := s.Dirs.Files(p.Name).MarkUsed(); err != nil {
			return err
		}
		phase := pr.Start("snapshot", what)
		if err := hv.Snapshot(ctx, p.Name, name); err != nil {
			return explainSnapshot(name, dom, err)
		}
		phase.Done()
		return nil
	})
	return name, err
}

// explainSnapshot explains a snapshot that ran out of room, which QEMU calls an input/output error,
// and what becomes of the memory that it has written.
func explainSnapshot(name string, dom vm.Domain, err error) error {
	if dom.State != vm.StateRunning || !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) {
		return err
	}
	return &ui.Error{
		Err:  err,
		Hint: fmt.Sprintf("make room (devvm df, devvm prune) and run devvm snapshot create %s again: it replaces what this one has written. Nothing else frees that space while the VM exists", name),
	}
}

// takeUp makes the supervisor of a running VM resume its work, and waits until docker.sock and the
// published ports are back. It does not wait long, since they come back by themselves, and Ctrl-C
// does not end it.
func (s *Service) takeUp(ctx context.Context, p state.Project) {
	sup := s.Daemons(p).Supervisor()
	err := sup.Resume(context.WithoutCancel(ctx))
	if err == nil {
		patient, cancel := context.WithTimeout(ctx, 2*machine.PatienceForPorts)
		defer cancel()
		err = sup.Watch(patient, func(st supervisor.Status) bool {
			return st.Version == s.Version && (st.State != supervisor.StateReady || !st.PortsKnown) && st.EngineFailed == ""
		})
	}
	if err != nil && !errors.Is(err, supervisor.ErrNone) {
		s.Log.Info("wait for the supervisor", "err", err)
	}
}

// Snapshots lists the snapshots of the project's VM, oldest first.
func (s *Service) Snapshots(ctx context.Context, p state.Project) ([]vm.Snapshot, error) {
	hv, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer hv.Close()
	if _, err := s.find(ctx, hv, p); err != nil {
		return nil, err
	}
	return hv.Snapshots(ctx, p.Name)
}

// RestoreSnapshot puts the project's VM back into the state of a snapshot. If it ran then,
// RestoreSnapshot waits for its engine. The present state of the VM is lost.
func (s *Service) RestoreSnapshot(ctx context.Context, p state.Project, name string, pr *ui.Progress) error {
	return s.locked(ctx, p, "restore", func(hv vm.Hypervisor, dom vm.Domain) error {
		all, err := hv.Snapshots(ctx, p.Name)
		if err != nil {
			return err
		}
		snapshot, err := named(all, name)
		if err != nil {
			return err
		}
		cfg, err := s.granted(p)
		if err != nil {
			return err
		}
		if err := s.CheckRoomToRun(s.Dirs.Files(p.Name)); err != nil {
			return err
		}
		host, err := hv.Host(ctx)
		if err != nil {
			return err
		}
		show := &machine.Steps{Progress: pr}
		b := machine.Machine{
			Env: &s.Env, Hypervisor: hv, Host: host, Project: p, Config: cfg,
			Files: s.Dirs.Files(p.Name), Progress: show, Accel: dom.Accel,
		}
		show.Start("stop", "stop the VM")
		if err := state.Unmark(b.Files.Stopping()); err != nil {
			return err
		}
		if err := hv.Destroy(ctx, p.Name); err != nil {
			return err
		}
		if err := hv.DropSaved(ctx, p.Name); err != nil { // it would be resumed onto another disk
			return err
		}
		if err := s.Daemons(p).Stop(ctx); err != nil {
			return err
		}
		if err := s.MakeDirs(b.Files); err != nil {
			return err
		}
		show.Start("restore", "go back to snapshot "+name)
		if snapshot.Memory {
			if err := s.Daemons(p).StartNetwork(ctx, b.Config.Policy(), host); err != nil {
				return err
			}
		}
		if err := hv.Revert(ctx, p.Name, name); err != nil {
			_ = s.Daemons(p).StopNetwork(context.WithoutCancel(ctx))
			return err
		}
		if snapshot.Memory {
			if err := s.Daemons(p).StartSupervisor(ctx, dom.Accel == vm.AccelTCG); err != nil {
				return err
			}
			if err := b.WaitReady(ctx, nil); err != nil {
				return err
			}
		}
		show.Done()
		if snapshot.Memory {
			b.NoteClashes(ctx)
		}
		return nil
	})
}

// HasSnapshot returns an error unless the project's VM has a snapshot of that name.
func (s *Service) HasSnapshot(ctx context.Context, p state.Project, name string) error {
	all, err := s.Snapshots(ctx, p)
	if err != nil {
		return err
	}
	_, err = named(all, name)
	return err
}

// named finds a snapshot by its name.
func named(all []vm.Snapshot, name string) (vm.Snapshot, error) {
	i := slices.IndexFunc(all, func(o vm.Snapshot) bool { return o.Name == name })
	if i < 0 {
		return vm.Snapshot{}, errNoSnapshot(name)
	}
	return all[i], nil
}

// DeleteSnapshot removes a snapshot of the project's VM.
func (s *Service) DeleteSnapshot(ctx context.Context, p state.Project, name string) error {
	return s.locked(ctx, p, "snapshot", func(hv vm.Hypervisor, _ vm.Domain) error {
		err := hv.DeleteSnapshot(ctx, p.Name, name)
		if errors.Is(err, vm.ErrNoSnapshot) {
			return errNoSnapshot(name)
		}
		return err
	})
}

func errNoSnapshot(name string) error {
	return &ui.Error{
		Msg:  fmt.Sprintf("the VM has no snapshot named %s", name),
		Hint: "list them with: devvm snapshot ls",
		Kind: vm.ErrNoSnapshot,
	}
}
