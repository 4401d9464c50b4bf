package share_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

const target = "/home/me/project"

// shared starts a server for a new directory and mounts it.
func shared(t testing.TB) (dir string, s *server, c *client) {
	t.Helper()
	dir = realTemp(t)
	s = startServer(t, share.Export{Source: dir, Target: target, Writable: true})
	return dir, s, s.client(target)
}

// realTemp is a temporary directory without a symbolic link in its path.
func realTemp(t testing.TB) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func put(t testing.TB, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func have(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func want(t testing.TB, what string, got, want nfs3.Nfsstat3) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: got %s, want %s", what, nfs3.Nfsstat3_name[got], nfs3.Nfsstat3_name[want])
	}
}

func TestReadAndWrite(t *testing.T) {
	dir, _, c := shared(t)
	put(t, filepath.Join(dir, "a/b/c.txt"), "hello")
	if got := c.content(c.must("a/b/c.txt")); got != "hello" {
		t.Errorf("read %q", got)
	}
	h, st := c.create(c.root, "new", guarded(0o640))
	want(t, "create", st, nfs3.OK)
	data := make([]byte, 3<<20+5)
	rand.Read(data)
	for off := 0; off < len(data); off += 1 << 20 {
		ok, st := c.write(h, uint64(off), data[off:min(len(data), off+1<<20)], nfs3.UNSTABLE)
		want(t, "write", st, nfs3.OK)
		if ok.Committed != nfs3.UNSTABLE {
			t.Errorf("an unstable write was committed as %v", ok.Committed)
		}
	}
	_, st = c.commit(h)
	want(t, "commit", st, nfs3.OK)
	if have(t, filepath.Join(dir, "new")) != string(data) || c.content(h) != string(data) {
		t.Error("what was written is not what is there")
	}
	if fi, _ := os.Stat(filepath.Join(dir, "new")); fi.Mode() != 0o640 {
		t.Errorf("mode %v", fi.Mode())
	}
	if got, eof, st := c.read(h, uint64(len(data)+10), 100); st != nfs3.OK || !eof || len(got) != 0 {
		t.Errorf("read after the end: %d bytes, eof %v, %v", len(got), eof, st)
	}
}

// A hole stays a hole, and a file can be cut and made longer.
func TestSparse(t *testing.T) {
	dir, _, c := shared(t)
	h, st := c.create(c.root, "f", guarded(0o644))
	want(t, "create", st, nfs3.OK)
	_, st = c.write(h, 1<<30, []byte("end"), nfs3.FILE_SYNC)
	want(t, "write", st, nfs3.OK)
	a, _ := c.getattr(h)
	if a.Size != 1<<30+3 || a.Used > 1<<20 {
		t.Errorf("size %d, used %d", a.Size, a.Used)
	}
	for _, size := range []uint64{5, 1 << 20, 0} {
		cut := attrs(-1)
		cut.Size = &size
		want(t, "truncate", c.setattr(h, cut), nfs3.OK)
		if fi, _ := os.Stat(filepath.Join(dir, "f")); uint64(fi.Size()) != size {
			t.Errorf("size %d, want %d", fi.Size(), size)
		}
	}
	tooBig := attrs(-1)
	size := uint64(1) << 63
	tooBig.Size = &size
	if st := c.setattr(h, tooBig); st == nfs3.OK {
		t.Error("a size of 2^63 was accepted")
	}
	_, st = c.write(h, 1<<63, []byte("x"), nfs3.FILE_SYNC)
	want(t, "write at 2^63", st, nfs3.ERR_FBIG)
}

// git makes its objects without a right to write them, and then writes them.
func TestOwnerWritesReadOnlyFile(t *testing.T) {
	dir, s, c := shared(t)
	h, st := c.create(c.root, "object", guarded(0o444))
	want(t, "create", st, nfs3.OK)
	_, st = c.write(h, 0, []byte("one"), nfs3.FILE_SYNC)
	want(t, "write", st, nfs3.OK)
	s.restart() // which has it open no more
	c.reconnect(s)
	_, st = c.write(h, 3, []byte("two"), nfs3.UNSTABLE)
	want(t, "write after a restart", st, nfs3.OK)
	if got := have(t, filepath.Join(dir, "object")); got != "onetwo" {
		t.Errorf("content %q", got)
	}
	if fi, _ := os.Stat(filepath.Join(dir, "object")); fi.Mode() != 0o444 {
		t.Errorf("mode %v", fi.Mode())
	}
	if h, st = c.create(c.root, "hidden", guarded(0)); st != nfs3.OK {
		t.Fatal(st)
	}
	c.write(h, 0, []byte("x"), nfs3.FILE_SYNC)
	s.restart()
	c.reconnect(s)
	if got := c.content(h); got != "x" {
		t.Errorf("content %q of a file with mode 0", got)
	}
}

