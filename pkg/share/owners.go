package share

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// On the host all files belong to the user. The owners that they have in the VM are kept in a
// file, so that a database still owns its directory after the VM or the server has stopped. The
// file is a log: each change adds a record, and the last record of an object counts. The log is
// rewritten when most of it is out of date.

// ownerSize is the size of a record in bytes: the export's tag, device, inode number and birth
// time of the object, user and group, and the CRC-32 (IEEE) of all that, little-endian. A
// record with the host's user and group removes the owner.
const ownerSize = 4 + 2 + 8 + 4 + 4 + 4 + 4

const (
	// slackOwners is how many records may be out of date before the log is rewritten.
	slackOwners = 64 << 10
	// mostOwners is how many records are read at most.
	mostOwners = 4*(manyOwners+manyRoots) + slackOwners
)

// owner is the owner of an object in the VM.
type owner struct {
	born     uint32
	uid, gid uint32
}

// hostUser owns, in the VM as on the host, what was neither made in the VM nor given to
// another user there.
var hostUser = owner{uid: self, gid: uint32(os.Getegid())}

// is reports whether two owners are the same user and group.
func (o owner) is(p owner) bool { return o.uid == p.uid && o.gid == p.gid }

// owners holds the owners of an export's objects that do not belong to the host user in the VM.
// Root's are kept apart: containers that run as root make many files, which must not displace
// those of a database. To forget one of root's does no harm, since root may use it anyway.
type owners struct {
	root, others recent[key, owner]
}

const (
	manyOwners = 160 << 10
	manyRoots  = 64 << 10
)

func newOwners() owners {
	return owners{root: newRecent[key, owner](manyRoots), others: newRecent[key, owner](manyOwners)}
}

func (x *owners) get(k key) (owner, bool) {
	if o, ok := x.others.get(k); ok {
		return o, true
	}
	return x.root.get(k)
}

func (x *owners) put(k key, o owner) {
	x.delete(k)
	switch {
	case o.is(hostUser):
	case o.uid == 0:
		x.root.put(k, o)
	default:
		x.others.put(k, o)
	}
}

func (x *owners) delete(k key) {
	x.root.delete(k)
	x.others.delete(k)
}

// ownerEntry is the owner of one object of an export.
type ownerEntry struct {
	tag uint32
	key key
	owner
}

func (x ownerEntry) encode() []byte {
	b := make([]byte, 0, ownerSize)
	b = binary.LittleEndian.AppendUint32(b, x.tag)
	b = binary.LittleEndian.AppendUint16(b, x.key.dev)
	b = binary.LittleEndian.AppendUint64(b, x.key.ino)
	b = binary.LittleEndian.AppendUint32(b, x.born)
	b = binary.LittleEndian.AppendUint32(b, x.uid)
	b = binary.LittleEndian.AppendUint32(b, x.gid)
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

// decodeOwner reads a record; false if it is damaged.
func decodeOwner(b []byte) (ownerEntry, bool) {
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	x := ownerEntry{
		tag:   u32(0),
		key:   key{dev: binary.LittleEndian.Uint16(b[4:]), ino: binary.LittleEndian.Uint64(b[6:])},
		owner: owner{born: u32(14), uid: u32(18), gid: u32(22)},
	}
	return x, u32(26) == crc32.ChecksumIEEE(b[:26])
}

// ownerLog is the log. A nil log keeps nothing.
type ownerLog struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex
	f       *os.File // nil: writing failed, and nothing more is kept
	records int
	live    int  // records that counted at the last rewrite
	dirty   bool // some are not on the disk yet
}

// openOwners opens the log and returns its records, oldest first, without damaged ones.
func openOwners(path string, log *slog.Logger) (*ownerLog, []ownerEntry, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open the owners of files: %w", err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() { // the end of a pipe may never come
		return nil, nil, errors.Join(fmt.Errorf("read the owners of files: %s is not a regular file", path), err, f.Close())
	}
	b, err := io.ReadAll(io.LimitReader(f, ownerSize*mostOwners))
	l := &ownerLog{path: path, log: log, f: f, records: len(b) / ownerSize}
	if err == nil { // the next record must begin at a multiple of the size
		_, err = f.Seek(int64(l.records)*ownerSize, io.SeekStart)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("read the owners of files: %w", err), f.Close())
	}
	var all []ownerEntry
	for ; len(b) >= ownerSize; b = b[ownerSize:] {
		if x, ok := decodeOwner(b[:ownerSize]); ok {
			all = append(all, x)
		}
	}
	return l, all, nil
}

