package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/file"
)

const (
	tempPrefix = ".tmp-"        // in the store
	workPrefix = "devvm-build-" // below Store.work, with the user's id
)

// scratch is a directory of a build or import at work. Its lock lives as long
// as this process or a child that inherited the descriptor, so that sweep
// can tell work from remains.
type scratch struct {
	dir   string
	store *Store
	lock  *os.File
}

// tryLock opens and locks the file that goes with a scratch directory. It
// returns nil if another process has it. (gofrs/flock does not give out the
// descriptor, which children are to inherit.)
func tryLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = nil
	}
	return nil, err
}

// newScratch makes a locked directory in parent, after sweeping the store.
func (s *Store) newScratch(ctx context.Context, parent, prefix string, mode os.FileMode) (*scratch, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s.sweep(ctx)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, fmt.Errorf("make temporary directory: %w", err)
	}
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return nil, fmt.Errorf("make temporary directory: %w", err)
	}
	err = os.Chmod(dir, mode)
	if err == nil {
		var lock *os.File
		if lock, err = tryLock(dir); err == nil && lock != nil {
			return &scratch{dir: dir, store: s, lock: lock}, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("make temporary directory: %w", err), os.Remove(dir))
}

// path is a path inside the directory.
func (sc *scratch) path(elem ...string) string {
	return filepath.Join(append([]string{sc.dir}, elem...)...)
}

// remove deletes the directory, with what users of a namespace own in it, even
// if ctx has ended.
func (sc *scratch) remove(ctx context.Context) {
	sc.store.removeTree(context.WithoutCancel(ctx), sc.dir)
	if err := errors.Join(os.Remove(sc.lock.Name()), sc.lock.Close()); err != nil {
		sc.store.log.Warn("remove temporary directory's lock", "dir", sc.dir, "err", err)
	}
}

// commit gives the directory's content its name in the store: from then on it
// is an image. The directory itself has moved; remove is still to be called.
func (sc *scratch) commit(ctx context.Context, m Manifest) (Image, error) {
	fail := func(err error) (Image, error) { return Image{}, fmt.Errorf("store image %s: %w", m.Name, err) }
	m.Digest = m.digest()
	if err := m.check(); err != nil {
		return fail(err)
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fail(err)
	}
	if err := os.WriteFile(sc.path(manifestName), append(data, '\n'), 0o444); err != nil {
		return fail(err)
	}
	names := []string{manifestName}
	for _, f := range m.Files {
		names = append(names, f.Name)
	}
	for _, name := range names {
		if err := file.SetMode(sc.path(name), 0o444); err != nil {
			return fail(err)
		}
	}
	if err := file.SetMode(sc.dir, 0o755); err != nil {
		return fail(err)
	}

	unlock, err := sc.store.lock(ctx)
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	if old, err := sc.store.read(m.Digest); err == nil {
		if old.Name != m.Name {
			return old, fmt.Errorf("store image %s: %w: %s", m.Name, ErrExists, old.Name)
		}
		return old, nil
	} else if !errors.Is(err, fs.ErrNotExist) { // damaged: this one replaces it
		if err := sc.store.remove(Image{Manifest: m, Dir: filepath.Join(sc.store.dir, m.Digest)}); err != nil {
			return Image{}, err
		}
	}
	img := Image{Manifest: m, Dir: filepath.Join(sc.store.dir, m.Digest)}
	if err := os.Rename(sc.dir, img.Dir); err != nil {
		return fail(err)
	}
	if err := file.SetMode(sc.store.dir, 0o755); err != nil {
		return fail(err)
	}
	return img, nil
}

// Sweep removes what builds and imports left that were killed. What another process is at, or
// holds the store's lock for, it leaves alone: there is always a next time.
func (s *Store) Sweep(ctx context.Context) {
	if _, err := os.Stat(s.dir); err != nil {
		return // nothing was ever built here
	}
	l := flock.New(filepath.Join(s.dir, lockName), flock.SetPermissions(0o600))
	defer func() { _ = l.Close() }()
	if ok, err := l.TryLock(); err == nil && ok {
		s.sweep(ctx)
	}
}

// sweep removes what builds and imports left that were killed. The caller
// holds the store's lock.
func (s *Store) sweep(ctx context.Context) {
	left, _ := file.Glob(s.dir, tempPrefix+"*") // the patterns are good
	work, _ := file.Glob(s.work, workPrefix+strconv.Itoa(os.Geteuid())+"-*")
	for _, path := range append(left, work...) {
		s.sweepOne(ctx, path)
	}
}

func (s *Store) sweepOne(ctx context.Context, path string) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Uid != uint32(os.Geteuid()) {
		return // gone, or another user's under our prefix
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		// A lock without its directory is garbage; with it, the directory's turn decides.
		if dir := strings.TrimSuffix(path, ".lock"); dir != path {
			if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
				_ = os.Remove(path)
			}
		}
		return
	}
	lock, err := tryLock(path)
	if err != nil || lock == nil {
		return // at work
	}
	s.log.Info("remove what an interrupted build left", "dir", path)
	sc := &scratch{dir: path, store: s, lock: lock}
	sc.remove(ctx)
}

// removeTree deletes a directory of ours in which subordinate users may own
// directories, which only a namespace that maps them can empty.
func (s *Store) removeTree(ctx context.Context, dir string) {
	err := os.RemoveAll(dir)
	if err == nil {
		return
	}
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		helper, toolErr := s.tool("mmdebstrap")
		if toolErr == nil {
			cmd := exec.CommandContext(ctx, helper, "--unshare-helper", "sh", "-c",
				`for d; do rm -rf "$d" 2>/dev/null; done; exit 0`, "sh")
			cmd.Args = append(cmd.Args, children(dir)...)
			cmd.Env = s.env(nil)
			if out, runErr := cmd.CombinedOutput(); runErr != nil {
				s.log.Debug("remove files of subordinate users", "err", runErr, "output", string(out))
			}
			err = os.RemoveAll(dir)
		}
	}
	if err != nil {
		s.log.Warn("remove temporary directory", "dir", dir, "err", err)
	}
}

// children lists the paths two levels below dir: the deepest that are ours
// hold what is not.
func children(dir string) []string {
	paths, _ := file.Glob(dir, "*")
	deeper, _ := file.Glob(dir, "*/*")
	return append(deeper, paths...)
}
