package share

import (
	"strings"

	"golang.org/x/sys/unix"
)

// manyBinds is how many binds Hold, and HoldAhead, remember at most.
const manyBinds = 512

// Bind is a path of the VM that a container has mounted: the file that was there at its start.
type Bind struct {
	ID   string // of the container
	Path string
}

// bind is the file that is held for a Bind. Without an export, no file is held.
type bind struct {
	e *export
	k heldKey
}

func (x bind) release() {
	if x.e != nil {
		x.e.release(x.k)
	}
}

// advance is what [Server.HoldAhead] holds.
type advance struct {
	bind
	open bool // Hold may not name it yet, or may mean an earlier run of the container
}

// heldKey identifies the object as a handle does.
type heldKey struct {
	key
	born uint32
}

// held is a file that stays open while refs is not 0.
type held struct {
	fd   int // O_PATH
	n    *node
	refs int
}

// Hold holds the regular files that are at the paths of new binds, for as long as every call
// names these binds. Editors and git replace a file by another one. The old file then has no
// name, and NFS cannot open it. A container that mounts a single file of the host keeps that
// file until it ends, as it would without a VM. Symbolic links in a path are not followed.
func (s *Server) Hold(binds []Bind) {
	s.holding.Lock()
	defer s.holding.Unlock()
	wanted := make(map[Bind]bool, len(binds))
	for _, b := range binds {
		wanted[b] = true
	}
	for b, x := range s.binds {
		if !wanted[b] {
			delete(s.binds, b)
			x.release()
		}
	}
	for b, x := range s.ahead {
		if !wanted[b] && !x.open {
			delete(s.ahead, b)
			x.release()
		}
	}
	for _, b := range binds {
		if _, ok := s.binds[b]; ok {
			continue
		}
		if !s.mayHold(len(s.binds)) {
			return
		}
		s.binds[b] = s.holdBind(b)
	}
}

// HoldAhead is Hold for a container that is about to start: the host may replace a file before
// Hold first hears of the container. It holds the files until, after done was called, a call of
// Hold does not name them.
func (s *Server) HoldAhead(binds []Bind) (done func()) {
	s.holding.Lock()
	defer s.holding.Unlock()
	var mine []*advance
	for _, b := range binds {
		if !s.mayHold(len(s.ahead)) {
			break
		}
		x := &advance{bind: s.holdBind(b), open: true}
		if x.e == nil {
			continue
		}
		if old := s.ahead[b]; old != nil { // of an earlier start
			old.release()
		}
		s.ahead[b] = x
		mine = append(mine, x)
	}
	return func() {
		s.holding.Lock()
		defer s.holding.Unlock()
		for _, x := range mine {
			x.open = false
		}
	}
}

// mayHold reports whether there may be one more bind than binds.
func (s *Server) mayHold(binds int) bool {
	if binds < manyBinds {
		return true
	}
	s.log.Warn("the VM's containers bind too many paths: files that the host replaces may be lost to some", "limit", manyBinds)
	return false
}

// holdBind holds the file at the path of a bind, if it is a regular file.
func (s *Server) holdBind(b Bind) bind {
	if e, rel := s.exportOf(b.Path); e != nil && len(b.Path) < unix.PathMax {
		if k, ok := e.hold(rel); ok {
			return bind{e, k}
		}
	}
	return bind{}
}

// exportOf returns the export that a path of the VM is in, and the path below it, or nil.
func (s *Server) exportOf(p string) (best *export, rel string) {
	for _, e := range s.exports {
		below, ok := strings.CutPrefix(p, strings.TrimSuffix(e.Target, "/")+"/")
		if ok && (best == nil || len(e.Target) > len(best.Target)) {
			best, rel = e, below
		}
	}
	return best, rel
}

// hold holds the regular file that is at a path now, if there is one.
func (e *export) hold(rel string) (heldKey, bool) {
	o, err := e.openRoot()
	if err != nil {
		return heldKey{}, false
	}
	for name := range strings.SplitSeq(rel, "/") {
		var next *object
		err := nameError([]byte(name))
		if err == nil {
			next, err = o.openChild(name)
		}
		o.close()
		if err != nil {
			return heldKey{}, false
		}
		o = next
	}
	if !isRegular(&o.st) {
		o.close()
		return heldKey{}, false
	}
	k := heldKey{o.n.key, o.n.born}
	e.mu.Lock()
	defer e.mu.Unlock()
	if h := e.held[k]; h != nil {
		h.refs++
		o.close()
	} else {
		e.held[k] = &held{fd: o.fd, n: o.n, refs: 1}
	}
	return k, true
}

// release undoes one hold.
func (e *export) release(k heldKey) {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.held[k]
	if h == nil {
		return
	}
	if h.refs--; h.refs == 0 {
		_ = unix.Close(h.fd)
		delete(e.held, k)
	}
}

// openHeld opens a file that is held; nil if it is not.
func (e *export) openHeld(k heldKey) (*object, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.held[k]
	if h == nil {
		return nil, nil //nolint:nilnil // it is not held
	}
	fd, err := unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	o := &object{e: e, n: h.n, fd: fd, held: true}
	if err := o.stat(); err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}
