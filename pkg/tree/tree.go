// Package tree works on directory trees that somebody else may change at any moment, as a VM
// may change its project's directory.
//
// Every directory is held open, and every name is looked up in an open directory. A name is a
// single component, and is never followed if it is a symbolic link. So replacing a directory
// with a link during a copy gains an attacker nothing. [Untrusted.Find] gets from a user's path
// to the first such directory.
//
// It imports no other package of devvm. It fails with *fs.PathError, with [*LinkError] if a
// link is in the way, and with [ErrChanged] if a name is no longer what it was a moment ago.
package tree

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Deepest is the maximum depth of a tree. Each directory on the way down is an open file, and
// whoever writes the tree decides how many there are.
const Deepest = 500

// ErrChanged says that something was swapped while it was in use.
var ErrChanged = errors.New("it was changed while it was copied")

var errDeep = fmt.Errorf("it is more than %d directories deep", Deepest)

// Dir is an open directory. It stays the same directory if it is moved.
type Dir struct {
	fd    int
	path  string // for messages
	depth int
}

// Info describes the file with a name.
type Info struct {
	Mode fs.FileMode
	Size int64
	Time time.Time
	id   id
}

// IsDir reports whether it is a directory.
func (i Info) IsDir() bool { return i.Mode.IsDir() }

// IsLink reports whether it is a symbolic link.
func (i Info) IsLink() bool { return i.Mode.Type() == fs.ModeSymlink }

// IsRegular reports whether it is a regular file.
func (i Info) IsRegular() bool { return i.Mode.IsRegular() }

// id identifies a directory among all that exist at the same time.
type id struct{ dev, ino uint64 }

func infoOf(st *unix.Stat_t) Info {
	i := Info{
		Mode: fs.FileMode(st.Mode & 0o777),
		Size: st.Size,
		Time: time.Unix(st.Mtim.Unix()),
		id:   id{st.Dev, st.Ino},
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		i.Mode |= fs.ModeDir
	case unix.S_IFLNK:
		i.Mode |= fs.ModeSymlink
	default: // a device, a pipe, a socket: no need to tell them apart
		i.Mode |= fs.ModeIrregular
	}
	return i
}

// Path returns the directory's path, for messages.
func (d *Dir) Path() string { return d.path }

// Join returns the path of a name in the directory, for messages.
func (d *Dir) Join(name string) string {
	return filepath.Join(d.path, name)
}

// Close closes the directory. It may be nil or closed already.
func (d *Dir) Close() {
	if d != nil && d.fd >= 0 {
		_ = unix.Close(d.fd)
		d.fd = -1
	}
}

// do makes a system call on a name in the directory, and repeats it if a signal interrupts it.
func (d *Dir) do(op, name string, call func() error) error {
	err := error(unix.EINVAL)
	if name != "" && name != "." && name != ".." && !strings.ContainsRune(name, '/') {
		err = again(call)
	}
	if err != nil {
		return &fs.PathError{Op: op, Path: d.Join(name), Err: err}
	}
	return nil
}

