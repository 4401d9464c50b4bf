package share

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// entry is a directory entry, as getdents64(2) returns it.
type entry struct {
	ino    uint64
	cookie uint64 // position of the next entry
	kind   byte   // DT_…
	name   string
}

// direntHead is the size of linux_dirent64 without the name.
const direntHead = 19

// readEntries calls f for each entry after an open directory's position, until f returns false
// or, with end set, there are no more.
func readEntries(fd int, buf []byte, f func(entry) bool) (end bool, err error) {
	for {
		n, err := unix.Getdents(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return err == nil, err
		}
		for b := buf[:n]; len(b) > direntHead; {
			size := int(binary.NativeEndian.Uint16(b[16:]))
			if size <= direntHead || size > len(b) {
				return false, unix.EIO
			}
			name := b[direntHead:size]
			if i := slices.Index(name, 0); i >= 0 {
				name = name[:i]
			}
			more := f(entry{
				ino: binary.NativeEndian.Uint64(b), cookie: binary.NativeEndian.Uint64(b[8:]),
				kind: b[18], name: string(name),
			})
			if !more {
				return false, nil
			}
			b = b[size:]
		}
	}
}

// openList opens a directory for reading its entries.
func (o *object) openList() (int, error) {
	return openAt(o.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_BENEATH)
}

// listing holds the entries of a directory, sorted by inode number.
type listing struct {
	dir     key
	mtime   unix.StatxTimestamp
	read    time.Time
	entries []entry
}

const (
	// listingAge is how long a listing is kept for the next search, manyListings how many are
	// kept. manyListed limits the entries of one listing, and of all together.
	listingAge   = 10 * time.Second
	manyListings = 16
	manyListed   = 1 << 20
	// tick is longer than the resolution of a file system's times. A listing that was read
	// within a tick after a change may miss another change.
	tick = 20 * time.Millisecond
)

// of returns the names that an inode has.
func (l *listing) of(ino uint64) []string {
	i, _ := slices.BinarySearchFunc(l.entries, ino, func(e entry, ino uint64) int { return cmp.Compare(e.ino, ino) })
	var names []string
	for ; i < len(l.entries) && l.entries[i].ino == ino; i++ {
		names = append(names, l.entries[i].name)
	}
	return names
}

// listed returns the directory's listing if there is one that is still true, or nil.
func (e *export) listed(dir *object) *listing {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.listings {
		if l.dir == dir.n.key && l.mtime == dir.st.Mtime && l.read.Sub(time.Unix(l.mtime.Sec, int64(l.mtime.Nsec))) > tick {
			return l
		}
	}
	return nil
}

// list returns the directory's entries, at most manyListed. One directory is read at a time,
// however many the VM asks for at once.
func (e *export) list(dir *object) (*listing, error) {
	if l := e.listed(dir); l != nil {
		return l, nil
	}
	e.reading.Lock()
	defer e.reading.Unlock()
	if l := e.listed(dir); l != nil { // another request has read it meanwhile
		return l, nil
	}
	k := dir.n.key
	l := &listing{dir: k, mtime: dir.st.Mtime, read: time.Now()}
	fd, err := dir.openList()
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	_, err = readEntries(fd, make([]byte, 64<<10), func(x entry) bool {
		if x.name != "." && x.name != ".." {
			l.entries = append(l.entries, x)
		}
		return len(l.entries) < manyListed
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(l.entries, func(a, b entry) int { return cmp.Compare(a.ino, b.ino) })
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listings = slices.DeleteFunc(e.listings, func(old *listing) bool { return old.dir == k })
	kept := len(l.entries)
	for _, old := range e.listings {
		kept += len(old.entries)
	}
	for len(e.listings) > 0 && (len(e.listings) >= manyListings || kept > manyListed) {
		kept -= len(e.listings[0].entries)
		e.listings[0] = nil
		e.listings = e.listings[1:]
	}
	e.listings = append(e.listings, l)
	return l, nil
}

// sweep drops listings and streams that have not been used for a while.
func (e *export) sweep(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listings = slices.DeleteFunc(e.listings, func(l *listing) bool { return now.Sub(l.read) > listingAge })
	e.streams = slices.DeleteFunc(e.streams, func(s *stream) bool {
		old := now.Sub(s.used) > listingAge
		if old {
			_ = unix.Close(s.fd)
		}
		return old
	})
}
