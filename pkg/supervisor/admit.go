package supervisor

import (
	"context"
	"time"

	"github.com/devvm/devvm/pkg/dockerproxy"
	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/guard"
	"github.com/devvm/devvm/pkg/ports"
)

// admit refuses to create and start containers that cannot have what they want of the
// host: files or ports. What it cannot find out, the engine is to judge.
func (s *supervisor) admit(ctx context.Context, call dockerproxy.Call) (done func(), err error) {
	if call.Kind == dockerproxy.Prune {
		s.admitRoom(ctx, lookFresh)
	}
	w, hold := wishes{name: call.Container, bindings: map[string][]ports.Binding{}}, time.Duration(0)
	switch call.Kind {
	case dockerproxy.CreateVolume:
		if b, ok := guard.Volume(call.Volume.Name, call.Volume.Options); ok {
			w.binds = []guard.Bind{b}
		}
	case dockerproxy.Create:
		w.ask(call.HostConfig)
		hold = holdCreated
	case dockerproxy.Start:
		s.awaitVoice(ctx)
		known, err := engine.GetWishes(ctx, s.dialEngine, call.Container)
		if err != nil {
			s.Log.Debug("what a container wants is not known", "container", call.Container, "err", err)
			return nil, nil
		}
		w.know(known)
		hold = holdStarted
	}
	if err := s.admitBinds(ctx, w.name, w.binds); err != nil {
		return nil, err
	}
	return s.admitPorts(ctx, w.name, w.bindings, hold)
}

// wishes are what a container wants of the host.
type wishes struct {
	name     string // of the container, "" if it has none yet
	binds    []guard.Bind
	bindings map[string][]ports.Binding
}

// ask takes what a call says.
func (w *wishes) ask(host dockerproxy.HostConfig) {
	for port, list := range host.PortBindings {
		for _, b := range list {
			w.bindings[port] = append(w.bindings[port], ports.Binding(b))
		}
	}
	mounts := make([]guard.Mount, len(host.Mounts))
	for i, m := range host.Mounts {
		driver := m.VolumeOptions.DriverConfig
		mounts[i] = guard.Mount{Type: m.Type, Source: m.Source, ReadOnly: m.ReadOnly, Driver: driver.Name, Options: driver.Options}
	}
	w.binds = guard.Binds(host.Binds, mounts)
}

// know takes what the engine knows.
func (w *wishes) know(known engine.Wishes) {
	w.name = known.Name
	for port, list := range known.Bindings {
		for _, b := range list {
			w.bindings[port] = append(w.bindings[port], ports.Binding(b))
		}
	}
	mounts := make([]guard.Mount, len(known.Mounts))
	for i, m := range known.Mounts {
		mounts[i] = guard.Mount{Type: m.Type, Source: m.Source, ReadOnly: m.ReadOnly}
	}
	w.binds = guard.Binds(known.Binds, mounts)
}
