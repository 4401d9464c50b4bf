package template

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/lock"
)

// Store is a directory of templates.
type Store struct {
	dir string
	log *slog.Logger
}

// NewStore returns the store in the directory, which need not exist.
func NewStore(dir string, log *slog.Logger) *Store { return &Store{dir, log} }

// Dir is the store's directory.
func (s *Store) Dir() string { return s.dir }

// List returns all templates, the newest first, those of other versions of devvm too.
// What cannot be read as one is left to [Store.Damaged].
func (s *Store) List() ([]Template, error) {
	all, _, err := s.scan()
	return all, err
}

// Damaged is a template that cannot be read.
type Damaged struct {
	ID  string
	Dir string
	Err error // wraps ErrDamaged, or says why it cannot be known
}

// Used is what its files take on this host, in bytes.
func (d Damaged) Used() int64 { return file.Used(d.Dir) }

// Damaged returns what List leaves out.
func (s *Store) Damaged() ([]Damaged, error) {
	_, damaged, err := s.scan()
	return damaged, err
}

func (s *Store) scan() ([]Template, []Damaged, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list templates: %w", err)
	}
	var all []Template
	var damaged []Damaged
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		t, err := s.read(e.Name())
		switch {
		case err == nil:
			all = append(all, t)
		case !errors.Is(err, ErrNotFound): // else it was removed meanwhile
			damaged = append(damaged, Damaged{t.ID, t.Dir, err})
		}
	}
	slices.SortFunc(all, func(a, b Template) int {
		return cmp.Or(b.Created.Compare(a.Created), strings.Compare(a.ID, b.ID))
	})
	return all, damaged, nil
}

