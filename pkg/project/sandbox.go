package project

import (
	"errors"
	"log/slog"
	"path/filepath"

	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/sandbox"
	"github.com/devvm/devvm/pkg/state"
)

// Confine limits the process to the policy and the system calls. If the kernel has no Landlock, all
// files stay accessible, and the log says so.
func Confine(p sandbox.Policy, calls sandbox.Calls, log *slog.Logger) error {
	abi, err := sandbox.Enter(p)
	switch {
	case errors.Is(err, sandbox.ErrUnsupported):
		log.Warn("not confined to its own files", "err", err)
	case err != nil:
		return err
	}
	if err := sandbox.Deny(calls); err != nil {
		return err
	}
	log.Info("confined", "landlock", abi)
	return nil
}

// world is what Go programs read on the host. Files in /etc are replaced, not written in place, so
// a rule for a single file would not last.
var world = sandbox.Policy{
	Files: []string{"/etc"},
	Read:  []string{"/usr/share/zoneinfo", "/usr/lib/zoneinfo", "/proc/sys"},
	TCP:   true,
}

// NetPolicy is what a project's network process uses once its sockets are open: the configuration of
// the host's resolver, wherever that is, and the socket of the server that shares files.
func NetPolicy(d state.Dirs, name string) sandbox.Policy {
	f := d.Files(name)
	p := sandbox.Policy{
		Files:   []string{"/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf", "/run/connman"},
		Remove:  []string{f.Run},
		Connect: []string{f.Run},
	}
	for _, link := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		if at, err := filepath.EvalSymlinks(link); err == nil {
			p.Files = append(p.Files, filepath.Dir(at))
		}
	}
	return world.And(p)
}

// SupervisorPolicy is what a project's supervisor uses: the project's own data, the directories that
// the VM has, and the user's own settings.
func (s *Service) SupervisorPolicy(name string) (sandbox.Policy, error) {
	f := s.Dirs.Files(name)
	record, err := applied.Read(f.Applied())
	if err != nil {
		return sandbox.Policy{}, err
	}
	dir := f.RecordedDir()
	p := sandbox.Policy{
		Read:    []string{s.Dirs.Config},
		Files:   []string{dir}, // devvm.toml
		Write:   []string{f.Root, s.Dirs.Watches()},
		Remove:  []string{f.Run},
		Connect: []string{f.Run},
	}
	// The user's own file may be a link. The project's may not be followed: the VM can write it.
	if at, err := filepath.EvalSymlinks(filepath.Join(s.Dirs.Config, "config.toml")); err == nil {
		p.Read = append(p.Read, at)
	}
	for _, e := range record.Exports() {
		if e.Writable {
			p.Write = append(p.Write, e.Source)
		} else {
			p.Read = append(p.Read, e.Source)
		}
	}
	return world.And(p), nil
}
