package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Untrusted are directories, with everything below them, that somebody else can write to. The
// zero value has none.
type Untrusted struct {
	paths map[string]bool
	dirs  map[id]string // also finds them by another path, such as a mount
}

// NewUntrusted takes the directories' paths, which should not contain links.
func NewUntrusted(paths ...string) Untrusted {
	u := Untrusted{map[string]bool{}, map[id]string{}}
	for _, path := range paths {
		u.paths[filepath.Clean(path)] = true
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			u.dirs[infoOf(&st).id] = path
		}
	}
	return u
}

// LinkError says that a path leads through a symbolic link that somebody else may have made.
type LinkError struct {
	Path   string // the link's path
	Target string // where it leads
	Dir    string // the untrusted directory that it is in
}

func (e *LinkError) Error() string {
	return fmt.Sprintf("%s is a symbolic link (to %s), and a VM can write %s, where it is", e.Path, e.Target, e.Dir)
}

// Place is where a path leads: a directory, or a name in one.
type Place struct {
	Dir    *Dir // nil: not a directory
	Parent *Dir // then this is the directory that has the name, or lacks it
	Name   string
	Exists bool
	Info   Info
}

// Close closes the directories.
func (p *Place) Close() {
	p.Parent.Close()
	p.Dir.Close()
}

// manyLinks is how many symbolic links Linux follows in one path (path_resolution(7)).
const manyLinks = 40

// step is a directory on the way.
type step struct {
	dir       *Dir
	untrusted string // the outermost untrusted directory that this is or is below
}

// Find walks a path one component at a time. It follows links that the user made; at the end of
// the path, only if follow is set or the path ends with a slash. Inside an untrusted directory
// it follows none, and a link in the way is a *LinkError. A missing last component is not an
// error.
func (u Untrusted) Find(path string, follow bool) (place *Place, err error) {
	fail := func(op string, err error) (*Place, error) {
		return nil, &fs.PathError{Op: op, Path: path, Err: err}
	}
	if path == "" {
		return fail("lstat", unix.ENOENT)
	}
	todo := strings.Split(path, "/")
	if !filepath.IsAbs(path) {
		here, err := unix.Getwd()
		if err != nil {
			return fail("getwd", err)
		}
		todo = append(strings.Split(here, "/"), todo...)
	}
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail("open", err)
	}
	way := []step{{dir: &Dir{fd: fd, path: "/"}}}
	defer func() {
		for _, s := range way {
			if place == nil || s.dir != place.Parent && s.dir != place.Dir {
				s.dir.Close()
			}
		}
	}()
	cut := func(n int) {
		for _, s := range way[n:] {
			s.dir.Close()
		}
		way = way[:n]
	}
	u.mark(&way[0])
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			cut(max(1, len(way)-1))
			continue
		}
		if len(way) > Deepest {
			return fail("open", errDeep)
		}
		at := way[len(way)-1]
		rest := false // whether any path is left, even just a slash
		last := true
		for _, c := range todo {
			rest = true
			last = last && (c == "" || c == ".")
		}
		err := again(func() (err error) {
			fd, err = openDir(at.dir.fd, name)
			return err
		})
		switch {
		case err == nil:
			way = append(way, step{&Dir{fd: fd, path: at.dir.Join(name)}, at.untrusted})
			u.mark(&way[len(way)-1])
			continue
		case errors.Is(err, unix.ENOENT) && last:
			return at.dir.place(path, name), nil
		case errors.Is(err, unix.ENOTDIR) && last:
			info, err := at.dir.Stat(name)
			if err != nil {
				return fail("lstat", errors.Unwrap(err))
			}
			place := at.dir.place(path, name)
			place.Exists, place.Info = true, info
			return place, nil
		case !errors.Is(err, unix.ELOOP):
			return fail("lstat", err)
		}
		target, err := readlink(at.dir.fd, name)
		switch {
		case err != nil:
			return fail("readlink", err)
		case last && !rest && !follow:
			info, err := at.dir.Stat(name)
			if err != nil {
				return fail("lstat", errors.Unwrap(err))
			}
			place := at.dir.place(path, name)
			place.Exists, place.Info = true, info
			return place, nil
		case at.untrusted != "":
			return nil, &LinkError{Path: at.dir.Join(name), Target: target, Dir: at.untrusted}
		}
		if links++; links > manyLinks {
			return fail("open", unix.ELOOP)
		}
		if filepath.IsAbs(target) {
			cut(1)
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	here := way[len(way)-1].dir
	here.path = filepath.Clean(path)
	return &Place{Dir: here, Exists: true, Info: Info{Mode: fs.ModeDir}}, nil
}

// place is a name in the directory. Messages then use the path as the user gave it.
func (d *Dir) place(path, name string) *Place {
	if path = filepath.Clean(path); filepath.Base(path) == name { // otherwise the name is a link's target
		d.path = filepath.Dir(path)
	}
	return &Place{Parent: d, Name: name}
}

// mark records whether a step is, or is below, an untrusted directory.
func (u Untrusted) mark(s *step) {
	if s.untrusted != "" || len(u.paths) == 0 {
		return
	}
	if u.paths[s.dir.path] {
		s.untrusted = s.dir.path
		return
	}
	var st unix.Stat_t
	if unix.Fstat(s.dir.fd, &st) == nil {
		s.untrusted = u.dirs[infoOf(&st).id]
	}
}
