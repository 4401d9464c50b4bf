package project

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/mounts"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// A project's identity is the path of its directory. So a directory that was renamed is another
// project, and its VM belongs to a path that is gone. Move gives the VM, its undo and what the user
// agreed to, to the new path. The VM must be off for that: what runs in it knows the old path. So do
// its memory and its snapshots, which are dropped.
//
// Until the move is complete, the new project's record says where the VM comes from, so that the
// next up or move can finish it. The disk moves last: the VM is where its disk is.

// Former is the project, with a VM, that a directory was before it was renamed or moved.
type Former struct {
	state.Project
	Same      bool // it is known to be the same directory
	State     vm.State
	Snapshots int
}

// Moves returns the project whose VM a directory could take over, and false if there is none. from
// is the project's path or name; "" finds the project that this directory was before.
func (s *Service) Moves(ctx context.Context, p state.Project, from string) (Former, bool, error) {
	var former state.Project
	switch {
	case from == "":
		f, ok := s.adopted(p)
		if !ok {
			f, ok = s.former(p)
		}
		if !ok {
			return Former{}, false, nil
		}
		former = f
	case filepath.IsAbs(from):
		former = state.Identify(canonicalGone(from))
	default:
		f, err := s.Lookup(ctx, from)
		if err != nil {
			return Former{}, false, err
		}
		former = f
	}
	out := Former{Project: former}
	_, id := s.Dirs.Files(former.Name).Recorded()
	out.Same = state.IsUnique(id) && id == state.DirIDOf(p.Dir)
	hv, err := s.Open(ctx)
	if err != nil {
		return out, false, err
	}
	defer hv.Close()
	dom, err := hv.Get(ctx, former.Name)
	switch {
	case err == nil:
		all, err := hv.Snapshots(ctx, former.Name)
		if err != nil {
			return out, false, err
		}
		out.State, out.Snapshots = dom.State, len(all)
	case !errors.Is(err, vm.ErrNotFound):
		return out, false, err
	}
	return out, true, nil
}

// adopted returns the project whose VM this one has begun to take over.
func (s *Service) adopted(p state.Project) (state.Project, bool) {
	r, err := s.Dirs.Files(p.Name).ReadRecord()
	if err != nil || r.Adopts == "" {
		return state.Project{}, false
	}
	return state.Identify(string(r.From)), true
}

// Replaced reports whether the project's VM was made for another directory that was at this path.
func (s *Service) Replaced(p state.Project) bool { return s.Dirs.Files(p.Name).IsReplaced(p.Dir) }

// Keep gives the VM of a directory that is gone to the one that has its path now.
func (s *Service) Keep(ctx context.Context, p state.Project) error {
	f := s.Dirs.Files(p.Name)
	lock, err := f.Acquire(ctx, "up", nil)
	if err != nil {
		return err
	}
	defer lock.Close()
	return f.WriteRecord(p.Dir)
}

// canonicalGone resolves the symbolic links in a path whose last name need not exist.
func canonicalGone(path string) string {
	return filepath.Join(canonical(filepath.Dir(filepath.Clean(path))), filepath.Base(path))
}

// checkMove returns why a move is not possible.
func (s *Service) checkMove(p state.Project, from Former) error {
	f, old := s.Dirs.Files(p.Name), s.Dirs.Files(from.Name)
	if dir, ok := old.Adopter(); ok && dir != p.Dir {
		return state.ErrLeaves(dir)
	}
	switch {
	case from.Dir == p.Dir:
		return nil
	case s.IsTemplate(from.Dir):
		return s.errNoVM(from.Project)
	case old.KeepsDir(from.Dir, from.Same):
		return &ui.Error{
			Msg:  fmt.Sprintf("%s still exists and keeps its VM", from.Dir),
			Hint: "make a VM for this one: devvm up",
		}
	case f.Adopts() == from.Name: // it is under way
		return nil
	case f.Adopts() != "":
		return state.ErrAdopts()
	case !state.Exists(old.Disk()):
		return &ui.Error{
			Code: ui.ExitNoVM,
			Msg:  "devvm knows no VM of " + from.Dir,
			Hint: "list the projects with: devvm ls",
		}
	case f.IsUsed() || state.Exists(f.Undo):
		return &ui.Error{
			Msg:  fmt.Sprintf("%s has a VM of its own", p.Dir),
			Hint: fmt.Sprintf("remove it with everything in it, and move the other one here: devvm rm && devvm move %s", from.Name),
		}
	}
	return nil
}

// Move gives a directory the VM of another one that is gone. What the user agreed to moves along if
// it is known to be the same directory.
func (s *Service) Move(ctx context.Context, p state.Project, from Former, pr *ui.Progress) (err error) {
	if err := s.checkMove(p, from); err != nil || from.Dir == p.Dir {
		return err
	}
	f, old := s.Dirs.Files(p.Name), s.Dirs.Files(from.Name)
	for _, name := range []string{from.Name, p.Name} {
		lock, err := s.Dirs.Files(name).Acquire(ctx, "move", nil)
		if err != nil {
			return err
		}
		defer lock.Close()
	}
	defer func() {
		if left, rerr := os.ReadDir(f.Root); rerr == nil && len(left) == 1 && left[0].Name() == filepath.Base(f.Lock) { // it has come to nothing
			err = errors.Join(err, state.RemoveAll(f.Root))
		}
	}()
	hv, err := s.Open(ctx)
	if err != nil {
		return err
	}
	defer hv.Close()
	if err := s.checkMove(p, from); err != nil { // somebody else may have been faster
		return err
	}
	phase := pr.Start("move", "take over the VM of "+from.Dir)
	if err := s.clearFor(ctx, hv, p, from); err != nil {
		return err
	}
	if err := s.release(ctx, hv, from.Project, pr); err != nil {
		return err
	}
	if err := f.WriteAdopts(p.Dir, from.Project, from.Same); err != nil {
		return err
	}
	if err := s.takeOver(p, from.Project, from.Same); err != nil {
		return err
	}
	phase.Done()
	return old.Remove()
}

