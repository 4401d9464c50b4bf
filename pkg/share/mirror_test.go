package share_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// agentUID is the user whose calls are never carried out.
const agentUID = 0xdeaf0e57

// mirrored starts a server that tells what the host changes.
func mirrored(t *testing.T, dir string) (*server, *client) {
	t.Helper()
	s := &server{t: t, socket: filepath.Join(t.TempDir(), "s"), opts: share.Options{
		Exports: []share.Export{{Source: dir, Target: target, Writable: true}},
		Events:  true, Ignore: []string{".git"},
	}}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s, s.client(target)
}

// agent answers for the agent in the VM: what is done with each batch of words, before
// it is said to be done.
func (s *server) agent(t *testing.T, do func(words []string)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- s.share.Mirror(ctx, func(ctx context.Context, argv []string, stdin io.Reader, stdout io.Writer) error {
			if len(argv) != 7 || argv[6] != target || argv[5] != fmt.Sprint(uint32(agentUID)) {
				t.Errorf("the agent is run by %q", argv)
			}
			r := bufio.NewReader(stdin)
			var words []string
			for {
				w, err := r.ReadString(0)
				if err != nil {
					return err
				}
				if w = strings.TrimSuffix(w, "\x00"); w != "sync" {
					words = append(words, w)
					continue
				}
				do(words)
				words = nil
				if _, err := io.WriteString(stdout, ".\n"); err != nil {
					return err
				}
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Mirror: %v", err)
		}
	})
}

// What the host has done before Settle, the agent has repeated when it ends.
func TestSettle(t *testing.T) {
	dir := realTemp(t)
	s, c := mirrored(t, dir)
	c.must("")
	s.share.CatchUp(t.Context()) // there is no agent: nobody to wait for
	var mu sync.Mutex
	told := map[string]bool{}
	hold := make(chan struct{}) // nil: the agent works
	close(hold)
	s.agent(t, func(words []string) {
		mu.Lock()
		h := hold
		mu.Unlock()
		<-h
		mu.Lock()
		defer mu.Unlock()
		for _, w := range words {
			told[w] = true
		}
	})
	knows := func(name string) bool {
		mu.Lock()
		defer mu.Unlock()
		return told[name]
	}
	for deadline := time.Now().Add(10 * time.Second); !knows("begin"); { // the watch begins when it likes
		if time.Now().After(deadline) {
			t.Fatal("the agent hears nothing")
		}
		put(t, filepath.Join(dir, "begin"), fmt.Sprint(time.Now()))
		s.share.CatchUp(t.Context())
	}
	for i := range 300 {
		name := fmt.Sprint("f", i)
		put(t, filepath.Join(dir, name), "1")
		s.share.CatchUp(t.Context())
		if !knows(name) {
			t.Fatalf("%s is there, and the VM has not heard of it", name)
		}
	}
	// An agent that hangs holds nobody up for longer than they like.
	mu.Lock()
	hold = make(chan struct{})
	mu.Unlock()
	put(t, filepath.Join(dir, "late"), "1")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	s.share.CatchUp(ctx)
	if knows("late") || ctx.Err() == nil {
		t.Error("Settle ended before the agent was done")
	}
	mu.Lock()
	close(hold)
	mu.Unlock()
	s.share.CatchUp(t.Context())
	if !knows("late") {
		t.Error("late is there, and the VM has not heard of it")
	}
}

