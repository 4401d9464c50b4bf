package share

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// Procedures that only read.

func (s *Server) getattr(ctx context.Context, c *call, a *nfs3.NfsFh3, w *reply) {
	inTurn(ctx, func(may bool) wait { return s.getAttr(c, a, w, may) })
}

// getAttr answers, or, if may is set, returns what to wait for first.
func (s *Server) getAttr(c *call, a *nfs3.NfsFh3, w *reply, may bool) wait {
	o, err := s.object(a.Data)
	if err != nil {
		w.put(statusOf(err))
		return nil
	}
	defer o.close()
	if may && isRegular(&o.st) {
		if wait := o.e.observer.askedAgain(c, o.n); wait != nil {
			return wait
		}
	}
	w.put(nfs3.OK, o.e.attributes(o.n, &o.st))
	return nil
}

// nameError returns what is wrong with the name of a directory entry.
func nameError(name []byte) error {
	switch {
	case len(name) > unix.NAME_MAX:
		return unix.ENAMETOOLONG
	case len(name) == 0 || slices.Contains(name, '/') || slices.Contains(name, 0):
		return unix.EINVAL
	case string(name) == "." || string(name) == "..":
		return unix.EEXIST
	}
	return nil
}

func (s *Server) lookup(ctx context.Context, c *call, a *nfs3.Diropargs3, w *reply) {
	inTurn(ctx, func(may bool) wait { return s.lookUp(c, a, w, may) })
}

// lookUp answers, or, if may is set, returns what to wait for first.
func (s *Server) lookUp(c *call, a *nfs3.Diropargs3, w *reply, may bool) wait {
	dir, err := s.object(a.Dir.Data)
	if err != nil {
		w.put(statusOf(err), optional{})
		return nil
	}
	defer dir.close()
	if dir.n == dir.e.root && strings.HasPrefix(string(a.Name), mountedMark) {
		dir.e.arrive()
	}
	n, st, err := dir.find(a.Name)
	if err != nil {
		w.put(statusOf(err), optional{dir.e.attributes(dir.n, &dir.st)})
		return nil
	}
	if may {
		if wait := dir.e.observer.asked(c, dir); wait != nil && !isDir(st) { // walks go on in directories
			return wait
		}
	}
	w.put(nfs3.OK, &nfs3.Lookup3resok{
		Object: dir.e.handle(n), ObjAttributes: dir.e.attributes(n, st),
		DirAttributes: dir.e.attributes(dir.n, &dir.st),
	})
	return nil
}

// find returns a directory's entry with a name.
func (o *object) find(name []byte) (*node, *unix.Statx_t, error) {
	if !isDir(&o.st) {
		return nil, nil, unix.ENOTDIR
	}
	switch string(name) {
	case ".":
		return o.n, &o.st, nil
	case "..":
		above := o.e.parent(o.n)
		if above == nil {
			return o.n, &o.st, nil
		}
		up, err := o.e.reopen(above)
		if err != nil {
			return nil, nil, err
		}
		defer up.close()
		return up.n, &up.st, nil
	}
	if err := nameError(name); err != nil {
		return nil, nil, err
	}
	st, err := o.child(string(name))
	if err != nil {
		return nil, nil, err
	}
	return o.e.adopt(place{o.n, string(name)}, st, ""), st, nil
}

func (e *export) parent(n *node) *node {
	e.mu.Lock()
	defer e.mu.Unlock()
	return n.parent
}

// access returns what the host user may do. For the user's own files it ignores the mode,
// which the user can change.
func (s *Server) access(_ context.Context, _ *call, a *nfs3.Access3args, w *reply) {
	o, err := s.object(a.Object.Data)
	if err != nil {
		w.put(statusOf(err), optional{})
		return
	}
	defer o.close()
	may := func(mode uint32) bool {
		return unix.Faccessat(o.fd, "", mode, unix.AT_EMPTY_PATH|unix.AT_EACCESS) == nil
	}
	var granted uint32
	switch {
	case isDir(&o.st):
		if may(unix.R_OK) {
			granted |= nfs3.ACCESS3_READ
		}
		if may(unix.X_OK) {
			granted |= nfs3.ACCESS3_LOOKUP | nfs3.ACCESS3_EXECUTE
			if may(unix.W_OK) {
				granted |= nfs3.ACCESS3_MODIFY | nfs3.ACCESS3_EXTEND | nfs3.ACCESS3_DELETE
			}
		}
	case own(&o.st):
		granted = nfs3.ACCESS3_READ | nfs3.ACCESS3_MODIFY | nfs3.ACCESS3_EXTEND
		if o.st.Mode&0o111 != 0 {
			granted |= nfs3.ACCESS3_EXECUTE
		}
	default:
		for mode, bits := range map[uint32]uint32{
			unix.R_OK: nfs3.ACCESS3_READ,
			unix.W_OK: nfs3.ACCESS3_MODIFY | nfs3.ACCESS3_EXTEND,
			unix.X_OK: nfs3.ACCESS3_EXECUTE,
		} {
			if may(mode) {
				granted |= bits
			}
		}
	}
	if !o.e.Writable {
		granted &^= nfs3.ACCESS3_MODIFY | nfs3.ACCESS3_EXTEND | nfs3.ACCESS3_DELETE
	}
	w.put(nfs3.OK, &nfs3.Access3resok{ObjAttributes: o.e.attributes(o.n, &o.st), Access: granted & a.Access})
}

