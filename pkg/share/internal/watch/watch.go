// Package watch tells what changes in a directory and all below it, by inotify(7).
//
// Each directory is watched by its own descriptor, opened without following a symbolic
// link, so that a directory that is replaced by a link meanwhile shows nothing of where
// that leads. Changes are put together over a few hundredths of a second: what was made
// and removed again never was. Directories whose names are ignored are not watched, and
// what there is beyond the kernel's limits, or beyond a [Budget], is not, either.
//
// It changes nothing, and imports no other package of devvm.
package watch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Op is what happened to a path.
type Op byte

// The operations.
const (
	Create Op = iota + 1
	Modify    // the content of a file, or what the name stands for
	Attrib    // mode or times
	Remove
	Rename // from Path to To
)

// Event is one change.
type Event struct {
	Op   Op
	Dir  bool // of a directory
	Path string
	To   string
}

// Options of Watch.
type Options struct {
	Root string // a path without symbolic links
	// Ignore are names or patterns (path.Match) of files and directories, or, with a
	// slash in them, paths below Root.
	Ignore []string
	// Open opens a directory below Root, "" for Root itself, for reading, without
	// following a link.
	Open func(dir string) (*os.File, error)
	Log  *slog.Logger
	// Budget is how many directories may be watched.
	Budget *Budget
	// Full, if any, is called with whether there are more than can be watched, when that
	// changes.
	Full func(bool)
	// Ready, if any, is called when all that is there is watched.
	Ready func()
	// Ended, if any, is called when a directory that was removed has ended: by its inode
	// number and its time of birth. One that a program has open has not, and one that
	// was moved to where nothing is told of may come back.
	Ended func(ino uint64, born unix.StatxTimestamp)
	// Gate, if any, lets others wait for what has changed.
	Gate *Gate
}

const (
	mask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_ATTRIB |
		unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_MOVE_SELF | unix.IN_DELETE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK
	// quiet ends a batch of changes when nothing has come for so long, and longest in
	// any case.
	quiet   = 15 * time.Millisecond
	longest = 60 * time.Millisecond
	// manyFound is how many things in directories that are new are told one by one.
	manyFound = 10_000
)

// watcher is the state of Watch. The disk may be ahead of the kernel's news, so that a
// directory is found before the news that it came, or in place of another one that is
// gone. So once the news of directories that moved is through, all is looked at again.
type watcher struct {
	Options
	fd    int
	dirs  map[int]*dir // by watch descriptor
	held  int          // of the budget
	full  bool         // it was not enough, at the last look at all
	said  bool         // that it was not
	lost  bool         // the root is gone
	batch batch
	found int
	moved map[uint32]origin // by cookie: what was moved from where, so far to nowhere

	behind  bool         // dirs may not be what is on the disk
	again   time.Time    // not before then is all looked at again
	watched map[int]*dir // while all is looked at again: what was watched before
}

type origin struct {
	path string
	isd  bool
	dir  *dir
	late bool // a batch has ended since
}

// Watch calls use with the changes below Root until ctx ends. It does not hold the
// kernel up: what comes while use runs is put together afterwards.
func Watch(ctx context.Context, o Options, use func([]Event)) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch %s: %w (see: sysctl fs.inotify.max_user_instances)", o.Root, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	defer context.AfterFunc(ctx, func() { _ = f.Close() })()
	w := &watcher{Options: o, fd: fd, dirs: map[int]*dir{}, moved: map[uint32]origin{}}
	defer func() { w.Budget.give(w.held) }()
	if err := w.add(nil, "", false); err != nil {
		return fmt.Errorf("watch %s: %w", o.Root, err)
	}
	if o.Ready != nil {
		o.Ready()
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch %s: %w", o.Root, err)
	}
	gate := o.Gate
	if gate == nil {
		gate = new(Gate)
	}
	gate.open(f, fd)
	defer gate.close()
	buf := make([]byte, 64<<10)
	read := func() (n int, err error) {
		if err := raw.Read(func(fd uintptr) bool {
			n, err = gate.read(fd, buf)
			return !errors.Is(err, unix.EAGAIN)
		}); err != nil {
			return 0, err
		}
		return n, err
	}
	for {
		// A batch begins with whatever comes, and ends when it is quiet.
		var wake time.Time
		if w.behind {
			wake = w.again
		}
		if len(w.moved) > 0 {
			wake = time.Now().Add(quiet)
		}
		gate.wait(wake)
		n, err := read()
		end := time.Now().Add(longest)
		for err == nil {
			w.take(buf[:n])
			gate.wait(earlier(time.Now().Add(quiet), end))
			n, err = read()
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch %s: %w", o.Root, err)
		}
		waiting := gate.take()
		if len(waiting) > 0 { // all that there is, quiet or not
			for n, err := gate.read(uintptr(fd), buf); err == nil && n > 0; n, err = gate.read(uintptr(fd), buf) {
				w.take(buf[:n])
			}
		}
		w.settle(len(waiting) > 0 || time.Now().Before(end))
		w.tell(use)
		gate.idle()
		gate.pass(waiting)
		if w.behind && time.Now().After(w.again) {
			if err := w.rescan(); ctx.Err() != nil {
				return nil
			} else if err != nil {
				return fmt.Errorf("watch %s: %w", o.Root, err)
			}
			w.tell(use) // what it found
		}
		if w.lost {
			return fmt.Errorf("watch %s: %w", o.Root, ErrGone)
		}
	}
}

