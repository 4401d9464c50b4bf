package project

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/trust"
)

// Find returns the project that a directory belongs to: the nearest directory upwards with a
// devvm.toml, otherwise the directory itself. It looks no further up than the user's home directory
// or the root of the mount. If somebody else could have written the devvm.toml, or put it there,
// the error is a [*trust.Error].
func (s *Service) Find(dir string) (state.Project, error) {
	start, err := state.New(dir)
	if err != nil {
		return state.Project{}, err
	}
	home := canonical(s.Home)
	var passed []trust.Object // the directories from the first one upwards
	border := uint64(0)
	for d := start.Dir; ; d = filepath.Dir(d) {
		here, err := look(d)
		if err != nil {
			return state.Project{}, fmt.Errorf("look for %s: %w", config.FileName, err)
		}
		if len(passed) > 0 && here.mount != border {
			return start, nil
		}
		border = here.mount
		passed = append(passed, here.dir)
		if here.file != nil {
			for _, o := range append(passed, *here.file) {
				if err := s.Trust.Check(d, o); err != nil {
					return state.Project{}, err
				}
			}
			return state.Identify(d), nil
		}
		if d == filepath.Dir(d) || d == home && d != "/" {
			return start, nil
		}
	}
}

// sight is what Find sees of one directory on its way up.
type sight struct {
	dir   trust.Object
	file  *trust.Object // its devvm.toml; nil: none
	mount uint64        // what it is on
}

// look opens a directory and examines its devvm.toml, whatever kind of file that is.
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
	// The ID of the mount, not of the device: each subvolume of btrfs is a device, but no border.
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

// canonical resolves the symbolic links in the path of a directory, if it exists.
func canonical(dir string) string {
	if resolved, err := filepath.EvalSymlinks(dir); err == nil {
		return resolved
	}
	return dir
}

// Unusual says why a directory is an odd project, or "" if it is not: a VM for the whole home
// directory or the root is nearly always a mistake, and in a directory that others can write in,
// not everything is the user's.
func (s *Service) Unusual(p state.Project) string {
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
