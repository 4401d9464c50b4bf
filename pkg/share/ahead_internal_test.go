package share

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// A directory in which names are asked for is listed by the agent, and then those that
// come after it; one of a few entries or of very many is not, and neither is one that has
// just changed.
func TestAhead(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	fill := func(name string, files int, age time.Duration) {
		name = filepath.Join(dir, name)
		if err := os.Mkdir(name, 0o700); err != nil {
			t.Fatal(err)
		}
		for f := range files {
			if err := os.WriteFile(filepath.Join(name, fmt.Sprint(f)), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		changed := time.Now().Add(-age)
		if err := os.Chtimes(name, changed, changed); err != nil {
			t.Fatal(err)
		}
	}
	for d := range 10 {
		fill(fmt.Sprintf("d%d", d), fewEntries, time.Hour)
	}
	fill("e", fewEntries-1, time.Hour)
	fill("f", mostEntries+1, time.Hour)
	fill("g", fewEntries, -time.Hour)
	s, err := New(Options{Exports: []Export{{Source: dir, Target: "/t"}}, Events: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	e := s.exports[0]
	e.mirror.ahead.patience = time.Hour
	ask := func(uid uint32, name string, names int) {
		t.Helper()
		o, err := e.openPath(name)
		if err != nil {
			t.Fatal(err)
		}
		defer o.close()
		for f := range names {
			w := new(reply)
			s.lookup(t.Context(), &call{uid: uid}, &nfs3.Diropargs3{Dir: e.handle(o.n), Name: []byte(fmt.Sprint(f))}, w)
		}
	}
	expect := func(want ...string) {
		t.Helper()
		var got []string
		for list := e.takeAhead(); len(list) > 0; list = e.takeAhead() {
			got = append(got, list...)
		}
		if !slices.Equal(got, want) {
			t.Errorf("listed: %q, want %q", got, want)
		}
	}
	ask(0, "d5", namesAsked-1)
	ask(agentUID, "d5", fewEntries) // its own affair
	expect()
	ask(0, "d0", namesAsked)
	expect("d0")
	ask(0, "d0", fewEntries) // it is listed
	expect()
	ask(0, "d1", namesAsked)
	expect("d1", "d2", "d3", "d4", "d5")
	ask(0, "d6", namesAsked)
	expect("d6", "d7", "d8", "d9")
	ask(0, "f", namesAsked)
	ask(0, "g", namesAsked)
	expect()
}

// Where many names are asked for in many directories at once, calls wait until the agent
// is told of them, has done with them, does something else or is gone.
func TestAheadWaits(t *testing.T) {
	const dirs = fewHeld + 1
	last := key{ino: dirs}
	begin := func() *export {
		e := &export{mirror: newMirror()}
		e.mirror.ahead.patience = time.Hour
		e.mirror.ahead.attend(true)
		return e
	}
	// walk asks for names in directories, and returns what the last to ask waits for.
	walk := func(a *ahead, dirs, names int) (wait <-chan struct{}) {
		for d := range dirs {
			k := key{ino: uint64(d + 1)}
			for range names {
				var begins bool
				if begins, wait = a.ask(k); begins {
					a.walk(&walked{dir: k, name: fmt.Sprint(d + 1), at: time.Now(), done: make(chan struct{})})
				}
			}
		}
		return wait
	}
	if walk(&begin().mirror.ahead, dirs, namesFree) != nil {
		t.Error("one who asks for few names waits")
	}
	if walk(&begin().mirror.ahead, fewHeld, namesFree+1) != nil {
		t.Error("one waits though few directories are to be listed")
	}
	e := begin()
	e.mirror.ahead.attend(false)
	if walk(&e.mirror.ahead, dirs, namesFree+1) != nil {
		t.Error("one waits without an agent")
	}
	e = begin()
	e.mirror.ahead.waiting = manyWaiting
	if walk(&e.mirror.ahead, dirs, namesFree+1) != nil {
		t.Error("too many wait")
	}
	for what, let := range map[string]func(*export){
		"the agent is told": func(e *export) { e.tells(&call{uid: agentUID}, last) },
		"the agent is done": func(e *export) { e.mirror.ahead.dismiss(fmt.Sprint(dirs)) },
		"the agent is gone": func(e *export) { e.mirror.ahead.attend(false) },
	} {
		e := begin()
		wait := walk(&e.mirror.ahead, dirs, namesFree+1)
		if wait == nil {
			t.Fatal("nobody waits")
		}
		e.tells(&call{uid: 0}, last)
		select {
		case <-wait:
			t.Error("another than the agent was told")
		default:
		}
		let(e)
		select {
		case <-wait:
		default:
			t.Errorf("%s, and one waits still", what)
		}
	}

	// Who has waited too long waits alone.
	e = begin()
	wait := walk(&e.mirror.ahead, dirs, namesFree+1)
	e.mirror.ahead.patience = time.Millisecond
	e.mirror.ahead.wait(t.Context(), wait)
	e.mirror.ahead.patience = time.Hour
	if walk(&e.mirror.ahead, dirs, 1) != nil {
		t.Error("another waits, too")
	}

	// What nobody waits for any more is not listed.
	e = begin()
	walk(&e.mirror.ahead, dirs, namesFree+1)
	e.mirror.ahead.now[0].at = time.Now().Add(-2 * time.Hour)
	if w := e.mirror.ahead.pop(); w == nil || w.dir != (key{ino: 2}) {
		t.Errorf("first is %+v", w)
	}
}
