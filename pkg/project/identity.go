package project

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/trust"
)

// Project is a directory that has, or may have, a VM.
type Project struct {
	Name string // <slug of the directory's name>-<8 hex digits of the path's hash>
	UUID string // of its libvirt domain, derived from Dir
	Dir  string // canonical path
}

// New makes the project of a directory. The identity is the canonical path:
// two directories of the same name are two projects, and a symbolic link to a
// directory is the directory.
func New(dir string) (Project, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return Project{}, fmt.Errorf("project directory: %w", err)
	}
	resolved, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return Project{}, fmt.Errorf("project directory: %w", err)
	}
	info, err := os.Stat(resolved)
	if err != nil {
		return Project{}, fmt.Errorf("project directory: %w", err)
	}
	if !info.IsDir() {
		return Project{}, fmt.Errorf("project directory: %s is not a directory", resolved)
	}
	return identify(resolved), nil
}

// identify derives name and UUID from a canonical path. It is pure.
func identify(dir string) Project {
	sum := sha256.Sum256([]byte(dir))
	return Project{
		Name: slug(filepath.Base(dir)) + "-" + hex.EncodeToString(sum[:4]),
		UUID: uuid(sum),
		Dir:  dir,
	}
}

// uuid shapes a hash into an RFC 9562 version 8 UUID (vendor specific content).
func uuid(sum [sha256.Size]byte) string {
	b := sum[:16]
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// longestSlug keeps names short enough for sockets and to read.
const longestSlug = 24

// slug reduces a directory's name to what host names, libvirt and file systems
// all take: a-z, 0-9 and single hyphens.
func slug(base string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(base) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() == longestSlug {
			break
		}
	}
	if s := strings.Trim(b.String(), "-"); s != "" {
		return s
	}
	return "project"
}

// Find returns the project that a directory belongs to: the nearest directory
// upwards with a devvm.toml, else the directory itself. It does not look beyond the user's
// home directory or the mount that the directory is on. A devvm.toml that somebody else can
// have written, or put there, is a [*trust.Error].
func (s *Service) Find(dir string) (Project, error) {
	start, err := New(dir)
	if err != nil {
		return Project{}, err
	}
	home := canonical(s.Home)
	var passed []trust.Object // the directories from the first one upwards
	border := uint64(0)
	for d := start.Dir; ; d = filepath.Dir(d) {
		here, err := look(d)
		if err != nil {
			return Project{}, fmt.Errorf("look for %s: %w", config.FileName, err)
		}
		if len(passed) > 0 && here.mount != border {
			return start, nil
		}
		border = here.mount
		passed = append(passed, here.dir)
		if here.file != nil {
			for _, o := range append(passed, *here.file) {
				if err := s.Trust.Check(d, o); err != nil {
					return Project{}, err
				}
			}
			return identify(d), nil
		}
		if d == filepath.Dir(d) || d == home && d != "/" {
			return start, nil
		}
	}
}

// sight is what a directory has to say on the way upwards.
type sight struct {
	dir   trust.Object
	file  *trust.Object // its devvm.toml; nil: none
	mount uint64        // what it is on
}

// look opens a directory and looks at its devvm.toml, of whatever kind that is.
func look(dir string) (sight, error) {
	at, err := trust.OpenDir(dir)
	if err != nil {
		return sight{}, err
	}
	defer at.Close()
	var s sight
	if s.dir, err = trust.Look(dir, int(at.Fd())); err != nil {
		return sight{}, err
	}
	// The number of the mount, not of the device: subvolumes of btrfs are devices of their
	// own, and no borders.
	var st unix.Statx_t
	if err := unix.Statx(int(at.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return sight{}, &fs.PathError{Op: "statx", Path: dir, Err: err}
	}
	if s.mount = st.Mnt_id; st.Mask&unix.STATX_MNT_ID == 0 { // before Linux 5.8
		s.mount = unix.Mkdev(st.Dev_major, st.Dev_minor)
	}
	path := filepath.Join(dir, config.FileName)
	fd, err := unix.Openat(int(at.Fd()), config.FileName, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EACCES):
		return s, nil
	case err != nil:
		return sight{}, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	o, err := trust.Look(path, fd)
	if err != nil {
		return sight{}, err
	}
	s.file = &o
	return s, nil
}

// canonical is a path without symbolic links, if there is such a directory.
func canonical(dir string) string {
	if resolved, err := filepath.EvalSymlinks(dir); err == nil {
		return resolved
	}
	return dir
}

// Unusual says why a directory makes an odd project, or "" if it does not: a
// VM for the whole home directory or the root is nearly always a slip, and what is in a
// directory that others can write in is not the user's alone.
func (s *Service) Unusual(p Project) string {
	switch p.Dir {
	case canonical(s.Home):
		return "your home directory"
	case "/":
		return "the root directory"
	}
	here, err := look(p.Dir)
	if err != nil || here.file != nil { // it is for whoever reads that file to say
		return ""
	}
	if e, ok := errors.AsType[*trust.Error](s.Trust.Check(p.Dir, here.dir)); ok {
		return fmt.Sprintf("a directory that is not yours alone (owner %s, mode %04o)", e.Owner(), e.Mode)
	}
	return ""
}
