package share

import (
	"context"
	"path"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A program that walks a tree, such as git status, asks for one name after another, or for the
// state of one known file after another. The VM's kernel sends a call for each (LOOKUP,
// GETATTR), though a single READDIRPLUS answers many. So the agent lists the directories that
// are being walked, and the ones that come next. All programs in the VM share what its kernel
// learns that way. It is readahead, for directories. tuning.go has the limits.

// ahead decides which directories of an export the VM lists before it asks.
type ahead struct {
	patience time.Duration

	mu      sync.Mutex
	attends bool      // the agent works, and is not busy with anything but lists
	waiting int       // calls that wait
	late    time.Time // when a call last waited too long
	resumes time.Time // until then no call waits
	opens   int       // see manyOpens
	counted time.Time // start of that count
	opening time.Time // when the count last reached manyOpens
	asked   recent[question, *asked]
	listed  recent[uint64, listed] // by a hash of the path
	told    recent[key, time.Time] // when the agent was told a directory's entries
	held    map[key]*walked
	now     []*walked // directories that are being walked
	next    []string  // directories that come next
}

// question is a kind of call in a directory: for names, or again for known files.
type question struct {
	dir   key
	again bool
}

// asked counts how often the VM has asked a question lately.
type asked struct {
	since time.Time
	names int
}

// walked is a directory in which the VM asks for many names or known files.
type walked struct {
	dir  key
	name string
	at   time.Time
	done chan struct{} // closed when it is listed, or will not be
}

// listed is a directory that the agent was told to list, and how many to list ahead with it.
type listed struct {
	at    time.Time
	ahead int
}

func newAhead() ahead {
	return ahead{
		patience: patienceHeld,
		asked:    newRecent[question, *asked](manyWalked), listed: newRecent[uint64, listed](manyWalked),
		told: newRecent[key, time.Time](manyWalked),
		held: map[key]*walked{},
	}
}

// lookAhead notes that the VM asks for a name in a directory, or again for a file that it
// knows. It returns what the call must wait for, if anything.
//
// Programs that ask for many names in several directories keep the VM so busy that the agent,
// whose one call has all the answers, does not get to run. So their calls wait until those
// directories are listed. In the VM the agent may in turn wait for them: for the name that one
// of them asks for, or behind a program that wants to change the directory. So a wait ends when
// the agent has been told the directory's entries, when it turns to something else, or after
// patience, whichever comes first.
func (m *mirror) lookAhead(c *call, dir *node, again bool) wait {
	if c.uid == agentUID {
		return nil
	}
	a := &m.ahead
	begins, done := a.ask(question{dir.key, again})
	if begins {
		if name, err := m.e.path(dir); err == nil {
			a.walk(&walked{dir.key, path.Clean(name), time.Now(), make(chan struct{})})
			m.wake()
		}
	}
	if done == nil {
		return nil
	}
	return func(ctx context.Context) { a.wait(ctx, done) }
}

func (m *mirror) asked(c *call, dir *object) wait {
	if isChanging(&dir.st) {
		return nil
	}
	return m.lookAhead(c, dir.n, false)
}

// askedAgain is lookAhead for a file that the VM asks for again: because what it knows has
// become too old, or else because a program opens the file.
func (m *mirror) askedAgain(c *call, n *node) wait {
	if c.uid == agentUID {
		return nil
	}
	m.e.mu.Lock()
	dir, told := n.parent, time.UnixMilli(n.sight.told)
	m.e.mu.Unlock()
	if m.ahead.opened(time.Since(told) < knownAge) {
		return nil
	}
	return m.lookAhead(c, dir, true)
}

// opened notes that the VM asks again for a file; known says that what it knows is not too
// old yet. It reports whether listing the directory would be of no use.
func (a *ahead) opened(known bool) bool {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if now.Sub(a.counted) > openTime {
		a.opens, a.counted = 0, now
	}
	if known {
		a.opens++
	} else {
		a.opens = max(0, a.opens-openWeight)
	}
	if a.opens >= manyOpens {
		a.opens, a.opening = 0, now
	}
	return known || now.Sub(a.opening) < walkAge
}

// ask notes a question in a directory. begins says that the directory has just become worth
// listing. wait is what to wait for before the answer, if anything.
func (a *ahead) ask(q question) (begins bool, wait <-chan struct{}) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	x, ok := a.asked.get(q)
	if !ok || now.Sub(x.since) > walkAge {
		x = &asked{since: now}
		a.asked.put(q, x)
	}
	x.names++
	enough, free := namesAsked, namesFree
	if q.again {
		enough, free = filesAsked, filesAsked
	}
	w := a.held[q.dir]
	if w != nil && a.attends && now.After(a.resumes) && x.names > free && len(a.held) > fewHeld && a.waiting < manyWaiting && !a.stale(w) {
		wait = w.done
	}
	return x.names == enough, wait
}

// stale reports whether it is too late to list a directory: the calls were answered by now.
func (a *ahead) stale(w *walked) bool { return time.Since(w.at) > a.patience }

// wait waits for a directory to be listed. If that takes too long, no other call waits until
// the agent has answered. If it happens again within walkAge, no call waits for walkAge.
func (a *ahead) wait(ctx context.Context, done <-chan struct{}) {
	timer := time.NewTimer(a.patience)
	defer timer.Stop()
	a.mu.Lock()
	a.waiting++
	a.mu.Unlock()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting--
	select {
	case <-done:
		return
	case <-ctx.Done():
		return
	default:
	}
	now := time.Now()
	if now.Sub(a.late) < walkAge {
		a.resumes = now.Add(walkAge)
	}
	a.late = now
	a.giveUp()
}

