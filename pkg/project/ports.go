package project

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vmnet"
)

// Address is the project's own address on the loopback network, derived from its directory.
func Address(p state.Project) netip.Addr {
	sum := sha256.Sum256([]byte(p.Dir))
	return ports.OwnAddress(sum[:])
}

// portOptions are the options of a project's supervisor for published ports.
func (s *Service) portOptions(f state.Files) supervisor.PortOptions {
	p := state.Project{Dir: f.RecordedDir()}
	at := ports.VM{Addr: vmnet.Guest, Loopback: vmnet.GuestLoopback}
	if !state.Marked(f.Management()) {
		at.SSH = machine.SSHPort
	}
	return supervisor.PortOptions{
		Options: ports.Options{
			VM:        at,
			Own:       Address(p),
			Dial:      vmnet.NewDialer(f.DialSocket()).Dial,
			Project:   s.ProjectOf,
			Exposures: f.Exposures(),
		},
		Settings: func() (ports.Settings, error) {
			cfg, err := s.agreedConfig(f)
			if cfg.PortsMost == 0 {
				cfg.PortsMost = -1
			}
			return ports.Settings{Prefer: cfg.PortsPrefer, Map: cfg.PortsMap, Most: cfg.PortsMost, Deny: cfg.PortsDeny}, err
		},
	}
}

// ProjectOf names, in words, the project whose supervisor a process is, or returns "" if it is none.
// It asks the supervisors themselves, so that the answer is never out of date.
func (s *Service) ProjectOf(ctx context.Context, pid int) string {
	names, err := s.Dirs.Projects()
	if err != nil {
		return ""
	}
	for _, name := range names {
		f := s.Dirs.Files(name)
		if !state.Exists(f.ControlSocket()) {
			continue
		}
		status, err := supervisor.NewClient(f.ControlSocket()).Status(ctx)
		if err == nil && status.PID == pid {
			dir := f.RecordedDir()
			return fmt.Sprintf("devvm project %q (%s)", filepath.Base(dir), dir)
		}
	}
	return ""
}

// Ports returns the published ports of the project's running VM.
func (s *Service) Ports(ctx context.Context, p state.Project) (ports.Report, error) {
	r, err := s.Daemons(p).Supervisor().Ports(ctx)
	return r, s.attended(ctx, p, err)
}

// WatchPorts calls f with the published ports, then with each change, until ctx or the supervisor
// ends.
func (s *Service) WatchPorts(ctx context.Context, p state.Project, f func(ports.Report)) error {
	seen := false
	err := s.Daemons(p).Supervisor().WatchPorts(ctx, func(r ports.Report) bool {
		seen = true
		f(r)
		return true
	})
	if seen && errors.Is(err, supervisor.ErrNone) { // as the VM stopped
		return nil
	}
	return s.attended(ctx, p, err)
}

// Expose opens a published port of the project's running VM to the addresses of a range,
// for a time. It returns what is exposed now.
func (s *Service) Expose(ctx context.Context, p state.Project, port uint16, to netip.Prefix, duration time.Duration) (ports.Report, error) {
	e := ports.Exposure{Port: port, To: to.Masked(), Until: time.Now().Add(duration).Round(time.Second)}
	if err := e.Check(time.Now()); err != nil {
		return ports.Report{}, &ui.Error{Code: ui.ExitUsage, Msg: err.Error(), Hint: "see: devvm expose --help"}
	}
	if err := s.attended(ctx, p, s.Daemons(p).Supervisor().Expose(ctx, e)); err != nil {
		return ports.Report{}, err
	}
	return s.Ports(ctx, p)
}

// Conceal ends the exposure of a port, or of all the project's ports if port is 0, whether its VM
// runs or not. It returns how many it ended.
func (s *Service) Conceal(ctx context.Context, p state.Project, port uint16) (int, error) {
	n, err := s.Daemons(p).Supervisor().Conceal(ctx, port)
	if !errors.Is(err, supervisor.ErrNone) {
		return n, err
	}
	if !s.Exists(p) {
		return 0, s.errNoVM(p)
	}
	return ports.Forget(s.Dirs.Files(p.Name).Exposures(), port)
}

// Serves returns an error if the VM has directories of the host and the supervisor does not answer:
// programs in the VM that use them would hang.
func (s *Service) Serves(ctx context.Context, p state.Project) error {
	has, err := applied.Read(s.Dirs.Files(p.Name).Applied())
	switch {
	case err != nil:
		return &ui.Error{Err: err, Hint: "bring it back with: devvm up"}
	case len(has.Exports()) == 0:
		return nil
	}
	_, err = s.Daemons(p).Supervisor().Status(ctx)
	if errors.Is(err, supervisor.ErrNone) || errors.Is(err, supervisor.ErrHung) {
		return &ui.Error{
			Msg:  "the supervisor does not answer; what uses this host's files in the VM would hang",
			Hint: "bring it back with: devvm up",
			Err:  err,
		}
	}
	return err
}

// attended explains why a project's supervisor cannot be asked.
func (s *Service) attended(ctx context.Context, p state.Project, err error) error {
	if !errors.Is(err, supervisor.ErrNone) {
		return err
	}
	dom, derr := s.get(ctx, p)
	switch {
	case derr != nil:
		return derr
	case dom.State != vm.StateRunning:
		return errNotRunning(p, dom.State)
	}
	return &ui.Error{Msg: "the supervisor is gone, so no published port is open", Hint: "bring it back with: devvm up", Err: err}
}