func (s *Server) readlink(_ context.Context, _ *call, a *nfs3.NfsFh3, w *reply) {
	o, err := s.object(a.Data)
	if err != nil {
		w.put(statusOf(err), optional{})
		return
	}
	defer o.close()
	attributes := o.e.attributes(o.n, &o.st)
	if o.st.Mode&unix.S_IFMT != unix.S_IFLNK {
		w.put(nfs3.ERR_INVAL, optional{attributes})
		return
	}
	to := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(o.fd, "", to)
	if err != nil {
		w.put(statusOf(err), optional{attributes})
		return
	}
	w.put(nfs3.OK, &nfs3.Readlink3resok{SymlinkAttributes: attributes, Data: to[:n]})
}

// notData returns why an object cannot be opened for data.
func notData(st *unix.Statx_t) error {
	switch {
	case isRegular(st):
		return nil
	case isDir(st):
		return unix.EISDIR
	}
	return unix.EINVAL
}

// open opens a regular file for its data.
func (o *object) open(write bool) (*file, error) {
	if err := notData(&o.st); err != nil {
		return nil, err
	}
	files := o.e.files
	if f := files.get(o.n, write); f != nil {
		return f, nil
	}
	name, flags, keep := again(o.fd), unix.O_RDONLY, idleRead
	if write {
		flags, keep = unix.O_RDWR, idleWrite
		if o.st.Mode&0o200 == 0 {
			keep = idleLocked
		}
	}
	flags |= unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
	fd, err := unix.Open(name, flags, 0)
	if errors.Is(err, unix.EACCES) && own(&o.st) {
		// A program may create a read-only file and still write to it, because it has the
		// file open since. It has in the VM. Here the file was closed meanwhile.
		o.e.modes.Lock()
		mode := uint32(o.st.Mode & 0o7777)
		if err = unix.Chmod(name, mode|0o600); err == nil {
			fd, err = unix.Open(name, flags, 0)
			if back := unix.Chmod(name, mode); err == nil && back != nil {
				_ = unix.Close(fd)
				err = back
			}
		}
		o.e.modes.Unlock()
	}
	if write && errors.Is(err, unix.EACCES) {
		fd, err = unix.Open(name, flags&^unix.O_RDWR|unix.O_WRONLY, 0)
	}
	if err != nil {
		return nil, err
	}
	return files.add(o.n, write, fd, keep), nil
}

func (s *Server) read(ctx context.Context, _ *call, a *nfs3.Read3args, w *reply) {
	o, err := s.object(a.File.Data)
	if err != nil {
		w.put(statusOf(err), optional{})
		return
	}
	defer o.close()
	f, err := o.open(false)
	if err != nil {
		w.put(statusOf(err), optional{o.e.attributes(o.n, &o.st)})
		return
	}
	defer o.e.files.put(f)
	count := int64(min(a.Count, maxIO))
	charge := cost(int(count))
	if err := s.pending.Acquire(ctx, charge); err != nil {
		w.put(nfs3.ERR_JUKEBOX, optional{})
		return
	}
	w.done = func() { s.pending.Release(charge) }
	attributes := o.e.attributes(o.n, &o.st)
	var data []byte
	eof := false
	// The VM's kernel takes an answer without data that is not at the end for an error. So try
	// again if the file has just become longer.
	for tries := 3; len(data) == 0 && !eof && count > 0 && attributes != nil; tries-- {
		size := int64(0)
		if a.Offset < attributes.Size {
			size = int64(min(uint64(count), attributes.Size-a.Offset))
		}
		buf, free := buffer(int(size))
		n, err := readAt(f.fd, buf, int64(a.Offset))
		if err != nil {
			free()
			w.put(statusOf(err), optional{o.attributes()})
			return
		}
		data = buf[:n]
		if attributes = o.attributes(); attributes != nil {
			eof = a.Offset+uint64(n) >= attributes.Size || n == 0 && tries == 0
		}
		if n == 0 {
			free()
			continue
		}
		w.done = func() {
			free()
			s.pending.Release(charge)
		}
	}
	w.tail = data
	w.put(nfs3.OK, &nfs3.Read3resok{FileAttributes: attributes, Count: uint32(len(data)), Length: uint32(len(data)), Eof: eof})
}

