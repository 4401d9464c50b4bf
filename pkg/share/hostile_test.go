package share_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// TestRace swaps a directory for a link to one outside, all the time, while the VM
// reads and writes below it. Nothing of the outside may be read, and nothing of it
// may change.
func TestRace(t *testing.T) {
	top := realTemp(t)
	dir, outside := filepath.Join(top, "shared"), filepath.Join(top, "outside")
	put(t, filepath.Join(dir, "d/sub/f"), "inside")
	put(t, filepath.Join(outside, "sub/f"), "secret")
	s := startServer(t, share.Export{Source: dir, Target: target, Writable: true})
	if err := os.Symlink(outside, filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default: // d and l change places
				unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "d"), unix.AT_FDCWD, filepath.Join(dir, "l"), unix.RENAME_EXCHANGE)
			}
		}
	})
	c := s.client(target)
	reads, writes := 0, 0
	until := time.Now().Add(2 * time.Second)
	var held [][]byte
	for i := 0; time.Now().Before(until); i++ {
		h, _, st := c.lookup(c.root, []string{"d", "l"}[i%2])
		if st != nfs3.OK {
			continue
		}
		sub, _, st := c.lookup(h, "sub")
		if st != nfs3.OK {
			continue
		}
		f, _, st := c.lookup(sub, "f")
		if st == nfs3.OK {
			held = append(held, f)
		}
		if _, st := c.create(sub, "new", unchecked(0o600)); st == nfs3.OK {
			writes++
		}
		c.mkdir(h, "made", 0o700)
		c.rename(sub, "new", h, "moved")
		c.remove(h, "moved")
		c.rmdir(h, "made")
		c.list(sub, true, 8192, nil)
		if i%500 == 0 {
			s.restart()
			c.reconnect(s)
		}
		for _, f := range held[max(0, len(held)-3):] {
			data, _, st := c.read(f, 0, 100)
			if st == nfs3.OK && string(data) != "inside" {
				t.Fatalf("read %q", data)
			}
			if st == nfs3.OK {
				reads++
			}
			c.write(f, 0, []byte("inside"), nfs3.FILE_SYNC)
		}
	}
	if reads == 0 || writes == 0 {
		t.Errorf("%d reads and %d writes succeeded: this test shows nothing", reads, writes)
	}
	t.Logf("%d reads, %d writes", reads, writes)
	if got := have(t, filepath.Join(outside, "sub/f")); got != "secret" {
		t.Errorf("a file outside has %q", got)
	}
	for _, p := range []string{outside, filepath.Join(outside, "sub")} {
		names, _ := os.ReadDir(p)
		if len(names) != 1 {
			t.Errorf("%s has %v", p, names)
		}
	}
}

// No way that the VM may try leads out of the export.
func TestOutside(t *testing.T) {
	top := realTemp(t)
	dir := filepath.Join(top, "shared")
	put(t, filepath.Join(dir, "a/f"), "inside")
	put(t, filepath.Join(top, "secret"), "secret")
	os.Symlink("../secret", filepath.Join(dir, "l"))
	os.Symlink("..", filepath.Join(dir, "up"))
	s := startServer(t, share.Export{Source: dir, Target: target, Writable: true})
	c := s.client(target)

	// ".." of the root is the root.
	h, _, st := c.lookup(c.root, "..")
	if st != nfs3.OK || !bytes.Equal(h, c.root) {
		t.Errorf("..: %v", st)
	}
	h, _, st = c.lookup(c.must("a"), "..")
	if st != nfs3.OK || !bytes.Equal(h, c.root) {
		t.Errorf("a/..: %v", st)
	}
	for _, name := range []string{"../secret", "a/../../secret", "/etc/passwd", "l/", "up/secret"} {
		if _, _, st := c.lookup(c.root, name); st != nfs3.ERR_INVAL {
			t.Errorf("look up %q: %v", name, st)
		}
	}
	for _, l := range []string{"l", "up"} {
		h := c.must(l)
		if _, _, st := c.read(h, 0, 10); st == nfs3.OK {
			t.Errorf("read %s", l)
		}
		if _, st := c.write(h, 0, []byte("x"), nfs3.FILE_SYNC); st == nfs3.OK {
			t.Errorf("write %s", l)
		}
		size := uint64(0)
		cut := attrs(-1)
		cut.Size = &size
		if st := c.setattr(h, cut); st == nfs3.OK {
			t.Errorf("truncate %s", l)
		}
		if _, _, st := c.lookup(h, "secret"); st == nfs3.OK {
			t.Errorf("look up in %s", l)
		}
		if _, st := c.create(h, "x", guarded(0o600)); st == nfs3.OK {
			t.Errorf("create in %s", l)
		}
		if _, st := c.list(h, true, 8192, nil); st == nfs3.OK {
			t.Errorf("list %s", l)
		}
	}
	if have(t, filepath.Join(top, "secret")) != "secret" {
		t.Error("the file outside has changed")
	}

	// Forged handles: each inode number of the outside, with the rest of a true one.
	f := c.must("a/f")
	for _, p := range []string{filepath.Join(top, "secret"), top, "/", "/etc/passwd"} {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			t.Fatal(err)
		}
		forged := bytes.Clone(f)
		binary.BigEndian.PutUint64(forged[8:], st.Ino)
		if _, st := c.getattr(forged); st != nfs3.ERR_STALE {
			t.Errorf("a forged handle for %s: %v", p, st)
		}
	}
	for _, h := range [][]byte{nil, {1}, f[:19], append([]byte{2}, f[1:]...)} {
		if _, st := c.getattr(h); st != nfs3.ERR_STALE && st != nfs3.ERR_BADHANDLE {
			t.Errorf("handle %x: %v", h, st)
		}
	}
}