// clearFor removes the project's own VM, which nobody has used.
func (s *Service) clearFor(ctx context.Context, hv vm.Hypervisor, p state.Project, from Former) error {
	f := s.Dirs.Files(p.Name)
	if f.Adopts() == from.Name {
		return nil
	}
	_, err := s.find(ctx, hv, p)
	switch {
	case err == nil:
		if err := hv.Destroy(ctx, p.Name); err != nil {
			return err
		}
		if err := machine.Forget(ctx, hv, p); err != nil {
			return err
		}
	case !errors.Is(err, vm.ErrNotFound):
		return err
	}
	if err := s.Daemons(p).Stop(ctx); err != nil {
		return err
	}
	if f.IsUsed() {
		return &ui.Error{
			Msg:  fmt.Sprintf("the VM of %s was used while move ran: nothing was moved, and the VM is stopped", p.Dir),
			Hint: "keep using it: devvm up, or run devvm move again",
		}
	}
	for _, path := range []string{f.VM, f.Owners(), f.Applied()} {
		if err := state.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// release stops the VM of a former project and makes libvirt forget it, with its saved memory and
// its snapshots.
func (s *Service) release(ctx context.Context, hv vm.Hypervisor, former state.Project, pr *ui.Progress) error {
	dom, err := s.find(ctx, hv, former)
	if errors.Is(err, vm.ErrNotFound) {
		return s.Daemons(former).Stop(ctx)
	}
	if err != nil {
		return err
	}
	if dom, err = s.outlast(ctx, hv, former, dom, pr); err != nil {
		return err
	}
	if dom.State == vm.StateSaved {
		if err := hv.DropSaved(ctx, former.Name); err != nil {
			return err
		}
		if err := s.Daemons(former).Stop(ctx); err != nil {
			return err
		}
	} else if err := s.down(ctx, hv, former, dom, pr); err != nil {
		return err
	}
	all, err := hv.Snapshots(ctx, former.Name)
	if err != nil {
		return err
	}
	for _, one := range all { // or they would take room that nobody could give back
		if err := hv.DeleteSnapshot(ctx, former.Name, one.Name); err != nil {
			return err
		}
	}
	return machine.Forget(ctx, hv, former)
}

// takeOver moves the files, the disk last, and completes the move.
func (s *Service) takeOver(p, former state.Project, same bool) error {
	f, old := s.Dirs.Files(p.Name), s.Dirs.Files(former.Name)
	if state.Exists(old.Disk()) {
		if err := s.moveOwners(p, former); err != nil {
			return err
		}
	}
	files := []struct{ from, to string }{{old.Owners(), f.Owners()}, {old.Logs, f.Logs}, {old.Undo, f.Undo}, {old.VM, f.VM}}
	if same { // whoever made another new directory was agreed to nothing
		if err := moveAgreed(f, old); err != nil {
			return err
		}
	}
	for _, file := range files {
		if !state.Exists(file.from) {
			continue
		}
		if state.Exists(file.to) && (file.to == f.VM || file.to == f.Undo) { // no verb that makes one goes before this
			return fmt.Errorf("move the VM: %s is in the way", file.to)
		}
		if err := state.RemoveAll(file.to); err != nil {
			return err
		}
		if err := os.Rename(file.from, file.to); err != nil {
			return fmt.Errorf("move the VM: %w", err)
		}
	}
	if err := state.Unmark(f.Vacant()); err != nil {
		return err
	}
	return f.WriteRecord(p.Dir)
}

// moveAgreed moves the record of what the user agreed to. A record that cannot be read still grants
// nothing.
func moveAgreed(f, old state.Files) error {
	r, _ := applied.Read(old.Applied())
	if r.Agreed == nil {
		return nil
	}
	if err := state.RemoveAll(f.Applied()); err != nil { // it may be a directory
		return err
	}
	return applied.Record{Agreed: r.Agreed}.Write(f.Applied())
}

// moveOwners makes the record of the owners of files in the VM apply to the new path.
func (s *Service) moveOwners(p, former state.Project) error {
	old := s.Dirs.Files(former.Name)
	has, err := applied.Read(old.Applied())
	if err != nil {
		return nil //nolint:nilerr // it is written again
	}
	to := map[string]string{}
	for _, e := range has.Exports() {
		if rel, err := filepath.Rel(former.Dir, e.Target); err == nil && mounts.Within(former.Dir, e.Target) {
			to[e.Target] = filepath.Join(p.Dir, rel)
		}
	}
	if err := share.MoveOwners(old.Owners(), to, s.Log); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// finishMove completes an interrupted move, under the project's lock.
func (s *Service) finishMove(ctx context.Context, hv vm.Hypervisor, p state.Project, pr *ui.Progress) error {
	f := s.Dirs.Files(p.Name)
	r, err := f.ReadRecord()
	if err != nil || r.Adopts == "" {
		return nil // none is under way
	}
	old := s.Dirs.Files(r.Adopts)
	if !state.Exists(old.Root) {
		return f.WriteRecord(p.Dir)
	}
	former := state.Identify(string(r.From))
	lock, err := old.Acquire(ctx, "move", nil)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := s.release(ctx, hv, former, pr); err != nil {
		return err
	}
	if err := s.takeOver(p, former, r.Same); err != nil {
		return err
	}
	return old.Remove()
}
