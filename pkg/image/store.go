package image

import (
	"context"
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

	"github.com/devvm/devvm/images"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/lock"
)

// lockName is the file of the lock under which the store's directory changes.
const lockName = ".lock"

// retry is how often a lock that another process holds is tried again.
const retry = 200 * time.Millisecond

// debianKeyring is where mmdebstrap looks for Debian's keys.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Store is a directory of images, shared by any number of processes.
type Store struct {
	dir string
	log *slog.Logger

	// work is where builds unpack: a directory that the mapped users of a
	// namespace can reach, which a home directory often is not.
	work string
	// sbin is added to PATH: mke2fs lies where users' PATH does not lead.
	sbin    string
	keyring string
	recipes fs.FS
	now     func() time.Time
}

// NewStore returns the store in dir, which need not exist yet. Builds unpack
// in $TMPDIR if the users of a namespace can get there (not with libpam-tmpdir), or
// /var/tmp, which unlike Debian 13's /tmp is not memory.
func NewStore(dir string, log *slog.Logger) *Store {
	work := os.Getenv("TMPDIR")
	if !forEverybody(work) {
		work = "/var/tmp"
	}
	return &Store{
		dir: dir, log: log, work: work, sbin: "/usr/sbin:/sbin",
		keyring: debianKeyring, recipes: images.FS, now: time.Now,
	}
}

// forEverybody tells whether everybody can enter a directory.
func forEverybody(dir string) bool {
	if !filepath.IsAbs(dir) {
		return false
	}
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
	}
}

// Dir is the directory of the store.
func (s *Store) Dir() string { return s.dir }

// Work is the directory in which builds unpack.
func (s *Store) Work() string { return s.work }

// List returns the images, newest first. What cannot be read as one is left to
// [Store.Damaged].
func (s *Store) List(ctx context.Context) ([]Image, error) {
	images, _, err := s.scan(ctx)
	return images, err
}

// Damaged is an image that cannot be read.
type Damaged struct {
	Digest string // by its directory's name
	Dir    string
	Err    error // wraps ErrDamaged, or says why it cannot be known
}

// Used is what its files take on this host, in bytes.
func (d Damaged) Used() int64 { return file.Used(d.Dir) }

// Damaged returns what List leaves out.
func (s *Store) Damaged(ctx context.Context) ([]Damaged, error) {
	_, damaged, err := s.scan(ctx)
	return damaged, err
}

func (s *Store) scan(ctx context.Context) ([]Image, []Damaged, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list images: %w", err)
	}
	var images []Image
	var damaged []Damaged
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		if !validDigest(e.Name()) {
			continue
		}
		img, err := s.read(e.Name())
		switch {
		case err == nil:
			images = append(images, img)
		case !errors.Is(err, fs.ErrNotExist): // else it was removed meanwhile
			damaged = append(damaged, Damaged{e.Name(), filepath.Join(s.dir, e.Name()), err})
		}
	}
	slices.SortFunc(images, func(a, b Image) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.Digest, b.Digest)
	})
	return images, damaged, nil
}

// read opens the image of a digest and looks at what can be known without
// reading its files. The error wraps fs.ErrNotExist if nothing is there, and ErrDamaged if
// what is there is no image.
func (s *Store) read(digest string) (Image, error) {
	img := Image{Dir: filepath.Join(s.dir, digest)}
	if _, err := os.Lstat(img.Dir); err != nil {
		return Image{}, err
	}
	damaged := func(format string, args ...any) (Image, error) {
		return Image{}, fmt.Errorf("%w: "+format, append([]any{ErrDamaged}, args...)...)
	}
	data, err := os.ReadFile(filepath.Join(img.Dir, manifestName))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTDIR):
		return damaged("%v", err) // not ErrNotExist: the image is there
	case err != nil:
		return Image{}, err
	}
	if err := json.Unmarshal(data, &img.Manifest); err != nil {
		return damaged("read %s: %w", filepath.Join(img.Dir, manifestName), err)
	}
	if err := img.check(); err != nil {
		return damaged("%w", err)
	}
	if img.Digest != digest {
		return damaged("directory %s holds image %s", digest, img.Digest)
	}
	for _, f := range img.Files {
		info, err := os.Stat(filepath.Join(img.Dir, f.Name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return damaged("%v", err)
		case err != nil:
			return Image{}, err
		case info.Size() != f.Size:
			return damaged("%s has %d bytes, its manifest says %d", filepath.Join(img.Dir, f.Name), info.Size(), f.Size)
		}
	}
	return img, nil
}

// Resolve finds an image by its name, its digest or the beginning of a digest
// (four characters or more). Of several images of one name it returns the
// newest. It fails with ErrNotFound or ErrAmbiguous, or, if it may be
// a damaged one, with what is wrong with that, see [Damaged].
func (s *Store) Resolve(ctx context.Context, ref string) (Image, error) {
	images, damaged, err := s.scan(ctx)
	if err != nil {
		return Image{}, err
	}
	for _, img := range images {
		if img.Name == ref {
			return img, nil
		}
	}
	prefix := strings.TrimPrefix(ref, "sha256:")
	var found []Image
	if len(prefix) >= 4 {
		for _, img := range images {
			if strings.HasPrefix(img.Digest, prefix) {
				found = append(found, img)
			}
		}
	}
	switch len(found) {
	case 0:
		for _, d := range damaged {
			if len(prefix) >= 4 && strings.HasPrefix(d.Digest, prefix) {
				return Image{}, fmt.Errorf("image %q: %w", ref, d.Err)
			}
		}
		if len(damaged) > 0 && !validDigest(prefix) { // its name may be in the manifest
			return Image{}, fmt.Errorf("no image that can be read is %q: %w", ref, damaged[0].Err)
		}
		return Image{}, fmt.Errorf("image %q: %w", ref, ErrNotFound)
	case 1:
		return found[0], nil
	}
	return Image{}, fmt.Errorf("image %q: %w", ref, ErrAmbiguous)
}

