package project

import (
	"context"
	"errors"
	"path/filepath"
	"sort"
	"time"

	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/vm"
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
	Healthy   bool     `json:"healthy"` // the engine answered on docker.sock just now
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
	// Latency is what the engine's answer took, in milliseconds.
	Latency float64 `json:"latency_ms,omitempty"`

	Supervisor *supervisor.Status `json:"supervisor,omitempty"`
	Network    *usernet.Status    `json:"network,omitempty"`
}

// probePatience bounds the engine's answer in status.
const probePatience = 5 * time.Second

// Status looks at the project end to end: it asks the engine through the same
// socket that users use.
func (s *Service) Status(ctx context.Context, p Project) (Status, error) {
	f := s.Dirs.paths(p.Name)
	dom, err := s.get(ctx, p)
	if errors.Is(err, vm.ErrNotFound) && exists(f.undo) {
		return Status{Project: p.Name, Dir: p.Dir, State: StateAbsent, UndoUsed: file.Used(f.undo), Next: "devvm up"}, nil
	}
	if err != nil {
		return Status{}, err
	}
	st := s.summary(dom)
	st.Socket = f.dockerSocket()
	if dom.State != vm.StateRunning {
		st.Next = "devvm up"
		return st, nil
	}
	asked := ctx
	ctx, cancel := context.WithTimeout(ctx, probePatience)
	defer cancel()
	switch net, err := usernet.NewDialer(f.dialSocket()).Status(ctx); {
	case err == nil:
		st.Network = &net
	case errors.Is(err, usernet.ErrNoNetwork):
		st.Problem = "the VM's network process is gone"
	default:
		st.Problem = "the VM's network process does not answer"
	}
	switch sup, err := s.supervisor(p).Status(ctx); {
	case err == nil:
		st.Supervisor = &sup
	case errors.Is(err, supervisor.ErrNone):
		st.Problem = "the supervisor is gone, so that docker.sock leads nowhere"
	case st.Problem == "":
		st.Problem = "the supervisor does not answer, so that docker.sock leads nowhere"
	}
	if st.Problem == "" {
		start := time.Now()
		version, err := engine.GetVersion(ctx, st.Socket)
		if err == nil {
			st.Healthy, st.Engine = true, version
			st.Latency = float64(time.Since(start).Microseconds()) / 1000
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
	}
	return st, nil
}

// summary is what libvirt and the files say about a project.
func (s *Service) summary(dom vm.Domain) Status {
	f := s.Dirs.paths(dom.Name)
	return Status{
		Project:   dom.Name,
		Dir:       dom.Project,
		DirGone:   !exists(dom.Project),
		State:     dom.State,
		Reason:    dom.Reason,
		CPUs:      dom.CPUs,
		Memory:    dom.Memory,
		Accel:     dom.Accel,
		Image:     dom.Image,
		DiskUsed:  file.Used(f.vm),
		UndoUsed:  file.Used(f.undo),
		SavedUsed: dom.Saved,
	}
}

// List returns all projects of this user, by directory: those with a VM and
// those of which only files are left. The engines are not asked.
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
		if s.isTemplate(dom.Project) {
			continue
		}
		out = append(out, s.summary(dom))
	}
	names, err := s.Dirs.projects()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		f := s.Dirs.paths(name)
		if known[name] || !exists(f.record) {
			continue
		}
		dir := f.readRecord()
		if s.isTemplate(dir) {
			continue
		}
		out = append(out, Status{
			Project: name, Dir: dir, DirGone: !exists(dir), State: StateAbsent,
			DiskUsed: file.Used(f.vm), UndoUsed: file.Used(f.undo),
		})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Dir < out[j].Dir })
	return out, nil
}

// ImagesInUse returns the digests of the images that any project's disk, or
// undo, is based on. The result is nil with an error, never partial: what is
// in use must not be removed.
func (s *Service) ImagesInUse(ctx context.Context) (map[string]bool, error) {
	in := map[string]bool{}
	err := s.eachDisk(ctx, func(_ string, backing []string) { in[imageOf(backing)] = true })
	if err != nil {
		return nil, err
	}
	return in, nil
}

// eachDisk calls f with what each disk of a project, undo or template lies on.
func (s *Service) eachDisk(ctx context.Context, f func(path string, backing []string)) error {
	for _, pattern := range []string{
		filepath.Join(s.Dirs.Data, "projects", "*", "*", "disk.qcow2"),
		filepath.Join(s.Templates.Dir(), "*", "disk.qcow2"),
	} {
		disks, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, d := range disks {
			backing, err := below(ctx, d)
			if !exists(d) { // a nuke or rm was quicker
				continue
			}
			if err != nil {
				return err
			}
			f(d, backing)
		}
	}
	return nil
}
