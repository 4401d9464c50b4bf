package share

import (
	"context"
	"io"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// Sizes of answers with entries, in bytes.
const (
	maxList   = 256 << 10
	listBatch = 32 << 10 // read from the kernel at a time
)

func (s *Server) readdir(_ context.Context, c *call, a *nfs3.Readdir3args, w *reply) {
	s.entries(c, a.Dir.Data, a.Cookie, a.Count, w, func(_ *object, x entry, id uint64) sized {
		return &nfs3.Entry3{Fileid: id, Name: []byte(x.name), Cookie: x.cookie}
	})
}

func (s *Server) readdirplus(_ context.Context, c *call, a *nfs3.Readdirplus3args, w *reply) {
	s.entries(c, a.Dir.Data, a.Cookie, a.Maxcount, w, func(dir *object, x entry, id uint64) sized {
		plus := &nfs3.Entryplus3{Fileid: id, Name: []byte(x.name), Cookie: x.cookie}
		if x.name == "." || x.name == ".." {
			return plus
		}
		var st unix.Statx_t
		err := unix.Statx(dir.fd, x.name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statMask, &st)
		if err != nil || device(&st) != device(&dir.st) {
			return plus // the VM will ask
		}
		n := dir.e.adopt(place{dir.n, x.name}, &st, "")
		h := dir.e.handle(n)
		plus.Fileid, plus.NameAttributes, plus.NameHandle = dir.e.fileID(n.key), dir.e.attributes(n, &st), &h
		return plus
	})
}

// sized is a value whose encoded size is known.
type sized interface {
	io.WriterTo
	GetEncodedSizeBytes() int
}

// entries answers with as many entries of a directory as fit.
func (s *Server) entries(c *call, data []byte, cookie uint64, limit uint32, w *reply, encode func(*object, entry, uint64) sized) {
	dir, err := s.object(data)
	if err != nil {
		w.put(statusOf(err), optional{})
		return
	}
	defer dir.close()
	attributes := dir.e.attributes(dir.n, &dir.st)
	if !isDir(&dir.st) {
		w.put(nfs3.ERR_NOTDIR, optional{attributes})
		return
	}
	fd, err := dir.openAfter(cookie)
	if err != nil {
		w.put(statusOf(err), optional{attributes})
		return
	}
	start := w.Len()
	w.put(nfs3.OK, &nfs3.Readdir3resok{DirAttributes: attributes})
	const around = 4 + 8 // TRUE before an entry; FALSE and the end of file after the last
	last, none := cookie, true
	end, err := readEntries(fd, make([]byte, listBatch), func(x entry) bool {
		e := encode(dir, x, dir.entryID(x))
		if w.Len()-start+e.GetEncodedSizeBytes()+around > int(min(limit, maxList)) {
			return false
		}
		w.uint32(1)
		w.put(e)
		last, none = x.cookie, false
		return true
	})
	switch {
	case err != nil:
		w.Truncate(start)
		w.put(statusOf(err), optional{attributes})
	case none && !end:
		w.Truncate(start)
		w.put(nfs3.ERR_TOOSMALL, optional{attributes})
	default:
		dir.e.observer.listed(c, dir.n)
		w.uint32(0)
		if end {
			w.uint32(1)
		} else {
			w.uint32(0)
			dir.closeAfter(fd, last)
			return
		}
	}
	_ = unix.Close(fd)
}

// entryID is the inode number of an entry for the VM.
func (o *object) entryID(x entry) uint64 {
	k := o.n.key
	switch x.name {
	case ".":
	case "..":
		if up := o.e.parent(o.n); up != nil {
			k = up.key
		}
	default:
		k = key{dev: o.e.keyOf(&o.st).dev, ino: x.ino}
	}
	return o.e.fileID(k)
}
