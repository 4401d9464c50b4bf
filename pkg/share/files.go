package share

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How long a file stays open for the next call.
const (
	// idleRead: so long after its last use, a file that is open in the VM can still be
	// read when the host has removed it, and its space is not free.
	idleRead = 5 * time.Minute
	// idleWrite is short: the host cannot run a program that is open for writing.
	idleWrite = 2 * time.Second
	// idleLocked is for a file that could not be opened for writing again.
	idleLocked = 30 * time.Second
)

// files are the regular files that are open, the least used closed first.
type files struct {
	mu    sync.Mutex
	max   int
	open  map[fileKey]*file
	order *list.List // of *file; the last used in front
}

type fileKey struct {
	n     *node
	write bool // open for reading and writing
}

// file is an open file, in use while refs is not 0.
type file struct {
	fd    int
	key   fileKey
	refs  int
	keep  time.Duration // open for so long without use
	used  time.Time
	place *list.Element // nil: to be closed after use
}

func newFiles(limit int) *files {
	return &files{max: limit, open: map[fileKey]*file{}, order: list.New()}
}

// get returns an open file of an object for use, or nil. One that is open for writing
// serves readers, too.
func (f *files) get(n *node, write bool) *file {
	f.mu.Lock()
	defer f.mu.Unlock()
	x := f.open[fileKey{n, true}]
	if x == nil && !write {
		x = f.open[fileKey{n, false}]
	}
	if x != nil {
		f.use(x)
	}
	return x
}

func (f *files) use(x *file) {
	x.refs++
	x.used = time.Now()
	f.order.MoveToFront(x.place)
}

// add takes an open descriptor over and returns it for use, or another one that came
// first.
func (f *files) add(n *node, write bool, fd int, keep time.Duration) *file {
	k := fileKey{n, write}
	f.mu.Lock()
	defer f.mu.Unlock()
	if x := f.open[k]; x != nil {
		_ = unix.Close(fd)
		f.use(x)
		return x
	}
	x := &file{fd: fd, key: k, keep: keep}
	x.place = f.order.PushFront(x)
	f.open[k] = x
	f.use(x)
	for e := f.order.Back(); e != nil && f.order.Len() > f.max; {
		last := e.Value.(*file)
		e = e.Prev()
		if last.refs == 0 {
			f.forget(last)
		}
	}
	return x
}

// put ends a use.
func (f *files) put(x *file) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x.refs--
	if x.refs == 0 && x.place == nil {
		_ = unix.Close(x.fd)
	}
}

// forget takes a file out, and closes it if it is not in use.
func (f *files) forget(x *file) {
	delete(f.open, x.key)
	f.order.Remove(x.place)
	x.place = nil
	if x.refs == 0 {
		_ = unix.Close(x.fd)
	}
}

// drop closes what is open of an object, for writing or at all.
func (f *files) drop(n *node, all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, write := range []bool{true, false} {
		if x := f.open[fileKey{n, write}]; x != nil && (write || all) {
			f.forget(x)
		}
	}
}

// sweep closes what has not been used for too long.
func (f *files) sweep(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for e := f.order.Back(); e != nil; {
		x := e.Value.(*file)
		e = e.Prev()
		if x.refs == 0 && now.Sub(x.used) > x.keep {
			f.forget(x)
		}
	}
}

func (f *files) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.open {
		f.forget(x)
	}
}