func (s *Store) read(id string) (Template, error) {
	t := Template{ID: id, Dir: filepath.Join(s.dir, id)}
	b, err := os.ReadFile(filepath.Join(t.Dir, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(t.Dir); errors.Is(err, fs.ErrNotExist) {
			return t, fmt.Errorf("%w: %s", ErrNotFound, id)
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EISDIR) {
		return t, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return t, fmt.Errorf("read template: %w", err)
	}
	var of struct{ Version int }
	if err := json.Unmarshal(b, &of); err != nil {
		return t, fmt.Errorf("%w: read %s: %w", ErrDamaged, filepath.Join(t.Dir, manifestName), err)
	}
	err = json.Unmarshal(b, &t.Manifest)
	if of.Version > 0 && of.Version != Version {
		// It takes room and can be removed, though its keys may mean something else.
		t.Version = of.Version
		return t, nil
	}
	if err != nil {
		return t, fmt.Errorf("%w: read %s: %w", ErrDamaged, filepath.Join(t.Dir, manifestName), err)
	}
	if of.Version != Version || t.Key != t.Shape.Key() {
		return t, fmt.Errorf("%w: %s is of another one", ErrDamaged, filepath.Join(t.Dir, manifestName))
	}
	return t, nil
}

// Find returns the newest template of the shape that is whole, or ErrNotFound.
func (s *Store) Find(shape Shape) (Template, error) {
	all, err := s.List()
	if err != nil {
		return Template{}, err
	}
	key := shape.Key()
	for _, t := range all {
		if t.Version != Version || t.Key != key || !t.Warm() {
			continue
		}
		if err := t.check(); err != nil {
			s.log.Warn("template is not used", "id", t.ID, "err", err)
			continue
		}
		return t, nil
	}
	return Template{}, fmt.Errorf("%w for shape %s", ErrNotFound, key)
}

const (
	lockName     = ".lock"
	makingPrefix = ".making-" // of a template that is not whole yet
)

// lock takes the store's lock: shared to use a template or add one, exclusive to
// remove any.
func (s *Store) lock(ctx context.Context, exclusive bool) (*flock.Flock, error) {
	if err := s.makeDir(s.dir); err != nil {
		return nil, err
	}
	l := flock.New(filepath.Join(s.dir, lockName), flock.SetPermissions(0o600))
	const retry = 50 * time.Millisecond
	if err := lock.Wait(ctx, l, !exclusive, retry); err != nil {
		return nil, fmt.Errorf("lock the templates: %w", err)
	}
	return l, nil
}

// makeDir makes a directory that QEMU, as another user, can pass and nobody list.
func (s *Store) makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	return os.Chmod(dir, 0o711) // MkdirAll is subject to umask
}

// Use calls f, which makes a disk that lies on the template's, while nobody can
// remove that. ErrNotFound says that it is gone.
func (s *Store) Use(ctx context.Context, t Template, f func() error) error {
	l, err := s.lock(ctx, false)
	if err != nil {
		return err
	}
	defer l.Close()
	if _, err := s.read(t.ID); err != nil {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return f()
}

// Lend moves the copy of a template's memory that Keep has kept to the path, if there
// is one: it spares a fork the copying.
func (s *Store) Lend(t Template, path string) error {
	if err := os.Rename(t.spare(), path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lend the copy of template %s: %w", t.ID, err)
	}
	return nil
}

// Keep takes a copy of the template's memory for the next Lend. Of several it keeps
// one, and none of a template that was removed meanwhile.
func (s *Store) Keep(t Template, path string) error {
	err := os.Rename(path, t.spare())
	if err != nil {
		err = os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("keep a copy of template %s: %w", t.ID, err)
	}
	return nil
}

// Add moves a disk and a memory, which must be on the store's file system, into the
// store as a template. Parent is the template that it was forked from, if any.
func (s *Store) Add(ctx context.Context, shape Shape, parent, disk, memory string) (Template, error) {
	l, err := s.lock(ctx, false)
	if err != nil {
		return Template{}, err
	}
	defer l.Close()
	t, err := s.add(shape, parent, disk, memory)
	if err != nil {
		return t, fmt.Errorf("keep template: %w", err)
	}
	return t, nil
}

func (s *Store) add(shape Shape, parent, disk, memory string) (Template, error) {
	key := shape.Key()
	shape.Version = Version
	t := Template{
		Manifest: Manifest{Shape: shape, Key: key, Parent: parent, Created: time.Now().UTC()},
		ID:       key + "-" + strings.ToLower(rand.Text()[:6]),
	}
	t.Dir = filepath.Join(s.dir, t.ID)
	info, err := os.Stat(disk)
	if err != nil {
		return t, err
	}
	t.DiskSize = info.Size()
	if t.MemorySize, t.Head, err = examine(memory); err != nil {
		return t, err
	}
	b, err := json.MarshalIndent(t.Manifest, "", "  ")
	if err != nil {
		return t, err
	}
	// The disk's name must not change once others lie on it; a provisioned
	// template's disk lies on one that has its name already.
	making := filepath.Join(s.dir, makingPrefix+t.ID)
	if err := s.makeDir(making); err != nil {
		return t, err
	}
	defer os.RemoveAll(making)
	if err := os.WriteFile(filepath.Join(making, manifestName), append(b, '\n'), 0o444); err != nil {
		return t, err
	}
	for _, part := range []struct {
		from, name string
		mode       fs.FileMode
	}{
		{disk, diskName, 0o444},
		{memory, memoryName, 0o400}, // nobody reads it but who copies it
		{"", manifestName, 0o444},
	} {
		to := filepath.Join(making, part.name)
		if part.from != "" {
			if err := os.Rename(part.from, to); err != nil {
				return t, err
			}
		}
		if err := file.Settle(to, part.mode); err != nil {
			return t, err
		}
	}
	if err := file.Settle(making, 0o711); err != nil {
		return t, err
	}
	if err := os.Rename(making, t.Dir); err != nil {
		return t, err
	}
	return t, file.Settle(s.dir, 0o711)
}

// Distrust keeps a template from being forked again; disks that lie on its own stay
// good. Its memory is removed.
func (s *Store) Distrust(t Template) error {
	for _, path := range []string{t.Memory(), t.spare()} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("drop the memory of template %s: %w", t.ID, err)
		}
	}
	return nil
}

// Remove removes the template with the ID, or the beginning of one. Of one whose disk
// another lies on, as inUse says, only the memory goes, and it returns ErrInUse.
func (s *Store) Remove(ctx context.Context, ref string, inUse Users) (Template, error) {
	l, err := s.lock(ctx, true)
	if err != nil {
		return Template{}, err
	}
	defer l.Close()
	used, err := inUse(ctx)
	if err != nil {
		return Template{}, err
	}
	all, damaged, err := s.scan()
	if err != nil {
		return Template{}, err
	}
	for _, d := range damaged {
		all = append(all, Template{ID: d.ID, Dir: d.Dir})
	}
	var found []Template
	for _, t := range all {
		if ref != "" && strings.HasPrefix(t.ID, ref) {
			found = append(found, t)
		}
	}
	switch {
	case len(found) == 0:
		return Template{}, fmt.Errorf("%w: %s", ErrNotFound, ref)
	case len(found) > 1:
		return Template{}, fmt.Errorf("%w: %d IDs begin with %s; give more of one", ErrNotFound, len(found), ref)
	}
	if used[found[0].ID] {
		return found[0], errors.Join(ErrInUse, s.Distrust(found[0]))
	}
	return found[0], s.remove(found[0])
}

func (s *Store) remove(t Template) error {
	// The manifest first: without one it is no template.
	for _, path := range []string{filepath.Join(t.Dir, manifestName), t.Dir} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove template %s: %w", t.ID, err)
		}
	}
	return nil
}
