package share

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// Nothing that the agent asks for is carried out. Its kernel gets the answer it would have had
// if it had itself done what the host did: a file that exists "was created", and one that is
// gone "was removed". If the host's files say otherwise, the agent is refused, and its kernel
// tells nobody.

// phantomProcedures answer the agent, in place of the procedures that change something and of
// those that must know about ghosts.
var phantomProcedures = map[nfs3.Nfsproc3]procedure{
	nfs3.PROC_GETATTR: {do: with((*Server).phantomGetattr)},
	nfs3.PROC_SETATTR: {do: with((*Server).phantomSetattr)},
	nfs3.PROC_LOOKUP:  {do: with((*Server).phantomLookup)},
	nfs3.PROC_ACCESS:  {do: with((*Server).phantomAccess)},
	nfs3.PROC_WRITE:   {do: with((*Server).refuseWrite)},
	nfs3.PROC_CREATE:  {do: with((*Server).phantomCreate)},
	nfs3.PROC_MKDIR:   {do: with((*Server).phantomMkdir)},
	nfs3.PROC_SYMLINK: {do: with((*Server).phantomSymlink)},
	nfs3.PROC_MKNOD:   {do: with((*Server).refuseMknod)},
	nfs3.PROC_REMOVE:  {do: with((*Server).phantomRemove)},
	nfs3.PROC_RMDIR:   {do: with((*Server).phantomRmdir)},
	nfs3.PROC_RENAME:  {do: with((*Server).phantomRename)},
	nfs3.PROC_LINK:    {do: with((*Server).refuseLink)},
	nfs3.PROC_COMMIT:  {do: with((*Server).refuseCommit)},
}

// ghostHandle is a handle for an object that is gone.
func (e *export) ghostHandle(at ghostKey, g ghost) []byte {
	if g.n != nil {
		return e.handle(g.n).Data
	}
	h := handle{export: e.tag, key: key{ino: hash64(at.dir.ino, at.name) | 1<<63}, born: uint32(g.kind)}.encode()
	h[1] = ghostMark
	return h
}

// ghostAttributes returns the attributes of an object that is gone, as the VM knew them. With
// others the VM would take the object, which a program may still be running from, for changed.
func (s *Server) ghostAttributes(data []byte) *nfs3.Fattr3 {
	synthetic := isGhost(data)
	if synthetic {
		data = append([]byte{}, data...)
		data[1] = 0
	}
	h, ok := decodeHandle(data)
	if !ok {
		return nil
	}
	for _, e := range s.exports {
		if e.tag != h.export || e.mirror() == nil {
			continue
		}
		if synthetic {
			now := nfs3.Nfstime3{Seconds: uint32(time.Now().Unix())}
			return &nfs3.Fattr3{
				Type: nfs3.Ftype3(h.born), Mode: 0o755, Nlink: 1, Fsid: e.fsid, Fileid: h.ino,
				Atime: now, Mtime: now, Ctime: now,
			}
		}
		if n := e.mirror().ghost(h); n != nil {
			return e.attributes(n, e.sight(n))
		}
	}
	return nil
}

// ghost returns the node of the ghost that has this handle, or nil.
func (m *mirror) ghost(h handle) *node {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range m.ghosts {
		if g.n != nil && g.n.key == h.key && g.n.born == h.born {
			return g.n
		}
	}
	return nil
}

func (s *Server) phantomGetattr(ctx context.Context, c *call, a *nfs3.NfsFh3, w *reply) {
	if o, err := s.object(a.Data); err == nil {
		o.close()
	} else if ghost := s.ghostAttributes(a.Data); ghost != nil {
		w.put(nfs3.OK, ghost)
		return
	}
	s.getattr(ctx, c, a, w)
}

func (s *Server) phantomAccess(ctx context.Context, c *call, a *nfs3.Access3args, w *reply) {
	if o, err := s.object(a.Object.Data); err == nil {
		o.close()
	} else if ghost := s.ghostAttributes(a.Object.Data); ghost != nil {
		w.put(nfs3.OK, &nfs3.Access3resok{ObjAttributes: ghost, Access: a.Access})
		return
	}
	s.access(ctx, c, a, w)
}