// What is mounted below an export and is no storage is not for the VM.
func TestForeignMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	dir, s, c := shared(t)
	for _, d := range []string{"proc", "tmp"} {
		os.Mkdir(filepath.Join(dir, d), 0o755)
	}
	if err := unix.Mount("proc", filepath.Join(dir, "proc"), "proc", 0, ""); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	defer unix.Unmount(filepath.Join(dir, "proc"), unix.MNT_DETACH)
	if err := unix.Mount("tmpfs", filepath.Join(dir, "tmp"), "tmpfs", 0, ""); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	defer unix.Unmount(filepath.Join(dir, "tmp"), unix.MNT_DETACH)
	_, _, st := c.lookup(c.root, "proc")
	want(t, "look up proc", st, nfs3.ERR_ACCES)
	all, st := c.list(c.root, true, 8192, nil)
	want(t, "list", st, nfs3.OK)
	for _, e := range all {
		if e.NameHandle != nil {
			t.Errorf("%s has a handle", e.Name)
		}
	}

	// Storage is: with inode numbers of its own, and without hard links across.
	put(t, filepath.Join(dir, "tmp/d/f"), "F")
	put(t, filepath.Join(dir, "g"), "G")
	f := c.must("tmp/d/f")
	s.files(c, f, "F")
	want(t, "link", c.link(f, c.root, "l"), nfs3.ERR_XDEV)
	want(t, "rename", c.rename(c.must("tmp/d"), "f", c.root, "f"), nfs3.ERR_XDEV)
	s.restart()
	c.reconnect(s)
	s.files(c, f, "F")
}

// Whoever does not speak the protocol loses the connection, and costs nothing.
func TestMalformed(t *testing.T) {
	dir, s, c := shared(t)
	put(t, filepath.Join(dir, "f"), "F")
	getattr := func() []byte {
		h := fh(c.root)
		return encode(1, nfs3.PROGRAM, uint32(nfs3.PROC_GETATTR), 0, &h)
	}()
	reply := append([]byte{}, getattr...)
	binary.BigEndian.PutUint32(reply[4:], 1)
	padded := append(append([]byte{}, getattr...), make([]byte, 64<<10)...)
	for name, bytes := range map[string][]byte{
		"a record of 2 GiB":        {0xff, 0xff, 0xff, 0xff},
		"fragments without an end": {0, 0, 0, 0, 0, 0, 0, 0},
		"too many fragments":       append([]byte{0, 0x10, 0x08, 0}, make([]byte, 1<<20+2048)...),
		"nothing in a record":      {0x80, 0, 0, 0},
		"a reply":                  record(reply),
		"much for a small call":    record(padded),
		"noise":                    record([]byte("GET / HTTP/1.1\r\n\r\n")),
	} {
		conn := s.dial()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		go func() { // the server may stop reading before the end
			conn.Write(bytes)
			conn.Write([]byte{0xff, 0xff, 0xff, 0xff})
		}()
		if _, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s: the connection stays: %v", name, err)
		}
	}
	// A record in pieces is one.
	conn := s.dial()
	for i, b := range getattr {
		mark := []byte{0, 0, 0, 1}
		if i == len(getattr)-1 {
			mark[0] = 0x80
		}
		if _, err := conn.Write(append(mark, b)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := readRecord(conn); err != nil {
		t.Errorf("a record in pieces: %v", err)
	}
	// The others go on.
	s.files(c, c.must("f"), "F")
}

func record(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))|1<<31), b...)
}