// Remove deletes the image that ref resolves to, unless inUse says of its
// digest that a VM stands on it. It returns what it deleted.
func (s *Store) Remove(ctx context.Context, ref string, inUse func(digest string) bool) (Image, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	img, err := s.Resolve(ctx, ref)
	if err != nil {
		img, err = s.resolveDamaged(ctx, ref, err)
	}
	if err != nil {
		return Image{}, err
	}
	if inUse(img.Digest) {
		return img, fmt.Errorf("remove image %s: %w", ref, ErrInUse)
	}
	return img, s.remove(img)
}

// resolveDamaged finds the one damaged image whose digest begins with ref, as what Resolve
// would return if it were whole, or fails with err.
func (s *Store) resolveDamaged(ctx context.Context, ref string, err error) (Image, error) {
	all, serr := s.Damaged(ctx)
	if serr != nil {
		return Image{}, serr
	}
	prefix := strings.TrimPrefix(ref, "sha256:")
	all = slices.DeleteFunc(all, func(d Damaged) bool { return len(prefix) < 4 || !strings.HasPrefix(d.Digest, prefix) })
	switch {
	case len(all) == 0, errors.Is(err, ErrAmbiguous):
		return Image{}, err
	case len(all) > 1:
		return Image{}, fmt.Errorf("image %q: %w", ref, ErrAmbiguous)
	}
	return Image{Manifest: Manifest{Name: all[0].Digest[:12], Digest: all[0].Digest}, Dir: all[0].Dir}, nil
}

// Prune deletes every image that inUse does not claim, save the newest of each
// name, damaged ones, and what interrupted builds left. It returns the bytes freed on disk.
func (s *Store) Prune(ctx context.Context, inUse func(digest string) bool) (freed int64, err error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return 0, err
	}
	defer unlock()
	s.sweep(ctx)
	return s.prune(ctx, inUse, s.remove)
}

// Prunable returns the bytes that Prune would free, but for what interrupted builds left.
func (s *Store) Prunable(ctx context.Context, inUse func(digest string) bool) (int64, error) {
	return s.prune(ctx, inUse, func(Image) error { return nil })
}

func (s *Store) prune(ctx context.Context, inUse func(digest string) bool, remove func(Image) error) (freed int64, err error) {
	images, damaged, err := s.scan(ctx)
	if err != nil {
		return 0, err
	}
	for _, d := range damaged {
		if inUse(d.Digest) || !errors.Is(d.Err, ErrDamaged) { // what cannot be read may be whole
			continue
		}
		size := d.Used()
		if err := remove(Image{Manifest: Manifest{Name: d.Digest[:12], Digest: d.Digest}, Dir: d.Dir}); err != nil {
			return freed, err
		}
		freed += size
	}
	seen := map[string]bool{}
	for _, img := range images {
		newest := !seen[img.Name]
		seen[img.Name] = true
		if newest || inUse(img.Digest) {
			continue
		}
		size := file.Used(img.Dir)
		if err := remove(img); err != nil {
			return freed, err
		}
		freed += size
	}
	return freed, nil
}

// remove takes the image's name away first: what is left after that is swept.
func (s *Store) remove(img Image) error {
	trash := filepath.Join(s.dir, tempPrefix+"removed-"+img.Digest)
	if err := os.RemoveAll(trash); err != nil {
		return fmt.Errorf("remove image %s: %w", img.Name, err)
	}
	if err := os.Rename(img.Dir, trash); err != nil {
		return fmt.Errorf("remove image %s: %w", img.Name, err)
	}
	if err := os.RemoveAll(trash); err != nil {
		return fmt.Errorf("remove image %s: %w", img.Name, err)
	}
	return nil
}

// lock makes changes to the store's directory exclusive. It is held for
// moments only, never while something is built or transferred.
func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make image store: %w", err)
	}
	return s.flock(ctx, lockName, nil)
}

// flock takes the lock file name of the store. If another process has it,
// busy is called once before waiting.
func (s *Store) flock(ctx context.Context, name string, busy func()) (unlock func(), err error) {
	l := flock.New(filepath.Join(s.dir, name), flock.SetPermissions(0o600))
	ok, err := l.TryLock()
	if err == nil && !ok {
		if busy != nil {
			busy()
		}
		err = lock.Wait(ctx, l, false, retry)
	}
	if err != nil {
		return nil, fmt.Errorf("lock image store %s: %w", s.dir, err)
	}
	return func() {
		if err := l.Close(); err != nil {
			s.log.Warn("unlock image store", "err", err)
		}
	}, nil
}
