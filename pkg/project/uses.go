package project

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/disk"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/shell"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

// The backing files of a disk must stay as long as the disk: without them it is lost. So before
// anything is removed, devvm counts every disk, and every file that libvirt knows. If a disk cannot
// be read, nobody knows its backing files, and nothing is removed.

// use is a disk, or a domain, that is based on others.
type use struct {
	project string   // its name; "": a template's
	path    string   // of the disk; "" for what only libvirt knows
	below   []string // what it lies on, the uppermost first
	known   []string // the same and more, in no order, by libvirt's word or a manifest's
	err     error    // why below is not known
}

// all returns the disks that the use is based on, as far as known.
func (u use) all() []string { return slices.Concat(u.below, u.known) }

// uses finds every disk of a project, undo or template.
func (s *Service) uses(ctx context.Context) ([]use, error) {
	hv, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer hv.Close()
	domains, err := hv.Files(ctx)
	if err != nil {
		return nil, err
	}
	names, err := s.Dirs.Projects()
	if err != nil {
		return nil, err
	}
	var out []use
	c := machine.Chains{}
	for _, name := range names {
		all, err := s.usesOf(ctx, name, c)
		if err != nil {
			return nil, err
		}
		for i := range all {
			if all[i].path == s.Dirs.Files(name).Disk() {
				all[i].known = domains[name]
				delete(domains, name)
			}
		}
		out = append(out, all...)
	}
	for _, name := range slices.Sorted(maps.Keys(domains)) {
		out = append(out, use{project: name, known: domains[name]})
	}
	templates, err := s.templateUses(ctx, c)
	return append(out, templates...), err
}

// usesOf finds the disks of one project: those of its VM and its undo, and what is left of others
// by killed runs. nuke exchanges them, so a disk that was found must still be the same one when it
// is read.
func (s *Service) usesOf(ctx context.Context, name string, c machine.Chains) ([]use, error) {
	const attempts = 10
	for range attempts {
		before, unread := disks(s.Dirs.Files(name))
		out := []use{}
		for _, path := range slices.Sorted(maps.Keys(before)) {
			backing, err := c.Below(ctx, path)
			out = append(out, use{project: name, path: path, below: backing, err: err})
		}
		if unread != nil {
			out = append(out, use{project: name, path: s.Dirs.Files(name).Root, err: unread})
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if after, _ := disks(s.Dirs.Files(name)); maps.Equal(before, after) {
			return out, nil
		}
	}
	return nil, &ui.Error{
		Code: ui.ExitBusy,
		Msg:  fmt.Sprintf("the disks of project %s keep changing", name),
		Hint: "wait until the other devvm command is done, then run this one again",
	}
}

// disks finds the project's disks, with their inode numbers. After an error there may be more.
func disks(f state.Files) (map[string]uint64, error) {
	out := map[string]uint64{}
	entries, err := os.ReadDir(f.Root)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return out, nil
	case err != nil:
		return out, err
	}
	var unread error
	for _, e := range entries {
		if e.Name() == filepath.Base(f.Removing()) {
			continue
		}
		path := filepath.Join(f.Root, e.Name(), machine.DiskName)
		info, err := os.Lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		case err != nil:
			unread = errors.Join(unread, err)
		default:
			out[path] = 0
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				out[path] = st.Ino
			}
		}
	}
	return out, unread
}

// templateUses finds the disks of templates. A damaged template is useless, unless another disk is
// based on it, which then cannot be read either. The template's manifest says what it needs once it
// is repaired.
func (s *Service) templateUses(ctx context.Context, c machine.Chains) ([]use, error) {
	templates, err := s.Templates.List()
	if err != nil {
		return nil, err
	}
	manifests := map[string][]string{}
	for _, t := range templates {
		known := []string{filepath.Join(s.Images.Dir(), t.Image, machine.DiskName)}
		if t.Parent != "" {
			known = append(known, filepath.Join(s.Templates.Dir(), t.Parent, machine.DiskName))
		}
		manifests[t.Disk()] = known
	}
	entries, err := os.ReadDir(s.Templates.Dir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	var out []use
	for _, e := range entries {
		path := filepath.Join(s.Templates.Dir(), e.Name(), machine.DiskName)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		backing, err := c.Below(ctx, path)
		if errors.Is(err, disk.ErrDamaged) {
			err = nil
		}
		out = append(out, use{path: path, below: backing, known: manifests[path], err: err})
	}
	return out, nil
}

// inUse returns the IDs of the images or templates, by kind, that any use accepted by of is based
// on. With an error the result is nil, never partial.
func (s *Service) inUse(ctx context.Context, kind string, of func(use) bool) (map[string]bool, error) {
	all, err := s.uses(ctx)
	if err != nil {
		return nil, err
	}
	in := map[string]bool{}
	for _, u := range all {
		if u.err != nil {
			return nil, unreadable(u)
		}
		if !of(u) {
			continue
		}
		for _, path := range u.all() {
			if k, id := machine.StoreOf(path); k == kind {
				in[id] = true
			}
		}
	}
	return in, nil
}

// unreadable explains why nothing is removed.
func unreadable(u use) error {
	hint := "make it readable"
	if errors.Is(u.err, disk.ErrDamaged) {
		hint = "replace it with an intact copy"
	}
	dir := filepath.Dir(u.path)
	switch {
	case u.project == "":
		hint += ", or remove that template: rm -r " + shell.Quote(dir)
	case filepath.Base(dir) == "undo":
		hint += ", or remove what an earlier nuke kept: rm -r " + shell.Quote(dir)
	default:
		hint += ", or remove the VM: devvm rm --project " + u.project
	}
	return &ui.Error{
		Msg:  "a disk cannot be read, so devvm cannot tell which images and templates it needs; none is removed",
		Hint: hint,
		Err:  u.err,
	}
}

func anyUse(use) bool { return true }

// ImagesInUse returns the digests of the images that a disk or undo of any project is based on. With
// an error the result is nil, never partial: what is in use must not be removed.
func (s *Service) ImagesInUse(ctx context.Context) (map[string]bool, error) {
	return s.inUse(ctx, machine.KindImage, anyUse)
}

// TemplatesInUse returns the IDs of the templates that a disk of any project, or another template,
// is based on. With an error the result is nil, never partial.
func (s *Service) TemplatesInUse(ctx context.Context) (map[string]bool, error) {
	return s.inUse(ctx, machine.KindTemplate, anyUse)
}

// templatesToNuke returns the IDs of the templates that projects were forked from, and whose memory
// their nuke will fork from again. With an error the result is nil, never partial.
func (s *Service) templatesToNuke(ctx context.Context) (map[string]bool, error) {
	all, err := s.uses(ctx)
	if err != nil {
		return nil, err
	}
	in := map[string]bool{}
	for _, u := range all {
		if u.err != nil {
			return nil, unreadable(u)
		}
		if u.project == "" || len(u.below) == 0 {
			continue
		}
		if kind, id := machine.StoreOf(u.below[0]); kind == machine.KindTemplate {
			in[id] = true
		}
	}
	return in, nil
}
