// Package project has devvm's verbs, one per file: up, down, suspend, snapshot, nuke, status, …
//
// Each verb takes the project's lock, looks at what there is, and does what is missing. So a verb can
// be run twice, interrupted or killed at any time: the next run finishes the work. Package state has
// what a project keeps on the disk, package daemon its two processes, and package machine its VM.
//
// It must not import cobra, go-libvirt, gVisor or x/crypto/ssh. Errors that a user must act on are
// *ui.Error with the next command to run.
package project

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"time"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/shell"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/trust"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vmnet"
)

// Service carries out the verbs.
type Service struct {
	machine.Env
	Cold   bool                                             // boot new VMs, do not fork them from templates
	Open   func(ctx context.Context) (vm.Hypervisor, error) // the caller closes it
	Config func(dir string) (config.Config, error)
	Trust  trust.Rule    // whose devvm.toml counts
	Home   string        // the user's
	Halt   time.Duration // for what libvirt is at to end; 0: patienceHalt
}

// errNoVM says that the project has no VM.
func (s *Service) errNoVM(p state.Project) error {
	hint := "make one with: devvm up"
	if above, ok := s.above(p); ok {
		hint = fmt.Sprintf("%s has one: use it with --project, or let subdirectories find it: (cd %s && devvm init)", above.Dir, shell.Quote(above.Dir))
	}
	if former, ok := s.former(p); ok {
		hint = takeOverHint(former)
	}
	if f := s.Dirs.Files(p.Name); state.Exists(f.Disk()) && !f.IsBegun() {
		return &ui.Error{
			Code: ui.ExitNotRunning,
			Msg:  "libvirt does not know the VM of this project, but its disk exists: " + f.Disk(),
			Hint: "start it with: devvm up",
			Kind: vm.ErrNotFound,
		}
	}
	return &ui.Error{
		Code: ui.ExitNoVM,
		Msg:  fmt.Sprintf("no VM for this project (%s)", p.Dir),
		Hint: hint,
		Kind: vm.ErrNotFound,
	}
}

// Above returns the nearest project with a VM above a directory, if there is one and the directory
// itself has no VM.
func (s *Service) Above(p state.Project) (state.Project, bool) {
	if s.Exists(p) {
		return state.Project{}, false
	}
	return s.above(p)
}

// Exists reports whether the project has a VM, or files of one.
func (s *Service) Exists(p state.Project) bool { return state.Exists(s.Dirs.Files(p.Name).Root) }

// HasVM reports whether the project has a VM that may hold something of the user's.
func (s *Service) HasVM(p state.Project) bool { return s.Dirs.Files(p.Name).IsUsed() }

// above is Above without a look at the directory itself.
func (s *Service) above(p state.Project) (state.Project, bool) {
	for d := p.Dir; d != filepath.Dir(d); {
		d = filepath.Dir(d)
		if q := state.Identify(d); state.Exists(s.Dirs.Files(q.Name).Disk()) {
			return q, true
		}
	}
	return state.Project{}, false
}

// former returns the project, with a VM, that a directory was before it was renamed or moved.
func (s *Service) former(p state.Project) (state.Project, bool) {
	self := state.DirIDOf(p.Dir)
	names, _ := s.Dirs.Projects() // none: nor a VM
	for _, name := range names {
		f := s.Dirs.Files(name)
		dir, id := f.Recorded()
		if id != "" && id == self && dir != p.Dir && state.Exists(f.Disk()) && state.DirIDOf(dir) != self {
			return state.Identify(dir), true
		}
	}
	return state.Project{}, false
}

// takeOverHint says what to do about a former project.
func takeOverHint(former state.Project) string {
	return fmt.Sprintf("take over the VM of %s, the old path of this directory: devvm move (to remove that VM: devvm rm --project %s)", former.Dir, former.Name)
}

// errNotRunning says that the project's VM is off.
func errNotRunning(p state.Project, state vm.State) error {
	return &ui.Error{
		Code: ui.ExitNotRunning,
		Msg:  fmt.Sprintf("the VM of project %s is not running (%s)", p.Name, state),
		Hint: "start it with: devvm up",
		Kind: vm.ErrNotRunning,
	}
}

// Socket returns the path of the project's docker.sock, which need not exist.
func (s *Service) Socket(p state.Project) string { return s.Dirs.Files(p.Name).DockerSocket() }

// Logs are the paths of a project's log files.
type Logs struct {
	Console, Supervisor, Network, Provision string
}

// Logs returns the paths; the files need not exist.
func (s *Service) Logs(p state.Project) Logs {
	f := s.Dirs.Files(p.Name)
	return Logs{f.Console(), f.SupervisorLog(), f.NetLog(), f.ProvisionLog()}
}

