package project

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/subnet"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vmnet"
)

// StateAbsent is the state of a project that has no VM.
const StateAbsent vm.State = "absent"

// Status is the state of one project, for people and as JSON; fields are only
// ever added.
type Status struct {
	Project   string   `json:"project"`
	Dir       string   `json:"dir"`
	DirGone   bool     `json:"dir_gone,omitempty"`
	State     vm.State `json:"state"`
	Reason    string   `json:"reason,omitempty"`
	Healthy   bool     `json:"healthy"`        // the engine answered on docker.sock just now
	Slow      bool     `json:"slow,omitempty"` // the VM is silent for now; what runs in it goes on
	Problem   string   `json:"problem,omitempty"`
	Next      string   `json:"next,omitempty"` // the command that helps
	CPUs      int      `json:"cpus,omitempty"`
	Memory    int64    `json:"memory,omitempty"` // bytes
	Accel     vm.Accel `json:"accel,omitempty"`
	DiskUsed  int64    `json:"disk_used"`            // bytes on this host
	UndoUsed  int64    `json:"undo_used,omitempty"`  // bytes of the disk kept for nuke --undo
	SavedUsed int64    `json:"saved_used,omitempty"` // bytes of a suspended VM's memory
	Image     string   `json:"image,omitempty"`
	Socket    string   `json:"socket,omitempty"`
	Engine    string   `json:"engine,omitempty"` // version
	// Latency is how long the engine's answer took, in milliseconds.
	Latency float64 `json:"latency_ms,omitempty"`

	// Unprovisioned says that the VM runs and provisioning failed or has not finished.
	Unprovisioned bool `json:"unprovisioned,omitempty"`

	// Clashes are the engine's networks that hide what this host reaches.
	Clashes []subnet.Clash `json:"clashes,omitempty"`

	Supervisor *supervisor.Status `json:"supervisor,omitempty"`
	Network    *vmnet.Status      `json:"network,omitempty"`
}

// Used is what the project takes of this host's disk, in bytes.
func (st Status) Used() int64 { return st.DiskUsed + st.SavedUsed + st.UndoUsed }

// patienceAnswer is how long status waits for the engine's answer.
const patienceAnswer = 5 * time.Second

// patienceSlow is how long a VM may be slow before the advice is to reboot it.
const patienceSlow = 2 * time.Minute

// Status checks the project end to end: it asks the engine through docker.sock, as users do.
func (s *Service) Status(ctx context.Context, p state.Project) (Status, error) {
	f := s.Dirs.Files(p.Name)
	dom, err := s.get(ctx, p)
	if errors.Is(err, vm.ErrNotFound) {
		if st, ok := s.forgotten(p.Name, p.Dir); ok {
			s.examine(ctx, &st)
			return st, nil
		}
	}
	if err != nil {
		return Status{}, err
	}
	st := s.summary(dom)
	st.Socket = f.DockerSocket()
	if dom.State != vm.StateRunning {
		s.examine(ctx, &st)
		if dom.Halt == vm.HaltIO {
			st.Problem, st.Next = "a write to its disk has failed", "devvm up"
			if err := s.ErrFull(f); err != nil {
				st.Problem, st.Next = err.Error(), ui.Hint(err)
			}
		}
		return st, nil
	}
	if isStopping(f, dom) {
		st.Problem, st.Next = "it is powering off, as devvm down asked", "devvm up"
		return st, nil
	}
	asked := ctx
	ctx, cancel := context.WithTimeout(ctx, patienceAnswer)
	defer cancel()
	s.askDaemons(ctx, p, &st)
	if st.Slow {
		return st, nil
	}
	if st.Problem == "" {
		start := time.Now()
		version, err := engine.GetVersion(ctx, st.Socket)
		if err == nil {
			st.Healthy, st.Engine = true, version
			st.Latency = float64(time.Since(start).Microseconds()) / 1000
			st.Clashes = s.Clashes(ctx, f, func() (config.Config, error) { return s.Config(p.Dir) })
			if st.Unprovisioned {
				st.Problem, st.Next = "provisioning failed, or has not finished (devvm logs --provision): there is no "+f.Provisioned(), "devvm up"
			}
			if full := machine.DiskProblem(*st.Supervisor); full != "" {
				st.Problem, st.Next = full, machine.AdviceFull
			}
			return st, nil
		}
		st.Problem = err.Error()
	}
	if asked.Err() != nil { // Ctrl-C: nothing is known
		return Status{}, asked.Err()
	}
	st.Next = "devvm up"
	if st.Supervisor != nil && st.Supervisor.EngineFailed != "" {
		st.Problem = "Docker Engine does not start in the VM: " + st.Supervisor.EngineFailed
		st.Next = "devvm down; devvm up" // by then [docker.daemon] is mended, if that was to blame
		if full := machine.DiskProblem(*st.Supervisor); full != "" {
			st.Problem, st.Next = full+"; "+st.Problem, machine.AdviceFull
		}
	}
	return st, nil
}