// What the host changes reaches the agent, and what the VM itself does, does not.
func TestMirror(t *testing.T) {
	dir := realTemp(t)
	put(t, filepath.Join(dir, "a/f"), "1")
	put(t, filepath.Join(dir, "a/g"), "1")
	put(t, filepath.Join(dir, ".git/HEAD"), "1")
	s, c := mirrored(t, dir)
	a := c.must("a")
	f, g := c.must("a/f"), c.must("a/g")
	batches := make(chan []string, 100)
	type duty struct { // while the agent is told of something
		what string
		do   func()
	}
	during := make(chan duty, 1)
	s.agent(t, func(words []string) {
		select {
		case d := <-during:
			if strings.Contains(strings.Join(words, " "), d.what) {
				d.do()
			} else {
				during <- d
			}
		default:
		}
		batches <- words
	})
	until := func(want ...string) {
		t.Helper()
		var got []string
		for {
			select {
			case w := <-batches:
				got = append(got, w...)
			case <-time.After(10 * time.Second):
				t.Fatalf("got %q, want %q", got, want)
			}
			if strings.Contains(strings.Join(got, " "), strings.Join(want, " ")) {
				break
			}
		}
	}
	// The watch begins when it likes.
	for ok := false; !ok; {
		put(t, filepath.Join(dir, "begin"), fmt.Sprint(time.Now()))
		select {
		case <-batches:
			ok = true
		case <-time.After(200 * time.Millisecond):
		}
	}
	agent := &client{t: t, conn: s.dial(), uid: agentUID, root: c.root}

	// What the VM does is not told.
	for round := range 5 {
		own := func(name string) string { return fmt.Sprint("own", round, name) }
		h, _ := c.create(a, own("a"), guarded(0o644))
		c.write(h, 0, []byte("x"), nfs3.FILE_SYNC)
		c.setattr(h, attrs(0o600))
		c.rename(a, own("a"), a, own("b"))
		c.remove(a, own("b"))
		c.mkdir(a, own("dir"), 0o755)
		h, _ = c.create(a, own("c"), guarded(0o644))
		c.link(h, a, own("d"))
		c.link(h, a, own("e"))
		c.remove(a, own("c"))
		mark := fmt.Sprint("mark", round)
		put(t, filepath.Join(dir, mark), "")
		for marked := false; !marked; {
			select {
			case words := <-batches:
				for _, word := range words {
					marked = marked || strings.Contains(word, mark)
					if strings.Contains(word, "own") {
						t.Errorf("the VM is told what it has done: %q", words)
					}
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the mark did not come")
			}
		}
	}

	put(t, filepath.Join(dir, "a/f"), "22")
	until("modify", "a/f")

	// While it is told, a file that is gone is there for the agent, as it was, and can
	// be removed; for others it is gone.
	before, _ := c.getattr(g)
	during <- duty{"remove a/g", func() {
		h, attr, st := agent.lookup(a, "g")
		if st != nfs3.OK || !bytes.Equal(h, g) || attr.Size != 1 || attr.Mtime != before.Mtime {
			t.Errorf("the agent looks up what is gone: %v, %+v", st, attr)
		}
		if _, _, st := c.lookup(a, "g"); st != nfs3.ERR_NOENT {
			t.Errorf("another looks it up: %v", st)
		}
		if st := agent.remove(a, "g"); st != nfs3.OK {
			t.Errorf("the agent removes it: %v", st)
		}
		if _, _, st := agent.lookup(a, "nothing"); st != nfs3.ERR_NOENT {
			t.Errorf("the agent looks up what never was: %v", st)
		}
	}}
	os.Remove(filepath.Join(dir, "a/g"))
	until("remove", "a/g")
	for deadline := time.Now().Add(10 * time.Second); ; { // the agent has yet to say that it is done
		_, _, st := agent.lookup(a, "g")
		if st == nfs3.ERR_NOENT {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the agent looks it up afterwards: %v", st)
		}
	}

	// The same for what the VM never knew.
	put(t, filepath.Join(dir, "a/unknown"), "1")
	until("create", "a/unknown")
	during <- duty{"remove a/unknown", func() {
		h, attr, st := agent.lookup(a, "unknown")
		if st != nfs3.OK || attr.Type != nfs3.NF3REG {
			t.Errorf("the agent looks up what is gone: %v", st)
			return
		}
		if again, st := agent.getattr(h); st != nfs3.OK || again.Fileid != attr.Fileid {
			t.Errorf("getattr: %v", st)
		}
		// Others may find its handle in what their kernel remembers: only STALE has it look anew.
		if _, st := c.getattr(h); st != nfs3.ERR_STALE {
			t.Errorf("others ask by its handle: %s", nfs3.Nfsstat3_name[st])
		}
		if st := agent.remove(a, "unknown"); st != nfs3.OK {
			t.Errorf("the agent removes it: %v", st)
		}
	}}
	os.Remove(filepath.Join(dir, "a/unknown"))
	until("remove", "a/unknown")

	// A rename: the old name stands for what is under the new one.
	during <- duty{"rename a/f a/f2", func() {
		h, attr, st := agent.lookup(a, "f")
		if st != nfs3.OK || !bytes.Equal(h, f) || attr.Size != 2 {
			t.Errorf("the agent looks up the old name: %v", st)
		}
		if st := agent.rename(a, "f", a, "f2"); st != nfs3.OK {
			t.Errorf("the agent renames: %v", st)
		}
	}}
	os.Rename(filepath.Join(dir, "a/f"), filepath.Join(dir, "a/f2"))
	until("rename", "a/f", "a/f2")
	s.files(c, f, "22")

	os.Mkdir(filepath.Join(dir, "a/d"), 0o755)
	until("mkdir", "a/d")
	os.Symlink("to where", filepath.Join(dir, "a/l"))
	until("symlink", "a/l", "to where")
	os.Chmod(filepath.Join(dir, "a/f2"), 0o600)
	until("attrib", "a/f2")

	check := func(what string, got, want nfs3.Nfsstat3) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %s, want %s", what, nfs3.Nfsstat3_name[got], nfs3.Nfsstat3_name[want])
		}
	}

	// Nothing happens to a directory that the agent did not just see to be gone. One that
	// has ended is itself to the last.
	ends := c.must("a/d")
	during <- duty{"rmdir a/d", func() {
		again := func() []byte {
			t.Helper()
			check("rmdir at once", agent.rmdir(a, "d"), nfs3.ERR_STALE)
			h, _, st := agent.lookup(a, "d")
			check("the agent looks it up", st, nfs3.OK)
			return h
		}
		check("rmdir without a look", agent.rmdir(a, "d"), nfs3.ERR_STALE)
		if h := again(); !bytes.Equal(h, ends) {
			t.Error("another handle for what has ended")
		}
		os.Mkdir(filepath.Join(dir, "a/d"), 0o755)
		check("rmdir of one that has come", agent.rmdir(a, "d"), nfs3.ERR_ACCES)
		check("rmdir without a ghost", agent.rmdir(a, "e"), nfs3.ERR_STALE)
		os.Remove(filepath.Join(dir, "a/d"))
		again()
		check("rmdir", agent.rmdir(a, "d"), nfs3.OK)
		check("rmdir again", agent.rmdir(a, "d"), nfs3.ERR_STALE)
	}}
	os.Remove(filepath.Join(dir, "a/d"))
	until("rmdir", "a/d")

	// A directory that moves is itself under its new name, which stands for nothing until
	// then. One that is moved out, and may come back, is not to be removed for ever by the
	// handle that it will have then.
	os.Mkdir(filepath.Join(dir, "a/moves"), 0o755)
	until("mkdir", "a/moves")
	moves := c.must("a/moves")
	during <- duty{"rename a/moves a/moved", func() {
		check("rename at once", agent.rename(a, "moves", a, "moved"), nfs3.ERR_STALE)
		h, _, st := agent.lookup(a, "moves")
		check("the agent looks up the old name", st, nfs3.OK)
		if !bytes.Equal(h, moves) {
			t.Error("another handle under the old name")
		}
		_, _, st = agent.lookup(a, "moved")
		check("the agent looks up the new name", st, nfs3.ERR_NOENT)
		_, _, st = c.lookup(a, "moved")
		check("another looks up the new name", st, nfs3.OK)
		check("rename elsewhere", agent.rename(a, "moves", a, "elsewhere"), nfs3.ERR_STALE)
		agent.create(a, "moved", guarded(0o644))
		_, _, st = agent.lookup(a, "moved")
		check("the agent looks up the new name after it has done something else", st, nfs3.OK)
		check("rename without a look", agent.rename(a, "moves", a, "moved"), nfs3.ERR_STALE)
		agent.lookup(a, "moves")
		check("rename", agent.rename(a, "moves", a, "moved"), nfs3.OK)
	}}
	os.Rename(filepath.Join(dir, "a/moves"), filepath.Join(dir, "a/moved"))
	until("rename", "a/moves", "a/moved")
	during <- duty{"rmdir a/moved", func() {
		h, attr, st := agent.lookup(a, "moved")
		if st != nfs3.OK || attr.Type != nfs3.NF3DIR || bytes.Equal(h, moves) {
			t.Errorf("the agent looks up what was moved out: %v, itself: %t", st, bytes.Equal(h, moves))
		}
	}}
	os.Rename(filepath.Join(dir, "a/moved"), filepath.Join(realTemp(t), "out"))
	until("rmdir", "a/moved")

	put(t, filepath.Join(dir, ".git/HEAD"), "2")
	put(t, filepath.Join(dir, "end"), "2")
	for done := false; !done; {
		words := <-batches
		done = slices.Contains(words, "end")
		if strings.Contains(strings.Join(words, " "), "HEAD") {
			t.Errorf("what is ignored is told: %q", words)
		}
	}
}