// ErrGone says that the root is not there any more; there may be another one.
var ErrGone = errors.New("the directory was removed")

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// ignored tells whether a path is not for anybody.
func (w *watcher) ignored(p string) bool {
	name := path.Base(p)
	if strings.HasPrefix(name, ".nfs0") { // what a client of NFS makes of open files that are removed
		return true
	}
	for _, pattern := range w.Ignore {
		subject := name
		if strings.Contains(pattern, "/") {
			pattern, subject = path.Clean(strings.TrimPrefix(pattern, "/")), p
		}
		if ok, err := path.Match(pattern, subject); ok || err != nil && pattern == subject {
			return true
		}
	}
	return false
}

// add watches a directory, the root if it has no parent, and all below it. What it finds
// is new if told is set.
func (w *watcher) add(parent *dir, name string, told bool) error {
	d := &dir{parent: parent, name: name}
	p := d.path()
	f, err := w.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	if !w.Budget.take() {
		return w.overrun()
	}
	w.held++
	// The descriptor, not the path, says which directory is meant.
	d.wd, err = unix.InotifyAddWatch(w.fd, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), mask)
	if err != nil {
		w.release()
	}
	if errors.Is(err, unix.ENOSPC) {
		return w.overrun()
	}
	if err != nil {
		return err
	}
	if w.dirs[d.wd] != nil || w.watched[d.wd] != nil {
		w.release() // it is the same watch
	}
	var st unix.Statx_t
	if unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st) == nil && st.Mask&unix.STATX_BTIME != 0 {
		d.ino, d.born = st.Ino, st.Btime
	}
	old := w.dirs[d.wd]
	w.dirs[d.wd] = d
	if old != nil { // it was moved, and the news of that is still to come
		w.forget(old)
	}
	d.link(parent, name)
	told = told || w.watched != nil && w.watched[d.wd] == nil
	for {
		names, err := f.ReadDir(256)
		for _, x := range names {
			p := path.Join(p, x.Name())
			if w.ignored(p) {
				continue
			}
			if w.found++; told && w.found <= manyFound {
				w.batch.add(Event{Op: Create, Dir: x.IsDir(), Path: p})
			}
			if x.IsDir() {
				if err := w.add(d, x.Name(), told); err != nil && !gone(err) {
					return err
				}
			}
		}
		if err != nil || len(names) == 0 {
			return nil
		}
	}
}

// release gives one watch back.
func (w *watcher) release() {
	w.held--
	w.Budget.give(1)
}

// overrun notes that there are more directories than can be watched.
func (w *watcher) overrun() error {
	if !w.said {
		w.said = true
		w.Log.Warn("not all directories are watched: changes of some do not reach the VM's watchers", "dir", w.Root, "watched", len(w.dirs), "more", "sysctl fs.inotify.max_user_watches")
	}
	w.fill(true)
	return nil
}

// fill notes whether there are more directories than can be watched.
func (w *watcher) fill(full bool) {
	if w.full != full && w.Full != nil {
		w.Full(full)
	}
	w.full = full
}

// gone tells whether a directory could not be watched because it is no more one, not the
// user's, or too deep to be named.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) ||
		errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EXDEV) ||
		errors.Is(err, unix.ENAMETOOLONG)
}

// forget stops watching a directory and all below it.
func (w *watcher) forget(d *dir) {
	for _, sub := range d.subs {
		w.forget(sub)
	}
	if w.dirs[d.wd] == d {
		delete(w.dirs, d.wd)
		_, _ = unix.InotifyRmWatch(w.fd, uint32(d.wd))
		w.release()
	}
	d.unlink()
}

// take notes the kernel's events.
func (w *watcher) take(b []byte) {
	for len(b) >= unix.SizeofInotifyEvent {
		wd := int(int32(binary.NativeEndian.Uint32(b)))
		bits := binary.NativeEndian.Uint32(b[4:])
		cookie := binary.NativeEndian.Uint32(b[8:])
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		if size > len(b) {
			return
		}
		name, _, _ := strings.Cut(string(b[unix.SizeofInotifyEvent:size]), "\x00")
		b = b[size:]
		if bits&unix.IN_Q_OVERFLOW != 0 {
			w.Log.Warn("changes came faster than they could be read: some do not reach the VM's watchers", "dir", w.Root)
			w.behind = true
			continue
		}
		d := w.dirs[wd]
		if d == nil {
			continue
		}
		if d.parent == nil && bits&unix.IN_MOVE_SELF != 0 {
			w.lost = true // another directory may have its name
		}
		if bits&unix.IN_DELETE_SELF != 0 && w.Ended != nil && d.born != (unix.StatxTimestamp{}) {
			w.Ended(d.ino, d.born)
		}
		if bits&unix.IN_IGNORED != 0 {
			w.lost = w.lost || d.parent == nil
			w.forget(d)
			continue
		}
		if name != "" {
			w.note(d, name, bits, cookie)
		}
	}
}

