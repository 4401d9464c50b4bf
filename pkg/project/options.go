package project

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/vmnet"
)

// NetOptions returns the options of a project's network process: its paths, and what the VM may
// reach.
func NetOptions(d state.Dirs, name string, policy egress.Policy) (usernet.Options, error) {
	if err := d.Secure(name); err != nil {
		return usernet.Options{}, err
	}
	f := d.Files(name)
	return usernet.Options{
		Config:     usernet.Config{Policy: &policy, Services: map[uint16]string{share.Port: f.ShareSocket()}},
		NetSocket:  f.NetSocket(),
		DialSocket: f.DialSocket(),
		Lock:       f.NetLock(),
	}, nil
}

// dialTimeout is how long one try of the supervisor to reach the guest's sshd may take. It is short
// because a guest that is still booting ignores the connection: a new try succeeds sooner than an
// old one that still waits.
const dialTimeout = time.Second

// SupervisorOptions returns the options of a project's supervisor.
func (s *Service) SupervisorOptions(name string, emulated bool) (supervisor.Options, error) {
	if err := s.Dirs.Secure(name); err != nil {
		return supervisor.Options{}, err
	}
	f := s.Dirs.Files(name)
	target, err := s.Target(state.Project{Name: name}, emulated)
	if err != nil {
		return supervisor.Options{}, err
	}
	record, err := applied.Read(f.Applied())
	if err != nil {
		return supervisor.Options{}, err
	}
	var start applied.Start
	if record.Start != nil {
		start = *record.Start
	}
	dial := target.Dial
	target.Dial = func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		return dial(ctx)
	}
	return supervisor.Options{
		Name:    name,
		Lock:    f.SupervisorLock(),
		Control: f.ControlSocket(),
		Docker:  f.DockerSocket(),
		Target:  target,
		Gone:    func(err error) bool { return errors.Is(err, vmnet.ErrNoNetwork) },
		Version: s.Version,
		Share: supervisor.Share{
			Socket:     f.ShareSocket(),
			Address:    vmnet.Gateway,
			Exports:    start.Exports,
			Durable:    start.Config.ShareDurable,
			Ignore:     start.Config.ShareIgnore,
			Watches:    s.Dirs.Watches(),
			Owners:     f.Owners(),
			HadExports: start.HadExports,
			ByFirmware: machine.MountsByFirmware(f),
		},
		Ping: func(ctx context.Context) error {
			if err := engine.Ping(ctx, f.DockerSocket()); err != nil {
				return err
			}
			return f.MarkAnswering()
		},
		Used:  f.MarkUsed,
		Ports: s.portOptions(f),
		Guard: s.guardOptions(f),
		Disk:  supervisor.Disk{Full: func() bool { return s.ErrFull(f) != nil }},
	}, nil
}