func TestCreateModes(t *testing.T) {
	dir, s, c := shared(t)
	put(t, filepath.Join(dir, "old"), "content")
	os.Mkdir(filepath.Join(dir, "dir"), 0o755)
	os.Symlink("old", filepath.Join(dir, "link"))

	_, st := c.create(c.root, "old", guarded(0o600))
	want(t, "guarded", st, nfs3.ERR_EXIST)
	_, st = c.create(c.root, "old", unchecked(0o600))
	want(t, "unchecked", st, nfs3.OK)
	if have(t, filepath.Join(dir, "old")) != "content" {
		t.Error("unchecked creation changed a file")
	}
	none := uint64(0)
	cut := attrs(0o600)
	cut.Size = &none
	_, st = c.create(c.root, "old", &nfs3.Createhow3_UNCHECKED{Unchecked: cut})
	want(t, "unchecked with size 0", st, nfs3.OK)
	if have(t, filepath.Join(dir, "old")) != "" {
		t.Error("unchecked creation with size 0 left data")
	}
	for _, name := range []string{"dir", "link"} {
		_, st = c.create(c.root, name, unchecked(0o600))
		want(t, "unchecked on "+name, st, nfs3.ERR_EXIST)
	}

	verf := [8]byte{0xff, 2, 3, 4, 0xf5, 6, 7, 8}
	first, st := c.create(c.root, "x", &nfs3.Createhow3_EXCLUSIVE{Verf: verf})
	want(t, "exclusive", st, nfs3.OK)
	s.restart()
	c.reconnect(s)
	again, st := c.create(c.root, "x", &nfs3.Createhow3_EXCLUSIVE{Verf: verf})
	want(t, "exclusive, sent again to a new server", st, nfs3.OK)
	if !bytes.Equal(first, again) {
		t.Error("another handle")
	}
	_, st = c.create(c.root, "x", &nfs3.Createhow3_EXCLUSIVE{Verf: [8]byte{1}})
	want(t, "exclusive by another", st, nfs3.ERR_EXIST)

	for name, status := range map[string]nfs3.Nfsstat3{
		"": nfs3.ERR_INVAL, "a/b": nfs3.ERR_INVAL, "a\x00b": nfs3.ERR_INVAL, ".": nfs3.ERR_EXIST, "..": nfs3.ERR_EXIST,
		strings.Repeat("n", 256): nfs3.ERR_NAMETOOLONG,
	} {
		_, st = c.create(c.root, name, guarded(0o600))
		want(t, fmt.Sprintf("create %.10q", name), st, status)
		_, st = c.mkdir(c.root, name, 0o700)
		want(t, fmt.Sprintf("mkdir %.10q", name), st, status)
		want(t, fmt.Sprintf("rename to %.10q", name), c.rename(c.root, "old", c.root, name), status)
		want(t, fmt.Sprintf("link %.10q", name), c.link(c.must("old"), c.root, name), status)
	}
}

func TestNames(t *testing.T) {
	dir, _, c := shared(t)
	names := []string{strings.Repeat("n", 255), strings.Repeat("ü", 127), "日本語", "\xff\xfe not UTF-8", " ", "-", "a\nb"}
	for _, name := range names {
		h, st := c.create(c.root, name, guarded(0o644))
		want(t, fmt.Sprintf("create %q", name), st, nfs3.OK)
		c.write(h, 0, []byte(name), nfs3.FILE_SYNC)
		if have(t, filepath.Join(dir, name)) != name {
			t.Errorf("%q: wrong content", name)
		}
	}
	for _, plus := range []bool{true, false} {
		all, st := c.list(c.root, plus, 4096, nil)
		want(t, "list", st, nfs3.OK)
		var got []string
		for _, e := range all {
			got = append(got, string(e.Name))
		}
		slices.Sort(got)
		slices.Sort(names)
		if !slices.Equal(got, names) {
			t.Errorf("list: got %q, want %q", got, names)
		}
	}
}

func TestRenameAndRemoveWhileOpen(t *testing.T) {
	dir, s, c := shared(t)
	put(t, filepath.Join(dir, "a"), "A")
	put(t, filepath.Join(dir, "b"), "B")
	put(t, filepath.Join(dir, "sub/x"), "X")
	a, b := c.must("a"), c.must("b")

	// By the VM: over another file, into another directory.
	want(t, "rename", c.rename(c.root, "a", c.root, "b"), nfs3.OK)
	if got := c.content(a); got != "A" {
		t.Errorf("after a rename: %q", got)
	}
	_, st := c.getattr(b)
	want(t, "the file that was replaced", st, nfs3.ERR_STALE)
	want(t, "rename", c.rename(c.root, "b", c.must("sub"), "a2"), nfs3.OK)
	if got := c.content(a); got != "A" {
		t.Errorf("after a rename to another directory: %q", got)
	}

	// By the host: the file, then its directory.
	if err := os.Rename(filepath.Join(dir, "sub/a2"), filepath.Join(dir, "sub/a3")); err != nil {
		t.Fatal(err)
	}
	s.files(c, a, "A")
	if err := os.Rename(filepath.Join(dir, "sub"), filepath.Join(dir, "bus")); err != nil {
		t.Fatal(err)
	}
	s.files(c, a, "A")
	s.restart()
	c.reconnect(s)
	s.files(c, a, "A")

	// A file that the VM reads stays readable when the host removes it, and one that
	// the VM writes can be written.
	x := c.must("bus/x")
	if got := c.content(x); got != "X" {
		t.Fatal(got)
	}
	if err := os.Remove(filepath.Join(dir, "bus/x")); err != nil {
		t.Fatal(err)
	}
	if got := c.content(x); got != "X" {
		t.Errorf("after its removal: %q", got)
	}
	_, st = c.write(x, 1, []byte("Y"), nfs3.FILE_SYNC)
	want(t, "write to a removed file", st, nfs3.OK)
	if got := c.content(x); got != "XY" {
		t.Errorf("after a write to it: %q", got)
	}

	// What the VM removes is gone at once.
	put(t, filepath.Join(dir, "y"), "Y")
	y := c.must("y")
	c.content(y)
	want(t, "remove", c.remove(c.root, "y"), nfs3.OK)
	_, st = c.getattr(y)
	want(t, "the removed file", st, nfs3.ERR_STALE)
}

