package share_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// TestModel does the same random things to a share and to a plain directory, as
// another process would see them, and compares after each; now and then the host
// changes both, or the server is replaced by a new one.
func TestModel(t *testing.T) {
	runs, steps := 20, 600
	if testing.Short() {
		runs, steps = 4, 300
	}
	for seed := range uint64(runs) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			dir, s, c := shared(t)
			m := &model{
				t: t, rand: rand.New(rand.NewPCG(seed, 1)), s: s, c: c, dir: dir, plain: t.TempDir(),
			}
			for i := range steps {
				m.step()
				if i%20 == 19 || i == steps-1 {
					m.compare()
				}
			}
		})
	}
}

type model struct {
	t     *testing.T
	rand  *rand.Rand
	s     *server
	c     *client
	dir   string // what is shared
	plain string // what it must be like
	log   []string
}

func (m *model) name() string {
	return []string{"a", "b", "c", "ü", strings.Repeat("long", 50)}[m.rand.IntN(5)]
}

// path is a random path, of things that may be there or not.
func (m *model) path() string {
	parts := make([]string, 1+m.rand.IntN(3))
	for i := range parts {
		parts[i] = m.name()
	}
	return strings.Join(parts, "/")
}

// split returns the handle of a path's directory, and the name in it.
func (m *model) split(path string) ([]byte, string, nfs3.Nfsstat3) {
	dir, st := m.c.walk(filepath.Dir(path))
	return dir, filepath.Base(path), st
}

// followsLink tells whether a path leads through a link, which the plain directory
// follows and the test's client does not.
func (m *model) followsLink(path string) bool {
	for p := filepath.Dir(path); p != "."; p = filepath.Dir(p) {
		if fi, err := os.Lstat(filepath.Join(m.plain, p)); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
			return true
		}
	}
	return false
}

// same fails unless an operation ended alike in both.
func (m *model) same(what string, st nfs3.Nfsstat3, err error) {
	m.t.Helper()
	m.log = append(m.log, fmt.Sprintf("%s: %s, %v", what, nfs3.Nfsstat3_name[st], err))
	var number syscall.Errno
	if err != nil && !errors.As(err, &number) {
		m.t.Fatalf("%s: %v", what, err)
	}
	wants := map[syscall.Errno][]nfs3.Nfsstat3{
		0:                  {nfs3.OK},
		syscall.ENOENT:     {nfs3.ERR_NOENT},
		syscall.EEXIST:     {nfs3.ERR_EXIST, nfs3.ERR_NOTEMPTY},
		syscall.ENOTDIR:    {nfs3.ERR_NOTDIR},
		syscall.EISDIR:     {nfs3.ERR_ISDIR},
		syscall.ENOTEMPTY:  {nfs3.ERR_NOTEMPTY},
		syscall.EINVAL:     {nfs3.ERR_INVAL},
		syscall.EPERM:      {nfs3.ERR_ISDIR, nfs3.ERR_PERM},
		syscall.EOPNOTSUPP: {nfs3.ERR_INVAL, nfs3.ERR_NOTSUPP},
	}
	for _, w := range wants[number] {
		if st == w {
			return
		}
	}
	m.t.Fatalf("%s: the share says %s, a plain directory %v\n%s", what, nfs3.Nfsstat3_name[st], err, strings.Join(m.log, "\n"))
}