// readAt fills a buffer, or reads to the end of the file.
func readAt(fd int, b []byte, at int64) (int, error) {
	n := 0
	for n < len(b) {
		more, err := unix.Pread(fd, b[n:], at+int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return n, err
		}
		if more == 0 {
			break
		}
		n += more
	}
	return n, nil
}

// stream is an open directory, at the position where the next call goes on.
type stream struct {
	of     key
	cookie uint64
	fd     int
	used   time.Time
}

const manyStreams = 16

// openAfter opens a directory for reading its entries after a cookie.
func (o *object) openAfter(cookie uint64) (int, error) {
	e := o.e
	e.mu.Lock()
	for i, s := range e.streams {
		if s.of == o.n.key && s.cookie == cookie && cookie != 0 {
			e.streams = slices.Delete(e.streams, i, i+1)
			e.mu.Unlock()
			return s.fd, nil
		}
	}
	e.mu.Unlock()
	fd, err := o.openList()
	if err != nil {
		return -1, err
	}
	if cookie != 0 {
		if _, err := unix.Seek(fd, int64(cookie), unix.SEEK_SET); err != nil {
			_ = unix.Close(fd)
			return -1, nfs3error(nfs3.ERR_BAD_COOKIE)
		}
	}
	return fd, nil
}

// closeAfter keeps a directory open for the next call.
func (o *object) closeAfter(fd int, cookie uint64) {
	// Entries were read ahead to the end of a buffer.
	if _, err := unix.Seek(fd, int64(cookie), unix.SEEK_SET); err != nil {
		_ = unix.Close(fd)
		return
	}
	e := o.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.streams) >= manyStreams {
		_ = unix.Close(e.streams[0].fd)
		e.streams = e.streams[1:]
	}
	e.streams = append(e.streams, &stream{of: o.n.key, cookie: cookie, fd: fd, used: time.Now()})
}

func (s *Server) fsstat(_ context.Context, _ *call, a *nfs3.NfsFh3, w *reply) {
	o, err := s.object(a.Data)
	if err != nil {
		w.put(statusOf(err), optional{})
		return
	}
	defer o.close()
	attributes := o.e.attributes(o.n, &o.st)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(o.fd, &fs); err != nil {
		w.put(statusOf(err), optional{attributes})
		return
	}
	block := uint64(fs.Bsize)
	w.put(nfs3.OK, &nfs3.Fsstat3resok{
		ObjAttributes: attributes,
		Tbytes:        fs.Blocks * block, Fbytes: fs.Bfree * block, Abytes: fs.Bavail * block,
		Tfiles: fs.Files, Ffiles: fs.Ffree, Afiles: fs.Ffree,
	})
}

func (s *Server) fsinfo(_ context.Context, _ *call, a *nfs3.NfsFh3, w *reply) {
	o, err := s.object(a.Data)
	if err != nil {
		w.put(statusOf(err), optional{})
		return
	}
	defer o.close()
	w.put(nfs3.OK, &nfs3.Fsinfo3resok{
		ObjAttributes: o.e.attributes(o.n, &o.st),
		Rtmax:         maxIO, Rtpref: maxIO, Rtmult: 4096,
		Wtmax: maxIO, Wtpref: maxIO, Wtmult: 4096,
		Dtpref:      64 << 10,
		Maxfilesize: math.MaxInt64,
		TimeDelta:   nfs3.Nfstime3{Nseconds: 1},
		Properties:  nfs3.FSF3_LINK | nfs3.FSF3_SYMLINK | nfs3.FSF3_HOMOGENEOUS | nfs3.FSF3_CANSETTIME,
	})
}

func (s *Server) pathconf(_ context.Context, _ *call, a *nfs3.NfsFh3, w *reply) {
	o, err := s.object(a.Data)
	if err != nil {
		w.put(statusOf(err), optional{})
		return
	}
	defer o.close()
	w.put(nfs3.OK, &nfs3.Pathconf3resok{
		ObjAttributes: o.e.attributes(o.n, &o.st),
		Linkmax:       32000, NameMax: unix.NAME_MAX,
		NoTrunc: true, ChownRestricted: true, CasePreserving: true,
	})
}