func again(call func() error) error {
	for {
		err := call()
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Stat describes the file with a name, without following links.
func (d *Dir) Stat(name string) (Info, error) {
	var st unix.Stat_t
	err := d.do("lstat", name, func() error {
		return unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return infoOf(&st), err
}

// Self describes the directory itself.
func (d *Dir) Self() (Info, error) {
	var st unix.Stat_t
	if err := again(func() error { return unix.Fstat(d.fd, &st) }); err != nil {
		return Info{}, &fs.PathError{Op: "fstat", Path: d.path, Err: err}
	}
	return infoOf(&st), nil
}

// Dir opens a subdirectory.
func (d *Dir) Dir(name string) (*Dir, error) {
	if d.depth >= Deepest {
		return nil, &fs.PathError{Op: "open", Path: d.Join(name), Err: errDeep}
	}
	fd := -1
	err := d.do("open", name, func() (err error) {
		fd, err = openDir(d.fd, name)
		if errors.Is(err, unix.ELOOP) {
			return ErrChanged // callers open only what they have seen to be a directory
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &Dir{fd, d.Join(name), d.depth + 1}, nil
}

// openDir opens a directory in a directory. The "." triggers automounts (autofs); openat2 keeps
// it from following a link.
func openDir(dir int, name string) (int, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_BENEATH,
	}
	for {
		fd, err := unix.Openat2(dir, name+"/.", how)
		switch {
		case errors.Is(err, unix.EAGAIN): // a concurrent rename
		case errors.Is(err, unix.ENOSYS):
			return -1, errors.New("this needs Linux 5.6 or later (openat2)")
		default:
			return fd, err
		}
	}
}

// Open opens a regular file for reading. The Info is that of the open file. Any other file is
// closed at once, and opening a pipe does not block.
func (d *Dir) Open(name string) (*os.File, Info, error) {
	fd := -1
	err := d.do("open", name, func() (err error) {
		fd, err = unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ELOOP) {
			return ErrChanged
		}
		return err
	})
	if err != nil {
		return nil, Info{}, err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	info := infoOf(&st)
	if err == nil && !info.IsRegular() {
		err = ErrChanged
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, info, &fs.PathError{Op: "open", Path: d.Join(name), Err: err}
	}
	return os.NewFile(uintptr(fd), d.Join(name)), info, nil
}

// Create makes a new file, only for this user.
func (d *Dir) Create(name string) (*os.File, error) {
	fd := -1
	err := d.do("create", name, func() (err error) {
		fd, err = unix.Openat(d.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), d.Join(name)), nil
}

// Mkdir makes a new directory, only for this user.
func (d *Dir) Mkdir(name string) error {
	return d.do("mkdir", name, func() error { return unix.Mkdirat(d.fd, name, 0o700) })
}

// MkdirTemp makes a directory with an unpredictable name that begins with prefix.
func (d *Dir) MkdirTemp(prefix string) (name string, made *Dir, err error) {
	name = prefix + rand.Text()[:8]
	if err := d.Mkdir(name); err != nil {
		return "", nil, err
	}
	if made, err = d.Dir(name); err != nil {
		return "", nil, err
	}
	made.depth = 0
	return name, made, nil
}

// Symlink makes a symbolic link.
func (d *Dir) Symlink(target, name string) error {
	return d.do("symlink", name, func() error { return unix.Symlinkat(target, d.fd, name) })
}

// Readlink returns the target of a symbolic link.
func (d *Dir) Readlink(name string) (string, error) {
	var target string
	err := d.do("readlink", name, func() (err error) {
		target, err = readlink(d.fd, name)
		if errors.Is(err, unix.EINVAL) {
			return ErrChanged
		}
		return err
	})
	return target, err
}

func readlink(dir int, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, b)
	return string(b[:max(n, 0)]), err
}

// Move renames a file, within this directory or into another, and replaces a file with the new
// name. Links at either end are moved or replaced, not followed.
func (d *Dir) Move(name string, to *Dir, as string) error {
	return d.do("rename", name, func() error {
		err := to.do("rename", as, func() error { return unix.Renameat(d.fd, name, to.fd, as) })
		if p, ok := errors.AsType[*fs.PathError](err); ok {
			return fmt.Errorf("to %s: %w", p.Path, p.Err)
		}
		return err
	})
}

// Chmod sets the directory's own mode.
func (d *Dir) Chmod(mode fs.FileMode) error {
	if err := again(func() error { return unix.Fchmodat(d.fd, ".", uint32(mode.Perm()), 0) }); err != nil {
		return &fs.PathError{Op: "chmod", Path: d.path, Err: err}
	}
	return nil
}

// Chtimes sets the directory's own times.
func (d *Dir) Chtimes(t time.Time) error {
	if err := again(func() error { return unix.UtimesNanoAt(d.fd, ".", timesOf(t), 0) }); err != nil {
		return &fs.PathError{Op: "chtimes", Path: d.path, Err: err}
	}
	return nil
}

// Chtimes sets the times of an open file.
func Chtimes(f *os.File, t time.Time) error {
	err := again(func() error { return unix.UtimesNanoAt(int(f.Fd()), "", timesOf(t), unix.AT_EMPTY_PATH) })
	if err != nil {
		return &fs.PathError{Op: "chtimes", Path: f.Name(), Err: err}
	}
	return nil
}

func timesOf(t time.Time) []unix.Timespec {
	ts := unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
	return []unix.Timespec{ts, ts}
}

// list opens the directory for reading its names.
func (d *Dir) list() (*os.File, error) {
	fd := -1
	err := again(func() (err error) {
		fd, err = unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: d.path, Err: err}
	}
	return os.NewFile(uintptr(fd), d.path), nil
}

// Names returns the names in the directory, sorted.
func (d *Dir) Names() ([]string, error) {
	f, err := d.list()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// RemoveAll removes the file with a name and everything below it.
func (d *Dir) RemoveAll(name string) error {
	err := d.do("remove", name, func() error { return unix.Unlinkat(d.fd, name, 0) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	if d.Rmdir(name) == nil {
		return nil
	}
	sub, err := d.Dir(name)
	if err != nil {
		return err
	}
	err = sub.Empty()
	sub.Close()
	return errors.Join(err, d.Rmdir(name))
}

// Rmdir removes an empty directory.
func (d *Dir) Rmdir(name string) error {
	return d.do("rmdir", name, func() error { return unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR) })
}

// Empty removes everything in the directory.
func (d *Dir) Empty() error {
	const many = 1024
	for {
		f, err := d.list()
		if err != nil {
			return err
		}
		names, err := f.Readdirnames(many)
		_ = f.Close()
		if errors.Is(err, io.EOF) {
			return nil
		}
		for _, name := range names {
			if err = errors.Join(err, d.RemoveAll(name)); err != nil {
				return err
			}
		}
		if err != nil || len(names) < many { // do not chase files that are added meanwhile
			return err
		}
	}
}

// Cursor visits directories of a tree. It keeps those on the way open, so that a nearby
// directory is quick to reach.
type Cursor struct {
	top   *Dir
	names []string
	dirs  []*Dir
}

// NewCursor starts at the top of a tree. The caller still has to close the top.
func NewCursor(top *Dir) *Cursor { return &Cursor{top: top} }

// To goes to a directory by its slash-separated path below the top; "." is the top. The cursor
// closes the directory later.
func (c *Cursor) To(rel string) (*Dir, error) {
	var names []string
	if rel != "." {
		names = strings.Split(rel, "/")
	}
	same := 0
	for same < len(names) && same < len(c.names) && names[same] == c.names[same] {
		same++
	}
	c.cut(same)
	at := c.top
	if same > 0 {
		at = c.dirs[same-1]
	}
	for _, name := range names[same:] {
		next, err := at.Dir(name)
		if err != nil {
			return nil, err
		}
		c.names, c.dirs, at = append(c.names, name), append(c.dirs, next), next
	}
	return at, nil
}

func (c *Cursor) cut(n int) {
	for _, d := range c.dirs[n:] {
		d.Close()
	}
	c.names, c.dirs = c.names[:n], c.dirs[:n]
}

// Close closes all directories except the top.
func (c *Cursor) Close() { c.cut(0) }
