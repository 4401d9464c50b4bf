package share

import (
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// modeBits are the mode bits that the VM may set. Set-user-ID and set-group-ID would give
// anyone who runs the file on the host the rights of the host user.
const modeBits = 0o1777

var types = map[uint16]nfs3.Ftype3{
	unix.S_IFREG: nfs3.NF3REG, unix.S_IFDIR: nfs3.NF3DIR, unix.S_IFLNK: nfs3.NF3LNK,
	unix.S_IFBLK: nfs3.NF3BLK, unix.S_IFCHR: nfs3.NF3CHR, unix.S_IFSOCK: nfs3.NF3SOCK, unix.S_IFIFO: nfs3.NF3FIFO,
}

func timeOf(t unix.StatxTimestamp) nfs3.Nfstime3 {
	return nfs3.Nfstime3{Seconds: uint32(t.Sec), Nseconds: t.Nsec}
}

// attributes returns the attributes of an object for the VM.
func (e *export) attributes(n *node, st *unix.Statx_t) *nfs3.Fattr3 {
	a := &nfs3.Fattr3{
		Type: types[st.Mode&unix.S_IFMT], Mode: uint32(st.Mode & 0o7777), Nlink: st.Nlink,
		Size: st.Size, Used: st.Blocks * 512, Fsid: e.fsid, Fileid: e.fileID(n.key),
		Atime: timeOf(st.Atime), Mtime: timeOf(st.Mtime), Ctime: timeOf(st.Ctime),
	}
	who := e.ownerOf(n, st)
	a.Uid, a.Gid = who.uid, who.gid
	return a
}

// fileID is the inode number for the VM, which sees a single file system.
func (e *export) fileID(k key) uint64 {
	switch {
	case k == key{}:
		return e.fileid
	case k.dev != 0:
		return hash64(k.dev, k.ino)
	}
	return k.ino
}

// ownerOf returns the owner of an object in the VM: the user who made it there or was given it
// there, otherwise the host user, as in a container on the host. What belongs to other users of
// the host belongs to nobody.
func (e *export) ownerOf(n *node, st *unix.Statx_t) owner {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.observer.shown(n, st)
	if !own(st) {
		return owner{uid: nobody, gid: nobody}
	}
	if o, ok := e.owners.get(n.key); ok && o.born == n.born {
		return o
	}
	o := hostUser
	o.born = n.born
	return o
}

// attributes reads the object's state again and returns its attributes, or nil.
func (o *object) attributes() *nfs3.Fattr3 {
	if o == nil || o.stat() != nil {
		return nil
	}
	return o.e.attributes(o.n, &o.st)
}

// before is the state of an object before a change. The VM compares it with what it knows, to
// find out whether it has missed a change.
func (o *object) before() *nfs3.WccAttr {
	if o == nil || o.stat() != nil {
		return nil
	}
	return &nfs3.WccAttr{Size: o.st.Size, Mtime: timeOf(o.st.Mtime), Ctime: timeOf(o.st.Ctime)}
}

// after is what the VM is told about an object that it has changed.
func (o *object) after(before *nfs3.WccAttr) *nfs3.WccData {
	return &nfs3.WccData{Before: before, After: o.attributes()}
}

// optional holds attributes that may be missing.
type optional struct{ *nfs3.Fattr3 }

func (a optional) WriteTo(w io.Writer) (int64, error) {
	follows := [4]byte{}
	if a.Fattr3 == nil {
		n, err := w.Write(follows[:])
		return int64(n), err
	}
	follows[3] = 1
	if _, err := w.Write(follows[:]); err != nil {
		return 0, err
	}
	n, err := a.Fattr3.WriteTo(w)
	return n + 4, err
}

// timespec converts a time of a SETATTR.
func timespec(t nfs3.SetTime) unix.Timespec {
	switch t.GetHow() {
	case nfs3.SET_TO_SERVER_TIME:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case nfs3.SET_TO_CLIENT_TIME:
		at := t.(*nfs3.SetTime_SET_TO_CLIENT_TIME).Time
		return unix.NsecToTimespec(int64(at.Seconds)*int64(time.Second) + int64(min(at.Nseconds, 999_999_999)))
	}
	return unix.Timespec{Nsec: unix.UTIME_OMIT}
}