// A file that a container has by itself stays what it is when the host puts another one in
// its place, until the container ends.
func TestHold(t *testing.T) {
	dir, s, c := shared(t)
	file := filepath.Join(dir, "etc/app.conf")
	replace := func(content string) {
		put(t, file+".new", content)
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	put(t, file, "one")
	one := c.must("etc/app.conf")
	container := func(id string) (binds []share.Bind) {
		for _, p := range []string{"/etc/app.conf", "/etc", "", "/none", "/etc/app.conf/x", "/./etc/app.conf", "/etc/../etc/app.conf", "/" + strings.Repeat("a", 5000), strings.Repeat("/.", 1<<20)} {
			binds = append(binds, share.Bind{ID: id, Path: target + p})
		}
		return append(binds, share.Bind{ID: id, Path: "/etc/passwd"}, share.Bind{})
	}
	s.share.Hold(container("1"))
	replace("two")
	s.share.Hold(append(container("1"), container("2")...)) // the second one has this
	two := c.must("etc/app.conf")
	replace("three")
	for content, h := range map[string][]byte{"one": one, "two": two, "three": c.must("etc/app.conf")} {
		if got := c.content(h); got != content {
			t.Errorf("%q, not %q", got, content)
		}
		if a, st := c.getattr(h); st != nfs3.OK || a.Nlink != 1 {
			t.Errorf("%q: %v, %+v", content, st, a)
		}
	}
	_, st := c.write(one, 3, []byte(" and more"), nfs3.FILE_SYNC)
	want(t, "write to a file that was replaced", st, nfs3.OK)
	if got := c.content(one); got != "one and more" || have(t, file) != "three" {
		t.Errorf("%q, and the file in its place has %q", got, have(t, file))
	}

	// Each goes with the last that has it.
	replace("four")
	s.share.Hold(append(container("3"), container("4")...))
	four := c.must("etc/app.conf") // and does not read it
	replace("five")
	s.share.Hold(container("4"))
	_, st = c.getattr(four)
	want(t, "a file that one holds", st, nfs3.OK)
	s.share.Hold(nil)
	_, st = c.getattr(four)
	want(t, "a file that nobody holds", st, nfs3.ERR_STALE)
}

// A file that the host replaces as soon as a container has started, before a list of what runs
// has been seen, stays for that container, too.
func TestHoldAhead(t *testing.T) {
	dir, s, c := shared(t)
	file := filepath.Join(dir, "app.conf")
	replace := func(content string) {
		put(t, file+".new", content)
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	held := func(what string, h []byte, want nfs3.Nfsstat3) {
		t.Helper()
		if _, st := c.getattr(h); st != want {
			t.Errorf("%s: %v, want %v", what, st, want)
		}
	}
	of := func(id string) []share.Bind {
		return []share.Bind{{ID: id, Path: target + "/app.conf"}, {ID: id, Path: target}, {ID: id, Path: "/etc/passwd"}}
	}
	put(t, file, "one")
	one := c.must("app.conf")
	done := s.share.HoldAhead(of("1"))
	replace("two")
	two := c.must("app.conf")
	s.share.Hold(nil) // a list that is older than the container
	held("before the list", one, nfs3.OK)
	done()
	s.share.Hold(of("1"))
	replace("three")
	held("in the list", one, nfs3.OK)
	held("what was there when the list came", two, nfs3.OK)
	s.share.Hold(of("1"))
	held("in the next list", one, nfs3.OK)
	s.share.Hold(nil)
	held("after its end", one, nfs3.ERR_STALE)
	held("after its end", two, nfs3.ERR_STALE)

	// One that does not come to run is forgotten.
	three := c.must("app.conf")
	done = s.share.HoldAhead(of("2"))
	replace("four")
	done()
	held("until the next list", three, nfs3.OK)
	s.share.Hold(nil)
	held("that has never run", three, nfs3.ERR_STALE)

	// A restart: the list that is on its way still has the run before this one.
	replace("restarted")
	restarted := c.must("app.conf")
	done = s.share.HoldAhead(of("4"))
	s.share.Hold(of("4"))
	s.share.Hold(nil)
	replace("four")
	held("of a restart", restarted, nfs3.OK)
	s.share.Hold(of("4"))
	done()
	held("of a restart that is done", restarted, nfs3.OK)
	s.share.Hold(nil)
	held("of a restart, after its end", restarted, nfs3.ERR_STALE)

	// A second start of the same holds what is there then.
	s.share.HoldAhead(of("3"))()
	four := c.must("app.conf")
	done = s.share.HoldAhead(of("3"))
	replace("five")
	held("of the second start", four, nfs3.OK)
	done()
	s.share.Hold(nil)
	held("of the second start, which failed", four, nfs3.ERR_STALE)
}

// TestHoldMany: a bind that is held from before its start counts once.
func TestHoldMany(t *testing.T) {
	dir, s, c := shared(t)
	var binds []share.Bind
	for i := range 500 {
		name := fmt.Sprint("f", i)
		put(t, filepath.Join(dir, name), name)
		binds = append(binds, share.Bind{ID: name, Path: target + "/" + name})
	}
	for n := 100; n <= len(binds); n += 100 {
		done := s.share.HoldAhead(binds[n-100 : n])
		s.share.Hold(binds[:n])
		done()
	}
	last := c.must("f499")
	if err := os.Rename(filepath.Join(dir, "f0"), filepath.Join(dir, "f499")); err != nil {
		t.Fatal(err)
	}
	s.files(c, last, "f499")
}

// files compares what a handle's file has.
func (s *server) files(c *client, h []byte, want string) {
	s.t.Helper()
	if got := c.content(h); got != want {
		s.t.Errorf("content %q, want %q", got, want)
	}
}

func TestLinks(t *testing.T) {
	dir, s, c := shared(t)
	put(t, filepath.Join(dir, "a"), "A")
	sub, st := c.mkdir(c.root, "sub", 0o755)
	want(t, "mkdir", st, nfs3.OK)
	a := c.must("a")
	want(t, "link", c.link(a, sub, "b"), nfs3.OK)
	attr, _ := c.getattr(a)
	if attr.Nlink != 2 {
		t.Errorf("%d links", attr.Nlink)
	}
	if b := c.must("sub/b"); !bytes.Equal(a, b) {
		t.Error("two links, two handles")
	}
	// Each link may go; the object stays.
	want(t, "remove", c.remove(sub, "b"), nfs3.OK)
	s.files(c, a, "A")
	want(t, "link", c.link(a, sub, "c"), nfs3.OK)
	want(t, "remove", c.remove(c.root, "a"), nfs3.OK)
	s.files(c, a, "A")
	s.restart()
	c.reconnect(s)
	s.files(c, a, "A")
	want(t, "link to a directory", c.link(sub, c.root, "d"), nfs3.ERR_ISDIR)
	want(t, "link over a file", c.link(a, sub, "c"), nfs3.ERR_EXIST)

	// Symbolic links are the VM's to follow, wherever they lead.
	l, st := c.symlink(c.root, "out", "/etc/passwd")
	want(t, "symlink", st, nfs3.OK)
	var ok nfs3.Readlink3resok
	x := fh(l)
	want(t, "readlink", c.nfs(nfs3.PROC_READLINK, &x, &ok), nfs3.OK)
	if string(ok.Data) != "/etc/passwd" {
		t.Errorf("readlink: %q", ok.Data)
	}
	_, _, st = c.read(l, 0, 10)
	want(t, "read a link", st, nfs3.ERR_INVAL)
	_, _, st = c.lookup(l, "x")
	want(t, "look up in a link", st, nfs3.ERR_NOTDIR)
	want(t, "chmod of a link", c.setattr(l, attrs(0o600)), nfs3.OK)
	if fi, _ := os.Stat("/etc/passwd"); fi.Mode().Perm() == 0o600 {
		t.Fatal("chmod followed a link")
	}
	want(t, "link to a link", c.link(l, c.root, "out2"), nfs3.OK)
	if to, _ := os.Readlink(filepath.Join(dir, "out2")); to != "/etc/passwd" {
		t.Errorf("link to a link: %q", to)
	}
	want(t, "chown of a link", c.chown(l, 5, 6), nfs3.OK)
}

func (c *client) chown(h []byte, uid, gid uint32) nfs3.Nfsstat3 {
	c.t.Helper()
	a := attrs(-1)
	a.Uid, a.Gid = &uid, &gid
	return c.setattr(h, a)
}

// The host user's files are that user's in the VM, too. What is made there is its maker's,
// and what the VM says about owners is remembered. Neither is the host's business.
func TestOwners(t *testing.T) {
	share.SetHostUser(t, 1000, 100)
	dir, _, c := shared(t)
	put(t, filepath.Join(dir, "f"), "")
	f := c.must("f")
	owner := func(what string, h []byte, uid, gid uint32) {
		t.Helper()
		a, _ := c.getattr(h)
		if a.Uid != uid || a.Gid != gid {
			t.Errorf("%s: owner %d:%d, want %d:%d", what, a.Uid, a.Gid, uid, gid)
		}
	}
	owner("the host's", f, 1000, 100)
	owner("the directory", c.root, 1000, 100)
	byRoot, st := c.create(c.root, "root", guarded(0o600))
	want(t, "create", st, nfs3.OK)
	owner("made by root", byRoot, 0, 0)
	want(t, "chown", c.chown(f, 999, 998), nfs3.OK)
	owner("given away", f, 999, 998)
	fi, _ := os.Stat(filepath.Join(dir, "f"))
	if st := fi.Sys().(*syscall.Stat_t); int(st.Uid) != os.Geteuid() {
		t.Errorf("the host's owner is %d", st.Uid)
	}
	want(t, "chown", c.chown(byRoot, 1000, 100), nfs3.OK)
	owner("given to the host's user", byRoot, 1000, 100)
	c.uid = 1001
	want(t, "chown by another", c.chown(f, 1001, 1001), nfs3.ERR_PERM)
	g, st := c.create(c.root, "g", guarded(0o600))
	want(t, "create", st, nfs3.OK)
	owner("made by another", g, 1001, 1001)
	d, st := c.mkdir(c.root, "d", 0o700)
	want(t, "mkdir", st, nfs3.OK)
	owner("made by another", d, 1001, 1001)
	want(t, "chown to itself", c.chown(g, 1001, 1001), nfs3.OK)
	c.uid = 0
	want(t, "chown to root", c.chown(g, 0, 0), nfs3.OK)
	owner("given to root", g, 0, 0)
	if os.Geteuid() == 0 {
		if err := os.Chown(filepath.Join(dir, "g"), 4711, 4711); err != nil {
			t.Fatal(err)
		}
		owner("another user's of the host", g, 65534, 65534)
		want(t, "chown of what is not ours", c.chown(g, 1, 1), nfs3.ERR_PERM)
	}
}

// Owners outlive the server, however it ends. A damaged record costs no more than itself.
func TestOwnersKept(t *testing.T) {
	share.SetHostUser(t, 1000, 100)
	dir := realTemp(t)
	log := filepath.Join(t.TempDir(), "owners")
	s := &server{t: t, socket: filepath.Join(t.TempDir(), "s"), opts: share.Options{
		Exports: []share.Export{{Source: dir, Target: target, Writable: true}}, Owners: log,
	}}
	s.start()
	t.Cleanup(func() { s.stop() })
	c := s.client(target)
	owner := func(what, name string, uid, gid uint32) {
		t.Helper()
		a, st := c.getattr(c.must(name))
		want(t, what, st, nfs3.OK)
		if a.Uid != uid || a.Gid != gid {
			t.Errorf("%s: %s is %d:%d's, want %d:%d", what, name, a.Uid, a.Gid, uid, gid)
		}
	}
	c.uid = 999
	if _, st := c.mkdir(c.root, "data", 0o700); st != nfs3.OK {
		t.Fatal(st)
	}
	for _, name := range []string{"table", "again", "back", "host"} {
		if _, st := c.create(c.must("data"), name, guarded(0o600)); st != nfs3.OK {
			t.Fatal(st)
		}
	}
	c.uid = 0
	want(t, "chown of the root", c.chown(c.root, 7, 8), nfs3.OK)
	want(t, "chown", c.chown(c.must("data/again"), 1000, 1000), nfs3.OK)
	want(t, "chown to root", c.chown(c.must("data/back"), 0, 0), nfs3.OK)
	want(t, "chown to the host's user", c.chown(c.must("data/host"), 1000, 100), nfs3.OK)
	if _, st := c.create(c.must("data"), "root", guarded(0o600)); st != nfs3.OK {
		t.Fatal(st)
	}

	check := func(when string) {
		t.Helper()
		owner(when, "data", 999, 999)
		owner(when, "data/table", 999, 999)
		owner(when, "data/again", 1000, 1000)
		owner(when, "data/back", 0, 0)
		owner(when, "data/host", 1000, 100)
		owner(when, "data/root", 0, 0)
		if a, _ := c.getattr(c.root); a.Uid != 7 || a.Gid != 8 {
			t.Errorf("%s: the root is %d:%d's", when, a.Uid, a.Gid)
		}
	}
	check("at first")
	killed, err := os.ReadFile(log) // what is there without an orderly end
	if err != nil {
		t.Fatal(err)
	}
	s.restart()
	c.reconnect(s)
	check("after the server's end")

	s.stop()
	half := append(bytes.Clone(killed), killed[:11]...) // a record that is not whole
	if err := os.WriteFile(log, half, 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	c.reconnect(s)
	check("after a kill")
	want(t, "chown", c.chown(c.must("data/table"), 5, 5), nfs3.OK)
	s.restart()
	c.reconnect(s)
	owner("after a record that is not whole", "data/table", 5, 5)
	want(t, "chown", c.chown(c.must("data/table"), 999, 999), nfs3.OK)

	s.stop()
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1 // of the last chown
	if err := os.WriteFile(log, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	c.reconnect(s)
	owner("after a damaged record", "data/table", 5, 5)

	// What is no file keeps nothing, and nothing else fails.
	s.stop()
	if err := errors.Join(os.Remove(log), os.Mkdir(log, 0o700)); err != nil {
		t.Fatal(err)
	}
	s.start()
	c.reconnect(s)
	want(t, "chown", c.chown(c.must("data/table"), 6, 6), nfs3.OK)
	owner("without a file", "data/table", 6, 6)
}

func TestModes(t *testing.T) {
	dir, _, c := shared(t)
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	f, st := c.create(c.root, "f", guarded(0o6777))
	want(t, "create", st, nfs3.OK)
	d, st := c.mkdir(c.root, "d", 0o3775)
	want(t, "mkdir", st, nfs3.OK)
	mode := func(name string, m uint32) {
		t.Helper()
		var st syscall.Stat_t
		if err := syscall.Lstat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o7777 != m {
			t.Errorf("%s has mode %#o, want %#o", name, st.Mode&0o7777, m)
		}
	}
	mode("f", 0o777)
	mode("d", 0o1775)
	want(t, "chmod", c.setattr(f, attrs(0o4755)), nfs3.OK)
	mode("f", 0o755)
	want(t, "chmod", c.setattr(d, attrs(0o2700)), nfs3.OK)
	mode("d", 0o700)

	at := nfs3.Nfstime3{Seconds: 1_000_000_000, Nseconds: 123_456_789}
	times := attrs(-1)
	times.Mtime = &nfs3.SetTime_SET_TO_CLIENT_TIME{Time: at}
	want(t, "utimes", c.setattr(f, times), nfs3.OK)
	if a, _ := c.getattr(f); a.Mtime != at {
		t.Errorf("mtime %+v", a.Mtime)
	}
	l, _ := c.symlink(c.root, "l", "nowhere")
	want(t, "utimes of a link", c.setattr(l, times), nfs3.OK)
	if a, _ := c.getattr(l); a.Mtime != at {
		t.Errorf("mtime of a link %+v", a.Mtime)
	}
	a, _ := c.getattr(f)
	guard := &nfs3.Setattr3args{Object: fh(f), NewAttributes: attrs(0o600), Guard: &nfs3.Nfstime3{Seconds: 1}}
	want(t, "guarded setattr", c.nfs(nfs3.PROC_SETATTR, guard, nil), nfs3.ERR_NOT_SYNC)
	guard.Guard = &a.Ctime
	want(t, "guarded setattr", c.nfs(nfs3.PROC_SETATTR, guard, nil), nfs3.OK)
}

func TestNodes(t *testing.T) {
	dir, _, c := shared(t)
	mknod := func(name string, what nfs3.Mknoddata3) nfs3.Nfsstat3 {
		return c.nfs(nfs3.PROC_MKNOD, &nfs3.Mknod3args{Where: at(c.root, name), What: what}, nil)
	}
	want(t, "fifo", mknod("fifo", &nfs3.Mknoddata3_NF3FIFO{Fifo: attrs(0o620)}), nfs3.OK)
	want(t, "socket", mknod("sock", &nfs3.Mknoddata3_NF3SOCK{Sock: attrs(0o600)}), nfs3.OK)
	want(t, "device", mknod("chr", &nfs3.Mknoddata3_NF3CHR{Chr: nfs3.Devicedata3{DevAttributes: attrs(0o666), Major: 1, Minor: 3}}), nfs3.ERR_PERM)
	want(t, "device", mknod("blk", &nfs3.Mknoddata3_NF3BLK{Blk: nfs3.Devicedata3{DevAttributes: attrs(0o666)}}), nfs3.ERR_PERM)
	want(t, "regular", mknod("reg", &nfs3.Mknoddata3_default{Type: nfs3.NF3REG}), nfs3.ERR_BADTYPE)
	if fi, _ := os.Lstat(filepath.Join(dir, "fifo")); fi.Mode() != fs.ModeNamedPipe|0o620 {
		t.Errorf("fifo: %v", fi.Mode())
	}
	// Reading one must not wait for its other end.
	_, _, st := c.read(c.must("fifo"), 0, 1)
	want(t, "read a fifo", st, nfs3.ERR_INVAL)
	_, st = c.write(c.must("fifo"), 0, []byte("x"), nfs3.FILE_SYNC)
	want(t, "write a fifo", st, nfs3.ERR_INVAL)
	_, st = c.write(c.root, 0, []byte("x"), nfs3.FILE_SYNC)
	want(t, "write a directory", st, nfs3.ERR_ISDIR)
}

func TestReadOnly(t *testing.T) {
	dir := realTemp(t)
	put(t, filepath.Join(dir, "f"), "F")
	s := startServer(t, share.Export{Source: dir, Target: target}, share.Export{Source: realTemp(t), Target: "/other", Writable: true})
	c := s.client(target)
	other := c.mount("/other")
	f := c.must("f")
	if c.content(f) != "F" {
		t.Error("cannot read")
	}
	var access nfs3.Access3resok
	want(t, "access", c.nfs(nfs3.PROC_ACCESS, &nfs3.Access3args{Object: fh(f), Access: 0x3f}, &access), nfs3.OK)
	if access.Access != nfs3.ACCESS3_READ {
		t.Errorf("access %#x", access.Access)
	}
	_, st := c.create(c.root, "g", unchecked(0o600))
	want(t, "create", st, nfs3.ERR_ROFS)
	_, st = c.create(c.root, "f", unchecked(0o600))
	want(t, "create what is there", st, nfs3.ERR_ROFS)
	_, st = c.mkdir(c.root, "g", 0o700)
	want(t, "mkdir", st, nfs3.ERR_ROFS)
	_, st = c.symlink(c.root, "g", "f")
	want(t, "symlink", st, nfs3.ERR_ROFS)
	_, st = c.write(f, 0, []byte("x"), nfs3.UNSTABLE)
	want(t, "write", st, nfs3.ERR_ROFS)
	want(t, "chmod", c.setattr(f, attrs(0o600)), nfs3.ERR_ROFS)
	size := uint64(0)
	cut := attrs(-1)
	cut.Size = &size
	want(t, "truncate", c.setattr(f, cut), nfs3.ERR_ROFS)
	want(t, "chown", c.chown(f, 1, 1), nfs3.ERR_ROFS)
	want(t, "remove", c.remove(c.root, "f"), nfs3.ERR_ROFS)
	want(t, "rmdir", c.rmdir(c.root, "f"), nfs3.ERR_ROFS)
	want(t, "rename", c.rename(c.root, "f", c.root, "g"), nfs3.ERR_ROFS)
	want(t, "rename in", c.rename(other, "f", c.root, "g"), nfs3.ERR_ROFS)
	want(t, "link", c.link(f, c.root, "g"), nfs3.ERR_ROFS)
	want(t, "link out", c.link(f, other, "g"), nfs3.ERR_XDEV)
	_, st = c.commit(f)
	want(t, "commit", st, nfs3.OK)
	if have(t, filepath.Join(dir, "f")) != "F" {
		t.Error("the file has changed")
	}
}

// A directory with very many entries is read whole, with entries made and removed
// meanwhile, and its files are found by a server that is new.
func TestManyEntries(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 5_000
	}
	dir, s, c := shared(t)
	for i := range n {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("file-%06d", i)))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	for _, plus := range []bool{true, false} {
		made := 0
		all, st := c.list(c.root, plus, 64<<10, func(int) {
			made++
			put(t, filepath.Join(dir, fmt.Sprintf("new-%v-%d", plus, made)), "")
			if made == 3 { // a new server in the middle
				s.restart()
				c.reconnect(s)
			}
		})
		want(t, "list", st, nfs3.OK)
		seen := map[string]bool{}
		for _, e := range all {
			if seen[string(e.Name)] {
				t.Errorf("%s comes twice", e.Name)
			}
			seen[string(e.Name)] = true
		}
		for i := range n {
			if name := fmt.Sprintf("file-%06d", i); !seen[name] {
				t.Errorf("%s is missing", name)
			}
		}
		if !plus {
			continue
		}
		s.restart()
		c.reconnect(s)
		begin := time.Now()
		for i, e := range all {
			if i%7 != 0 || !strings.HasPrefix(string(e.Name), "file-") {
				continue
			}
			a, st := c.getattr(e.NameHandle.Data)
			want(t, string(e.Name), st, nfs3.OK)
			if a.Fileid != e.Fileid {
				t.Fatalf("%s: inode %d, was %d", e.Name, a.Fileid, e.Fileid)
			}
		}
		t.Logf("%d handles found again in %v", n/7, time.Since(begin))
	}
	// Removing what a listing gives, in its order, leaves nothing.
	for {
		all, st := c.list(c.root, false, 8<<10, nil)
		want(t, "list", st, nfs3.OK)
		if len(all) == 0 {
			break
		}
		for _, e := range all {
			want(t, "remove", c.remove(c.root, string(e.Name)), nfs3.OK)
		}
	}
	_, st := c.list(c.root, true, 100, nil)
	want(t, "list with too little room", st, nfs3.ERR_TOOSMALL)
}

// An inode number that is used again is another object.
func TestInodeReuse(t *testing.T) {
	dir, s, c := shared(t)
	name := filepath.Join(dir, "f")
	put(t, name, "secret")
	var before syscall.Stat_t
	syscall.Stat(name, &before)
	old := c.must("f")
	s.restart()
	c.reconnect(s)
	for range 200 {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		put(t, name, "other")
		var st syscall.Stat_t
		syscall.Stat(name, &st)
		if st.Ino == before.Ino {
			_, status := c.getattr(old)
			want(t, "the old handle", status, nfs3.ERR_STALE)
			s.files(c, c.must("f"), "other")
			return
		}
	}
	t.Skip("this file system did not use the inode number again")
}

func TestHandlesAfterRestart(t *testing.T) {
	dir, s, c := shared(t)
	deep := strings.TrimSuffix(strings.Repeat("d/", 60), "/") // deeper than a handle's trail
	for _, f := range []string{"a", "x/y/z", "moved/from/here", deep + "/f"} {
		put(t, filepath.Join(dir, f), f)
	}
	handles := map[string][]byte{}
	for _, f := range []string{"a", "x/y/z", "moved/from/here", deep + "/f"} {
		handles[f] = c.must(f)
	}
	gone := c.must("x")
	s.stop()
	os.MkdirAll(filepath.Join(dir, "new/place"), 0o755)
	if err := os.Rename(filepath.Join(dir, "moved/from/here"), filepath.Join(dir, "new/place/there")); err != nil {
		t.Fatal(err)
	}
	s.start()
	c.reconnect(s)
	for f, h := range handles {
		s.files(c, h, f)
		if f == "moved/from/here" {
			f = "new/place/there"
		}
		if now := c.must(f); !bytes.Equal(now, h) {
			t.Errorf("%s has another handle now", f)
		}
	}
	s.restart()
	c.reconnect(s)
	if err := os.RemoveAll(filepath.Join(dir, "x")); err != nil {
		t.Fatal(err)
	}
	_, st := c.getattr(gone)
	want(t, "a directory that is gone", st, nfs3.ERR_STALE)
	_, st = c.getattr(handles["x/y/z"])
	want(t, "a file that is gone", st, nfs3.ERR_STALE)

	// The project's directory itself may be made anew.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	_, st = c.getattr(c.root)
	want(t, "no directory", st, nfs3.ERR_STALE)

	put(t, filepath.Join(dir, "fresh"), "new")
	now, st := c.getattr(c.root)
	want(t, "a new directory", st, nfs3.OK)

	s.files(c, c.must("fresh"), "new")
	if now.Type != nfs3.NF3DIR {
		t.Error("not a directory")
	}
}

// A client sends again what it has not committed when the verifier changes.
func TestVerifier(t *testing.T) {
	_, s, c := shared(t)
	h, _ := c.create(c.root, "f", guarded(0o644))
	ok, _ := c.write(h, 0, []byte("data"), nfs3.UNSTABLE)
	verf, _ := c.commit(h)
	if verf != ok.Verf {
		t.Error("the verifier changed without a restart")
	}
	s.restart()
	c.reconnect(s)
	if now, _ := c.commit(h); now == verf {
		t.Error("the verifier is the same after a restart")
	}
}

// A call that is sent again, over another connection, is carried out once.
func TestReplay(t *testing.T) {
	dir, s, c := shared(t)
	put(t, filepath.Join(dir, "a"), "A")
	put(t, filepath.Join(dir, "b"), "B")
	where := at(c.root, "a")
	remove := encode(77, nfs3.PROGRAM, uint32(nfs3.PROC_REMOVE), 0, &where)
	first, err := readAll(c, remove)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "a"), "new")
	c.reconnect(s)
	second, err := readAll(c, remove)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("another answer")
	}
	if have(t, filepath.Join(dir, "a")) != "new" {
		t.Error("the file was removed twice")
	}
	other, err := readAll(c, encode(78, nfs3.PROGRAM, uint32(nfs3.PROC_REMOVE), 0, &where))
	if err != nil || bytes.Equal(first, other) {
		t.Errorf("another call got the first one's answer (%v)", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "a")); err == nil {
		t.Error("the file was not removed")
	}
}