// rescan looks at all again. Nothing that is watched ceases to be, so no news of it is
// lost. It takes a tenth of the time at most, however much directories move about.
func (w *watcher) rescan() error {
	begin := time.Now()
	w.behind = false
	w.fill(false)
	w.watched, w.dirs = w.dirs, make(map[int]*dir, len(w.dirs))
	if err := w.add(nil, "", false); err != nil {
		return err
	}
	for wd, d := range w.watched {
		if w.dirs[wd] != nil {
			continue
		}
		if _, err := unix.InotifyRmWatch(w.fd, uint32(wd)); err != nil {
			w.dirs[wd] = d // removed already, which is yet to be told
		} else {
			w.release()
		}
	}
	w.watched = nil
	w.again = time.Now().Add(10 * time.Since(begin))
	return nil
}

// note takes one event down.
func (w *watcher) note(d *dir, name string, bits, cookie uint32) {
	p := path.Join(d.path(), name)
	if w.ignored(p) {
		// It may have come from, or gone to, a name that is not ignored.
		if bits&(unix.IN_MOVED_FROM|unix.IN_MOVED_TO) == 0 {
			return
		}
	}
	isDir := bits&unix.IN_ISDIR != 0
	if isDir && bits&unix.IN_MOVE != 0 {
		w.behind = true
	}
	switch {
	case bits&unix.IN_CREATE != 0:
		w.appear(d, name, p, isDir)
	case bits&unix.IN_MOVED_FROM != 0:
		w.moved[cookie] = origin{path: p, isd: isDir, dir: d.subs[name]}
	case bits&unix.IN_MOVED_TO != 0:
		from, ok := w.moved[cookie]
		delete(w.moved, cookie)
		ok = ok && !w.ignored(from.path)
		switch {
		case w.ignored(p):
			if ok {
				w.vanish(from)
			}
		case !ok:
			w.appear(d, name, p, isDir)
		default:
			if old := d.subs[name]; old != nil && old != from.dir {
				w.forget(old)
			}
			if x := from.dir; x != nil && w.dirs[x.wd] == x && !d.within(x) {
				x.unlink()
				x.link(d, name)
			} else if isDir {
				_ = w.add(d, name, false)
			}
			w.batch.add(Event{Op: Rename, Dir: isDir, Path: from.path, To: p})
		}
	case bits&unix.IN_DELETE != 0:
		if x := d.subs[name]; x != nil {
			x.unlink() // and watched on: its end is to be told
		}
		w.vanish(origin{path: p, isd: isDir})
	case bits&(unix.IN_MODIFY|unix.IN_CLOSE_WRITE) != 0:
		w.batch.add(Event{Op: Modify, Path: p})
	case bits&unix.IN_ATTRIB != 0:
		w.batch.add(Event{Op: Attrib, Dir: isDir, Path: p})
	}
}

// appear notes something new.
func (w *watcher) appear(d *dir, name, p string, isDir bool) {
	w.batch.add(Event{Op: Create, Dir: isDir, Path: p})
	if !isDir {
		return
	}
	if err := w.add(d, name, true); err != nil && !gone(err) {
		w.Log.Warn("a new directory is not watched", "dir", p, "err", err)
	}
}

// vanish notes that something is gone from where it was.
func (w *watcher) vanish(from origin) {
	if from.dir != nil {
		w.forget(from.dir)
	}
	w.batch.add(Event{Op: Remove, Dir: from.isd, Path: from.path})
}

// settle ends a batch, because it is quiet or it took long: what was moved, and has not
// arrived below the root, is gone. The kernel tells the two halves of a move one right
// after the other, but a batch that took long may end in between.
func (w *watcher) settle(quiet bool) {
	for cookie, from := range w.moved {
		if !quiet && !from.late {
			from.late = true
			w.moved[cookie] = from
			continue
		}
		delete(w.moved, cookie)
		if !w.ignored(from.path) {
			w.vanish(from)
		}
	}
}

// tell passes on what was put together.
func (w *watcher) tell(use func([]Event)) {
	if events := w.batch.drain(w.exists); len(events) > 0 {
		use(events)
	}
	w.found = 0
}

// exists tells whether there is something at a path, which need not be exact: it only
// saves needless work.
func (w *watcher) exists(p string) bool {
	_, err := os.Lstat(path.Join(w.Root, p))
	return err == nil
}
