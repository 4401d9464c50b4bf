package share

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

const manyNodes = 256 << 10 // objects of an export whose places are remembered

// node is an object, with the place where it was last seen.
type node struct {
	key
	born   uint32
	trail  string // as in its handle
	parent *node  // nil: the root
	name   string
	others []place // of a file with several links
	sight  sight   // the observer's
}

// place is a name in a directory.
type place struct {
	dir  *node
	name string
}

// maxDepth is how many directories deep a tree may be.
const maxDepth = 1024

// manyOthers is how many further links of a file are remembered.
const manyOthers = 3

// put sets the node's place, unless the node would then be its own ancestor: such a place is
// out of date. The caller holds the lock.
func (n *node) put(at place) {
	for p := at.dir; p != nil; p = p.parent {
		if p == n {
			return
		}
	}
	n.parent, n.name = at.dir, at.name
}

// known returns the node of a key, and keeps it and its ancestors in memory.
func (e *export) known(k key) *node {
	e.mu.Lock()
	defer e.mu.Unlock()
	n, _ := e.nodes.get(k)
	if n != nil {
		for p := n.parent; p != nil && p.parent != nil; p = p.parent {
			if _, ok := e.nodes.get(p.key); !ok {
				e.nodes.put(p.key, p)
			}
		}
	}
	return n
}

// openNode opens an object where it was last seen, or where the host has moved it since: to
// another name in its directory, or along with the directory.
func (e *export) openNode(n *node) (*object, error) {
	root, err := e.openRoot()
	if err != nil || n == e.root {
		return root, err
	}
	name, err := e.path(n)
	if err != nil {
		root.close()
		return nil, err
	}
	o, err := e.openAs(root.fd, name, n)
	root.close() // this function calls itself for each ancestor: hold no descriptor meanwhile
	if err == nil || errors.Is(err, unix.EACCES) || busy(err) {
		return o, err
	}
	e.mu.Lock()
	here, others := place{n.parent, n.name}, n.others
	e.mu.Unlock()
	for _, p := range append([]place{here}, others...) {
		dir, err := e.openNode(p.dir)
		if busy(err) {
			return nil, err
		}
		if err != nil {
			continue
		}
		o, err := e.openAs(dir.fd, p.name, n)
		if err != nil && !busy(err) {
			o, err = e.searchIn(dir, n)
		}
		dir.close()
		if err == nil || busy(err) {
			return o, err
		}
	}
	return nil, unix.ESTALE
}

// searchIn looks for an object under any name in a directory.
func (e *export) searchIn(dir *object, n *node) (*object, error) {
	names, err := e.list(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names.of(n.ino) {
		o, err := e.openAs(dir.fd, name, n)
		if err == nil {
			e.move(n, place{dir.n, name})
		}
		if err == nil || busy(err) {
			return o, err
		}
	}
	return nil, unix.ESTALE
}

// move sets an object's new place.
func (e *export) move(n *node, to place) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n.put(to)
}

// adopt returns the node of an object that was seen at a place. trail is from a handle that
// the VM has, or empty.
func (e *export) adopt(at place, st *unix.Statx_t, trail string) *node {
	k, born := e.keyOf(st), e.born(st)
	e.mu.Lock()
	defer e.mu.Unlock()
	n, ok := e.nodes.get(k)
	if !ok || n.born != born {
		if trail == "" {
			trail = at.dir.trailBelow()
		}
		n = &node{key: k, born: born, trail: trail, parent: at.dir, name: at.name}
		e.nodes.put(k, n)
		return n
	}
	was := place{n.parent, n.name}
	if was == at {
		return n
	}
	if st.Nlink > 1 && !isDir(st) {
		n.others = append([]place{was}, n.others...)
		n.others = n.others[:min(len(n.others), manyOthers)]
	}
	n.put(at)
	return n
}

// trailBelow is the trail of the directory's entries, at its current place.
func (n *node) trailBelow() string {
	var crumbs []byte
	for p := n; p.parent != nil; p = p.parent {
		crumbs = append(crumbs, crumb(p.ino))
	}
	slices.Reverse(crumbs)
	return string(crumbs[:min(len(crumbs), maxTrail)])
}
