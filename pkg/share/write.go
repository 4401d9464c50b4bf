package share

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// Procedures that change files.

func (s *Server) setattr(_ context.Context, c *call, a *nfs3.Setattr3args, w *reply) {
	o, err := s.object(a.Object.Data)
	if err != nil {
		w.put(statusOf(err), &nfs3.WccData{})
		return
	}
	defer o.close()
	var f *file
	if a.NewAttributes.Size != nil && o.e.Writable {
		if f, err = o.open(true); err == nil {
			defer o.e.files.put(f)
		}
	}
	unlock := o.e.lock(o.n, o.n)
	defer unlock()
	before := o.before()
	switch {
	case err != nil:
	case !o.e.Writable:
		err = unix.EROFS
	case a.Guard != nil && *a.Guard != timeOf(o.st.Ctime):
		err = nfs3error(nfs3.ERR_NOT_SYNC)
	default:
		if f != nil {
			err = truncate(f.fd, *a.NewAttributes.Size)
		}
		if err == nil {
			err = o.set(c, &a.NewAttributes)
		}
	}
	after := o.after(before)
	o.e.observer.changed(o, false)
	w.put(statusOf(err), after)
}

func truncate(fd int, size uint64) error {
	for {
		err := unix.Ftruncate(fd, int64(size))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// set changes attributes, but not the size. The caller holds the object's lock.
func (o *object) set(c *call, a *nfs3.Sattr3) error {
	if a.Mode != nil && o.st.Mode&unix.S_IFMT != unix.S_IFLNK {
		o.e.modes.Lock()
		err := unix.Chmod(again(o.fd), *a.Mode&modeBits)
		o.e.modes.Unlock()
		if err != nil {
			return err
		}
	}
	if a.Uid != nil || a.Gid != nil {
		who := o.e.ownerOf(o.n, &o.st)
		to := who
		if a.Uid != nil {
			to.uid = *a.Uid
		}
		if a.Gid != nil {
			to.gid = *a.Gid
		}
		if to != who {
			if !own(&o.st) || c.uid != 0 && (to.uid != who.uid || c.uid != who.uid) {
				return unix.EPERM
			}
			o.e.setOwner(o.n, to)
		}
	}
	times := []unix.Timespec{timespec(a.Atime), timespec(a.Mtime)}
	if times[0].Nsec == unix.UTIME_OMIT && times[1].Nsec == unix.UTIME_OMIT {
		return nil
	}
	return unix.UtimesNanoAt(o.fd, "", times, unix.AT_EMPTY_PATH)
}

func (s *Server) write(_ context.Context, c *call, a *nfs3.Write3args, w *reply) {
	o, err := s.object(a.File.Data)
	if err != nil {
		w.put(statusOf(err), &nfs3.WccData{})
		return
	}
	defer o.close()
	data := c.rest()
	if uint64(a.Length) > uint64(len(data)) || a.Count > a.Length {
		w.put(nfs3.ERR_INVAL, o.after(nil))
		return
	}
	data = data[:a.Count]
	var f *file
	if !o.e.Writable {
		err = unix.EROFS
	} else if f, err = o.open(true); err == nil {
		defer o.e.files.put(f)
		err = writeAll(f.fd, data, a.Offset)
	}
	committed := nfs3.UNSTABLE
	if err == nil && a.Stable != nfs3.UNSTABLE {
		committed = nfs3.FILE_SYNC
		if s.durable {
			err = unix.Fdatasync(f.fd)
		}
		o.finished()
	}
	if err != nil {
		w.put(statusOf(err), o.after(nil))
		return
	}
	after := o.after(nil)
	o.e.observer.changed(o, true)
	w.put(nfs3.OK, &nfs3.Write3resok{FileWcc: *after, Count: a.Count, Committed: committed, Verf: s.verifier})
}

func writeAll(fd int, data []byte, at uint64) error {
	if at > 1<<62 {
		return unix.EFBIG
	}
	for len(data) > 0 {
		n, err := unix.Pwrite(fd, data, int64(at))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		data, at = data[n:], at+uint64(n)
	}
	return nil
}

// finished closes a file of which the VM should have no unwritten data left. A file that could
// not be opened again stays open for a while.
func (o *object) finished() {
	if o.st.Mode&0o200 != 0 {
		o.e.files.drop(o.n, false)
	}
}

func (s *Server) commit(_ context.Context, _ *call, a *nfs3.Commit3args, w *reply) {
	o, err := s.object(a.File.Data)
	if err != nil {
		w.put(statusOf(err), &nfs3.WccData{})
		return
	}
	defer o.close()
	if s.durable && o.e.Writable {
		var f *file
		if f, err = o.open(true); err == nil {
			err = unix.Fsync(f.fd)
			o.e.files.put(f)
		}
	}
	o.finished()
	if err != nil {
		w.put(statusOf(err), o.after(nil))
		return
	}
	w.put(nfs3.OK, &nfs3.Commit3resok{FileWcc: *o.after(nil), Verf: s.verifier})
}

func (s *Server) remove(_ context.Context, _ *call, a *nfs3.Diropargs3, w *reply) {
	s.unlink(a, 0, w)
}

func (s *Server) rmdir(_ context.Context, _ *call, a *nfs3.Diropargs3, w *reply) {
	s.unlink(a, unix.AT_REMOVEDIR, w)
}

func (s *Server) unlink(a *nfs3.Diropargs3, flags int, w *reply) {
	dir, err := s.directory(a.Dir.Data)
	if err != nil {
		w.put(statusOf(err), &nfs3.WccData{})
		return
	}
	defer dir.close()
	unlock := dir.e.lock(dir.n, dir.n)
	defer unlock()
	before := dir.before()
	name := string(a.Name)
	err = nameError(a.Name)
	switch {
	case name == "." && err != nil:
		err = unix.EINVAL
	case err == nil:
		gone := dir.peek(name)
		if err = unix.Unlinkat(dir.fd, name, flags); err == nil {
			dir.removed(gone, name)
			dir.e.observer.removed(dir.n, name)
		}
	}
	w.put(statusOf(err), dir.after(before))
}

// peek returns the state of the entry with a name, or nil.
func (o *object) peek(name string) *unix.Statx_t {
	st, err := o.child(name)
	if err != nil {
		return nil
	}
	return st
}

// removed forgets the object that had a name, and closes it if that was its last name. The VM
// does not need it: it renames files that it has open instead of removing them.
func (o *object) removed(st *unix.Statx_t, name string) {
	if st == nil {
		return
	}
	e := o.e
	e.mu.Lock()
	n, ok := e.nodes.get(e.keyOf(st))
	last := st.Nlink <= 1 || isDir(st)
	if ok && last {
		e.nodes.delete(n.key)
		e.owners.delete(n.key)
	} else if ok && n.parent == o.n && n.name == name && len(n.others) > 0 {
		n.put(n.others[0])
		n.others = n.others[1:]
	}
	e.mu.Unlock()
	if ok && last {
		e.files.drop(n, true)
	}
	if ok && !last {
		e.observer.unlinked(n)
	}
}

func (s *Server) rename(_ context.Context, _ *call, a *nfs3.Rename3args, w *reply) {
	none := &nfs3.Rename3res{}
	from, err := s.directory(a.From.Dir.Data)
	if err != nil {
		w.put(statusOf(err), none)
		return
	}
	defer from.close()
	to, err := s.directory(a.To.Dir.Data)
	if err != nil {
		w.put(statusOf(err), none)
		return
	}
	defer to.close()
	if from.e != to.e {
		w.put(nfs3.ERR_XDEV, none)
		return
	}
	unlock := from.e.lock(from.n, to.n)
	defer unlock()
	fromBefore, toBefore := from.before(), to.before()
	if err = nameError(a.From.Name); err == nil {
		err = nameError(a.To.Name)
	}
	if err == nil {
		err = rename(from, to, string(a.From.Name), string(a.To.Name))
	}
	w.put(statusOf(err), &nfs3.Rename3res{FromdirWcc: *from.after(fromBefore), TodirWcc: *to.after(toBefore)})
}

func rename(from, to *object, old, name string) error {
	moved, gone := from.peek(old), to.peek(name)
	if err := unix.Renameat(from.fd, old, to.fd, name); err != nil {
		return err
	}
	e := from.e
	if moved != nil && gone != nil && e.keyOf(moved) == e.keyOf(gone) {
		return nil // two links of one file: nothing happens
	}
	to.removed(gone, name)
	e.observer.renamed(from.n, old, to, name)
	if moved != nil {
		n := e.adopt(place{to.n, name}, moved, "")
		e.mu.Lock()
		n.others = without(n.others, place{from.n, old})
		e.mu.Unlock()
	}
	return nil
}

// without returns the places other than p.
func without(places []place, p place) []place {
	var rest []place
	for _, x := range places {
		if x != p {
			rest = append(rest, x)
		}
	}
	return rest
}

func (s *Server) link(_ context.Context, _ *call, a *nfs3.Link3args, w *reply) {
	none := &nfs3.Link3res{}
	o, err := s.object(a.File.Data)
	if err != nil {
		w.put(statusOf(err), none)
		return
	}
	defer o.close()
	dir, err := s.directory(a.Link.Dir.Data)
	if err != nil {
		w.put(statusOf(err), none)
		return
	}
	defer dir.close()
	unlock := dir.e.lock(dir.n, dir.n)
	defer unlock()
	before := dir.before()
	err = nameError(a.Link.Name)
	switch {
	case err != nil:
	case o.e != dir.e:
		err = unix.EXDEV
	case isDir(&o.st):
		err = unix.EISDIR
	default:
		err = unix.Linkat(unix.AT_FDCWD, again(o.fd), dir.fd, string(a.Link.Name), unix.AT_SYMLINK_FOLLOW)
	}
	attributes := o.attributes()
	if err == nil {
		o.e.adopt(place{dir.n, string(a.Link.Name)}, &o.st, "")
		o.e.observer.made(dir.n, string(a.Link.Name), &o.st)
	}
	w.put(statusOf(err), &nfs3.Link3res{FileAttributes: attributes, LinkdirWcc: *dir.after(before)})
}