// add notes one change. The record survives the server at once, and the host after a flush.
func (l *ownerLog) add(x ownerEntry) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return
	}
	if _, err := l.f.Write(x.encode()); err != nil {
		l.fail(err)
		return
	}
	l.records++
	l.dirty = true
}

// fail closes the log after an error. The caller holds the lock.
func (l *ownerLog) fail(err error) {
	l.log.Warn("the owners that the VM gives to files from now on are forgotten when it stops", "err", err)
	_ = l.f.Close()
	l.f = nil
}

// flush brings all records to the disk. A log that has become long is rewritten with what all
// returns. Only one flush may run at a time.
func (l *ownerLog) flush(all func() []ownerEntry) {
	if l == nil {
		return
	}
	l.mu.Lock()
	f, dirty, long := l.f, l.dirty, l.records > l.live+slackOwners
	l.dirty = false
	if f != nil && long {
		if err := l.rewrite(all()); err != nil {
			l.fail(err)
		}
	}
	l.mu.Unlock()
	if f != nil && dirty && !long {
		_ = f.Sync() // if it fails, a power cut may lose some records
	}
}

// rewrite replaces the log. The caller holds the lock.
func (l *ownerLog) rewrite(all []ownerEntry) error {
	f, err := os.CreateTemp(filepath.Dir(l.path), "."+filepath.Base(l.path)+".*") // 0600
	if err != nil {
		return err
	}
	b := make([]byte, 0, len(all)*ownerSize)
	for _, x := range all {
		b = append(b, x.encode()...)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync()); err == nil {
		err = os.Rename(f.Name(), l.path)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	_ = l.f.Close()
	l.f, l.records, l.live = f, len(all), len(all)
	return nil
}

// close brings all records to the disk and closes the log.
func (l *ownerLog) close() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		_ = errors.Join(l.f.Sync(), l.f.Close())
		l.f = nil
	}
}

// keepOwners keeps the owners of all exports in a file, and reads what an earlier server
// noted there.
func (s *Server) keepOwners(path string) error {
	l, all, err := openOwners(path, s.log)
	if err != nil {
		return err
	}
	s.owners = l
	for _, e := range s.exports {
		e.log = l
		for _, x := range all {
			if x.tag == e.tag {
				e.owners.put(x.key, x.owner)
			}
		}
	}
	return nil
}

// allOwners returns the owners of all exports.
func (s *Server) allOwners() []ownerEntry {
	var all []ownerEntry
	for _, e := range s.exports {
		e.mu.Lock()
		for _, part := range []map[key]owner{e.owners.root.old, e.owners.root.young, e.owners.others.old, e.owners.others.young} {
			for k, o := range part {
				all = append(all, ownerEntry{e.tag, k, o})
			}
		}
		e.mu.Unlock()
	}
	return all
}

// setOwner sets the owner of an object in the VM. No other change of the object may be under
// way.
func (e *export) setOwner(n *node, o owner) {
	o.born = n.born
	e.mu.Lock()
	last, had := e.owners.get(n.key)
	e.owners.put(n.key, o)
	e.mu.Unlock()
	theirs := o.is(hostUser)
	if theirs && !had || !theirs && had && last == o {
		return
	}
	// Without a birth time, a later object with the same inode number would get the owner.
	if o.born != 0 || n.key == (key{}) {
		e.log.add(ownerEntry{e.tag, n.key, o})
	}
}

// MoveOwners rewrites a file of owners for directories that have moved in the VM. Doing it
// again changes nothing.
func MoveOwners(file string, to map[string]string, log *slog.Logger) error {
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	l, all, err := openOwners(file, log)
	if err != nil {
		return err
	}
	defer l.close()
	for was, is := range to {
		before, now := uint32(hash64(path.Clean(was))), uint32(hash64(path.Clean(is)))
		for _, x := range all {
			if x.tag == before {
				x.tag = now
				l.add(x)
			}
		}
	}
	return nil
}
