package share

import (
	"context"
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
	for _, name := range []string{"s", "u", "v", "w"} {
		fill(name, 0, time.Hour)
	}
	for _, name := range []string{"s/a", "s/b", "s/c", "u/d", "v/e", "w/f"} {
		fill(name, fewEntries, time.Hour)
	}
	s, err := New(Options{Exports: []Export{{Source: dir, Target: "/t"}}, Events: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	e := s.exports[0]
	e.mirror().ahead.patience = time.Hour
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
	stat := func(name string, names int) {
		t.Helper()
		for f := range names {
			dir, err := e.openPath(name)
			if err != nil {
				t.Fatal(err)
			}
			o, err := dir.openChild(fmt.Sprint(f))
			dir.close()
			if err != nil {
				t.Fatal(err)
			}
			s.getattr(t.Context(), &call{}, &nfs3.NfsFh3{Data: e.handle(o.n).Data}, new(reply))
			s.getattr(t.Context(), &call{uid: agentUID}, &nfs3.NfsFh3{Data: e.handle(o.n).Data}, new(reply))
			o.close()
		}
	}
	expect := func(want ...string) {
		t.Helper()
		var got []string
		for list := e.mirror().takeAhead(); len(list) > 0; list = e.mirror().takeAhead() {
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
	stat("g", filesAsked)
	stat("s/a", filesAsked-1)
	stat("s/a", filesAsked-1) // all are known to the VM by now
	expect()
	stat("s/a", filesAsked)
	expect("s/a")
	stat("s/b", filesAsked)
	expect("s/b", "s/c")

	// Files that are opened again and again: that is asked whatever the VM knows.
	for range 3 * manyOpens / fewEntries { // of which enough fall in one second
		stat("s/a", fewEntries)
	}
	stat("u/d", filesAsked)
	expect()
	e.mirror().ahead.opening = time.Now().Add(-walkAge)
	stat("v/e", filesAsked)
	expect("v/e")

	// What the agent was told just now is not asked for again.
	o, err := e.openPath("w/f")
	if err != nil {
		t.Fatal(err)
	}
	defer o.close()
	e.mirror().listed(&call{uid: agentUID}, o.n)
	stat("w/f", filesAsked)
	expect()
}

// Where many names are asked for in many directories at once, calls wait until the agent
// is told of them, has done with them, does something else or is gone.
func TestAheadWaits(t *testing.T) {
	const dirs = fewHeld + 1
	last := key{ino: dirs}
	begin := func() *export {
		e := &export{}
		e.observer = newMirror(e)
		e.mirror().ahead.patience = time.Hour
		e.mirror().ahead.attend(true)
		return e
	}
	// walk asks for names in directories, and returns what the last to ask waits for.
	walk := func(a *ahead, dirs, names int) (wait <-chan struct{}) {
		for d := range dirs {
			k := key{ino: uint64(d + 1)}
			for range names {
				var begins bool
				if begins, wait = a.ask(question{k, false}); begins {
					a.walk(&walked{dir: k, name: fmt.Sprint(d + 1), at: time.Now(), done: make(chan struct{})})
				}
			}
		}
		return wait
	}
	if walk(&begin().mirror().ahead, dirs, namesFree) != nil {
		t.Error("one who asks for few names waits")
	}
	if walk(&begin().mirror().ahead, fewHeld, namesFree+1) != nil {
		t.Error("one waits though few directories are to be listed")
	}
	e := begin()
	e.mirror().ahead.attend(false)
	if walk(&e.mirror().ahead, dirs, namesFree+1) != nil {
		t.Error("one waits without an agent")
	}
	e = begin()
	e.mirror().ahead.waiting = manyWaiting
	if walk(&e.mirror().ahead, dirs, namesFree+1) != nil {
		t.Error("too many wait")
	}
	for what, let := range map[string]func(*export){
		"the agent is told": func(e *export) { e.mirror().listed(&call{uid: agentUID}, &node{key: last}) },
		"the agent is done": func(e *export) { e.mirror().ahead.dismiss(fmt.Sprint(dirs)) },
		"the agent is gone": func(e *export) { e.mirror().ahead.attend(false) },
	} {
		e := begin()
		wait := walk(&e.mirror().ahead, dirs, namesFree+1)
		if wait == nil {
			t.Fatal("nobody waits")
		}
		e.mirror().listed(&call{uid: 0}, &node{key: last})
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

	// Who has waited too long is the last before the agent attends again; the second time,
	// for longer.
	e = begin()
	a := &e.mirror().ahead
	anew := func() <-chan struct{} {
		a.asked, a.held = newRecent[question, *asked](manyWalked), map[key]*walked{}
		return walk(a, dirs, namesFree+1)
	}
	for range 2 {
		wait := anew()
		other := walk(a, 1, 1)
		if wait == nil || other == nil {
			t.Fatal("nobody waits")
		}
		a.patience = time.Millisecond
		a.wait(t.Context(), wait)
		was := a.late
		a.wait(t.Context(), other)
		if a.late != was {
			t.Error("who was let go is late")
		}
		a.patience = time.Hour
		if anew() != nil {
			t.Error("another waits, too")
		}
		a.attend(true)
	}
	if anew() != nil {
		t.Error("one waits soon after")
	}
	a.resumes = time.Now()
	if anew() == nil {
		t.Error("nobody waits ever again")
	}

	// What nobody waits for any more is not listed.
	e = begin()
	walk(&e.mirror().ahead, dirs, namesFree+1)
	e.mirror().ahead.now[0].at = time.Now().Add(-2 * time.Hour)
	if w := e.mirror().ahead.pop(); w == nil || w.dir != (key{ino: 2}) {
		t.Errorf("first is %+v", w)
	}
}

// A call that has waited is answered once, as if it had not.
func TestAheadAnswers(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Exports: []Export{{Source: dir, Target: "/t"}}, Events: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	e := s.exports[0]
	a := &e.mirror().ahead
	a.patience = time.Hour
	for what, call := range map[string]func(context.Context, *object, *object, *reply){
		"lookup": func(ctx context.Context, dir, o *object, w *reply) {
			s.lookup(ctx, &call{}, &nfs3.Diropargs3{Dir: e.handle(dir.n), Name: []byte(o.n.name)}, w)
		},
		"getattr": func(ctx context.Context, dir, o *object, w *reply) {
			e.mu.Lock()
			o.n.sight.told = 0
			e.mu.Unlock()
			s.getattr(ctx, &call{}, &nfs3.NfsFh3{Data: e.handle(o.n).Data}, w)
		},
	} {
		first, waited := 0, false
		for d := range fewHeld + 1 {
			name := fmt.Sprint(what, d)
			if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name, "f"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			hour := time.Now().Add(-time.Hour)
			if err := os.Chtimes(filepath.Join(dir, name), hour, hour); err != nil {
				t.Fatal(err)
			}
			a.attend(true)
			in, err := e.openPath(name)
			if err != nil {
				t.Fatal(err)
			}
			defer in.close()
			o, err := in.openChild("f")
			if err != nil {
				t.Fatal(err)
			}
			defer o.close()
			for range filesAsked + 1 {
				ctx, cancel := context.WithCancel(t.Context())
				w := new(reply)
				done := make(chan struct{})
				go func() {
					defer close(done)
					call(ctx, in, o, w)
				}()
				for wait := true; wait; {
					select {
					case <-done:
						wait = false
					case <-time.After(time.Millisecond):
						a.mu.Lock()
						wait, waited = a.waiting == 0, waited || a.waiting > 0
						a.mu.Unlock()
					}
				}
				cancel()
				<-done
				if first == 0 {
					first = w.Len()
				}
				if w.Len() != first {
					t.Fatalf("%s: an answer of %d bytes, the first had %d", what, w.Len(), first)
				}
			}
		}
		if !waited {
			t.Errorf("%s: none has waited", what)
		}
	}
}
