package share

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// export is an Export that is served.
type export struct {
	Export
	tag      uint32 // in handles
	fsid     uint64
	fileid   uint64        // of the root: the same whatever directory is there
	dev      atomic.Uint64 // of the root
	files    *files
	observer observer
	log      *ownerLog
	// ageless: the file system's birth times are of no use.
	ageless bool

	mu       sync.Mutex // guards the nodes' places and the fields below
	root     *node
	nodes    recent[key, *node]
	owners   owners
	held     map[heldKey]*held
	listings []*listing
	streams  []*stream

	arrive  func()        // the VM has mounted it
	arrived chan struct{} // closed then

	locks [64]sync.Mutex // of objects that are being changed, by their keys
	modes sync.Mutex     // of modes that are being changed; taken last

	reading  sync.Mutex    // one directory at a time is read for listings
	finding  sync.Mutex    // one search at a time
	searched time.Time     // when the last search of much of the tree ended
	owed     time.Duration // search time used up by then, see searchRest
}

// object is an existing object: pinned by a descriptor, with its state when it was opened.
type object struct {
	e  *export
	n  *node
	fd int   // O_PATH, unless it belongs to f
	f  *file // owner of the descriptor; nil: the object
	// held says that the object may have lost its name, see Hold.
	held bool
	st   unix.Statx_t
}

func newExport(e Export, f *files) (*export, error) {
	if !path.IsAbs(e.Source) || !path.IsAbs(e.Target) {
		return nil, fmt.Errorf("share %s at %s: both paths must be absolute", e.Source, e.Target)
	}
	e.Source, e.Target = path.Clean(e.Source), path.Clean(e.Target)
	id := hash64(e.Target)
	x := &export{
		Export: e, tag: uint32(id), fsid: id, fileid: id >> 1, files: f, observer: unobserved{},
		root:  &node{},
		nodes: newRecent[key, *node](manyNodes), owners: newOwners(), held: map[heldKey]*held{},
		arrived: make(chan struct{}),
	}
	x.arrive = sync.OnceFunc(func() { close(x.arrived) })
	o, err := x.openRoot()
	switch {
	case errors.Is(err, unix.ENOSYS):
		return nil, errors.New("share files: this needs Linux 5.8 or later (openat2, faccessat2)")
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("share %s: it is not a directory, or a part of its path is a symbolic link; name the directory itself", e.Source)
	case err != nil:
		return nil, fmt.Errorf("share %s: %w", e.Source, err)
	}
	defer o.close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(o.fd, &fs); err != nil {
		return nil, fmt.Errorf("share %s: %w", e.Source, err)
	}
	x.ageless = !dated[int64(uint32(fs.Type))]
	return x, nil
}

func (e *export) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range e.held {
		_ = unix.Close(h.fd)
	}
	e.held = map[heldKey]*held{}
	for _, s := range e.streams {
		_ = unix.Close(s.fd)
	}
	e.streams = nil
}

// close releases the object.
func (o *object) close() {
	if o.f != nil {
		o.e.files.put(o.f)
	} else {
		_ = unix.Close(o.fd)
	}
}

const (
	resolveFlags = unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
	statMask     = unix.STATX_BASIC_STATS | unix.STATX_BTIME
	// longPath is the longest path for one call. Longer ones are walked in steps.
	longPath = unix.PathMax - 256
)

// openAt opens a path without following a symbolic link anywhere.
func openAt(dir int, name string, flags, resolve uint64) (int, error) {
	how := &unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: resolveFlags | resolve}
	for {
		fd, err := unix.Openat2(dir, name, how)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return fd, err
		}
	}
}

