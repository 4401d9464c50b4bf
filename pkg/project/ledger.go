package project

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/devvm/devvm/pkg/grant"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/template"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// Kinds of an [Entry].
const (
	KindProject = "project"
	KindUndo    = "undo"
)

// Entry is a line of the disk ledger: something that takes room on this host.
// Fields are only ever added.
type Entry struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	Used int64  `json:"used"` // bytes that its own files take, what it lies on not counted
	// Users is how many disks are based on this one. prune removes it if there are none.
	Users     int       `json:"users"`
	AtLeast   bool      `json:"users_at_least,omitempty"` // a disk cannot be read, which may be one more
	Snapshots int       `json:"snapshots,omitempty"`      // kept within it
	Saved     bool      `json:"saved,omitempty"`          // it is suspended
	Created   time.Time `json:"created,omitzero"`
	Dir       string    `json:"dir,omitempty"`     // of a project
	Damaged   string    `json:"damaged,omitempty"` // what is wrong with it
	// Room is the memory and disk of a running VM, as it last said.
	Room *supervisor.Room `json:"room,omitempty"`
}

// patienceRoom is how long to wait for a supervisor's Room.
const patienceRoom = time.Second

// roomOf asks a project's supervisor for the VM's Room. It returns nil if nobody knows.
func (s *Service) roomOf(ctx context.Context, name string) *supervisor.Room {
	ctx, cancel := context.WithTimeout(ctx, patienceRoom)
	defer cancel()
	st, err := s.Daemons(state.Project{Name: name}).Supervisor().Status(ctx)
	if err != nil {
		return nil
	}
	return st.Room
}

// sweep removes what is left of imports, image builds and template builds that were killed.
func (s *Service) sweep(ctx context.Context) {
	s.Images.Sweep(ctx)
	s.Templates.Sweep()
}

