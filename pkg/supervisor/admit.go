package supervisor

import (
	"context"
	"path/filepath"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/mount"

	"github.com/devvm/devvm/pkg/dockerproxy"
	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/guard"
	"github.com/devvm/devvm/pkg/mounts"
	"github.com/devvm/devvm/pkg/share"
)

// admit refuses to create or start a container if the host cannot give it the files or ports
// that it wants. What admit cannot find out is left to the engine.
func (s *supervisor) admit(ctx context.Context, call dockerproxy.Call) (v dockerproxy.Verdict, err error) {
	switch call.Kind {
	case dockerproxy.Prune:
		s.admitRoom(ctx, lookFresh)
	case dockerproxy.Resize:
		s.awaitStart(ctx, call.Container)
		return v, nil
	case dockerproxy.Stop:
		if len(s.ports.Report().Ports) > 0 {
			v.BeforeAnswer = s.awaitPorts
		}
		return v, nil
	}
	v.Edits = s.redirect(&call)
	id, name, hold := "", call.Container, time.Duration(0)
	host := call.HostConfig
	binds := guard.Binds(host)
	switch call.Kind {
	case dockerproxy.CreateVolume:
		if b, ok := guard.Volume(call.Volume); ok {
			binds = []guard.Bind{b}
		}
	case dockerproxy.Create:
		hold = holdCreated
	case dockerproxy.Start:
		s.awaitVoice(ctx)
		known, err := engine.GetWishes(ctx, s.dialEngine, call.Container)
		if err != nil {
			s.Log.Debug("what a container wants is not known", "container", call.Container, "err", err)
			return v, nil
		}
		id, name, host = known.ID, known.Name, known.HostConfig
		binds = guard.Binds(host)
		hold = holdStarted
	}
	if err := s.admitBinds(ctx, name, binds); err != nil {
		return v, err
	}
	narrowed, err := s.admitRanges(ctx, call.Kind, name, host.PortBindings)
	if err != nil {
		return v, err
	}
	v.Edits = append(v.Edits, narrowed...)
	if v.Done, err = s.admitPorts(ctx, name, host.PortBindings, hold); err == nil && call.Kind == dockerproxy.Start {
		v.Done = s.holdFiles(id, binds, v.Done)
		if len(host.PortBindings) > 0 || host.PublishAllPorts {
			v.BeforeAnswer = s.awaitPorts
		}
	}
	return v, err
}

// holdFiles holds the single files that a container binds, from before its start until the
// engine's next list, which has the container or not.
func (s *supervisor) holdFiles(id string, binds []guard.Bind, done func()) func() {
	if s.files == nil || id == "" || len(binds) == 0 {
		return done
	}
	ahead := make([]share.Bind, len(binds))
	for i, b := range binds {
		ahead[i] = share.Bind{ID: id, Path: b.Path}
	}
	release := s.files.HoldAhead(ahead)
	return func() {
		time.AfterFunc(holdListed, release)
		if done != nil {
			done()
		}
	}
}

// The first size of a terminal may arrive before its container runs, since it comes on another
// connection. The engine then refuses it. Clients try again for 50 ms, which is too short for a
// VM. (For an exec the engine keeps the size itself.)
const (
	patienceStart = 3 * time.Second
	askStart      = 50 * time.Millisecond
)

// awaitStart waits a while for the start of a container that was created but not started.
func (s *supervisor) awaitStart(ctx context.Context, container string) {
	ctx, cancel := context.WithTimeout(ctx, patienceStart)
	defer cancel()
	tick := time.NewTicker(askStart)
	defer tick.Stop()
	for {
		created, err := engine.IsCreated(ctx, s.dialEngine, container)
		if err != nil || !created {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// redirect replaces docker.sock in binds by the path of the engine's socket in the VM. Clients
// take the path from DOCKER_HOST, and mean the engine that they talk to.
func (s *supervisor) redirect(call *dockerproxy.Call) (edits []dockerproxy.Edit) {
	change := func(to string, path ...string) {
		edits = append(edits, dockerproxy.Edit{Path: path, To: to})
		s.Log.Info("bind of docker.sock leads to the VM's", "container", call.Container)
	}
	host := &call.HostConfig
	for i, spec := range host.Binds {
		if source, rest, ok := guard.Cut(spec); ok && s.isOurSocket(source) {
			host.Binds[i] = engineSocket + rest
			change(host.Binds[i], "HostConfig", "Binds", strconv.Itoa(i))
		}
	}
	for i := range host.Mounts {
		m := &host.Mounts[i]
		at := []string{"HostConfig", "Mounts", strconv.Itoa(i)}
		if m.Type == mount.TypeBind && s.isOurSocket(m.Source) {
			m.Source = engineSocket
			change(m.Source, append(at, "Source")...)
		}
		if o := m.VolumeOptions; m.Type == mount.TypeVolume && o != nil && o.DriverConfig != nil && s.leadToEngine(*o.DriverConfig) {
			change(engineSocket, append(at, "VolumeOptions", "DriverConfig", "Options", "device")...)
		}
	}
	if call.Kind == dockerproxy.CreateVolume && s.leadToEngine(call.Volume) {
		change(engineSocket, "DriverOpts", "device")
	}
	return edits
}

// leadToEngine makes a volume that is docker.sock the engine's socket, and reports whether it was.
func (s *supervisor) leadToEngine(d mount.Driver) bool {
	if b, ok := guard.Volume(d); !ok || !s.isOurSocket(b.Path) {
		return false
	}
	d.Options["device"] = engineSocket
	return true
}

// isOurSocket reports whether a path leads to docker.sock on this host.
func (s *supervisor) isOurSocket(path string) bool {
	path = filepath.Clean(path)
	return filepath.IsAbs(path) && !isEngineSocket(path) && (path == s.Docker || mounts.Real(path) == mounts.Real(s.Docker))
}

// isEngineSocket reports whether a path is one that tools use for the engine's socket, in the VM.
func isEngineSocket(path string) bool { return path == engineSocket || path == "/var"+engineSocket }
