package watch_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share/internal/watch"
)

// watched starts watching a directory and returns what it tells.
func watched(t *testing.T, dir string) <-chan []watch.Event {
	t.Helper()
	events, _ := start(t, dir)
	return events
}

// start is watched, and returns the inode numbers of the directories that have ended.
func start(t *testing.T, dir string) (<-chan []watch.Event, <-chan uint64) {
	t.Helper()
	events := make(chan []watch.Event, 100)
	ended := make(chan uint64, 100)
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- watch.Watch(ctx, watch.Options{
			Budget: watch.NewBudget("", 0),
			Root:   dir, Ignore: []string{".git", "*.swp", "/build/out"},
			Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Ready: func() { close(ready) },
			Ended: func(ino uint64, _ unix.StatxTimestamp) {
				select {
				case ended <- ino:
				default: // nobody asks
				}
			},
			Open: func(d string) (*os.File, error) { return os.Open(filepath.Join(dir, d)) },
		}, func(e []watch.Event) { events <- e })
	}()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	return events, ended
}

// text is an event in words.
func text(e watch.Event) string {
	name := map[watch.Op]string{watch.Create: "create", watch.Modify: "modify", watch.Attrib: "attrib", watch.Remove: "remove", watch.Rename: "rename"}[e.Op]
	s := name + " " + e.Path
	if e.Op == watch.Rename {
		s += " " + e.To
	}
	if e.Dir {
		s += "/"
	}
	return s
}

func TestWatch(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mkdir := func(name string) { os.MkdirAll(filepath.Join(dir, name), 0o755) }
	rename := func(a, b string) {
		t.Helper()
		if err := os.Rename(filepath.Join(dir, a), filepath.Join(dir, b)); err != nil {
			t.Fatal(err)
		}
	}
	mkdir("a/b")
	mkdir(".git/x")
	mkdir("build/out")
	mkdir("../outside")
	write("a/old", "1")
	events := watched(t, dir)
	for i, step := range []struct {
		name string
		do   func()
		want []string
	}{
		{"a file is made", func() { write("f", "x") }, []string{"create f"}},
		{"it is written", func() { write("f", "y") }, []string{"modify f"}},
		{"below", func() { write("a/b/g", "x") }, []string{"create a/b/g"}},
		{"its mode", func() { os.Chmod(filepath.Join(dir, "f"), 0o600) }, []string{"attrib f"}},
		{"an atomic save", func() { write("f~", "new"); rename("f~", "f") }, []string{"create f~", "rename f~ f"}},
		{"a save that removes first", func() { os.Remove(filepath.Join(dir, "f")); write("f", "z") }, []string{"modify f"}},
		{"what never was", func() { write("t", "x"); os.Remove(filepath.Join(dir, "t")) }, nil},
		{"ignored", func() {
			write(".git/HEAD", "x")
			write("a/.x.swp", "x")
			write("build/out/o", "x")
			mkdir("a/.git")
			write("a/.git/y", "")
		}, nil},
		{"moved in under a name that is ignored", func() {
			mkdir("../outside/i")
			rename("../outside/i", "a/i.swp")
			write("a/i.swp/x", "")
		}, nil},
		{"renamed from what is ignored", func() { write("a/.f.swp", "x"); rename("a/.f.swp", "a/f") }, []string{"create a/f"}},
		{"a directory with things in it", func() { mkdir("d/e"); write("d/e/f", "x") }, []string{"create d/", "create d/e/", "create d/e/f"}},
		{"a directory moves", func() { rename("a", "c") }, []string{"rename a c/"}},
		{"and what is in it", func() { write("c/b/g", "2") }, []string{"modify c/b/g"}},
		{"out of the tree", func() { rename("c", "../outside/c") }, []string{"remove c/"}},
		{"where nobody looks", func() { write("../outside/c/b/g", "3") }, nil},
		{"and back", func() { rename("../outside/c", "c") }, []string{"create c/", "create c/b/", "create c/b/g", "create c/f", "create c/old"}},
		{"removed", func() { os.RemoveAll(filepath.Join(dir, "c")) }, []string{"remove c/", "remove c/b/", "remove c/b/g", "remove c/f", "remove c/old"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			step.do()
			mark := fmt.Sprint("mark", i)
			mkdir(mark) // the last change, which is one event
			var got []string
			for done := false; !done; {
				select {
				case batch := <-events:
					for _, e := range batch {
						if e.Path == mark {
							done = true
						} else {
							got = append(got, text(e))
						}
					}
				case <-time.After(10 * time.Second):
					t.Fatalf("nothing more came after %q", got)
				}
			}
			slices.Sort(got)
			got = slices.Compact(got)
			// A batch may end anywhere: making what is renamed, or attributes of what
			// is made, may be told apart or not at all.
			got = slices.DeleteFunc(got, func(s string) bool {
				return !slices.Contains(step.want, s) && (strings.HasPrefix(s, "modify ") || strings.HasPrefix(s, "attrib "))
			})
			if step.name == "an atomic save" {
				got = slices.DeleteFunc(got, func(s string) bool { return s == "create f~" })
				step.want = step.want[1:]
			}
			if step.name == "a save that removes first" && slices.Contains(got, "remove f") { // a batch ended there
				got = []string{"modify f"}
			}
			if step.name == "what never was" && slices.Equal(got, []string{"create t", "remove t"}) { // likewise
				got = nil
			}
			if !slices.Equal(got, step.want) {
				t.Errorf("got %q, want %q", got, step.want)
			}
		})
	}
}

