package watch

import (
	"path"

	"golang.org/x/sys/unix"
)

// dir is a directory that is watched.
type dir struct {
	parent *dir // nil: the root
	name   string
	wd     int
	ino    uint64
	born   unix.StatxTimestamp // zero: the file system does not tell
	subs   map[string]*dir
}

func (d *dir) path() string {
	if d.parent == nil {
		return ""
	}
	return path.Join(d.parent.path(), d.name)
}

// within tells whether d is other, or below it.
func (d *dir) within(other *dir) bool {
	for ; d != nil; d = d.parent {
		if d == other {
			return true
		}
	}
	return false
}

func (d *dir) link(parent *dir, name string) {
	d.parent, d.name = parent, name
	if parent == nil {
		return
	}
	if parent.subs == nil {
		parent.subs = map[string]*dir{}
	}
	parent.subs[name] = d
}

func (d *dir) unlink() {
	if d.parent != nil && d.parent.subs[d.name] == d {
		delete(d.parent.subs, d.name)
	}
}