// Nothing that the agent asks for is carried out, whether there is one or not.
func TestPhantom(t *testing.T) {
	for _, events := range []bool{true, false} {
		dir := realTemp(t)
		put(t, filepath.Join(dir, "a/f"), "content")
		os.Symlink("f", filepath.Join(dir, "a/l"))
		s := &server{t: t, socket: filepath.Join(t.TempDir(), "s"), opts: share.Options{
			Exports: []share.Export{{Source: dir, Target: target, Writable: true}}, Events: events,
		}}
		s.start()
		t.Cleanup(func() { s.stop() })
		c := s.client(target)
		a, f := c.must("a"), c.must("a/f")
		before, stat := onDisk(t, dir), func() unix.Stat_t {
			var st unix.Stat_t
			unix.Stat(filepath.Join(dir, "a/f"), &st)
			return st
		}
		was := stat()
		c.uid = agentUID
		unheard := nfs3.ERR_STALE
		if !events {
			unheard = nfs3.ERR_ACCES
		}
		want(t, "truncate", c.setattr(f, func() nfs3.Sattr3 {
			x, size := attrs(0o600), uint64(0)
			x.Size, x.Mtime = &size, &nfs3.SetTime_SET_TO_CLIENT_TIME{Time: nfs3.Nfstime3{Seconds: 1}}
			return x
		}()), nfs3.OK)
		_, st := c.write(f, 0, []byte("x"), nfs3.FILE_SYNC)
		want(t, "write", st, nfs3.ERR_ROFS)
		made, st := c.create(a, "f", guarded(0o600))
		want(t, "create what is there", st, nfs3.OK)
		if !bytes.Equal(made, f) {
			t.Error("another handle")
		}
		_, st = c.create(a, "f", &nfs3.Createhow3_EXCLUSIVE{})
		want(t, "create what is there, exclusively", st, nfs3.OK)
		_, st = c.create(a, "new", guarded(0o600))
		want(t, "create", st, nfs3.ERR_NOENT)
		_, st = c.create(a, "l", guarded(0o600))
		want(t, "create a link", st, nfs3.ERR_EXIST)
		_, st = c.mkdir(c.root, "a", 0o700)
		want(t, "mkdir what is there", st, nfs3.OK)
		_, st = c.mkdir(c.root, "b", 0o700)
		want(t, "mkdir", st, nfs3.ERR_NOENT)
		_, st = c.symlink(a, "l", "f")
		want(t, "symlink what is there", st, nfs3.OK)
		_, st = c.symlink(a, "m", "f")
		want(t, "symlink", st, nfs3.ERR_NOENT)
		want(t, "remove what is there", c.remove(a, "f"), nfs3.ERR_ACCES)
		want(t, "remove what is gone", c.remove(a, "gone"), nfs3.OK)
		want(t, "rmdir what is there", c.rmdir(c.root, "a"), nfs3.ERR_ACCES)
		want(t, "rmdir what is not known to be gone", c.rmdir(c.root, "gone"), unheard)
		want(t, "rename what is there", c.rename(a, "f", a, "g"), nfs3.ERR_ACCES)
		want(t, "rename what is not known to be gone", c.rename(a, "g", a, "f"), unheard)
		want(t, "link", c.link(f, a, "g"), nfs3.ERR_ROFS)
		want(t, "mknod", c.nfs(nfs3.PROC_MKNOD, &nfs3.Mknod3args{Where: at(a, "n"), What: &nfs3.Mknoddata3_NF3FIFO{Fifo: attrs(0o600)}}, nil), nfs3.ERR_ROFS)
		if after := onDisk(t, dir); !slices.Equal(before, after) || stat().Mtim != was.Mtim || stat().Ctim != was.Ctim {
			t.Errorf("something has changed:\n%q\n%q", before, after)
		}
	}
}