// Lookup finds a project by its name, in devvm's files and in libvirt. The part of the name that
// comes from the directory is enough if no other project has it.
func (s *Service) Lookup(ctx context.Context, name string) (state.Project, error) {
	if filepath.Base(name) == name {
		if dir := s.Dirs.Files(name).RecordedDir(); dir != "" {
			return state.Identify(dir), nil
		}
	}
	hv, err := s.Open(ctx)
	if err != nil {
		return state.Project{}, err
	}
	defer hv.Close()
	if dom, err := hv.Get(ctx, name); err == nil {
		return state.Identify(dom.Project), nil
	}
	var same []state.Project
	all, _ := s.Dirs.Projects() // none: then nobody has that name
	for _, full := range all {
		dir := s.Dirs.Files(full).RecordedDir()
		if dir != "" && (filepath.Base(dir) == name || state.Slug(filepath.Base(dir)) == name) && !s.IsTemplate(dir) {
			same = append(same, state.Identify(dir))
		}
	}
	switch len(same) {
	case 0:
		return state.Project{}, &ui.Error{
			Code: ui.ExitNoVM,
			Msg:  fmt.Sprintf("no project is named %q, and no such directory exists", name),
			Hint: "list the projects with: devvm ls",
		}
	case 1:
		return same[0], nil
	}
	names := make([]string, len(same))
	for i, p := range same {
		names[i] = p.Name
	}
	return state.Project{}, &ui.Error{
		Code: ui.ExitUsage,
		Msg:  fmt.Sprintf("%d projects are named %q: %s", len(same), name, strings.Join(names, ", ")),
		Hint: "name one of them in full; devvm ls shows their directories",
	}
}

// Connect opens an SSH connection to the project's running guest. From then on the VM is
// in use.
func (s *Service) Connect(ctx context.Context, p state.Project) (*guest.Client, error) {
	client, err := s.Look(ctx, p)
	if err != nil {
		return nil, err
	}
	if err := s.Dirs.Files(p.Name).MarkUsed(); err != nil {
		_ = client.Close()
		return nil, err
	}
	s.catchUpFiles(ctx, p)
	return client, nil
}

// catchUpFiles waits until the VM sees the project's files as they are now. Without a supervisor it
// does nothing.
func (s *Service) catchUpFiles(ctx context.Context, p state.Project) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := s.Daemons(p).Supervisor().CatchUp(ctx); err != nil {
		s.Log.Debug("files are not up to date yet", "err", err)
	}
}

// Look is Connect for a command that only looks: the VM does not count as used.
func (s *Service) Look(ctx context.Context, p state.Project) (*guest.Client, error) {
	dom, err := s.get(ctx, p)
	if err != nil {
		return nil, err
	}
	if dom.State != vm.StateRunning {
		return nil, errNotRunning(p, dom.State)
	}
	client, err := s.ConnectSSH(ctx, p, dom.Accel)
	if err != nil {
		return nil, &ui.Error{
			Msg:  fmt.Sprintf("the VM of project %s runs, but its SSH does not answer", p.Name),
			Hint: "repair the connection with: devvm up" + machine.SeeConsole(s.Dirs.Files(p.Name)),
			Err:  err,
		}
	}
	return client, nil
}

// DialSSH opens a plain connection to the guest's sshd, for OpenSSH's ProxyCommand.
func (s *Service) DialSSH(ctx context.Context, p state.Project) (net.Conn, error) {
	f := s.Dirs.Files(p.Name)
	conn, err := vmnet.NewDialer(f.DialSocket()).Dial(ctx, "tcp", machine.SSHAddress(f))
	if err == nil {
		if err := f.MarkUsed(); err != nil {
			_ = conn.Close()
			return nil, err
		}
		s.catchUpFiles(ctx, p)
	}
	if err != nil { // libvirt is asked only now: editors connect again and again
		dom, derr := s.get(ctx, p)
		switch {
		case derr != nil:
			return nil, derr
		case dom.State != vm.StateRunning:
			return nil, errNotRunning(p, dom.State)
		}
		return nil, &ui.Error{
			Msg:  fmt.Sprintf("the VM of project %s runs, but does not answer", p.Name),
			Hint: "repair the connection with: devvm up",
			Err:  err,
		}
	}
	return conn, nil
}

// Keys returns the SSH keys of the project's VM.
func (s *Service) Keys(p state.Project) (guest.Keys, error) {
	keys, err := guest.LoadKeys(s.Dirs.Files(p.Name).Keys())
	if errors.Is(err, fs.ErrNotExist) {
		return keys, s.errNoVM(p)
	}
	return keys, err
}

// get reads the project's VM, with the errors that users see.
func (s *Service) get(ctx context.Context, p state.Project) (vm.Domain, error) {
	hv, err := s.Open(ctx)
	if err != nil {
		return vm.Domain{}, err
	}
	defer hv.Close()
	return s.find(ctx, hv, p)
}

// find reads the project's VM. It returns an error if the VM belongs to somebody else.
func (s *Service) find(ctx context.Context, hv vm.Hypervisor, p state.Project) (vm.Domain, error) {
	dom, err := hv.Get(ctx, p.Name)
	switch {
	case errors.Is(err, vm.ErrNotFound):
		return dom, s.errNoVM(p)
	case err != nil && !errors.Is(err, vm.ErrForeign):
		return dom, fmt.Errorf("look for the VM: %w", err)
	}
	return dom, machine.CheckOwner(p, dom, err)
}

// Host asks libvirt about this host, and starts its daemon if necessary.
func (s *Service) Host(ctx context.Context) (vm.Host, error) {
	hv, err := s.Open(ctx)
	if err != nil {
		return vm.Host{}, err
	}
	defer hv.Close()
	return hv.Host(ctx)
}

// HaveImage reports whether there is any base image.
func (s *Service) HaveImage(ctx context.Context) bool {
	images, err := s.Images.List(ctx)
	return err == nil && len(images) > 0
}