func readAll(c *client, record []byte) ([]byte, error) {
	if err := sendRecord(c.conn, record); err != nil {
		return nil, err
	}
	return readRecord(c.conn)
}

// Many calls on one connection are under way at once, and each gets its own answer.
func TestParallel(t *testing.T) {
	dir, s, _ := shared(t)
	const n = 500
	for i := range n {
		put(t, filepath.Join(dir, fmt.Sprint(i)), strings.Repeat(fmt.Sprint(i, " "), 1000))
	}
	conn := s.dial()
	c := s.client(target)
	var handles [n][]byte
	for i := range n {
		handles[i] = c.must(fmt.Sprint(i))
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			if err := sendRecord(conn, encode(uint32(i), nfs3.PROGRAM, uint32(nfs3.PROC_READ), 0, &nfs3.Read3args{File: fh(handles[i]), Count: 1 << 20})); err != nil {
				t.Error(err)
			}
		}
	})
	seen := map[byte]bool{}
	for range n {
		b, err := readRecord(conn)
		if err != nil {
			t.Fatal(err)
		}
		xid := int(b[0])<<24 | int(b[1])<<16 | int(b[2])<<8 | int(b[3])
		if !bytes.Contains(b, []byte(strings.Repeat(fmt.Sprint(xid, " "), 1000))) {
			t.Fatalf("answer %d has another file's content", xid)
		}
		seen[byte(xid)] = true
	}
	wg.Wait()
}