// The agent's script does what it is told; here, to a plain directory, for real.
func TestAgent(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become the agent's user")
	}
	if _, err := exec.LookPath("perl"); err != nil {
		t.Skip(err)
	}
	dir := realTemp(t)
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if fi, _ := os.Stat(d); fi.Mode().Perm()&1 == 0 {
			os.Chmod(d, fi.Mode().Perm()|1)
		}
	}
	os.Chmod(dir, 0o777)
	os.WriteFile(filepath.Join(dir, "old"), []byte("old"), 0o666)
	os.Chown(filepath.Join(dir, "old"), agentUID, agentUID) // NFS does not ask for that
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_ALL_EVENTS); err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("agent.pl")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-e", string(script), fmt.Sprint(uint32(agentUID))}
	for _, call := range []int{unix.SYS_UTIMENSAT, unix.SYS_FADVISE64, unix.SYS_STATX, unix.SYS_INOTIFY_INIT1, unix.SYS_INOTIFY_ADD_WATCH} {
		args = append(args, fmt.Sprint(call))
	}
	cmd := exec.Command("perl", append(args, dir)...)
	words := []string{
		"list", ".", "list", "nothing", "fresh", ".", "fresh", "old", "fresh", "nothing", "create", "new", "modify", "old", "attrib", "old", "mkdir", "dir", "symlink", "link", "to where",
		"rename", "new", "neu", "remove", "neu", "rmdir", "dir", "modify", "nothing", "rename", "no", "old", "sync",
	}
	cmd.Stdin = strings.NewReader(strings.Join(words, "\x00") + "\x00")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil || out.String() != ".\n" {
		t.Fatalf("%v, %q, %s", err, out.String(), errs.String())
	}
	buf := make([]byte, 64<<10)
	n, err := unix.Read(fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for b := buf[:n]; len(b) > 0; {
		mask := uint32(b[4]) | uint32(b[5])<<8 | uint32(b[6])<<16 | uint32(b[7])<<24
		size := 16 + int(b[12])
		name := strings.TrimRight(string(b[16:size]), "\x00")
		for bit, s := range map[uint32]string{
			unix.IN_CREATE: "create", unix.IN_MODIFY: "modify", unix.IN_ATTRIB: "attrib", unix.IN_CLOSE_WRITE: "close",
			unix.IN_ACCESS: "read", unix.IN_MOVED_FROM: "from", unix.IN_MOVED_TO: "to", unix.IN_DELETE: "delete",
		} {
			if mask&bit != 0 {
				got = append(got, s+" "+name)
			}
		}
		b = b[size:]
	}
	wants := []string{
		"read ", "create new", "modify new", "close new", "modify old", "close old", "attrib old", "create dir", "create link",
		"from new", "to neu", "delete neu", "delete dir", "modify old", "close old",
	}
	if !slices.Equal(got, wants) {
		t.Errorf("got  %q\nwant %q", got, wants)
	}
	if have(t, filepath.Join(dir, "old")) != "old" {
		t.Error("content changed")
	}
}

