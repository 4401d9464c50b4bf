// Package daemon starts, asks and ends the two processes of devvm's that serve one project's
// VM: its network process and its supervisor.
//
// Each is the only one of its kind, by a lock. One that cannot be asked is given time, and then
// ended by force.
package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/background"
	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/lock"
	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vmnet"
)

// Set is the daemons of one project.
type Set struct {
	Project string // its name
	Files   state.Files
	Watches string // where the user's supervisors share what the kernel lets the user watch
	Exe     string // this program
	Version string // of this program
	Log     *slog.Logger
}

// StartNetwork starts the project's network process, unless it runs. The user has
// agreed to the policy, or to that of the project whose template it is.
func (s Set) StartNetwork(ctx context.Context, policy egress.Policy, host vm.Host) error {
	input, err := json.Marshal(policy)
	if err != nil {
		return fmt.Errorf("start the network process: %w", err)
	}
	args := []string{"net", "--project-name", s.Project}
	if host.QEMUUser >= 0 {
		args = append(args, fmt.Sprintf("--qemu-user=%d:%d", host.QEMUUser, host.QEMUGroup))
	}
	err = background.Start(ctx, background.Command{Path: s.Exe, Args: args, Log: s.Files.NetLog(), Input: input})
	if err != nil {
		return fmt.Errorf("start the network process: %w", err)
	}
	return nil
}

// StopNetwork ends the network process, if there is one; by force, if need be.
func (s Set) StopNetwork(ctx context.Context) error {
	socket := s.Files.DialSocket()
	err := vmnet.NewDialer(socket).Stop(ctx)
	if errors.Is(err, vmnet.ErrHung) {
		s.Log.Warn("killing a network process that does not end", "project", s.Project)
		err = background.Kill(ctx, socket)
	}
	if err == nil {
		err = s.evict(ctx, s.Files.NetLock())
	}
	if err != nil {
		return fmt.Errorf("stop the network process: %w", err)
	}
	return nil
}

// patienceLock is how long a process of ours that cannot be asked any more may hold its lock:
// one that ends lets go of it sooner.
const patienceLock = 3 * time.Second

// evict ends who holds a lock though nobody can talk to it, because its socket was removed.
func (s Set) evict(ctx context.Context, path string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for start := time.Now(); state.Exists(path); {
		l := flock.New(path, flock.SetPermissions(0o600))
		free, err := l.TryLock()
		_ = l.Close()
		if free || err != nil {
			return err
		}
		if time.Since(start) > patienceLock {
			s.Log.Warn("killing a process whose socket has been removed", "lock", path)
			return background.KillHolder(ctx, path)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// Supervisor is a client of the supervisor.
func (s Set) Supervisor() *supervisor.Client {
	return supervisor.NewClient(s.Files.ControlSocket())
}

// StartSupervisor starts the project's supervisor, unless it runs. More arguments
// are for the new one.
func (s Set) StartSupervisor(ctx context.Context, emulated bool, more ...string) error {
	f := s.Files
	client := s.Supervisor()
	var status supervisor.Status
	err := Outwait(ctx, f.SupervisorLock(), supervisor.ErrHung, func() (err error) {
		status, err = client.Status(ctx)
		return err
	})
	if err == nil && state.Exists(f.DockerSocket()) && (status.Version == s.Version && !status.Alone || status.Connections > 0) {
		if err := client.Resume(ctx); err != nil && status.Version == s.Version {
			return err
		}
		return nil
	}
	switch {
	case err == nil: // of another version or alone, and nobody uses it; or nobody can: docker.sock was removed
		err = s.StopSupervisor(ctx)
	case errors.Is(err, supervisor.ErrHung):
		err = s.KillSupervisor(ctx)
	default:
		err = s.evict(ctx, f.SupervisorLock())
	}
	if err != nil {
		return err
	}
	args := []string{"supervisor", "--project-name", s.Project}
	if emulated {
		args = append(args, "--emulated")
	}
	args = append(args, more...)
	err = background.Start(ctx, background.Command{Path: s.Exe, Args: args, Log: f.SupervisorLog()})
	if err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	return nil
}

// patienceBusy is for a process of ours to answer that runs: on a busy host it needs its time, and
// another in its place would cut whoever uses it.
const patienceBusy = 30 * time.Second

// Outwait asks a process of ours again for as long as it fails with busy and is not lost.
func Outwait(ctx context.Context, path string, busy error, ask func() error) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for start := time.Now(); ; {
		err := ask()
		if !errors.Is(err, busy) || Lost(path, start) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Lost tells whether a process of ours that has not answered since then never will: it has no
// lock any more, a signal has stopped it, or it has had patienceBusy.
func Lost(path string, since time.Time) bool {
	if time.Since(since) >= patienceBusy || lock.Stopped(path) != 0 {
		return true
	}
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil { // an earlier version had none, or somebody has removed it
		return true
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil
}

// StopSupervisor ends the supervisor, if there is one; by force, if need be.
func (s Set) StopSupervisor(ctx context.Context) error {
	defer func() {
		if err := share.SweepWatches(s.Watches); err != nil {
			s.Log.Debug("watches are not swept", "err", err)
		}
	}()
	err := s.Supervisor().Stop(ctx)
	if errors.Is(err, supervisor.ErrHung) {
		return s.KillSupervisor(ctx)
	}
	if errors.Is(err, supervisor.ErrNone) {
		err = s.evict(ctx, s.Files.SupervisorLock())
	}
	if err != nil {
		return fmt.Errorf("stop the supervisor: %w", err)
	}
	return nil
}

// Rest has the supervisor, if there is one, close its link to the guest until it is told to
// go on. One that does not answer is ended, and with it its link.
func (s Set) Rest(ctx context.Context) error {
	err := s.Supervisor().Suspend(ctx)
	switch {
	case errors.Is(err, supervisor.ErrNone):
		return nil
	case errors.Is(err, supervisor.ErrHung):
		return s.KillSupervisor(ctx)
	}
	return err
}

// KillSupervisor ends a supervisor that does not answer.
func (s Set) KillSupervisor(ctx context.Context) error {
	s.Log.Warn("killing a supervisor that does not answer", "project", s.Project)
	if err := background.Kill(ctx, s.Files.ControlSocket()); err != nil {
		return fmt.Errorf("kill the supervisor: %w", err)
	}
	return nil
}

// Stop ends the supervisor and the network process of a stopped VM, and what was
// exposed of it.
func (s Set) Stop(ctx context.Context) error {
	err := s.StopSupervisor(ctx)
	_, ferr := ports.Forget(s.Files.Exposures(), 0)
	return errors.Join(err, ferr, s.StopNetwork(ctx))
}
