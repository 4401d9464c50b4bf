package share

import (
	"context"
	_ "embed" // for agent.pl
	"errors"
	"os"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
	"github.com/devvm/devvm/pkg/share/internal/watch"
)

// No network file system tells watchers (inotify) in the VM what the host changed: the VM's
// kernel reports only what is done through itself. So a small program in the VM, the agent,
// repeats what the host did: it creates the file that the host created, and removes the one
// that the host removed. The VM's kernel sends that to the server. The server knows the agent
// by its user, does nothing, and answers as if it had. The VM's kernel then tells all
// watchers, and has the true state of the directory. The answers are in phantom.go.

// mirror holds what an export has to tell its VM.
type mirror struct {
	e *export

	mu      sync.Mutex
	pending []watch.Event
	news    chan struct{} // holds one element if something is pending
	gate    watch.Gate
	// told counts the changes for the agent, known those that the VM's kernel knows. moved is
	// closed and replaced when known grows or the agent ends.
	told, known uint64
	waiting     int  // calls that wait for known to grow
	agent       bool // an agent runs
	moved       chan struct{}
	ghosts      map[ghostKey]ghost
	attempt     attempt // the agent's last on a directory; see phantom.go
	done        recent[ghostKey, deed]
	changes     recent[key, unix.StatxTimestamp] // the server's last change of each file, by any of its names
	ended       recent[goneDir, struct{}]
	written     recent[key, time.Time] // files that the VM has written

	unwatched atomic.Bool // there are too many directories to watch all

	ahead ahead
}

func newMirror(e *export) *mirror {
	return &mirror{
		e:    e,
		news: make(chan struct{}, 1), moved: make(chan struct{}),
		done: newRecent[ghostKey, deed](manyDeeds), changes: newRecent[key, unix.StatxTimestamp](manyDeeds), ended: newRecent[goneDir, struct{}](manyDeeds),
		written: newRecent[key, time.Time](manyWrote),
		ahead:   newAhead(),
	}
}

// sight is the state of an object that the VM was told last.
func (e *export) sight(n *node) *unix.Statx_t {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := n.sight
	return &unix.Statx_t{Mode: x.mode, Nlink: 1, Uid: self, Size: x.size, Blocks: x.blocks, Atime: x.mtime, Mtime: x.mtime, Ctime: x.ctime}
}

// goneDir is a directory that is gone for good.
type goneDir struct {
	ino  uint64
	born uint32
}

// ghostKey is a name in a directory.
type ghostKey struct {
	dir  key
	name string
}

// ghost is an object that is gone, but that the agent must still find.
type ghost struct {
	kind nfs3.Ftype3
	n    *node // nil: the VM did not know it
}

// deed is a change that the server made for the VM, so the VM knows it.
type deed struct {
	at  time.Time
	ino uint64 // of the object that had the name afterwards; 0: none
}

// mirror is the export's mirror, or nil if it has none.
func (e *export) mirror() *mirror {
	m, _ := e.observer.(*mirror)
	return m
}

func (m *mirror) shown(n *node, st *unix.Statx_t) {
	n.sight.told = time.Now().UnixMilli()
	if own(st) {
		n.sight = sight{st.Size, st.Blocks, st.Mtime, st.Ctime, st.Mode, n.sight.told}
	}
}

func (m *mirror) made(dir *node, name string, st *unix.Statx_t) { m.did(dir.key, name, st) }

func (m *mirror) removed(dir *node, name string) { m.did(dir.key, name, nil) }

func (m *mirror) changed(o *object, wrote bool) {
	m.e.mu.Lock()
	dir, name := o.n.parent, o.n.name
	m.e.mu.Unlock()
	if dir != nil {
		m.did(dir.key, name, &o.st)
	}
	if wrote {
		m.mu.Lock()
		m.written.put(o.n.key, time.Now())
		m.mu.Unlock()
	}
}

// unlinked: the object's ctime has changed under its other names, which is not news.
func (m *mirror) unlinked(n *node) {
	if other, err := m.e.openNode(n); err == nil {
		m.changed(other, false)
		other.close()
	}
}

func (m *mirror) renamed(from *node, old string, to *object, name string) {
	m.did(from.key, old, nil)
	m.did(to.n.key, name, to.peek(name))
}

