package share

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of one search.
const (
	manySteps   = 4096    // directories looked at along a trail
	manyEntries = 2 << 20 // entries looked at in the whole tree
	searchTime  = 5 * time.Second
	// searchRest limits searches to a tenth of the time once searchTime is used up, whatever
	// handles the VM makes up.
	searchRest = 10
)

var errNotFound = errors.New("not found")

// find looks for the object of a handle that an earlier server gave out, or that this one has
// forgotten: first along the handle's trail, then, since it may have moved, in the whole tree.
func (e *export) find(h handle) (*object, error) {
	e.finding.Lock()
	defer e.finding.Unlock()
	if n := e.known(h.key); n != nil { // another search has found it meanwhile
		if n.born != h.born {
			return nil, unix.ESTALE
		}
		return e.reopen(n)
	}
	root, err := e.openRoot()
	if busy(err) {
		return nil, err
	}
	if err != nil {
		return nil, unix.ESTALE
	}
	defer root.close()
	steps := manySteps
	o, err := e.follow(root, h, h.trail, &steps)
	if err != nil && len(h.trail) < maxTrail {
		o, err = e.searchBelow(e.root, h)
	}
	if busy(err) {
		return nil, err
	}
	if err != nil {
		return nil, unix.ESTALE
	}
	return o, nil
}

// follow walks the rest of a trail, starting from a directory.
func (e *export) follow(dir *object, h handle, trail string, steps *int) (*object, error) {
	if *steps--; *steps < 0 {
		return nil, errNotFound
	}
	names, err := e.list(dir)
	if err != nil {
		return nil, err
	}
	if trail == "" {
		o, err := e.pick(dir, names, h)
		if err != nil && len(h.trail) == maxTrail {
			return e.searchBelow(dir.n, h)
		}
		return o, err
	}
	for _, x := range names.entries {
		if crumb(x.ino) != trail[0] || x.kind != unix.DT_DIR && x.kind != unix.DT_UNKNOWN {
			continue
		}
		next, err := dir.openChild(x.name)
		if err != nil {
			continue
		}
		if isDir(&next.st) {
			o, err := e.follow(next, h, trail[1:], steps)
			if err == nil {
				next.close()
				return o, nil
			}
		}
		next.close()
	}
	return nil, errNotFound
}

// pick opens the object of a handle if the directory contains it.
func (e *export) pick(dir *object, names *listing, h handle) (*object, error) {
	meant := &node{key: h.key, born: h.born}
	for _, name := range names.of(h.ino) {
		if o, err := e.openAs(dir.fd, name, meant); err == nil {
			o.n = e.adopt(place{dir.n, name}, &o.st, h.trail)
			return o, nil
		}
	}
	return nil, errNotFound
}

// searchBelow looks for an object everywhere below a directory.
func (e *export) searchBelow(top *node, h handle) (*object, error) {
	begin := time.Now()
	e.owed = max(0, e.owed-begin.Sub(e.searched)/searchRest)
	if e.owed > searchTime {
		return nil, errNotFound
	}
	defer func() {
		e.searched = time.Now()
		e.owed += e.searched.Sub(begin)
	}()
	buf := make([]byte, 64<<10)
	until := begin.Add(searchTime)
	left := manyEntries
	for queue := []*node{top}; len(queue) > 0; queue = queue[1:] {
		if left < 0 || time.Now().After(until) {
			break
		}
		dir, err := e.openNode(queue[0])
		if err != nil {
			continue
		}
		names := &listing{}
		var subs []string
		if fd, err := dir.openList(); err == nil {
			_, _ = readEntries(fd, buf, func(x entry) bool {
				left--
				switch {
				case x.name == "." || x.name == "..":
				case x.ino == h.ino:
					names.entries = append(names.entries, x)
				}
				if x.kind == unix.DT_DIR && x.name != "." && x.name != ".." {
					subs = append(subs, x.name)
				}
				return true
			})
			_ = unix.Close(fd)
		}
		o, err := e.pick(dir, names, h)
		if err != nil {
			for _, name := range subs {
				sub, err := dir.openChild(name)
				if err != nil {
					continue
				}
				if e.keyOf(&sub.st) == h.key && e.born(&sub.st) == h.born { // a mount point has another inode number in its directory
					o = sub
					break
				}
				queue = append(queue, sub.n)
				sub.close()
			}
		}
		dir.close()
		if o != nil {
			return o, nil
		}
	}
	return nil, errNotFound
}