func (s *Server) phantomSetattr(_ context.Context, _ *call, a *nfs3.Setattr3args, w *reply) {
	o, err := s.object(a.Object.Data)
	if err != nil {
		if ghost := s.ghostAttributes(a.Object.Data); ghost != nil {
			w.put(nfs3.OK, &nfs3.WccData{After: ghost})
			return
		}
		w.put(statusOf(err), &nfs3.WccData{})
		return
	}
	defer o.close()
	w.put(nfs3.OK, o.after(nil))
}

func (s *Server) phantomLookup(ctx context.Context, c *call, a *nfs3.Diropargs3, w *reply) {
	dir, err := s.object(a.Dir.Data)
	if err != nil {
		w.put(statusOf(err), optional{})
		return
	}
	defer dir.close()
	at := ghostKey{dir.n.key, string(a.Name)}
	g, role := dir.e.mirror().look(at, dir.has(a.Name))
	switch role {
	case lives:
		s.lookup(ctx, c, a, w)
		return
	case comes:
		w.put(nfs3.ERR_NOENT, optional{dir.e.attributes(dir.n, &dir.st)})
		return
	}
	h := dir.e.ghostHandle(at, g)
	var attributes *nfs3.Fattr3
	if o, err := s.object(h); err == nil { // it was moved, or is still open
		attributes = o.attributes()
		o.close()
	} else {
		attributes = s.ghostAttributes(h)
	}
	w.put(nfs3.OK, &nfs3.Lookup3resok{
		Object: nfs3.NfsFh3{Data: h}, ObjAttributes: attributes,
		DirAttributes: dir.e.attributes(dir.n, &dir.st),
	})
}