// walk queues a directory to be listed.
func (a *ahead) walk(w *walked) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if before := a.held[w.dir]; before != nil {
		if !a.stale(before) {
			return
		}
		a.drop(before)
	}
	if len(a.now) == manyAhead {
		a.drop(a.now[0])
		a.now = a.now[1:]
	}
	a.now = append(a.now, w)
	a.held[w.dir] = w
}

// drop releases the calls that wait for a directory. The caller holds mu.
func (a *ahead) drop(w *walked) {
	if a.held[w.dir] == w {
		close(w.done)
		delete(a.held, w.dir)
	}
}

// listed notes that the agent is told a directory's entries.
func (m *mirror) listed(c *call, dir *node) {
	if c.uid != agentUID {
		return
	}
	a := &m.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told.put(dir.key, time.Now())
	if w := a.held[dir.key]; w != nil {
		a.drop(w)
	}
}

// isTold reports whether the agent was told a directory's entries just now.
func (a *ahead) isTold(dir key) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	at, ok := a.told.get(dir)
	return ok && time.Since(at) < justListed
}

// attend notes whether the agent attends to lists. If it does not, no call waits.
func (a *ahead) attend(attends bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if attends {
		a.attends = true
	} else {
		a.giveUp()
	}
}

// giveUp releases all calls that wait. No other call waits until the agent attends again. The
// caller holds mu.
func (a *ahead) giveUp() {
	a.attends = false
	for _, w := range a.held {
		a.drop(w)
	}
}

// takeAhead returns directories for the agent to list: first those that are being walked, then
// some that come next.
func (m *mirror) takeAhead() []string {
	a := &m.ahead
	var now []string
	for len(now) < aheadBatch {
		w := a.pop()
		if w == nil {
			break
		}
		now = append(now, w.name)
		a.after(w.name, m.e.directoriesBeside(w.name))
	}
	next := a.upcoming(aheadBatch - len(now))
	var list []string
	for _, name := range now {
		if m.worthListing(name) {
			list = append(list, name)
		} else {
			a.dismiss(name)
		}
	}
	for _, name := range next {
		if m.worthListing(name) {
			list = append(list, name)
		}
	}
	if len(list) == 0 && len(now)+len(next) > 0 { // there may be more
		m.wake()
	}
	return list
}

// upcoming takes directories that come next from the queue.
func (a *ahead) upcoming(most int) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := min(most, len(a.next))
	next := a.next[:n:n]
	a.next = a.next[n:]
	return next
}

// pop takes the first directory that is being walked, or returns nil.
func (a *ahead) pop() *walked {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.now) > 0 {
		w := a.now[0]
		a.now = a.now[1:]
		if !a.stale(w) {
			return w
		}
		a.drop(w)
	}
	return nil
}

// dismiss releases the calls that wait for directories that are listed, or will not be.
func (a *ahead) dismiss(names ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.held {
		if slices.Contains(names, w.name) {
			a.drop(w)
		}
	}
}

// after notes that a directory is listed, and which come next: none, unless the sibling before
// it has been listed, too. siblings has the directory and all beside it, in order.
func (a *ahead) after(name string, siblings []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	lately := func(name string) (listed, bool) {
		x, ok := a.listed.get(hash64(name))
		return x, ok && now.Sub(x.at) <= walkAge
	}
	i, found := slices.BinarySearch(siblings, path.Base(name))
	x := listed{at: now}
	if found && i > 0 {
		if before, ok := lately(path.Join(path.Dir(name), siblings[i-1])); ok {
			x.ahead = min(max(fewAhead, 2*before.ahead), manyAhead)
		}
	}
	a.listed.put(hash64(name), x)
	for n := 0; n < x.ahead && i+1+n < len(siblings); n++ {
		sibling := path.Join(path.Dir(name), siblings[i+1+n])
		if _, ok := lately(sibling); ok || len(a.next) >= manyAhead {
			break
		}
		a.listed.put(hash64(sibling), x)
		a.next = append(a.next, sibling)
	}
}

// directoriesBeside returns the names of a directory and of those beside it, in order, or
// nothing if there are too many.
func (e *export) directoriesBeside(name string) []string {
	if name == "." {
		return nil
	}
	var names []string
	err := e.eachEntry(path.Dir(name), manySiblings, func(x entry) {
		if x.kind == unix.DT_DIR {
			names = append(names, x.name)
		}
	})
	if err != nil {
		return nil
	}
	slices.Sort(names)
	return names
}

// isChanging reports whether an entry of a directory was made, removed or renamed just now.
func isChanging(dir *unix.Statx_t) bool {
	return time.Since(time.Unix(dir.Mtime.Sec, int64(dir.Mtime.Nsec))) < changing
}

// worthListing reports whether a directory has neither too few nor too many entries, is not
// changing, and was not listed just now.
func (m *mirror) worthListing(name string) bool {
	dir, err := m.e.openPath(name)
	if err != nil {
		return false
	}
	defer dir.close()
	if m.ahead.isTold(dir.n.key) {
		return false
	}
	n := 0
	err = m.e.eachEntry(name, mostEntries, func(entry) { n++ })
	return err == nil && n >= fewEntries && !isChanging(&dir.st)
}

// eachEntry calls f for each entry of a directory. If it has more than most, the error is
// E2BIG.
func (e *export) eachEntry(name string, most int, f func(entry)) error {
	dir, err := e.openForWatch(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	end, err := readEntries(int(dir.Fd()), make([]byte, 32<<10), func(x entry) bool {
		if x.name == "." || x.name == ".." {
			return true
		}
		f(x)
		most--
		return most >= 0
	})
	if err == nil && !end {
		err = unix.E2BIG
	}
	return err
}