// An agent that answers without end, or neither reads nor answers, which root in the VM
// can see to, neither fills this process's memory nor holds up its end.
func TestHostileAgent(t *testing.T) {
	dir := realTemp(t)
	s, _ := mirrored(t, dir)
	var busy sync.WaitGroup
	defer busy.Wait()
	busyUntil, quiet := context.WithCancel(t.Context())
	defer quiet()
	busy.Go(func() { // there is always something to tell
		for busyUntil.Err() == nil {
			put(t, filepath.Join(dir, "f"), "")
			time.Sleep(5 * time.Millisecond)
		}
	})
	said := make(chan error, 1)
	err := s.share.Mirror(t.Context(), func(_ context.Context, _ []string, stdin io.Reader, stdout io.Writer) error {
		go func() { _, _ = io.Copy(io.Discard, stdin) }()
		for {
			if _, err := stdout.Write(bytes.Repeat([]byte("x"), 64<<10)); err != nil {
				said <- err
				return err
			}
		}
	})
	if err == nil {
		t.Error("Mirror took an endless answer")
	}
	<-said

	ctx, cancel := context.WithCancel(t.Context())
	err = s.share.Mirror(ctx, func(ctx context.Context, _ []string, stdin io.Reader, _ io.Writer) error {
		_, _ = stdin.Read(make([]byte, 1)) // it is about to be told
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	if err != nil {
		t.Error(err)
	}
}