func (m *model) step() {
	m.t.Helper()
	path := m.path()
	if m.followsLink(path) {
		return
	}
	plain := filepath.Join(m.plain, path)
	dir, name, st := m.split(path)
	if st != nfs3.OK {
		_, err := os.Lstat(plain)
		m.same("look up "+path, st, err)
		return
	}
	switch n := m.rand.IntN(100); {
	case n < 20: // make a file and write it
		h, st := m.c.create(dir, name, guarded(0o644))
		f, err := os.OpenFile(plain, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
		m.same("create "+path, st, err)
		if err == nil {
			m.write(path, h, f)
			f.Close()
		}
	case n < 35: // write to what is there
		fi, err := os.Lstat(plain)
		if err != nil || !fi.Mode().IsRegular() {
			return
		}
		h, _, st := m.c.lookup(dir, name)
		m.same("look up "+path, st, nil)
		f, err := os.OpenFile(plain, os.O_RDWR, 0)
		if err != nil {
			m.t.Fatal(err)
		}
		m.write(path, h, f)
		f.Close()
	case n < 50:
		_, st := m.c.mkdir(dir, name, 0o755)
		m.same("mkdir "+path, st, os.Mkdir(plain, 0o755))
	case n < 56:
		_, st := m.c.symlink(dir, name, "to/"+name)
		m.same("symlink "+path, st, os.Symlink("to/"+name, plain))
	case n < 64:
		m.same("remove "+path, m.c.remove(dir, name), syscall.Unlink(plain))
	case n < 68:
		m.same("rmdir "+path, m.c.rmdir(dir, name), syscall.Rmdir(plain))
	case n < 80:
		to := m.path()
		if m.followsLink(to) {
			return
		}
		toDir, toName, st := m.split(to)
		if st != nfs3.OK {
			return
		}
		m.same("rename "+path+" "+to, m.c.rename(dir, name, toDir, toName), syscall.Rename(plain, filepath.Join(m.plain, to)))
	case n < 86:
		to := m.path()
		if m.followsLink(to) {
			return
		}
		toDir, toName, st := m.split(to)
		h, _, found := m.c.lookup(dir, name)
		fi, err := os.Lstat(plain)
		if st != nfs3.OK || found != nfs3.OK || err != nil || fi.IsDir() {
			return
		}
		m.same("link "+path+" "+to, m.c.link(h, toDir, toName), os.Link(plain, filepath.Join(m.plain, to)))
	case n < 92:
		fi, err := os.Lstat(plain)
		if err != nil || fi.Mode()&fs.ModeSymlink != 0 {
			return
		}
		h, _, _ := m.c.lookup(dir, name)
		mode := 0o700 | m.rand.IntN(0o100)
		m.same("chmod "+path, m.c.setattr(h, attrs(mode)), os.Chmod(plain, fs.FileMode(mode)))
	case n < 98: // the host does the same to both
		to := m.path()
		if m.followsLink(to) {
			return
		}
		for _, top := range []string{m.dir, m.plain} {
			os.Rename(filepath.Join(top, path), filepath.Join(top, to)) // may fail, in both
		}
		m.log = append(m.log, "host: rename "+path+" "+to)
	default:
		m.s.restart()
		m.c.reconnect(m.s)
		m.log = append(m.log, "restart")
	}
}

// write does a few random things to a file.
func (m *model) write(path string, h []byte, f *os.File) {
	m.t.Helper()
	for range m.rand.IntN(3) {
		off, size := m.rand.IntN(10_000), m.rand.IntN(5_000)
		if m.rand.IntN(4) == 0 {
			cut := attrs(-1)
			n := uint64(off)
			cut.Size = &n
			m.same("truncate "+path, m.c.setattr(h, cut), f.Truncate(int64(off)))
			continue
		}
		data := bytes.Repeat([]byte{byte(m.rand.IntN(256))}, size)
		_, st := m.c.write(h, uint64(off), data, nfs3.StableHow(m.rand.IntN(3)))
		_, err := f.WriteAt(data, int64(off))
		m.same("write "+path, st, err)
	}
	fi, err := f.Stat()
	if err != nil {
		m.t.Fatal(err)
	}
	want := make([]byte, fi.Size())
	if _, err := f.ReadAt(want, 0); err != nil {
		m.t.Fatal(err)
	}
	if got := m.c.content(h); got != string(want) {
		m.t.Fatalf("%s: other content\n%s", path, strings.Join(m.log, "\n"))
	}
}

// compare compares the trees: the share's as the host sees it and as the VM does, and
// the plain one.
func (m *model) compare() {
	m.t.Helper()
	want := onDisk(m.t, m.plain)
	if diff := cmp.Diff(want, onDisk(m.t, m.dir)); diff != "" {
		m.t.Fatalf("the shared directory is not like the plain one (-want +got):\n%s\n%s", diff, strings.Join(m.log, "\n"))
	}
	if diff := cmp.Diff(want, m.overWire()); diff != "" {
		m.t.Fatalf("the VM does not see what is there (-want +got):\n%s\n%s", diff, strings.Join(m.log, "\n"))
	}
}

// onDisk describes each thing in a tree on a line.
func onDisk(t *testing.T, top string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(top, func(name string, _ fs.DirEntry, err error) error {
		if err != nil || name == top {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(name, &st); err != nil {
			return err
		}
		content := ""
		switch st.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			content = string(b)
		case syscall.S_IFLNK:
			content, _ = os.Readlink(name)
		}
		lines = append(lines, line(strings.TrimPrefix(name, top+"/"), st.Mode, int(st.Nlink), content))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return lines
}

func line(name string, mode uint32, nlink int, content string) string {
	if mode&syscall.S_IFMT == syscall.S_IFDIR {
		nlink = 0 // file systems differ
	}
	return fmt.Sprintf("%s %#o %d %d %x", name, mode, nlink, len(content), content[:min(len(content), 20)])
}

// overWire describes the tree as the VM sees it.
func (m *model) overWire() []string {
	m.t.Helper()
	var lines []string
	var walk func(h []byte, path string)
	walk = func(h []byte, path string) {
		all, st := m.c.list(h, true, 8192, nil)
		if st != nfs3.OK {
			m.t.Fatalf("list %s: %v", path, st)
		}
		for _, e := range all {
			name := path + string(e.Name)
			a, content := e.NameAttributes, ""
			h := e.NameHandle.Data
			mode := a.Mode
			switch a.Type {
			case nfs3.NF3DIR:
				mode |= syscall.S_IFDIR
				walk(h, name+"/")
			case nfs3.NF3REG:
				mode |= syscall.S_IFREG
				content = m.c.content(h)
			case nfs3.NF3LNK:
				mode |= syscall.S_IFLNK
				var ok nfs3.Readlink3resok
				x := fh(h)
				m.c.nfs(nfs3.PROC_READLINK, &x, &ok)
				content = string(ok.Data)
			}
			lines = append(lines, line(name, mode, int(a.Nlink), content))
		}
	}
	walk(m.c.root, "")
	sort.Strings(lines)
	return lines
}

// TestConcurrent does random things from many sides at once, the host's among them:
// nothing hangs, nothing breaks, and in the end the VM sees what is there.
func TestConcurrent(t *testing.T) {
	dir := realTemp(t)
	s, c := mirrored(t, dir)
	names := []string{"a", "b", "c"}
	stop := time.Now().Add(2 * time.Second)
	var wg sync.WaitGroup
	for side := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(7, uint64(side)))
			path := func() string {
				var p []string
				for range 1 + r.IntN(3) {
					p = append(p, names[r.IntN(len(names))])
				}
				return strings.Join(p, "/")
			}
			if side == 0 { // the host
				for time.Now().Before(stop) {
					a, b := filepath.Join(dir, path()), filepath.Join(dir, path())
					switch r.IntN(4) {
					case 0:
						os.Rename(a, b)
					case 1:
						os.RemoveAll(a)
					case 2:
						os.MkdirAll(a, 0o755)
					case 3:
						os.WriteFile(a, []byte("host"), 0o644)
					}
				}
				return
			}
			c := s.client(target)
			if side == 1 {
				c.uid = agentUID
			}
			for time.Now().Before(stop) {
				p, q := path(), path()
				from, st := c.walk(filepath.Dir(p))
				if st != nfs3.OK {
					continue
				}
				to, st := c.walk(filepath.Dir(q))
				if st != nfs3.OK {
					continue
				}
				old, name := filepath.Base(p), filepath.Base(q)
				switch r.IntN(10) {
				case 0, 1:
					c.mkdir(from, old, 0o755)
				case 2, 3, 4:
					c.rename(from, old, to, name)
				case 5:
					c.remove(from, old)
				case 6:
					c.rmdir(from, old)
				case 7:
					if h, st := c.create(from, old, unchecked(0o644)); st == nfs3.OK {
						c.write(h, 0, []byte("data"), nfs3.UNSTABLE)
						c.read(h, 0, 10)
						c.commit(h)
					}
				case 8:
					if h, _, st := c.lookup(from, old); st == nfs3.OK {
						c.link(h, to, name)
						c.setattr(h, attrs(0o755))
					}
				case 9:
					c.list(from, true, 4096, nil)
				}
			}
		})
	}
	wg.Wait()
	m := &model{t: t, c: c}
	want := slices.DeleteFunc(onDisk(t, dir), func(line string) bool { return strings.HasPrefix(line, ".nfs") })
	if diff := cmp.Diff(want, m.overWire()); diff != "" {
		t.Errorf("the VM does not see what is there (-want +got):\n%s", diff)
	}
}