func TestInformation(t *testing.T) {
	_, _, c := shared(t)
	root := fh(c.root)
	var info nfs3.Fsinfo3resok
	want(t, "fsinfo", c.nfs(nfs3.PROC_FSINFO, &root, &info), nfs3.OK)
	if info.Rtmax != 1<<20 || info.Wtmax != 1<<20 {
		t.Errorf("%+v", info)
	}
	var stat nfs3.Fsstat3resok
	want(t, "fsstat", c.nfs(nfs3.PROC_FSSTAT, &root, &stat), nfs3.OK)
	if stat.Tbytes == 0 {
		t.Errorf("%+v", stat)
	}
	var conf nfs3.Pathconf3resok
	want(t, "pathconf", c.nfs(nfs3.PROC_PATHCONF, &root, &conf), nfs3.OK)
	if conf.NameMax != 255 || !conf.NoTrunc {
		t.Errorf("%+v", conf)
	}
}

func TestSourceIsALink(t *testing.T) {
	dir := realTemp(t)
	put(t, filepath.Join(dir, "real/sub/f"), "")
	os.Symlink("real", filepath.Join(dir, "link"))
	for _, source := range []string{"link", "link/sub"} {
		_, err := share.New(share.Options{Exports: []share.Export{{Source: filepath.Join(dir, source), Target: target}}})
		if err == nil || !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("%s: %v", source, err)
		}
	}
}

