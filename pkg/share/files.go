package share

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How long a file stays open without use.
const (
	// idleRead is long: as long as the server has a file open, the VM can still read it after
	// the host has removed it. Its space on the host is not free until then.
	idleRead = 5 * time.Minute
	// idleWrite is short: the host cannot run a program that is open for writing.
	idleWrite = 2 * time.Second
	// idleLocked is for a file that could not be opened for writing again.
	idleLocked = 30 * time.Second
)

// files holds the open regular files. The least recently used are closed first.
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
	keep  time.Duration // how long it stays open without use
	used  time.Time
	place *list.Element // nil: close it after use
}

func newFiles(limit int) *files {
	return &files{max: limit, open: map[fileKey]*file{}, order: list.New()}
}

// get returns an open file of an object for use, or nil. A reader may get one that is open for
// writing.
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

// add takes over an open descriptor and returns a file for use. If the object was opened
// meanwhile, that is the other one.
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

// forget removes a file, and closes it unless it is in use.
func (f *files) forget(x *file) {
	delete(f.open, x.key)
	f.order.Remove(x.place)
	x.place = nil
	if x.refs == 0 {
		_ = unix.Close(x.fd)
	}
}

// drop closes the open files of an object: those for writing, or all.
func (f *files) drop(n *node, all bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, write := range []bool{true, false} {
		if x := f.open[fileKey{n, write}]; x != nil && (write || all) {
			f.forget(x)
		}
	}
}

// sweep closes files that have been idle for too long.
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