// Too many connections are turned away, and places come free again.
func TestManyConnections(t *testing.T) {
	_, s, c := shared(t)
	var conns []net.Conn
	for range 40 {
		conns = append(conns, s.dial())
	}
	refused := 0
	for _, conn := range conns {
		conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := conn.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
			refused++
		}
	}
	if refused != 40-31 {
		t.Errorf("%d of 40 were refused, want 9: 32 places, one taken", refused)
	}
	if _, st := c.getattr(c.root); st != nfs3.OK {
		t.Error(st)
	}
	for _, conn := range conns {
		conn.Close()
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		again := s.dial()
		h := fh(c.root)
		sendRecord(again, encode(1, nfs3.PROGRAM, uint32(nfs3.PROC_GETATTR), 0, &h))
		if _, err := readRecord(again); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("no place came free")
		}
	}
}

// FuzzServer feeds a server with whatever comes; it must live, and must not touch what
// is outside.
func FuzzServer(f *testing.F) {
	top := realTemp(f)
	dir := filepath.Join(top, "shared")
	put(f, filepath.Join(dir, "a/f"), "inside")
	put(f, filepath.Join(top, "secret"), "secret")
	os.Symlink("../secret", filepath.Join(dir, "l"))
	s := startServer(f, share.Export{Source: dir, Target: target, Writable: true})
	c := s.client(target)
	root, a := fh(c.root), fh(c.must("a/f"))
	name := at(c.root, "x")
	for proc, args := range map[nfs3.Nfsproc3]io.WriterTo{
		nfs3.PROC_NULL:        nil,
		nfs3.PROC_GETATTR:     &root,
		nfs3.PROC_SETATTR:     &nfs3.Setattr3args{Object: a, NewAttributes: attrs(0o600)},
		nfs3.PROC_LOOKUP:      &name,
		nfs3.PROC_ACCESS:      &nfs3.Access3args{Object: a, Access: 0x3f},
		nfs3.PROC_READLINK:    &root,
		nfs3.PROC_READ:        &nfs3.Read3args{File: a, Count: 100},
		nfs3.PROC_WRITE:       writeArgs(a.Data, 0, []byte("hello"), nfs3.UNSTABLE),
		nfs3.PROC_CREATE:      &nfs3.Create3args{Where: name, How: guarded(0o600)},
		nfs3.PROC_MKDIR:       &nfs3.Mkdir3args{Where: name, Attributes: attrs(0o700)},
		nfs3.PROC_SYMLINK:     &nfs3.Symlink3args{Where: name, Attributes: attrs(-1), Data: []byte("/etc")},
		nfs3.PROC_MKNOD:       &nfs3.Mknod3args{Where: name, What: &nfs3.Mknoddata3_NF3FIFO{Fifo: attrs(0o600)}},
		nfs3.PROC_REMOVE:      &name,
		nfs3.PROC_RMDIR:       &name,
		nfs3.PROC_RENAME:      &nfs3.Rename3args{From: name, To: at(c.root, "y")},
		nfs3.PROC_LINK:        &nfs3.Link3args{File: a, Link: name},
		nfs3.PROC_READDIR:     &nfs3.Readdir3args{Dir: root, Count: 4096},
		nfs3.PROC_READDIRPLUS: &nfs3.Readdirplus3args{Dir: root, Dircount: 4096, Maxcount: 4096},
		nfs3.PROC_FSSTAT:      &root,
		nfs3.PROC_FSINFO:      &root,
		nfs3.PROC_PATHCONF:    &root,
		nfs3.PROC_COMMIT:      &nfs3.Commit3args{File: a},
	} {
		f.Add(encode(1, nfs3.PROGRAM, uint32(proc), 0, args))
	}
	f.Add(encode(1, nfs3.MOUNT_PROGRAM, uint32(nfs3.MOUNT_MNT), 0, &nfs3.Dirpath{Path: []byte(target)}))
	f.Fuzz(func(t *testing.T, call []byte) {
		if len(call) > 1<<16 {
			return
		}
		conn, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if sendRecord(conn, call) != nil {
			return
		}
		if _, err := readRecord(conn); err != nil && os.IsTimeout(err) {
			t.Error("no answer, and the connection stays")
		}
		if b, _ := os.ReadFile(filepath.Join(top, "secret")); string(b) != "secret" {
			t.Fatalf("the file outside has %q", b)
		}
	})
}
