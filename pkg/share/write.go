package share

import (
	"context"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// What changes files.

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
	o.changed()
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
	o.changed()
	o.wrote()
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

// finished closes a file that nobody in the VM has unwritten data of, as far as is
// known. One that cannot be opened again stays open for a while.
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

// creation is a change that makes something in a directory.
type creation struct {
	s      *Server
	c      *call
	dir    *object
	name   string
	before *nfs3.WccAttr
	unlock func()
}

// creating begins a creation, or answers why not.
func (s *Server) creating(c *call, where *nfs3.Diropargs3, w *reply) *creation {
	dir, err := s.directory(where.Dir.Data)
	if err != nil {
		w.put(statusOf(err), &nfs3.WccData{})
		return nil
	}
	if err := nameError(where.Name); err != nil {
		w.put(statusOf(err), dir.after(nil))
		dir.close()
		return nil
	}
	unlock := dir.e.lock(dir.n, dir.n)
	return &creation{s: s, c: c, dir: dir, name: string(where.Name), before: dir.before(), unlock: unlock}
}

// end answers: with what was made, or why it was not.
func (x *creation) end(o *object, err error, w *reply) {
	defer x.dir.close()
	if o != nil {
		defer o.close()
	}
	dir := x.dir.after(x.before)
	x.unlock()
	if err != nil {
		w.put(statusOf(err), dir)
		return
	}
	h, attributes := o.e.handle(o.n), o.attributes()
	o.e.did(x.dir.n.key, x.name, &o.st)
	w.put(nfs3.OK, &nfs3.Create3resok{Obj: &h, ObjAttributes: attributes, DirWcc: *dir})
}

// made opens what was just made, gives it its attributes and its owner in the VM: who
// made it.
func (x *creation) made(kind uint16, a *nfs3.Sattr3) (*object, error) {
	o, err := x.dir.openChild(x.name)
	if err != nil {
		return nil, err
	}
	if o.st.Mode&unix.S_IFMT != kind {
		o.close()
		return nil, unix.ESTALE // the host has replaced it already
	}
	return o, x.dress(o, a)
}

// dress gives a new object its attributes.
func (x *creation) dress(o *object, a *nfs3.Sattr3) error {
	to := *a
	who := owner{uid: x.c.uid, gid: x.c.gid}
	if a.Uid != nil && x.c.uid == 0 {
		who.uid = *a.Uid
	}
	if a.Gid != nil {
		who.gid = *a.Gid
	}
	if own(&o.st) {
		o.e.setOwner(o.n, who)
	}
	to.Uid, to.Gid = nil, nil
	if to.Mode != nil && uint32(o.st.Mode)&0o7777 == *to.Mode&modeBits {
		to.Mode = nil
	}
	return o.set(x.c, &to)
}

// modeOf is a new object's mode.
func modeOf(a *nfs3.Sattr3, unset uint32) uint32 {
	if a.Mode == nil {
		return unset
	}
	return *a.Mode & modeBits
}

func (s *Server) create(_ context.Context, c *call, a *nfs3.Create3args, w *reply) {
	x := s.creating(c, &a.Where, w)
	if x == nil {
		return
	}
	attributes := &nfs3.Sattr3{Atime: &nfs3.SetTime_default{}, Mtime: &nfs3.SetTime_default{}}
	switch how := a.How.(type) {
	case *nfs3.Createhow3_UNCHECKED:
		attributes = &how.Unchecked
	case *nfs3.Createhow3_GUARDED:
		attributes = &how.Guarded
	case *nfs3.Createhow3_EXCLUSIVE:
		// The verifier is kept where a new server finds it, until the VM sets the times.
		attributes.Atime, attributes.Mtime = verifierTimes(how.Verf)
	}
	o, err := x.create(attributes)
	if errors.Is(err, unix.EEXIST) && a.How.GetMode() != nfs3.GUARDED {
		o, err = x.existing(a.How, attributes)
	}
	if err != nil && o != nil {
		o.close()
		o = nil
	}
	x.end(o, err, w)
}

// create makes a file, and keeps it open for the data that will come.
func (x *creation) create(a *nfs3.Sattr3) (*object, error) {
	mode := modeOf(a, 0o600)
	fd, err := unix.Openat(x.dir.fd, x.name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, mode)
	if err != nil {
		return nil, err
	}
	o := &object{e: x.dir.e, fd: fd}
	if err := o.stat(); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	o.n = o.e.adopt(place{x.dir.n, x.name}, &o.st, "")
	keep := idleWrite
	if mode&0o200 == 0 {
		keep = idleLocked
	}
	o.f = o.e.files.add(o.n, true, fd, keep)
	o.fd = o.f.fd
	if a.Size != nil && *a.Size > 0 {
		if err := truncate(o.fd, *a.Size); err != nil {
			return o, err
		}
	}
	return o, x.dress(o, a)
}

// existing opens a file that was there already.
func (x *creation) existing(how nfs3.Createhow3, a *nfs3.Sattr3) (*object, error) {
	o, err := x.dir.openChild(x.name)
	if err != nil {
		return nil, err
	}
	if !isRegular(&o.st) {
		return o, unix.EEXIST
	}
	if exclusive, ok := how.(*nfs3.Createhow3_EXCLUSIVE); ok {
		atime, mtime := verifierTimes(exclusive.Verf)
		if timespec(atime) != (unix.Timespec{Sec: o.st.Atime.Sec}) || timespec(mtime) != (unix.Timespec{Sec: o.st.Mtime.Sec}) || o.st.Size != 0 {
			return o, unix.EEXIST
		}
		return o, nil
	}
	if a.Size == nil {
		return o, nil
	}
	f, err := o.open(true)
	if err != nil {
		return o, err
	}
	defer o.e.files.put(f)
	return o, truncate(f.fd, *a.Size)
}

// verifierTimes are times that stand for the verifier of an exclusive creation.
func verifierTimes(verf [8]byte) (atime, mtime nfs3.SetTime) {
	at := func(b []byte) nfs3.SetTime {
		return &nfs3.SetTime_SET_TO_CLIENT_TIME{Time: nfs3.Nfstime3{Seconds: binary.BigEndian.Uint32(b) & 0x7fffffff}}
	}
	return at(verf[:4]), at(verf[4:])
}

func (s *Server) mkdir(_ context.Context, c *call, a *nfs3.Mkdir3args, w *reply) {
	x := s.creating(c, &a.Where, w)
	if x == nil {
		return
	}
	var o *object
	err := unix.Mkdirat(x.dir.fd, x.name, modeOf(&a.Attributes, 0o700))
	if err == nil {
		o, err = x.made(unix.S_IFDIR, &a.Attributes)
	}
	x.end(o, err, w)
}

func (s *Server) symlink(_ context.Context, c *call, a *nfs3.Symlink3args, w *reply) {
	x := s.creating(c, &a.Where, w)
	if x == nil {
		return
	}
	var o *object
	err := symlinkError(a.Data)
	if err == nil {
		err = unix.Symlinkat(string(a.Data), x.dir.fd, x.name)
	}
	if err == nil {
		o, err = x.made(unix.S_IFLNK, &a.Attributes)
	}
	x.end(o, err, w)
}

func symlinkError(to []byte) error {
	switch {
	case len(to) >= unix.PathMax:
		return unix.ENAMETOOLONG
	case len(to) == 0:
		return unix.ENOENT
	}
	for _, b := range to {
		if b == 0 {
			return unix.EINVAL
		}
	}
	return nil
}

// mknod makes what has no meaning outside the VM: its ends are in the VM's kernel.
func (s *Server) mknod(_ context.Context, c *call, a *nfs3.Mknod3args, w *reply) {
	x := s.creating(c, &a.Where, w)
	if x == nil {
		return
	}
	var attributes *nfs3.Sattr3
	var kind uint16
	err := error(unix.EPERM)
	switch what := a.What.(type) {
	case *nfs3.Mknoddata3_NF3FIFO:
		attributes, kind, err = &what.Fifo, unix.S_IFIFO, nil
	case *nfs3.Mknoddata3_NF3SOCK:
		attributes, kind, err = &what.Sock, unix.S_IFSOCK, nil
	case *nfs3.Mknoddata3_default:
		err = nfs3error(nfs3.ERR_BADTYPE)
	}
	var o *object
	if err == nil {
		err = unix.Mknodat(x.dir.fd, x.name, uint32(kind)|modeOf(attributes, 0o600), 0)
	}
	if err == nil {
		o, err = x.made(kind, attributes)
	}
	x.end(o, err, w)
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
			dir.e.did(dir.n.key, name, nil)
		}
	}
	w.put(statusOf(err), dir.after(before))
}

// peek returns the state of what has a name now, or nil.
func (o *object) peek(name string) *unix.Statx_t {
	st, err := o.child(name)
	if err != nil {
		return nil
	}
	return st
}

// removed forgets what had a name, and closes it if it has no other: the VM renames
// what it still has open instead of removing it.
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
	if ok && !last && e.mirror != nil { // its other names have a new ctime, which is no news
		if other, err := e.openNode(n); err == nil {
			other.changed()
			other.close()
		}
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
	e.did(from.n.key, old, nil)
	if e.mirror != nil {
		e.did(to.n.key, name, to.peek(name))
	}
	if moved != nil {
		n := e.adopt(place{to.n, name}, moved, "")
		e.mu.Lock()
		n.others = without(n.others, place{from.n, old})
		e.mu.Unlock()
	}
	return nil
}

// without returns the places but one.
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
		o.e.did(dir.n.key, string(a.Link.Name), &o.st)
	}
	w.put(statusOf(err), &nfs3.Link3res{FileAttributes: attributes, LinkdirWcc: *dir.after(before)})
}