// Many directories are watched quickly, and a burst is told whole.
func TestMany(t *testing.T) {
	dir := t.TempDir()
	for i := range 500 {
		os.MkdirAll(filepath.Join(dir, fmt.Sprint(i%20), fmt.Sprint(i)), 0o755)
	}
	events := watched(t, dir)
	go func() {
		for i := range 500 {
			os.WriteFile(filepath.Join(dir, fmt.Sprint(i%20), fmt.Sprint(i), "f"), nil, 0o644)
		}
	}()
	seen := map[string]bool{}
	for len(seen) < 500 {
		select {
		case batch := <-events:
			for _, e := range batch {
				seen[e.Path] = true
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%d of 500 came", len(seen))
		}
	}
}

// When the directory itself goes, that is an error: there may be another one.
func TestGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	os.Mkdir(dir, 0o755)
	for _, end := range []func(){
		func() { os.Rename(dir, dir+"2"); os.Mkdir(dir, 0o755) },
		func() { os.Remove(dir) },
	} {
		err := watch.Watch(t.Context(), watch.Options{
			Budget: watch.NewBudget("", 0),
			Root:   dir, Log: slog.New(slog.DiscardHandler), Ready: end,
			Open: func(d string) (*os.File, error) { return os.Open(filepath.Join(dir, d)) },
		}, func([]watch.Event) {})
		if !errors.Is(err, watch.ErrGone) {
			t.Error(err)
		}
	}
}

// However quickly directories move about, and into what is their own child on the disk
// of a moment ago, in the end each is heard of under the path where it is.
func TestMovesAtRandom(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			dir := t.TempDir()
			events := watched(t, dir)
			r := rand.New(rand.NewPCG(seed, 0))
			name := func() string {
				parts := make([]string, 1+r.IntN(3))
				for i := range parts {
					parts[i] = string(rune('a' + r.IntN(3)))
				}
				return filepath.Join(dir, filepath.Join(parts...))
			}
			for range 2000 {
				switch r.IntN(5) {
				case 0, 1:
					_ = os.Mkdir(name(), 0o755)
				case 2:
					_ = os.Remove(name())
				default:
					_ = os.Rename(name(), name())
				}
			}
			var unheard map[string]bool
			for probe, end := 0, time.Now().Add(20*time.Second); probe == 0 || len(unheard) > 0; probe++ {
				if time.Now().After(end) {
					t.Fatalf("not heard of %q", slices.Sorted(maps.Keys(unheard)))
				}
				unheard = map[string]bool{}
				_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
					if err == nil && d.IsDir() {
						p, _ = filepath.Rel(dir, filepath.Join(p, fmt.Sprint("probe", probe)))
						unheard[p] = true
					}
					return err
				})
				for p := range unheard {
					if err := os.WriteFile(filepath.Join(dir, p), nil, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				for more := true; more && len(unheard) > 0; {
					select {
					case batch := <-events:
						for _, e := range batch {
							delete(unheard, e.Path)
						}
					case <-time.After(500 * time.Millisecond): // the moves are still being made out
						more = false
					}
				}
			}
		})
	}
}

// A directory that was removed has ended when nobody has it open any more. One that moves,
// even out of the tree, has not.
func TestEnded(t *testing.T) {
	dir := t.TempDir()
	ino := map[string]uint64{}
	for _, name := range []string{"removed", "open", "moved", "out", "last"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, filepath.Join(dir, name), 0, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
			t.Fatal(err)
		}
		if st.Mask&unix.STATX_BTIME == 0 {
			t.Skip("the file system does not tell when a directory was made")
		}
		ino[name] = st.Ino
	}
	open, err := os.Open(filepath.Join(dir, "open"))
	if err != nil {
		t.Fatal(err)
	}
	events, ended := start(t, dir)
	go func() {
		for range events { // nobody asks
		}
	}()
	next := func(name string) {
		t.Helper()
		select {
		case got := <-ended:
			if got != ino[name] {
				t.Errorf("the end of %d is told, want %s: %v", got, name, ino)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("the end of %s is not told", name)
		}
	}
	for _, err := range []error{
		os.Rename(filepath.Join(dir, "moved"), filepath.Join(dir, "moves")),
		os.Rename(filepath.Join(dir, "out"), filepath.Join(t.TempDir(), "out")),
		os.Remove(filepath.Join(dir, "open")),
		os.Remove(filepath.Join(dir, "removed")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	next("removed")
	open.Close()
	next("open")
	if err := os.Remove(filepath.Join(dir, "last")); err != nil {
		t.Fatal(err)
	}
	next("last")
}

// Directories too deep to be named do not keep the others from being watched.
func TestDeep(t *testing.T) {
	dir := t.TempDir()
	name := strings.Repeat("n", 200)
	at, err := os.OpenRoot(dir)
	for range 30 {
		if err != nil {
			t.Fatal(err)
		}
		if err := at.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
		below, berr := at.OpenRoot(name)
		_ = at.Close()
		at, err = below, berr
	}
	_ = at.Close()
	if err := os.Mkdir(filepath.Join(dir, "z"), 0o755); err != nil {
		t.Fatal(err)
	}
	events := watched(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "z", "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	select {
	case batch := <-events:
		if got := text(batch[0]); got != "create z/f" {
			t.Errorf("got %q", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing was heard of the other")
	}
}

// What cannot be looked at again is an error: what is watched is unknown then.
func TestSecondLook(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	var looks atomic.Int32
	broken := errors.New("broken")
	err := watch.Watch(t.Context(), watch.Options{
		Budget: watch.NewBudget("", 0),
		Root:   dir, Log: slog.New(slog.DiscardHandler),
		Ready: func() { _ = os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b")) },
		Open: func(d string) (*os.File, error) {
			if d == "" && looks.Add(1) > 1 {
				return nil, broken
			}
			return os.Open(filepath.Join(dir, d))
		},
	}, func([]watch.Event) {})
	if !errors.Is(err, broken) {
		t.Error(err)
	}
}