// askDaemons adds what the VM's network process and its supervisor say.
func (s *Service) askDaemons(ctx context.Context, p state.Project, st *Status) {
	switch net, err := vmnet.NewDialer(s.Dirs.Files(p.Name).DialSocket()).Status(ctx); {
	case err == nil:
		st.Network = &net
	case errors.Is(err, vmnet.ErrNoNetwork):
		st.Problem = "the VM's network process is gone"
	default:
		st.Problem = "the VM's network process does not answer"
	}
	switch sup, err := s.Daemons(p).Supervisor().Look(ctx); {
	case err == nil:
		st.Supervisor = &sup
	case errors.Is(err, supervisor.ErrNone):
		st.Problem = "the supervisor is gone, so docker.sock does not work"
	case st.Problem == "":
		st.Problem = "the supervisor does not answer, so docker.sock does not work"
	}
	if st.Problem != "" || st.Supervisor == nil || st.Supervisor.SlowSince.IsZero() {
		return
	}
	st.Slow = true
	st.Problem = fmt.Sprintf("the VM is slow: it has not answered for %s (it is short of memory, or this host is busy); what runs in it continues, new requests wait",
		time.Since(st.Supervisor.SlowSince).Round(time.Second))
	st.Next = "devvm status" // it goes on by itself, mostly
	if time.Since(st.Supervisor.SlowSince) > patienceSlow {
		st.Next = "devvm down; devvm up"
	}
}

// forgotten returns what the files say about a project that libvirt does not know, and false if they
// say nothing.
func (s *Service) forgotten(name, dir string) (Status, bool) {
	f := s.Dirs.Files(name)
	st := Status{
		Project: name, Dir: dir, DirGone: !state.Exists(dir), State: StateAbsent,
		DiskUsed: file.Used(f.VM), UndoUsed: file.Used(f.Undo), Next: "devvm up",
	}
	switch {
	case state.Exists(f.Disk()) && !f.IsBegun():
		st.State, st.Reason = vm.StateStopped, "libvirt does not know it, but its disk exists; devvm up starts it"
	case f.IsLost(false):
		st.setLost(f)
	case !state.Exists(f.Undo):
		return st, false
	}
	return st, true
}

// setLost notes that the VM's disk is gone.
func (st *Status) setLost(f state.Files) {
	st.Problem, st.Next = "the VM's disk is gone: "+f.Disk(), machine.Afresh(f)
}

// examine checks the disk of a VM that is off.
func (s *Service) examine(ctx context.Context, st *Status) {
	f := s.Dirs.Files(st.Project)
	if st.Next == "" {
		st.Next = "devvm up"
	}
	if !state.Exists(f.Disk()) {
		return
	}
	if _, err := machine.Below(ctx, f.Disk()); err != nil {
		st.Problem, st.Next = err.Error(), machine.Afresh(f)
	}
}

// summary is what libvirt and the files say about a project.
func (s *Service) summary(dom vm.Domain) Status {
	f := s.Dirs.Files(dom.Name)
	st := Status{
		Project:   dom.Name,
		Dir:       dom.Project,
		DirGone:   !state.Exists(dom.Project),
		State:     dom.State,
		Reason:    dom.Reason,
		CPUs:      dom.CPUs,
		Memory:    dom.Memory,
		Accel:     dom.Accel,
		Image:     dom.Image,
		DiskUsed:  file.Used(f.VM),
		UndoUsed:  file.Used(f.Undo),
		SavedUsed: dom.Saved,
	}
	st.Unprovisioned = dom.State == vm.StateRunning && state.Exists(f.Disk()) && !f.IsBegun() && !state.Exists(f.Provisioned())
	if f.IsLost(true) {
		st.setLost(f)
	}
	return st
}

// List returns all projects of this user, sorted by directory: those with a VM, and those of which
// only files are left. It does not ask the engines.
func (s *Service) List(ctx context.Context) ([]Status, error) {
	hv, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer hv.Close()
	doms, err := hv.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Status, 0, len(doms))
	known := map[string]bool{}
	for _, dom := range doms {
		known[dom.Name] = true
		if s.IsTemplate(dom.Project) {
			continue
		}
		out = append(out, s.summary(dom))
	}
	names, err := s.Dirs.Projects()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		f := s.Dirs.Files(name)
		if known[name] {
			continue
		}
		dir := f.RecordedDir()
		if s.IsTemplate(dir) {
			continue
		}
		if st, ok := s.forgotten(name, dir); ok || state.Exists(f.Record) {
			out = append(out, st)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Dir < out[j].Dir })
	return out, nil
}
