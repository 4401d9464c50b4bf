package share

import (
	"strings"

	"golang.org/x/sys/unix"
)

// manyBinds bounds what Hold keeps in mind, and what HoldAhead does.
const manyBinds = 512

// Bind is a path of the VM that somebody there has, as it was when they got it.
type Bind struct {
	ID   string // of the container
	Path string
}

// bind is a Bind for which a file is held, or, without an export, none.
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
	open bool // calls of Hold may not know of it, or of a run of the container before this one
}

// heldKey is what a handle says of the object.
type heldKey struct {
	key
	born uint32
}

// held is a file that stays what it is, as long as refs is not 0.
type held struct {
	fd   int // O_PATH
	n    *node
	refs int
}

// Hold has the VM keep the regular files that are at the paths of new binds, for as long
// as each call names these: when the host then puts another file in the place of one, as
// editors and git do, it is an object without a name, which NFS cannot open. A container
// that has a single file from the host has that one until it ends, as it has without a VM.
// The path of one with a symbolic link in it is not followed.
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

// HoldAhead is Hold for one that is about to start: the first that Hold hears of it may come
// after the host has replaced a file. What it holds stays until a Hold after the call of done does
// not know of it.
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

// mayHold tells whether there is room for one more bind than so many.
func (s *Server) mayHold(binds int) bool {
	if binds < manyBinds {
		return true
	}
	s.log.Warn("the VM's containers bind too many paths: files that the host replaces may be lost to some", "limit", manyBinds)
	return false
}

// holdBind holds the file of a bind, if it is one.
func (s *Server) holdBind(b Bind) bind {
	if e, rel := s.exportOf(b.Path); e != nil && len(b.Path) < unix.PathMax {
		if k, ok := e.hold(rel); ok {
			return bind{e, k}
		}
	}
	return bind{}
}

// exportOf returns the export that has a path of the VM, and the path below it; nil if none
// has it.
func (s *Server) exportOf(p string) (best *export, rel string) {
	for _, e := range s.exports {
		below, ok := strings.CutPrefix(p, strings.TrimSuffix(e.Target, "/")+"/")
		if ok && (best == nil || len(e.Target) > len(best.Target)) {
			best, rel = e, below
		}
	}
	return best, rel
}

// hold holds the file that is at a path now, if one is.
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

// release ends what hold has begun.
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
