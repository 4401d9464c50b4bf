package share

import (
	"bufio"
	"io"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/devvm/devvm/pkg/share/internal/watch"
)

// To do each change again takes the agent some calls. Where the host has changed much and
// somebody waits for the VM's kernel to know (CatchUp), as a request into the VM does after
// a git checkout, the agent first has its kernel ask again for what it was told and is no
// longer so: once for each directory, which makes it doubt all names there, and for files
// that were written in place. Watchers hear of each change afterwards.
//
// What the VM was not told is left alone. Its kernel would then know of what is new, and
// watchers would hear that it has changed, not that it has come.

// freshen has the VM's kernel know of changes that are still to be done again, if there
// are many and somebody waits for that. It tells whether they were.
func (m *mirror) freshen(w io.Writer, answers *bufio.Reader) (bool, error) {
	events, known := m.unknown()
	if len(events) <= fewChanges {
		return false, nil
	}
	words, n := m.outdated(events)
	if len(words) > 0 {
		m.ahead.attend(false)
		if err := m.order(w, answers, words); err != nil {
			return false, err
		}
	}
	m.knows(known + uint64(n))
	return true, nil
}

// unknown returns the changes that somebody waits for the VM's kernel to know of, and how
// many there were before.
func (m *mirror) unknown() ([]watch.Event, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting == 0 {
		return nil, 0
	}
	taken := m.told - uint64(len(m.pending))
	known := max(m.known, taken)
	return m.pending[known-taken : len(m.pending) : len(m.pending)], known
}

// changedIn is what has changed in a directory.
type changedIn struct {
	names bool // new ones
	files []string
}

// outdated returns what the agent is to ask for again so that its kernel knows of changes,
// and of how many that is.
func (m *mirror) outdated(events []watch.Event) (words []string, n int) {
	dirs := map[string]*changedIn{}
	in := func(name string) *changedIn {
		dir := path.Dir(name)
		if dirs[dir] == nil {
			dirs[dir] = &changedIn{}
		}
		return dirs[dir]
	}
	seen := map[string]bool{}
	for ; n < len(events) && len(dirs)+len(seen) < manyFresh; n++ {
		x := events[n]
		d := in(x.Path)
		switch x.Op {
		case watch.Create:
			d.names = true
		case watch.Rename:
			in(x.To).names = true
		case watch.Modify, watch.Attrib:
			if !seen[x.Path] {
				seen[x.Path] = true
				d.files = append(d.files, x.Path)
			}
		case watch.Remove:
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(dirs)) { // those above first
		d := dirs[dir]
		files := slices.DeleteFunc(d.files, func(name string) bool { return !m.isOutdated(name) })
		switch {
		case len(files) >= fewEntries && !d.names && m.e.eachEntry(dir, mostEntries, func(entry) {}) == nil:
			words = append(words, "list", dir)
			continue
		case m.isOutdated(dir):
			words = append(words, "fresh", dir)
		}
		for _, name := range files {
			words = append(words, "fresh", name)
		}
	}
	return words, n
}

// isOutdated tells whether the VM was told of what is at a path, and not as it is now.
func (m *mirror) isOutdated(name string) bool {
	o, err := m.e.openRoot()
	if err != nil {
		return false
	}
	n := m.e.root
	if name != "." {
		root := o
		o, err = m.e.open(root.fd, name)
		root.close()
		if err != nil {
			return false
		}
		n = m.e.known(m.e.keyOf(&o.st))
	}
	defer o.close()
	if n == nil || n != m.e.root && n.born != m.e.born(&o.st) {
		return false
	}
	m.e.mu.Lock()
	was := n.sight
	m.e.mu.Unlock()
	if was.told == 0 {
		return false
	}
	is := sight{o.st.Size, o.st.Blocks, o.st.Mtime, o.st.Ctime, o.st.Mode, was.told}
	return was != is || time.Since(time.UnixMilli(was.told)) < justTold
}
