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

// To repeat a change takes the agent several calls. When the host has changed much and somebody
// waits until the VM's kernel knows (CatchUp), as a connection does after a git checkout, the
// agent first makes its kernel ask again for what it knows and is out of date: once per
// directory, which makes the kernel check all names there again, and once per file that was
// written in place. Watchers hear of each change afterwards.
//
// What the VM was never told is left alone. If its kernel learned of a new file this way,
// watchers would later hear that the file has changed, not that it was created.

// freshen makes the VM's kernel know the changes that are still to be repeated, if there are
// many and somebody waits for them. It reports whether it did.
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

// unknown returns the changes that the VM's kernel does not know, if somebody waits for them,
// and how many it knows.
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
	names bool // there are new ones
	files []string
}

// outdated returns orders for the agent that make its kernel know the first n changes.
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
	for _, dir := range slices.Sorted(maps.Keys(dirs)) { // parents first
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

// isOutdated reports whether the VM was told a state of a path that is no longer true.
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
