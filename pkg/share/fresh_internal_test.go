package share

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share/internal/watch"
)

// vmView is what a VM's kernel would know of files, by what the server has told it.
type vmView struct {
	t     *testing.T
	e     *export
	mu    sync.Mutex
	known map[string]unix.StatxTimestamp
}

// ask has the kernel ask for a path, and returns when that was changed.
func (v *vmView) ask(name string) {
	v.t.Helper()
	root, err := v.e.openRoot()
	if err != nil {
		v.t.Fatal(err)
	}
	for _, part := range strings.Split(name, "/") {
		next, err := root.openChild(part)
		root.close()
		if err != nil {
			v.t.Fatal(err)
		}
		root = next
	}
	defer root.close()
	v.e.attributes(root.n, &root.st)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.known[name] = root.st.Ctime
}

// knows tells whether what the kernel knows of a path is what the host has.
func (v *vmView) knows(name string) bool {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, filepath.Join(v.e.Source, name), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st); err != nil {
		v.t.Fatal(err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.known[name] == st.Ctime
}

// After many changes the VM's kernel knows in a few round trips what the host has, and
// watchers hear of each change afterwards.
func TestSettleMany(t *testing.T) {
	s, e, dir := mirroring(t)
	v := &vmView{t: t, e: e, known: map[string]unix.StatxTimestamp{}}
	write := func(name, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, path.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const each = 100
	var wrote, replaced, created []string
	for i := range each {
		wrote = append(wrote, fmt.Sprint("wrote/", i))
		replaced = append(replaced, fmt.Sprint("replaced/", i))
		created = append(created, fmt.Sprint("created/sub/", i))
	}
	write("begin", "1")
	write("created/other", "1")
	for _, name := range slices.Concat(wrote, replaced) {
		write(name, "1")
	}
	for _, name := range slices.Concat([]string{"begin", "wrote", "replaced", "created"}, wrote, replaced) {
		v.ask(name)
	}

	var rounds [][]string
	begun, begin, goOn := make(chan struct{}), make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- s.Mirror(ctx, func(ctx context.Context, _ []string, stdin io.Reader, stdout io.Writer) error {
			r := bufio.NewReader(stdin)
			var words []string
			for {
				w, err := r.ReadString(0)
				if err != nil {
					return nil //nolint:nilerr // it ends with its input
				}
				if w = strings.TrimSuffix(w, "\x00"); w != "sync" {
					words = append(words, w)
					continue
				}
				switch {
				case slices.Contains(words, "begin"):
					close(begun)
					<-begin
				case words[0] != "fresh" && words[0] != "list":
					select {
					case <-goOn:
					case <-ctx.Done():
					}
				}
				for i := 0; i+1 < len(words); i += 2 {
					switch words[i] {
					case "fresh":
						v.ask(words[i+1])
					case "list":
						v.ask(words[i+1])
						for _, name := range wrote {
							v.ask(name)
						}
					}
				}
				v.mu.Lock()
				rounds = append(rounds, words)
				v.mu.Unlock()
				words = nil
				if _, err := io.WriteString(stdout, ".\n"); err != nil {
					return err
				}
			}
		})
	}()
	e.mirror().tell([]watch.Event{{Op: watch.Modify, Path: "begin"}})
	<-begun
	// The agent is at work while the host does much.
	var events []watch.Event
	for _, name := range wrote {
		write(name, "22")
		events = append(events, watch.Event{Op: watch.Modify, Path: name})
	}
	for _, name := range replaced {
		write(name+"~", "22")
		if err := os.Rename(filepath.Join(dir, name+"~"), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		events = append(events, watch.Event{Op: watch.Modify, Path: name})
	}
	events = append(events, watch.Event{Op: watch.Create, Dir: true, Path: "created/sub"})
	for _, name := range created {
		write(name, "22")
		events = append(events, watch.Event{Op: watch.Create, Path: name})
	}
	e.mirror().tell(events)
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		e.mirror().catchUp(ctx)
	}()
	for waits := false; !waits; {
		e.mirror().mu.Lock()
		waits = e.mirror().waiting > 0
		e.mirror().mu.Unlock()
		if ctx.Err() != nil {
			t.Fatal("nobody waits")
		}
	}
	close(begin)
	<-settled
	if ctx.Err() != nil {
		t.Fatal("the changes are not known before all are done again")
	}
	v.mu.Lock()
	n := len(rounds)
	v.mu.Unlock()
	if n > 3 {
		t.Errorf("%d changes took %d round trips", len(events), n)
	}
	t.Logf("%d changes were known after %d round trips", len(events), n)
	for _, name := range slices.Concat([]string{"replaced", "created", "wrote"}, wrote) {
		if !v.knows(name) {
			t.Errorf("the VM does not know of %s", name)
		}
	}
	v.mu.Lock()
	for _, words := range rounds {
		for _, w := range words {
			if strings.HasPrefix(w, "created/") {
				t.Errorf("the VM knows of %s before those who watch", w)
			}
		}
	}
	v.mu.Unlock()
	// Those who watch hear of each.
	close(goOn)
	told := func() (n int) {
		v.mu.Lock()
		defer v.mu.Unlock()
		for _, words := range rounds {
			for i := 0; i < len(words); i += 2 {
				if slices.Contains([]string{"create", "modify", "mkdir"}, words[i]) {
					n++
				}
			}
		}
		return n
	}
	for told() < 1+len(events) {
		if ctx.Err() != nil {
			t.Fatalf("%d of %d changes were told", told(), 1+len(events))
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