// A process that may open few files serves many all the same.
func TestFewFiles(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	few := before
	few.Cur = 256
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before)
	dir, _, c := shared(t)
	for i := range 1000 {
		name := fmt.Sprint(i)
		h, st := c.create(c.root, name, guarded(0o444))
		want(t, "create", st, nfs3.OK)
		_, st = c.write(h, 0, []byte(name), nfs3.UNSTABLE)
		want(t, "write", st, nfs3.OK)
		if got := c.content(h); got != name {
			t.Fatalf("read %q", got)
		}
	}
	for i := range 1000 {
		if got := c.content(c.must(fmt.Sprint(i))); got != fmt.Sprint(i) {
			t.Fatalf("read %q", got)
		}
	}
	if open, err := os.ReadDir("/proc/self/fd"); err != nil || len(open) > 200 {
		t.Errorf("%d files are open, %v", len(open), err)
	}
	if have(t, filepath.Join(dir, "7")) != "7" {
		t.Error("wrong content")
	}
}

// The VM says that its directories are in place by looking up a name in each of them,
// there and not below, and a new server does not know it.
func TestMounted(t *testing.T) {
	dir := realTemp(t)
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, share.Export{Source: dir, Target: "/a"}, share.Export{Source: dir, Target: "/b"})
	mounted := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		return s.share.Mounted(ctx) == nil
	}
	a, b := s.client("/a"), s.client("/b")
	a.lookup(a.must("d"), ".devvm-mounted-1")
	b.lookup(b.root, "d")
	if mounted() {
		t.Error("mounted by a look elsewhere")
	}
	if _, _, st := a.lookup(a.root, ".devvm-mounted-1"); st != nfs3.ERR_NOENT {
		t.Errorf("the name exists: %v", st)
	}
	if mounted() {
		t.Error("one of two is not all")
	}
	b.lookup(b.root, ".devvm-mounted-17.5")
	b.lookup(b.root, ".devvm-mounted-18.5")
	if !mounted() {
		t.Error("not mounted")
	}
	s.restart()
	if mounted() {
		t.Error("a new server cannot know")
	}
}

// A host that has no descriptor left for a moment keeps its server.
func TestFewFilesAtAccept(t *testing.T) {
	s, err := share.New(share.Options{Exports: []share.Export{{Source: t.TempDir(), Target: target}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l := &short{errs: []error{syscall.EMFILE, syscall.ENFILE, net.ErrClosed}}
	if err := s.Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	if len(l.errs) > 0 {
		t.Errorf("accept was not tried again: %v is left", l.errs)
	}
}

// short is a listener that fails.
type short struct{ errs []error }

func (l *short) Accept() (net.Conn, error) {
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, err
}

func (l *short) Close() error   { return nil }
func (l *short) Addr() net.Addr { return &net.UnixAddr{} }
