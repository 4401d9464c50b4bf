package share_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// nameProcedures are those of NFS that take names.
var nameProcedures = []nfs3.Nfsproc3{
	nfs3.PROC_LOOKUP, nfs3.PROC_CREATE, nfs3.PROC_MKDIR, nfs3.PROC_SYMLINK, nfs3.PROC_MKNOD,
	nfs3.PROC_REMOVE, nfs3.PROC_RMDIR, nfs3.PROC_RENAME, nfs3.PROC_LINK,
}

// hostSwap has the host exchange a directory for a link to the outside.
const hostSwap = 9

// famousNames are tried more often than chance would have it.
var famousNames = []string{
	"a", "b", "f", "out", "up", "abs", "fifo", "new", "..", ".", "", "../secret", "a/f", "/", "out/secret", "up/secret",
	"a\x00/../../secret", strings.Repeat("x", 255), strings.Repeat("x", 256), "../outside/sub/canary", "/proc/self/root", ".devvm-mounted-x",
}

// script reads what a fuzzer has written.
type script struct{ b []byte }

func (s *script) byte() int {
	if len(s.b) == 0 {
		return 0
	}
	x := s.b[0]
	s.b = s.b[1:]
	return int(x)
}

func (s *script) name() string {
	n := s.byte()
	if n >= 128 {
		return famousNames[(n-128)%len(famousNames)]
	}
	n = min(n, len(s.b))
	name := string(s.b[:n])
	s.b = s.b[n:]
	return name
}

func (s *script) handle(known [][]byte) []byte {
	h := bytes.Clone(known[s.byte()%len(known)])
	if s.byte()%8 == 7 { // forged
		if at := s.byte(); len(h) > 0 {
			h[at%len(h)] ^= byte(s.byte())
		}
	}
	return h
}

// see is all that is at a path, but for times of reading.
func see(t testing.TB, top string, without string) (lines []string, inodes map[uint64]bool) {
	t.Helper()
	inodes = map[uint64]bool{}
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrPermission) {
			return nil
		}
		if err != nil {
			return err
		}
		if path == without {
			return fs.SkipDir
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if path == top { // the fuzzer's own
			return nil
		}
		inodes[st.Ino] = true
		text := ""
		if d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil && !errors.Is(err, fs.ErrPermission) {
				return err
			}
			text = string(b)
		}
		lines = append(lines, fmt.Sprint(path, st.Mode, st.Nlink, st.Uid, st.Size, st.Mtim, st.Ctim, text))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines, inodes
}

// clean empties a directory, whatever the modes of what is in it.
func clean(t testing.TB, dir string) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

// harmless finds what the VM must not be able to make: devices, and files that lend their
// owner's rights.
func harmless(t testing.TB, dir string) {
	t.Helper()
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, _ error) error {
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			return nil //nolint:nilerr // it has gone meanwhile
		}
		kind := st.Mode & unix.S_IFMT
		if kind == unix.S_IFCHR || kind == unix.S_IFBLK || kind == unix.S_IFREG && st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
			t.Fatalf("%s has mode %o", path, st.Mode)
		}
		return nil
	})
}