// did notes a change that the server made. Its echo is not news to the VM.
func (m *mirror) did(dir key, name string, st *unix.Statx_t) {
	d := deed{at: time.Now()}
	m.mu.Lock()
	defer m.mu.Unlock()
	if st != nil {
		d.ino = st.Ino
		m.changes.put(m.e.keyOf(st), st.Ctime)
	}
	m.done.put(ghostKey{dir, name}, d)
}

// echo reports whether an event comes from a change that the server itself made.
func (m *mirror) echo(x watch.Event) bool {
	name := x.Path
	if x.Op == watch.Rename {
		name = x.To
	}
	dir, err := m.e.openPath(path.Dir(name))
	if err != nil {
		return false
	}
	defer dir.close()
	at := ghostKey{dir.n.key, path.Base(name)}
	st, err := dir.child(at.name)
	if err != nil {
		st = nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	d, ok := m.done.get(at)
	if !ok {
		return false
	}
	fresh := time.Since(d.at) <= deedAge
	switch {
	case st == nil:
		ok = d.ino == 0 && fresh
	case d.ino != st.Ino:
		ok = false
	case isDir(st):
		ok = fresh
	default:
		last, known := m.changes.get(m.e.keyOf(st))
		ok = known && last == st.Ctime
	}
	if !ok { // the host has changed it since
		m.done.delete(at)
	}
	return ok
}

// openPath opens a directory below the root, and gives each directory on the path a node.
func (e *export) openPath(name string) (*object, error) {
	o, err := e.openRoot()
	if err != nil || name == "." {
		return o, err
	}
	for len(name) > 0 {
		first, rest := name, ""
		for i := range len(name) {
			if name[i] == '/' {
				first, rest = name[:i], name[i+1:]
				break
			}
		}
		next, err := o.openChild(first)
		o.close()
		if err != nil {
			return nil, err
		}
		o, name = next, rest
	}
	return o, nil
}

// watch watches for the host's changes until ctx ends.
func (m *mirror) watch(ctx context.Context, s *Server) {
	said := ""
	for ctx.Err() == nil {
		m.unwatched.Store(false)
		err := watch.Watch(ctx, watch.Options{
			Root: m.e.Source, Ignore: s.ignore, Log: s.log, Open: m.e.openForWatch, Ended: m.end,
			Budget: s.watches, Full: m.unwatched.Store, Gate: &m.gate,
		}, func(events []watch.Event) { m.notice(s, events) })
		if err == nil {
			return
		}
		if !errors.Is(err, watch.ErrGone) && err.Error() != said {
			said = err.Error()
			s.log.Warn("the VM's watchers do not hear of changes on the host", "err", err)
		}
		timer := time.NewTimer(watchAgain)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// openForWatch opens a directory for watching. It does not enter other file systems.
func (e *export) openForWatch(dir string) (*os.File, error) {
	root, err := e.openRoot()
	if err != nil {
		return nil, err
	}
	defer root.close()
	if dir == "" {
		dir = "."
	}
	fd, err := openAt(root.fd, dir, unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// notice passes on the changes that the VM did not make itself.
func (m *mirror) notice(s *Server, events []watch.Event) {
	s.underway.wait(patienceDeeds)
	m.tell(slices.DeleteFunc(events, m.echo))
}

// tell queues changes for the agent.
func (m *mirror) tell(events []watch.Event) {
	m.mu.Lock()
	room := max(0, manyPending-len(m.pending))
	events = events[:min(room, len(events))]
	m.pending = append(m.pending, events...)
	m.told += uint64(len(events))
	m.mu.Unlock()
	m.wake()
}

// attended notes whether an agent runs. What an agent was told before it ended is lost.
func (m *mirror) attended(is bool) {
	m.mu.Lock()
	m.agent = is
	m.known = max(m.known, m.told-uint64(len(m.pending)))
	m.step()
	m.mu.Unlock()
}

// knows notes how many changes the VM's kernel knows.
func (m *mirror) knows(n uint64) {
	m.mu.Lock()
	m.known = max(m.known, n)
	m.step()
	m.mu.Unlock()
}

// repeated notes that the agent has repeated all that it was given.
func (m *mirror) repeated() {
	m.mu.Lock()
	taken := m.told - uint64(len(m.pending))
	m.mu.Unlock()
	m.knows(taken)
}

// step wakes the calls that wait for the agent. The caller holds the lock.
func (m *mirror) step() {
	close(m.moved)
	m.moved = make(chan struct{})
}

// catchUp waits until the VM's kernel knows all changes that were told so far. Without an
// agent it does not wait.
func (m *mirror) catchUp(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	last := m.told
	m.waiting++
	defer func() { m.waiting-- }()
	for m.agent && m.known < last && ctx.Err() == nil {
		moved := m.moved
		m.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
		}
		m.mu.Lock()
	}
}

// CatchUp waits until the VM's kernel knows what the host has changed so far, or until ctx
// ends. If nothing has changed, it costs one system call per export.
func (s *Server) CatchUp(ctx context.Context) {
	for _, e := range s.exports {
		if m := e.mirror(); m != nil {
			m.gate.Wait(ctx)
			m.catchUp(ctx)
		}
	}
}

// wake signals that there is work for the agent.
func (m *mirror) wake() {
	select {
	case m.news <- struct{}{}:
	default:
	}
}

// A file that both sides write is usually a log that both append to. The VM's kernel appends
// at the end of the file that it knows, and sends the data up to 30 s later: over what the host
// has appended meanwhile. The server cannot prevent that, because an NFS WRITE does not say
// whether its offset was an append. So the agent follows such a file for a while: then each
// write in the VM is sent at once, and the kernel asks for the end of the file before the next.

// wroteLately reports whether the VM has written the file at a path within wroteAge.
func (m *mirror) wroteLately(name string) bool {
	root, err := m.e.openRoot()
	if err != nil {
		return false
	}
	defer root.close()
	o, err := m.e.open(root.fd, name)
	if err != nil {
		return false
	}
	defer o.close()
	m.mu.Lock()
	defer m.mu.Unlock()
	at, ok := m.written.get(m.e.keyOf(&o.st))
	return ok && time.Since(at) < wroteAge
}

// linkAt returns the target of a symbolic link.
func (e *export) linkAt(name string) (string, bool) {
	root, err := e.openRoot()
	if err != nil {
		return "", false
	}
	defer root.close()
	o, err := e.open(root.fd, name)
	if err != nil {
		return "", false
	}
	defer o.close()
	if o.st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", false
	}
	to := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(o.fd, "", to)
	return string(to[:max(n, 0)]), err == nil
}

// ghostsOf returns the objects that are gone, but that the agent must find so that it can
// remove or rename them.
func (m *mirror) ghostsOf(events []watch.Event) map[ghostKey]ghost {
	ghosts := map[ghostKey]ghost{}
	unknown := map[ghostKey]bool{}
	for _, x := range events {
		if x.Op != watch.Remove && x.Op != watch.Rename {
			continue
		}
		dir, err := m.e.openPath(path.Dir(x.Path))
		if err != nil {
			continue
		}
		at := ghostKey{dir.n.key, path.Base(x.Path)}
		dir.close()
		g := ghost{kind: nfs3.NF3REG}
		if x.Dir {
			g.kind = nfs3.NF3DIR
		}
		if x.Op == watch.Rename { // it exists under its new name
			if to, err := m.e.openPath(path.Dir(x.To)); err == nil {
				if n, st, err := to.find([]byte(path.Base(x.To))); err == nil {
					g.kind, g.n = types[st.Mode&unix.S_IFMT], n
				}
				to.close()
			}
			if x.Dir && g.n == nil { // it has moved again, and that event is still to come
				continue
			}
		} else {
			unknown[at] = true
		}
		ghosts[at] = g
	}
	// The VM must find what it knew by these names under the same handles. But it would take
	// a directory that was removed for empty for ever, even if it lives on elsewhere.
	for at, n := range m.e.lastAt(unknown) {
		g := ghosts[at]
		if g.kind != nfs3.NF3DIR || m.hasEnded(n) {
			g.n = n
			ghosts[at] = g
		}
	}
	return ghosts
}

// hasEnded reports whether a directory is known to be gone for good.
func (m *mirror) hasEnded(n *node) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.ended.get(goneDir{n.ino, n.born})
	return ok && n.born != 0
}

// lastAt returns the nodes that were last seen in the places.
func (e *export) lastAt(places map[ghostKey]bool) map[ghostKey]*node {
	found := map[ghostKey]*node{}
	if len(places) == 0 {
		return found
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, half := range []map[key]*node{e.nodes.young, e.nodes.old} {
		for _, n := range half {
			if n.parent == nil {
				continue
			}
			if at := (ghostKey{n.parent.key, n.name}); places[at] {
				found[at] = n
			}
		}
	}
	return found
}