// openRoot opens the export's directory as it is now.
func (e *export) openRoot() (*object, error) {
	fd, err := openAt(unix.AT_FDCWD, e.Source, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	o := &object{e: e, n: e.root, fd: fd}
	if err := o.stat(); err != nil {
		o.close()
		return nil, err
	}
	e.dev.Store(device(&o.st))
	return o, nil
}

// stat reads the object's state again.
func (o *object) stat() error {
	err := unix.Statx(o.fd, "", unix.AT_EMPTY_PATH, statMask, &o.st)
	if o.held {
		o.st.Nlink = max(o.st.Nlink, 1) // the VM's kernel opens no file without a link
	}
	return err
}

func device(st *unix.Statx_t) uint64 { return unix.Mkdev(st.Dev_major, st.Dev_minor) }

func isDir(st *unix.Statx_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

func isRegular(st *unix.Statx_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFREG }

// own reports whether an object belongs to the host user.
func own(st *unix.Statx_t) bool { return st.Uid == self }

// keyOf returns the key of the object, below the root, that has this state.
func (e *export) keyOf(st *unix.Statx_t) key {
	dev := device(st)
	if dev == e.dev.Load() {
		return key{ino: st.Ino}
	}
	return key{dev: uint16(hash64(dev)) | 1, ino: st.Ino}
}

// storage lists the file systems that store files. Others below an export, such as proc,
// are not for the VM: what is read and written there is not data.
var storage = map[int64]bool{
	unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true, unix.BTRFS_SUPER_MAGIC: true,
	unix.F2FS_SUPER_MAGIC: true, unix.TMPFS_MAGIC: true, unix.OVERLAYFS_SUPER_MAGIC: true,
	unix.NFS_SUPER_MAGIC: true, unix.CIFS_SUPER_MAGIC: true, unix.SMB2_SUPER_MAGIC: true,
	unix.FUSE_SUPER_MAGIC: true, unix.V9FS_MAGIC: true, unix.ECRYPTFS_SUPER_MAGIC: true,
	unix.REISERFS_SUPER_MAGIC: true, unix.MSDOS_SUPER_MAGIC: true, unix.EXFAT_SUPER_MAGIC: true,
	unix.ISOFS_SUPER_MAGIC: true, unix.UDF_SUPER_MAGIC: true, unix.SQUASHFS_MAGIC: true,
	unix.EROFS_SUPER_MAGIC_V1: true, unix.CEPH_SUPER_MAGIC: true, unix.AFS_FS_MAGIC: true,
	0x2fc12fc1: true, // ZFS
	0xca451a4e: true, // bcachefs
	0x3153464a: true, // JFS
	0x7366746e: true, // NTFS
	0x5346544e: true, // NTFS-3G's older name
}

// permitted reports whether the VM may use the file system that the object is on.
func (o *object) permitted() bool {
	if device(&o.st) == o.e.dev.Load() {
		return true
	}
	var fs unix.Statfs_t
	return unix.Fstatfs(o.fd, &fs) == nil && storage[int64(uint32(fs.Type))]
}

// path returns a node's path below the root.
func (e *export) path(n *node) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	depth := 0
	for p := n; p.parent != nil; p = p.parent {
		depth++
	}
	if depth > maxDepth {
		return "", unix.ENAMETOOLONG
	}
	names := make([]string, depth)
	for p := n; p.parent != nil; p = p.parent {
		depth--
		names[depth] = p.name
	}
	return strings.Join(names, "/"), nil
}

// open opens what is at a path below a directory.
func (e *export) open(dir int, name string) (*object, error) {
	o := &object{e: e, fd: -1}
	for {
		step, rest := name, ""
		if len(name) > longPath {
			i := strings.LastIndexByte(name[:longPath], '/')
			step, rest = name[:i], name[i+1:]
		}
		fd, err := openAt(dir, step, unix.O_PATH, unix.RESOLVE_BENEATH)
		if o.fd >= 0 {
			_ = unix.Close(o.fd)
		}
		if err != nil {
			return nil, err
		}
		o.fd, dir, name = fd, fd, rest
		if rest == "" {
			break
		}
	}
	err := o.stat()
	if err == nil && !o.permitted() {
		err = unix.EACCES
	}
	if err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

// openAs opens what is at a path if it is the node's object.
func (e *export) openAs(dir int, name string, n *node) (*object, error) {
	o, err := e.open(dir, name)
	if err != nil {
		return nil, err
	}
	if e.keyOf(&o.st) != n.key || e.born(&o.st) != n.born {
		o.close()
		return nil, unix.ESTALE
	}
	o.n = n
	return o, nil
}

// dated lists the file systems whose birth times never change and are either always there
// or never. On an overlay, for one, they change with the first write.
var dated = map[int64]bool{
	unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true, unix.BTRFS_SUPER_MAGIC: true,
	unix.F2FS_SUPER_MAGIC: true, unix.TMPFS_MAGIC: true,
}

// born is the birth time as a handle has it.
func (e *export) born(st *unix.Statx_t) uint32 {
	if e.ageless || device(st) != e.dev.Load() {
		return 0
	}
	return bornOf(st)
}

// object opens the object of a handle.
func (s *Server) object(data []byte) (*object, error) {
	if isGhost(data) {
		return nil, unix.ESTALE
	}
	h, ok := decodeHandle(data)
	if !ok {
		return nil, nfs3error(nfs3.ERR_BADHANDLE)
	}
	for _, e := range s.exports {
		if e.tag == h.export {
			return e.object(h)
		}
	}
	return nil, unix.ESTALE
}

// directory opens the directory of a handle, to change its entries.
func (s *Server) directory(data []byte) (*object, error) {
	o, err := s.object(data)
	if err != nil {
		return nil, err
	}
	switch {
	case !isDir(&o.st):
		err = unix.ENOTDIR
	case !o.e.Writable:
		err = unix.EROFS
	}
	if err != nil {
		o.close()
		return nil, err
	}
	return o, nil
}

func (e *export) object(h handle) (*object, error) {
	if h.key == (key{}) {
		o, err := e.openRoot()
		if err != nil && !busy(err) {
			return nil, unix.ESTALE
		}
		return o, err
	}
	if o, err := e.openHeld(heldKey{h.key, h.born}); o != nil || err != nil {
		return o, err
	}
	n := e.known(h.key)
	switch {
	case n == nil:
		return e.find(h)
	case n.born != h.born:
		return nil, unix.ESTALE
	}
	return e.reopen(n)
}

// reopen opens an object that was seen before.
func (e *export) reopen(n *node) (*object, error) {
	if f := e.files.get(n, false); f != nil {
		o := &object{e: e, n: n, fd: f.fd, f: f}
		if err := o.stat(); err != nil {
			o.close()
			return nil, err
		}
		return o, nil
	}
	o, err := e.openNode(n)
	switch {
	case err == nil, errors.Is(err, unix.EACCES), errors.Is(err, unix.ENAMETOOLONG), busy(err):
		return o, err
	}
	e.mu.Lock()
	if now, ok := e.nodes.get(n.key); ok && now == n {
		e.nodes.delete(n.key)
	}
	e.mu.Unlock()
	return nil, unix.ESTALE
}

// busy reports whether an error is a passing lack of resources.
func busy(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOBUFS)
}

// child returns the state of the directory's entry with a name.
func (o *object) child(name string) (*unix.Statx_t, error) {
	st := &unix.Statx_t{}
	if err := unix.Statx(o.fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statMask, st); err != nil {
		return nil, err
	}
	if device(st) == device(&o.st) {
		return st, nil
	}
	c, err := o.e.open(o.fd, name) // checks whether that device is permitted
	if err != nil {
		return nil, err
	}
	defer c.close()
	return &c.st, nil
}

// openChild opens the directory's entry with a name.
func (o *object) openChild(name string) (*object, error) {
	c, err := o.e.open(o.fd, name)
	if err != nil {
		return nil, err
	}
	c.n = o.e.adopt(place{o.n, name}, &c.st, "")
	return c, nil
}

// handle returns the node's handle.
func (e *export) handle(n *node) nfs3.NfsFh3 {
	return nfs3.NfsFh3{Data: handle{export: e.tag, key: n.key, born: n.born, trail: n.trail}.encode()}
}

// lock locks one or two objects against changes.
func (e *export) lock(a, b *node) (unlock func()) {
	i, j := e.stripe(a), e.stripe(b)
	if i > j {
		i, j = j, i
	}
	e.locks[i].Lock()
	if i != j {
		e.locks[j].Lock()
	}
	return func() {
		e.locks[i].Unlock()
		if i != j {
			e.locks[j].Unlock()
		}
	}
}

func (e *export) stripe(n *node) int { return int(n.ino^n.ino>>6) & (len(e.locks) - 1) }

// again is a path that opens a descriptor's object, whatever its name is now.
func again(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