// has reports whether a directory has an entry with a name, or cannot tell.
func (o *object) has(name []byte) bool {
	if nameError(name) != nil || !isDir(&o.st) {
		return true
	}
	var st unix.Statx_t
	err := unix.Statx(o.fd, string(name), unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	return statusOf(err) != nfs3.ERR_NOENT
}

// appear answers that an object that exists was created.
func (s *Server) appear(where *nfs3.Diropargs3, kind uint16, w *reply) {
	dir, err := s.object(where.Dir.Data)
	if err != nil {
		w.put(statusOf(err), &nfs3.WccData{})
		return
	}
	defer dir.close()
	dir.e.mirror().giveUp()
	n, st, err := dir.find(where.Name)
	if err == nil && st.Mode&unix.S_IFMT != kind {
		err = unix.EEXIST
	}
	if err != nil {
		w.put(statusOf(err), dir.after(nil))
		return
	}
	h := dir.e.handle(n)
	w.put(nfs3.OK, &nfs3.Create3resok{Obj: &h, ObjAttributes: dir.e.attributes(n, st), DirWcc: *dir.after(nil)})
}

func (s *Server) phantomCreate(_ context.Context, _ *call, a *nfs3.Create3args, w *reply) {
	s.appear(&a.Where, unix.S_IFREG, w)
}

func (s *Server) phantomMkdir(_ context.Context, _ *call, a *nfs3.Mkdir3args, w *reply) {
	s.appear(&a.Where, unix.S_IFDIR, w)
}

func (s *Server) phantomSymlink(_ context.Context, _ *call, a *nfs3.Symlink3args, w *reply) {
	s.appear(&a.Where, unix.S_IFLNK, w)
}

// disappear answers that an object that is gone was removed, unless more returns an error.
func (s *Server) disappear(where *nfs3.Diropargs3, w *reply, more func(dir *object) error) {
	dir, err := s.object(where.Dir.Data)
	if err != nil {
		w.put(statusOf(err), &nfs3.WccData{})
		return
	}
	defer dir.close()
	if dir.has(where.Name) {
		err = unix.EACCES
	} else {
		err = more(dir)
	}
	w.put(statusOf(err), dir.after(nil))
}

func (s *Server) phantomRemove(_ context.Context, _ *call, a *nfs3.Diropargs3, w *reply) {
	s.disappear(a, w, func(*object) error { return nil })
}

func (s *Server) phantomRmdir(_ context.Context, _ *call, a *nfs3.Diropargs3, w *reply) {
	s.disappear(a, w, func(dir *object) error {
		return dir.e.mirror().try(ghostKey{dir.n.key, string(a.Name)}, ghostKey{})
	})
}

// Once the VM's kernel has seen a directory removed, or replaced by another, it takes it for
// empty for ever, even if the directory lives on and only had another name for a while. So the
// kernel may see that only for what the server has just shown it under that name. The first
// attempt gets ESTALE. Then the kernel looks up all the names again, with their directories
// locked, and tries once more (retry_estale in Linux's fs/namei.c).

// attempt is what the agent tried to do to a directory.
type attempt struct {
	goes, comes ghostKey // old and new name; comes is empty for a removal
	seen        bool     // the ghost has been shown since
}

// role is what a name stands for to the agent.
type role int

const (
	lives role = iota // an object that exists
	gone              // a ghost
	comes             // nothing yet
)

// look returns what a name stands for.
func (m *mirror) look(at ghostKey, there bool) (ghost, role) {
	if m == nil {
		return ghost{}, lives
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	g, ok := m.ghosts[at]
	switch {
	case at == m.attempt.comes:
		return ghost{}, comes
	case there || !ok:
		return ghost{}, lives
	}
	m.attempt.seen = m.attempt.seen || at == m.attempt.goes
	return g, gone
}

// try returns nil if the agent may do this to a directory that is gone, or ESTALE if it has to
// try again.
func (m *mirror) try(goes, comes ghostKey) error {
	if m == nil {
		return unix.EACCES
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	last := m.attempt
	m.attempt = attempt{}
	if _, ok := m.ghosts[goes]; !ok {
		return unix.ESTALE
	}
	if last == (attempt{goes, comes, true}) {
		return nil
	}
	m.attempt = attempt{goes: goes, comes: comes}
	return unix.ESTALE
}

// giveUp ends an attempt, because the agent does something else: it creates what it could not
// rename.
func (m *mirror) giveUp() {
	if m == nil {
		return
	}
	m.mu.Lock()
	m.attempt = attempt{}
	m.mu.Unlock()
}

// isDir reports whether the object that had a name was a directory.
func (m *mirror) isDir(at ghostKey) bool {
	if m == nil {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	g, ok := m.ghosts[at]
	return !ok || g.kind == nfs3.NF3DIR
}

// phantomRename answers that an object that is gone from its old name has its new one. The VM's
// kernel may choose a new name itself if the object is open there.
func (s *Server) phantomRename(_ context.Context, _ *call, a *nfs3.Rename3args, w *reply) {
	none := &nfs3.Rename3res{}
	from, err := s.object(a.From.Dir.Data)
	if err != nil {
		w.put(statusOf(err), none)
		return
	}
	defer from.close()
	to, err := s.object(a.To.Dir.Data)
	if err != nil {
		w.put(statusOf(err), none)
		return
	}
	defer to.close()
	goes := ghostKey{from.n.key, string(a.From.Name)}
	if from.has(a.From.Name) {
		err = unix.EACCES
	} else if from.e.mirror().isDir(goes) {
		err = from.e.mirror().try(goes, ghostKey{to.n.key, string(a.To.Name)})
	}
	w.put(statusOf(err), &nfs3.Rename3res{FromdirWcc: *from.after(nil), TodirWcc: *to.after(nil)})
}

func (s *Server) refuseWrite(_ context.Context, _ *call, _ *nfs3.Write3args, w *reply) {
	w.put(nfs3.ERR_ROFS, &nfs3.WccData{})
}

func (s *Server) refuseCommit(_ context.Context, _ *call, _ *nfs3.Commit3args, w *reply) {
	w.put(nfs3.ERR_ROFS, &nfs3.WccData{})
}

func (s *Server) refuseMknod(_ context.Context, _ *call, _ *nfs3.Mknod3args, w *reply) {
	w.put(nfs3.ERR_ROFS, &nfs3.WccData{})
}

func (s *Server) refuseLink(_ context.Context, _ *call, _ *nfs3.Link3args, w *reply) {
	w.put(nfs3.ERR_ROFS, &nfs3.Link3res{})
}