// Ledger lists what devvm keeps on this host's disk.
func (s *Service) Ledger(ctx context.Context) ([]Entry, error) {
	s.sweep(ctx)
	all, err := s.uses(ctx)
	if err != nil {
		return nil, err
	}
	users, damaged := countUses(all)
	var out []Entry
	add := func(id string, e Entry) {
		e.Users, e.AtLeast = users[id], len(damaged) > 0
		out = append(out, e)
	}
	images, err := s.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range images {
		add(i.Digest, Entry{Kind: machine.KindImage, Name: i.Name + " " + i.Digest[:12], Used: i.Size(), Created: i.Created})
	}
	badImages, err := s.Images.Damaged(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range badImages {
		add(d.Digest, Entry{Kind: machine.KindImage, Name: d.Digest[:12], Used: d.Used(), Damaged: d.Err.Error()})
	}
	templates, err := s.Templates.List()
	if err != nil {
		return nil, err
	}
	for _, t := range templates {
		add(t.ID, Entry{Kind: machine.KindTemplate, Name: t.ID, Used: t.Used(), Created: t.Created})
	}
	badTemplates, err := s.Templates.Damaged()
	if err != nil {
		return nil, err
	}
	for _, d := range badTemplates {
		add(d.ID, Entry{Kind: machine.KindTemplate, Name: d.ID, Used: d.Used(), Damaged: d.Err.Error()})
	}
	projects, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	hv, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer hv.Close()
	for _, p := range projects {
		e := Entry{Kind: KindProject, Name: p.Project, Used: p.DiskUsed + p.SavedUsed, Dir: p.Dir, Saved: p.State == vm.StateSaved, Damaged: damaged[p.Project]}
		if p.State == vm.StateRunning {
			e.Room = s.roomOf(ctx, p.Project)
		}
		if all, err := hv.Snapshots(ctx, p.Project); err == nil {
			e.Snapshots = len(all)
		}
		out = append(out, e)
		if p.UndoUsed > 0 {
			out = append(out, Entry{Kind: KindUndo, Name: p.Project, Used: p.UndoUsed, Dir: p.Dir})
		}
	}
	return out, nil
}

// countUses counts the disks that are based on each image and template, by digest or ID. damaged
// says, by project, why some are not counted.
func countUses(all []use) (users map[string]int, damaged map[string]string) {
	users, damaged = map[string]int{}, map[string]string{}
	for _, u := range all {
		on := u.below
		if u.err != nil || u.path == "" { // then only libvirt knows
			on = u.known
		}
		if u.err != nil {
			damaged[u.project] = u.err.Error()
		}
		seen := map[string]bool{}
		for _, path := range on {
			if kind, id := machine.StoreOf(path); kind != "" && !seen[id] {
				seen[id] = true
				users[id]++
			}
		}
	}
	return users, damaged
}

// Pruned is what [Service.Prune] has given back, in bytes.
type Pruned struct {
	Templates int64 `json:"templates"`
	Images    int64 `json:"images"`
	DryRun    bool  `json:"dry_run,omitempty"` // nothing was removed: so much would be given back
}

// PruneOptions of [Service.Prune].
type PruneOptions struct {
	KeepWarm bool // leave images alone, and the templates that the next up can use
	DryRun   bool // count only
}

// Prune removes every image and template that no disk is based on. It keeps the templates that the
// nuke of a project forks from. A dry run does not count what a killed template build left behind.
func (s *Service) Prune(ctx context.Context, o PruneOptions) (Pruned, error) {
	out := Pruned{DryRun: o.DryRun}
	if !o.DryRun {
		if err := s.clearBuilders(ctx); err != nil {
			return out, err
		}
	}
	forkable, err := s.Forkable(ctx)
	if err != nil {
		return out, err
	}
	images, err := s.Images.List(ctx)
	if err != nil {
		return out, err
	}
	newest, seen := map[string]bool{}, map[string]bool{}
	for _, i := range images {
		newest[i.Digest] = newest[i.Digest] || !seen[i.Name]
		seen[i.Name] = true
	}
	forked, err := s.templatesToNuke(ctx)
	if err != nil {
		return out, err
	}
	keep := func(t template.Template) bool { return (o.KeepWarm || forked[t.ID]) && newest[t.Image] && forkable(t) }
	gone := map[string]bool{} // templates that would be
	if o.DryRun {
		out.Templates, gone, err = s.Templates.Prunable(ctx, func(ctx context.Context, gone map[string]bool) (map[string]bool, error) {
			return s.inUse(ctx, machine.KindTemplate, s.without(gone))
		}, keep)
	} else {
		out.Templates, err = s.Templates.Prune(ctx, s.TemplatesInUse, keep)
	}
	if err != nil || o.KeepWarm {
		return out, err
	}
	based, err := s.inUse(ctx, machine.KindImage, s.without(gone))
	if err != nil {
		return out, err
	}
	prune := s.Images.Prune
	if o.DryRun {
		prune = s.Images.Prunable
	}
	out.Images, err = prune(ctx, func(digest string) bool { return based[digest] })
	return out, err
}

// without accepts every use but those of templates that would be gone.
func (s *Service) without(gone map[string]bool) func(use) bool {
	return func(u use) bool {
		return u.project != "" || !gone[filepath.Base(filepath.Dir(u.path))]
	}
}

// clearBuilders removes the VMs of template builds that were killed.
func (s *Service) clearBuilders(ctx context.Context) error {
	names, err := s.Dirs.Projects()
	if err != nil {
		return err
	}
	for _, name := range names {
		dir := s.Dirs.Files(name).RecordedDir()
		if !s.IsTemplate(dir) {
			continue
		}
		if err := s.clearBuilder(ctx, state.Identify(dir)); err != nil {
			return fmt.Errorf("clean up after an interrupted template: %w", err)
		}
	}
	return nil
}

func (s *Service) clearBuilder(ctx context.Context, p state.Project) error {
	b := machine.Machine{Env: &s.Env, Project: p, Files: s.Dirs.Files(p.Name)}
	lock, err := b.Files.Acquire(ctx, "prune", nil)
	if ui.ExitCode(err) == ui.ExitBusy {
		return nil // it is being made
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if b.Hypervisor, err = s.Open(ctx); err != nil {
		return err
	}
	defer b.Hypervisor.Close()
	if err := b.Discard(ctx); err != nil {
		return err
	}
	return b.Files.Remove()
}

// Forkable returns a function that reports whether a VM can still be forked from a template on this
// host.
func (s *Service) Forkable(ctx context.Context) (func(template.Template) bool, error) {
	host, err := s.Host(ctx)
	if err != nil {
		return nil, err
	}
	images, err := s.Images.List(ctx)
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, i := range images {
		known[i.Digest] = true
	}
	return func(t template.Template) bool {
		return t.Warm() && known[t.Image] && t.Version == template.Version &&
			t.URI == host.URI && t.QEMU == host.QEMU && t.Libvirt == host.Libvirt && t.Kernel == host.Kernel &&
			(t.Accel != string(vm.AccelKVM) || t.CPU == host.CPU)
	}, nil
}

// BuildTemplate makes the template that the project's next new VM is forked from, unless it exists.
// It returns its ID.
func (s *Service) BuildTemplate(ctx context.Context, p state.Project, pr *ui.Progress) (string, error) {
	cfg, err := s.readConfig(p)
	if err == nil {
		err = cfg.CheckProvision()
	}
	if err == nil {
		err = s.checkImage(ctx, cfg)
	}
	if err == nil {
		err = s.checkAgreed(p, Plan{config: cfg, wanted: grant.Of(p.Dir, cfg, nil)})
	}
	if err != nil {
		return "", err
	}
	f := s.Dirs.Files(p.Name)
	lock, err := f.Acquire(ctx, "template", nil)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	hv, err := s.Open(ctx)
	if err != nil {
		return "", err
	}
	defer hv.Close()
	host, err := hv.Host(ctx)
	if err != nil {
		return "", err
	}
	if err := s.MakeDirs(f); err != nil {
		return "", err
	}
	show := &machine.Steps{Progress: pr}
	b := machine.Machine{Env: &s.Env, Hypervisor: hv, Host: host, Project: p, Config: cfg, Files: f, Progress: show, Accel: s.Accelerators.Choose(host).Accel}
	id, err := b.BuildTemplate(ctx)
	if !state.Exists(f.Disk()) && !state.Exists(f.Undo) && err == nil { // there is no VM: leave nothing of one
		err = f.Remove()
	}
	show.Done()
	return id, err
}
