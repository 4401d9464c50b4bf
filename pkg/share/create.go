package share

import (
	"context"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// creation is a call that creates an object in a directory.
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

// end answers with the new object, or why there is none.
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
	o.e.observer.made(x.dir.n, x.name, &o.st)
	w.put(nfs3.OK, &nfs3.Create3resok{Obj: &h, ObjAttributes: attributes, DirWcc: *dir})
}

// made opens the object that was just created, and sets its attributes and its owner in the VM.
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

// dress sets the attributes and the owner of a new object.
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

// modeOf is the mode for a new object.
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
		// The verifier is stored in the times, where a new server finds it. The VM sets the
		// times afterwards.
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

// create creates a file, and keeps it open for the data that follows.
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

// existing opens a file that existed already.
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

// verifierTimes encodes the verifier of an exclusive creation as times.
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

// mknod creates pipes and sockets. They have no meaning on the host: both ends are in the VM's
// kernel.
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