// FuzzNames makes calls of the procedures that take names, with any name, handle and
// order, while the host swaps a directory for a link: nothing outside of the export is
// changed or seen, and of what the agent's user asks for nothing is done.
func FuzzNames(f *testing.F) {
	top := realTemp(f)
	dir, outside := filepath.Join(top, "shared"), filepath.Join(top, "outside")
	put(f, filepath.Join(outside, "sub/canary"), "secret")
	put(f, filepath.Join(outside, "f"), "secret")
	put(f, filepath.Join(top, "secret"), "secret")
	put(f, filepath.Join(dir, "f"), "inside")
	s := startServer(f, share.Export{Source: dir, Target: target, Writable: true})
	root := s.client(target).root
	before, forbidden := see(f, top, dir)

	for i := range nameProcedures {
		for n := range famousNames {
			f.Add([]byte{byte(i), 0, 0, 0, byte(128 + n), 0, 0, byte(128 + n + 1), 0, 0, byte(i), 1, 1, 0, byte(128 + n)})
		}
	}
	f.Add([]byte{0, 0, 0, 0, 128, hostSwap, 2, 0, 1, 0, 129, 6, 0, 1, 0, 130})
	f.Fuzz(func(t *testing.T, program []byte) {
		if len(program) > 4<<10 {
			return
		}
		clean(t, dir)
		put(t, filepath.Join(dir, "a/b/f"), "inside")
		put(t, filepath.Join(dir, "f"), "inside")
		os.Symlink("../outside", filepath.Join(dir, "out"))
		os.Symlink("..", filepath.Join(dir, "up"))
		os.Symlink(outside, filepath.Join(dir, "abs"))
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600)

		conn, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c := &client{t: t, conn: conn, root: root}
		known := [][]byte{root}
		learn := func(h []byte, a *nfs3.Fattr3, st nfs3.Nfsstat3) {
			if st == nfs3.OK && len(h) > 0 && len(known) < 32 {
				known = append(known, h)
			}
			if st == nfs3.OK && a != nil && forbidden[a.Fileid] {
				t.Fatalf("the VM sees file %d of the outside", a.Fileid)
			}
		}
		for p, calls := (&script{program}), 0; len(p.b) > 0 && calls < 64; calls++ {
			op := p.byte() % 10
			if op == hostSwap {
				unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "a"), unix.AT_FDCWD, filepath.Join(dir, "abs"), unix.RENAME_EXCHANGE)
				continue
			}
			c.uid = 0
			if p.byte()%4 == 3 {
				c.uid = agentUID
			}
			var inside []string
			if c.uid == agentUID {
				inside, _ = see(t, dir, "")
			}
			h, name := p.handle(known), p.name()
			switch nameProcedures[op] {
			case nfs3.PROC_LOOKUP:
				learn(c.lookup(h, name))
			case nfs3.PROC_CREATE:
				made, st := c.create(h, name, unchecked(p.byte()<<4))
				learn(made, nil, st)
			case nfs3.PROC_MKDIR:
				made, st := c.mkdir(h, name, p.byte()<<4)
				learn(made, nil, st)
			case nfs3.PROC_SYMLINK:
				made, st := c.symlink(h, name, p.name())
				learn(made, nil, st)
			case nfs3.PROC_MKNOD:
				what := []nfs3.Mknoddata3{
					&nfs3.Mknoddata3_NF3FIFO{Fifo: attrs(0o600)}, &nfs3.Mknoddata3_NF3SOCK{Sock: attrs(0o600)},
					&nfs3.Mknoddata3_NF3CHR{Chr: nfs3.Devicedata3{DevAttributes: attrs(0o600), Major: 1, Minor: 3}},
					&nfs3.Mknoddata3_NF3BLK{Blk: nfs3.Devicedata3{DevAttributes: attrs(0o600), Major: 7}},
				}[p.byte()%4]
				c.nfs(nfs3.PROC_MKNOD, &nfs3.Mknod3args{Where: at(h, name), What: what}, nil)
			case nfs3.PROC_REMOVE:
				c.remove(h, name)
			case nfs3.PROC_RMDIR:
				c.rmdir(h, name)
			case nfs3.PROC_RENAME:
				c.rename(h, name, p.handle(known), p.name())
			case nfs3.PROC_LINK:
				c.link(h, p.handle(known), name)
			}
			if c.uid == agentUID {
				if after, _ := see(t, dir, ""); strings.Join(inside, "\n") != strings.Join(after, "\n") {
					t.Fatalf("procedure %d of the agent's user was carried out:\n%s\n%s", op, inside, after)
				}
			}
		}
		harmless(t, dir)
		if after, _ := see(t, top, dir); strings.Join(before, "\n") != strings.Join(after, "\n") {
			t.Fatalf("the outside has changed:\n%s\n%s", before, after)
		}
	})
}
