package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/tree"
)

// secret is in every file that a VM must not get, and in nothing that it sends.
const secret = "the host's secret"

// ground is a project's directory, which a VM can write to, next to one that it must not reach.
type ground struct {
	project, outside string
	before           string // of outside
}

func newGround(t testing.TB) *ground {
	t.Helper()
	top := t.TempDir()
	g := &ground{project: filepath.Join(top, "project"), outside: filepath.Join(top, "outside")}
	for _, name := range []string{"f", "one", "two", "sub/f", "sub/one", "sub/two", "sub/deep/f", "x/sub/f", ".ssh/authorized_keys"} {
		path := filepath.Join(g.outside, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(secret), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(g.project, 0o755); err != nil {
		t.Fatal(err)
	}
	then := time.Unix(1e9, 0)
	err := filepath.WalkDir(g.outside, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(path, then, then))
	})
	if err != nil {
		t.Fatal(err)
	}
	g.before = g.sum(t)
	return g
}

// sum describes the files outside: names, modes, times and contents.
func (g *ground) sum(t testing.TB) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(g.outside, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(h, path, info.Mode(), info.ModTime().UnixNano())
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			h.Write(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil))
}

// hit reports whether something was written outside of the project, or read from there.
func (g *ground) hit(t testing.TB) bool {
	t.Helper()
	if g.sum(t) != g.before {
		return true
	}
	found := false
	err := filepath.WalkDir(g.project, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var b []byte
			b, err = os.ReadFile(path)
			found = found || strings.Contains(string(b), secret)
		}
		return short(err)
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// left returns the staging directories that are still there.
func (g *ground) left(t testing.TB) []string {
	t.Helper()
	var left []string
	err := filepath.WalkDir(filepath.Dir(g.project), func(path string, d fs.DirEntry, err error) error {
		if d != nil && strings.HasPrefix(d.Name(), ".devvm-cp-") {
			left = append(left, path)
		}
		return short(err)
	})
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// short drops the error of a path that is too long.
func short(err error) error {
	if errors.Is(err, unix.ENAMETOOLONG) {
		return nil
	}
	return err
}

func (g *ground) write(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(g.project, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("the project's"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

func (g *ground) untrusted() tree.Untrusted { return tree.NewUntrusted(g.project) }

// receive is CopyFrom, given the guest's archive.
func receive(o Copy, archive io.Reader) error {
	u := unpacker{Copy: o}
	defer u.clean()
	if err := u.unpack(tar.NewReader(archive)); err != nil {
		return err
	}
	return u.install()
}

// send is CopyTo, with a writer in place of the guest.
func send(o Copy, w io.Writer) error {
	source, _, err := o.source()
	if err != nil {
		return err
	}
	defer source.Close()
	p := packer{Copy: o, ctx: context.Background()}
	return p.pack(tar.NewWriter(w), source)
}

// entry makes an archive's header. A regular file has content.
func entry(kind byte, name, link string) tar.Header {
	h := tar.Header{Typeflag: kind, Name: name, Linkname: link, Mode: 0o6755, ModTime: time.Unix(2e9, 0), Format: tar.FormatPAX}
	if kind == tar.TypeReg {
		h.Size = int64(len(payload))
	}
	return h
}

const payload = "the VM's"

func archiveOf(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, payload[:h.Size]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// naiveUnpack is a program that trusts an archive: the control.
func naiveUnpack(to string, archive []byte) {
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := r.Next()
		if err != nil {
			return
		}
		path := filepath.Join(to, h.Name)
		if filepath.IsAbs(h.Name) {
			path = h.Name
		}
		switch h.Typeflag {
		case tar.TypeDir:
			_ = os.Mkdir(path, 0o755)
		case tar.TypeSymlink:
			_ = os.Symlink(h.Linkname, path)
		case tar.TypeLink:
			_ = os.Link(h.Linkname, path)
		case tar.TypeReg:
			if b, err := io.ReadAll(r); err == nil {
				_ = os.WriteFile(path, b, 0o644)
			}
		}
		_ = os.Chmod(path, fs.FileMode(h.Mode).Perm())
	}
}

// TestCopyHostileArchive: whatever an archive holds, only the destination is written, and files
// get no more rights than a copy gives them.
func TestCopyHostileArchive(t *testing.T) {
	dir, file, link, hard := byte(tar.TypeDir), byte(tar.TypeReg), byte(tar.TypeSymlink), byte(tar.TypeLink)
	for name, c := range map[string]struct {
		entries []tar.Header
		naive   bool // a program that trusts the archive is hit
		taken   bool // the copy succeeds, perhaps without some entries
	}{
		"up":                           {[]tar.Header{entry(dir, "./", ""), entry(file, "./../../outside/f", "")}, true, false},
		"up, in the middle":            {[]tar.Header{entry(dir, "./", ""), entry(dir, "./a/", ""), entry(file, "./a/../../../outside/f", "")}, true, false},
		"up, first":                    {[]tar.Header{entry(file, "../../outside/f", "")}, true, false},
		"up, a directory":              {[]tar.Header{entry(dir, "./", ""), entry(dir, "../../outside/new/", "")}, true, false},
		"absolute":                     {[]tar.Header{entry(dir, "./", ""), entry(file, "OUTSIDE/f", "")}, true, false},
		"absolute, first":              {[]tar.Header{entry(dir, "OUTSIDE/new/", "")}, true, false},
		"a link, then through it":      {[]tar.Header{entry(dir, "./", ""), entry(link, "./d", "OUTSIDE"), entry(file, "./d/f", "")}, true, false},
		"a link up, then through it":   {[]tar.Header{entry(dir, "./", ""), entry(link, "./d", "../../outside"), entry(file, "./d/f", "")}, true, false},
		"two links":                    {[]tar.Header{entry(dir, "./", ""), entry(link, "./a", "b"), entry(link, "./b", "OUTSIDE"), entry(file, "./a/f", "")}, true, false},
		"a link, then a directory":     {[]tar.Header{entry(dir, "./", ""), entry(link, "./d", "OUTSIDE"), entry(dir, "./d/", ""), entry(file, "./d/f", "")}, true, false},
		"a link, then a file over it":  {[]tar.Header{entry(dir, "./", ""), entry(link, "./d", "OUTSIDE/f"), entry(file, "./d", "")}, true, false},
		"a link first":                 {[]tar.Header{entry(link, "./x", "OUTSIDE/f"), entry(file, "./x", "")}, true, false},
		"a link inside, through it":    {[]tar.Header{entry(dir, "./", ""), entry(dir, "./a/", ""), entry(link, "./b", "a"), entry(file, "./b/f", "")}, false, false},
		"a hard link out":              {[]tar.Header{entry(dir, "./", ""), entry(hard, "./h", "OUTSIDE/f"), entry(file, "./h", "")}, true, true},
		"a hard link out, first":       {[]tar.Header{entry(hard, "./h", "OUTSIDE/f")}, true, false},
		"a link that stays a link":     {[]tar.Header{entry(dir, "./", ""), entry(link, "./d", "OUTSIDE/f")}, true, true},
		"a directory twice":            {[]tar.Header{entry(dir, "./", ""), entry(dir, "./", "")}, false, false},
		"a file as a directory":        {[]tar.Header{entry(dir, "./", ""), entry(file, "./f", ""), entry(file, "./f/g", "")}, false, false},
		"no directory above":           {[]tar.Header{entry(dir, "./", ""), entry(file, "./a/b/c", "")}, false, false},
		"a file below a file":          {[]tar.Header{entry(file, "./f", ""), entry(file, "./f/../../outside/f", "")}, false, false},
		"a device":                     {[]tar.Header{entry(dir, "./", ""), entry(tar.TypeBlock, "./b", ""), entry(tar.TypeChar, "./c", "")}, false, true},
		"a device, first":              {[]tar.Header{entry(tar.TypeChar, "./c", "")}, false, false},
		"a pipe":                       {[]tar.Header{entry(dir, "./", ""), entry(tar.TypeFifo, "./p", ""), entry(file, "./p", "")}, false, true},
		"set-user-ID":                  {[]tar.Header{entry(dir, "./", ""), entry(file, "./s", ""), entry(dir, "./sd/", "")}, false, true},
		"a name with a newline":        {[]tar.Header{entry(dir, "./", ""), entry(file, "./a\nb", "")}, false, true},
		"a name that clears terminals": {[]tar.Header{entry(dir, "./", ""), entry(file, "./\x1b[2J", "")}, false, true},
		"a name that is too long":      {[]tar.Header{entry(dir, "./", ""), entry(file, "./"+strings.Repeat("n", 300), "")}, false, false},
		"a path that is too long":      {deep(40, strings.Repeat("n", 200)), false, true},
		"a tree that is too deep":      {deep(tree.Deepest+1, "d"), false, false},
		"a link that is too long":      {[]tar.Header{entry(dir, "./", ""), entry(link, "./l", strings.Repeat("l", 5000))}, false, false},
		"an empty link":                {[]tar.Header{entry(dir, "./", ""), entry(link, "./l", "")}, false, false},
		"nothing":                      {nil, false, false},
		"only its end":                 {[]tar.Header{entry(file, "end", "")}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGround(t)
			for i := range c.entries {
				e := &c.entries[i]
				e.Name, e.Linkname = strings.ReplaceAll(e.Name, "OUTSIDE", g.outside), strings.ReplaceAll(e.Linkname, "OUTSIDE", g.outside)
			}
			archive := archiveOf(t, c.entries...)
			for _, local := range []string{"have", "new"} {
				g.write(t, "have/kept")
				var warned []string
				o := Copy{Local: filepath.Join(g.project, local), Remote: "/srv/x", Untrusted: g.untrusted(), Warn: func(s string) { warned = append(warned, s) }}
				err := receive(o, bytes.NewReader(archive))
				if (err == nil) != c.taken {
					t.Error(local, err)
				}
				if err != nil && strings.Contains(err.Error(), ".devvm-cp-") {
					t.Error("names a place that is gone:", err)
				}
				if left := g.left(t); g.sum(t) != g.before || left != nil {
					t.Fatal("outside is another, or left behind:", left)
				}
			}
			if b, err := os.ReadFile(filepath.Join(g.project, "have/kept")); err != nil || string(b) != "the project's" {
				t.Errorf("%q, %v", b, err)
			}
			err := filepath.WalkDir(g.project, func(path string, d fs.DirEntry, err error) error {
				if err != nil {
					return short(err)
				}
				info, err := d.Info()
				if err == nil && (info.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 || d.Type()&^(fs.ModeDir|fs.ModeSymlink) != 0) {
					t.Error(path, info.Mode())
				}
				return short(err)
			})
			if err != nil {
				t.Error(err)
			}
			at := filepath.Join(g.project, "naive")
			if err := os.Mkdir(at, 0o755); err != nil {
				t.Fatal(err)
			}
			naiveUnpack(at, archive)
			if hit := g.hit(t) || linked(t, g); hit != c.naive {
				t.Error("control: a program that trusts the archive is hit:", hit)
			}
		})
	}
}

// linked reports whether a file outside has got another name, or another mode through a link.
func linked(t *testing.T, g *ground) bool {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(g.outside, "f"), &st); err != nil {
		t.Fatal(err)
	}
	return st.Nlink > 1
}

// deep returns n directories inside one another.
func deep(n int, name string) []tar.Header {
	entries := []tar.Header{entry(tar.TypeDir, "./", "")}
	path := "."
	for range n {
		path += "/" + name
		entries = append(entries, entry(tar.TypeDir, path+"/", ""))
	}
	return entries
}

// TestCopyHostileSizes: sizes that an archive claims but does not send cost nothing.
func TestCopyHostileSizes(t *testing.T) {
	g := newGround(t)
	o := Copy{Local: filepath.Join(g.project, "new"), Remote: "/srv/x", Untrusted: g.untrusted()}
	// A file of an exabyte that ends after a few bytes.
	var b bytes.Buffer
	h := entry(tar.TypeReg, "./f", "")
	h.Size = math.MaxInt64 >> 3
	if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	b.WriteString(payload)
	if err := receive(o, &b); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if testing.Short() {
		return
	}
	// Endless directories with long names.
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		tw := tar.NewWriter(w)
		err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755})
		path := "."
		for i := 0; err == nil; i++ {
			if i < 100 { // all others are below a path of 20 KB
				path += "/" + strings.Repeat("n", 200)
				err = tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: path, Mode: 0o755})
				continue
			}
			err = tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("%s/%d", path, i), Mode: 0o755})
		}
		ended <- err
	}()
	err := receive(o, r)
	_ = r.CloseWithError(io.ErrClosedPipe)
	<-ended
	if err == nil || !strings.Contains(err.Error(), "too many directories") {
		t.Error(err)
	}
	if left, err := os.ReadDir(g.project); len(left) > 0 || err != nil {
		t.Error(left, err)
	}
}

// TestCopyLinkAtDestination repeats an attack: the VM makes links where the user is about to
// copy to, or from.
func TestCopyLinkAtDestination(t *testing.T) {
	file := archiveOf(t, entry(tar.TypeReg, "./f", ""))
	directory := archiveOf(t, entry(tar.TypeDir, "./", ""), entry(tar.TypeReg, "./f", ""), entry(tar.TypeDir, "./.ssh/", ""), entry(tar.TypeReg, "./.ssh/authorized_keys", ""))
	link := archiveOf(t, entry(tar.TypeSymlink, "./f", "elsewhere"))
	for _, c := range []struct {
		link, target  string // made by the VM
		archive       []byte
		remote, local string
		replaced      bool // the link itself is replaced, and nothing is followed
	}{
		{"f", "../outside/f", file, "/root/f", "f", false},
		{"f", "../outside/f", file, "/root/f", ".", false},
		{"f", "../outside/new", file, "/root/f", ".", false},
		{"f", "../outside/new", file, "/root/f", "f", false},
		{"data", "..", file, "/root/f", "data", false},
		{"data", "../outside", file, "/root/f", "data/", false},
		{"data", "../outside", file, "/root/f", "data/f", false},
		{"data", "../outside", file, "/root/f", "data/sub/f", false},
		{"data", "../outside", directory, "/srv/.", "data", false},
		{"data", "../outside", directory, "/srv/.", "data/.", false},
		{"data", "../outside", directory, "/srv/data", ".", false},
		{"data", "../outside", directory, "/srv/x", "data", false},
		{"have/.ssh", "../../outside/.ssh", directory, "/srv/.", "have", false},
		{"have/f", "../../outside/f", directory, "/srv/.", "have", true},
		{"f", "../outside/f", link, "/root/f", "f", true},
		{"f", "../outside", link, "/root/f", ".", true},
	} {
		for _, untrusted := range []bool{true, false} {
			g := newGround(t)
			g.write(t, "have/kept", "x/y")
			if err := os.Symlink(c.target, filepath.Join(g.project, c.link)); err != nil {
				t.Fatal(err)
			}
			o := Copy{Local: g.project + "/" + c.local, Remote: c.remote}
			if untrusted {
				o.Untrusted = g.untrusted()
			}
			err := receive(o, bytes.NewReader(c.archive))
			if !untrusted { // the control: a link that the user made is followed, as cp does
				if !c.replaced && !strings.HasPrefix(c.link, "have/") && c.target != ".." && c.target != "../outside/new" && !g.hit(t) {
					t.Errorf("control: %+v: %v", c, err)
				}
				continue
			}
			if (err == nil) != c.replaced {
				t.Errorf("%s -> %s, vm:%s to %s: %v", c.link, c.target, c.remote, c.local, err)
			}
			if _, ok := errors.AsType[*tree.LinkError](err); !ok && !c.replaced && c.link[0] != 'h' {
				t.Errorf("%s -> %s, vm:%s to %s: %v", c.link, c.target, c.remote, c.local, err)
			}
			if left := g.left(t); g.hit(t) || left != nil {
				t.Errorf("%s -> %s, vm:%s to %s: hit, or left %q", c.link, c.target, c.remote, c.local, left)
			}
		}
	}
	// The other direction.
	for _, source := range []string{"data/f", "data/.", "data/", "data/sub", "data"} {
		for _, follow := range []bool{false, true} {
			g := newGround(t)
			if err := os.Symlink("../outside", filepath.Join(g.project, "data")); err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			o := Copy{Local: filepath.Join(g.project) + "/" + source, Follow: follow, Untrusted: g.untrusted()}
			err := send(o, &b)
			if asLink := source == "data" && !follow; (err == nil) != asLink || strings.Contains(b.String(), secret) {
				t.Errorf("%s, follow %v: %v", source, follow, err)
			}
			o.Untrusted = tree.Untrusted{}
			if err := send(o, &b); err != nil || strings.Contains(b.String(), secret) != (source != "data" || follow) {
				t.Errorf("control: %s, follow %v: %v", source, follow, err)
			}
		}
	}
}

// pathMerge moves a directory's contents to another by paths, as a first version of this
// package did: the control.
func pathMerge(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		source, target := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		if have, err := os.Lstat(target); err == nil && e.IsDir() && have.IsDir() {
			err = pathMerge(source, target)
			if err != nil {
				return err
			}
		} else if err := os.Rename(source, target); err != nil {
			return err
		}
	}
	return nil
}

// pathReceive unpacks and moves by paths.
func pathReceive(to string, archive io.Reader) error {
	tmp, err := os.MkdirTemp(to, ".devvm-cp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return pathMerge(filepath.Join(tmp, "x"), to)
		}
		if err != nil {
			return err
		}
		path := filepath.Join(tmp, "x", h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.Mkdir(path, 0o700)
		} else {
			err = os.WriteFile(path, []byte(payload), 0o600)
		}
		if err != nil {
			return err
		}
	}
}

// pathSend packs by paths.
func pathSend(source string, w io.Writer) error {
	tw := tar.NewWriter(w)
	return filepath.WalkDir(source, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(name)
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(b)), Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err = tw.Write(b)
		return err
	})
}

// swap atomically replaces a file with a link.
func swap(t testing.TB, path, target string) {
	t.Helper()
	link := filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.Symlink(target, link), exchange(link, path)); err != nil {
		t.Error(err)
	}
}

func exchange(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

// at calls f before it reads past a position in a stream.
type at struct {
	io.Reader
	left int
	f    func()
}

func (r *at) Read(b []byte) (int, error) {
	if r.left == 0 && r.f != nil {
		r.f()
		r.f = nil
	}
	if r.f != nil {
		b = b[:min(len(b), r.left)]
	}
	n, err := r.Reader.Read(b)
	r.left -= n
	return n, err
}

// TestCopySwapComingIn swaps directories for links at known positions of an incoming archive.
func TestCopySwapComingIn(t *testing.T) {
	archive := archiveOf(t, entry(tar.TypeDir, "./", ""), entry(tar.TypeReg, "./f", ""), entry(tar.TypeDir, "./sub/", ""), entry(tar.TypeReg, "./sub/mine", ""), entry(tar.TypeReg, "./z", ""))
	end := len(archive) - 2*512 // the end marker
	beforeFile := bytes.Index(archive, []byte("./sub/mine")) / 512 * 512
	for name, c := range map[string]struct {
		place int
		what  func(g *ground, staging string) string // swapped
		into  string                                 // for a link to this
		naive bool                                   // code that uses paths is hit
	}{
		"a directory of the staging tree, before its file": {beforeFile, func(_ *ground, s string) string { return s + "/x/sub" }, "sub", true},
		"the staging tree, before a file":                  {beforeFile, func(_ *ground, s string) string { return s + "/x" }, ".", true},
		"the staging tree, at the end":                     {end, func(_ *ground, s string) string { return s + "/x" }, ".", true},
		"the staging directory, before a file":             {beforeFile, func(_ *ground, s string) string { return s }, ".", true},
		"the staging directory, at the end":                {end, func(_ *ground, s string) string { return s }, ".", true},
		// At a known position, none of these attacks works even on paths: the path is checked
		// after that. Only the race below gets between the check and the use.
		"a directory of the staging tree, at the end": {end, func(_ *ground, s string) string { return s + "/x/sub" }, "sub", false},
		"a directory of the destination, at the end":  {end, func(g *ground, _ string) string { return g.project + "/have/sub" }, "sub", false},
		"the destination, before a file":              {beforeFile, func(g *ground, _ string) string { return g.project + "/have" }, ".", false},
		"the destination, at the end":                 {end, func(g *ground, _ string) string { return g.project + "/have" }, ".", false},
		"a file of the destination, at the end":       {end, func(g *ground, _ string) string { return g.project + "/have/f" }, "f", false},
	} {
		t.Run(name, func(t *testing.T) {
			run := func(receive func(g *ground, to string, r io.Reader) error) *ground {
				g := newGround(t)
				g.write(t, "have/f", "have/sub/f")
				to := g.project + "/have"
				r := &at{bytes.NewReader(archive), c.place, func() {
					staging, err := filepath.Glob(to + "/.devvm-cp-*")
					if err != nil || len(staging) != 1 {
						t.Fatal(staging, err)
					}
					swap(t, c.what(g, staging[0]), filepath.Join(g.outside, c.into))
				}}
				err := receive(g, to, r)
				if r.f != nil {
					t.Error("nothing was swapped", err)
				}
				return g
			}
			g := run(func(g *ground, to string, r io.Reader) error {
				return receive(Copy{Local: to, Remote: "/srv/.", Untrusted: g.untrusted()}, r)
			})
			if g.hit(t) {
				t.Error("hit")
			}
			g = run(func(_ *ground, to string, r io.Reader) error { return pathReceive(to, r) })
			if hit := g.hit(t); hit != c.naive {
				t.Error("control: paths are hit:", hit)
			}
		})
	}
}

// swapper calls f once the archive, which it collects, contains text.
type swapper struct {
	bytes.Buffer
	text string
	f    func()
}

func (w *swapper) Write(b []byte) (int, error) {
	n, err := w.Buffer.Write(b)
	if w.f != nil && bytes.Contains(w.Bytes(), []byte(w.text)) {
		w.f()
		w.f = nil
	}
	return n, err
}

// TestCopySwapGoingOut swaps directories for links at known points of the walk.
func TestCopySwapGoingOut(t *testing.T) {
	for name, c := range map[string]struct{ seen, what, into string }{
		"the next directory":           {"/a", "src/sub", "sub"},
		"the directory itself":         {"/one", "src/sub", "sub"},
		"the one above":                {"/one", "src", "."},
		"the next file":                {"/one", "src/sub/two", "f"},
		"the source, at the beginning": {"/a", "src", "."},
	} {
		t.Run(name, func(t *testing.T) {
			run := func(send func(g *ground, w io.Writer) error) string {
				g := newGround(t)
				g.write(t, "src/a", "src/sub/one", "src/sub/two")
				w := &swapper{text: c.seen}
				w.f = func() { swap(t, filepath.Join(g.project, c.what), filepath.Join(g.outside, c.into)) }
				_ = send(g, w)
				if w.f != nil {
					t.Error("nothing was swapped")
				}
				if g.sum(t) != g.before {
					t.Error("outside is another")
				}
				return w.String()
			}
			out := run(func(g *ground, w io.Writer) error {
				return send(Copy{Local: g.project + "/src", Untrusted: g.untrusted()}, w)
			})
			if strings.Contains(out, secret) || !strings.Contains(out, "the project's") {
				t.Error("the archive has what the link leads to, or nothing")
			}
			out = run(func(g *ground, w io.Writer) error { return pathSend(g.project+"/src", w) })
			// An entry that was a file when the directory was listed is checked again, and is a
			// link by then. Only the race below gets between the two checks.
			if hit := strings.Contains(out, secret); hit == (name == "the next file") {
				t.Error("control: paths are hit:", hit)
			}
		})
	}
}

// TestCopyPipeDoesNotBlock: a file that becomes a pipe does not block the copy.
func TestCopyPipeDoesNotBlock(t *testing.T) {
	g := newGround(t)
	g.write(t, "src/a", "src/b")
	w := &swapper{text: "x/a", f: func() {
		b := filepath.Join(g.project, "src/b")
		if err := errors.Join(os.Remove(b), unix.Mkfifo(b, 0o600)); err != nil {
			t.Error(err)
		}
	}}
	var warned []string
	o := Copy{Local: g.project + "/src", Untrusted: g.untrusted(), Warn: func(s string) { warned = append(warned, s) }}
	if err := send(o, w); err != nil || len(warned) != 1 {
		t.Error(err, warned)
	}
}

// swapVariable makes the test program swap names in the project's directory that it names.
const swapVariable = "GUEST_TEST_SWAP"

// swapForever plays the VM in TestCopyRace, in its own process. It replaces directories and
// files with links and back again, as fast as it can, until its standard input ends.
func swapForever(project string) int {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	evil := func(name string) string { return filepath.Join(project, "evil", name) }
	targets := map[string]string{}
	links, _ := os.ReadDir(evil("."))
	for _, l := range links {
		targets[l.Name()], _ = os.Readlink(evil(l.Name()))
	}
	fmt.Fprintln(os.Stdout, "ready")
	for {
		select {
		case <-ended:
			return 0
		default:
		}
		staging, _ := filepath.Glob(project + "/have/.devvm-cp-*")
		names := []string{"have/sub", "have/one", "src/sub", "src/one", "src/sub/two", "src", "have"}
		for _, s := range staging {
			s, _ = filepath.Rel(project, s)
			names = append(names, s+"/x/sub", s+"/x", s)
		}
		for _, name := range names {
			path, link := filepath.Join(project, name), evil("sub")
			if !strings.Contains(name, ".devvm-cp-") {
				link = evil(filepath.Base(name))
			}
			if exchange(path, link) == nil {
				for range rand.IntN(100) {
					_ = unix.Getppid() // leave the link there about as long as the original
				}
				if exchange(path, link) != nil { // the copy has used it up: make a new link
					_ = errors.Join(os.RemoveAll(link), os.Symlink(targets[filepath.Base(link)], link))
				}
			}
		}
	}
}

// race makes a project whose names a second process swaps.
func race(t *testing.T) *ground {
	t.Helper()
	g := newGround(t)
	g.write(t, "have/one", "have/sub/one", "src/one", "src/sub/one", "src/sub/two", "src/sub/deep/one", "evil/not")
	for name, to := range map[string]string{"sub": "sub", "one": "one", "two": "two", "src": ".", "have": "."} {
		if err := os.Symlink(filepath.Join(g.outside, to), filepath.Join(g.project, "evil", name)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), swapVariable+"="+g.project)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	})
	return g
}

// TestCopyRace copies in both directions while another process swaps names all over the source,
// the destination and the staging directory. The same copy by paths is the control.
func TestCopyRace(t *testing.T) {
	const longest = 30 * time.Second
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
	var entries []tar.Header
	for _, d := range []string{"./", "./sub/"} {
		entries = append(entries, entry(tar.TypeDir, d, ""))
		for _, f := range []string{"f", "one", "two", "a", "b", "c", "d", "e"} {
			entries = append(entries, entry(tar.TypeReg, d+f, ""))
		}
	}
	archive, file := archiveOf(t, entries...), archiveOf(t, entry(tar.TypeReg, "./one", ""))
	for name, c := range map[string]struct {
		try  func(g *ground) (string, error)
		path func(g *ground) (string, error)
	}{
		"coming in": {
			func(g *ground) (string, error) {
				return "", receive(Copy{Local: g.project + "/have", Remote: "/srv/.", Untrusted: g.untrusted()}, bytes.NewReader(archive))
			},
			func(g *ground) (string, error) { return "", pathReceive(g.project+"/have", bytes.NewReader(archive)) },
		},
		"one file": {
			func(g *ground) (string, error) {
				return "", receive(Copy{Local: g.project + "/have/one", Remote: "/srv/one", Untrusted: g.untrusted()}, bytes.NewReader(file))
			},
			func(g *ground) (string, error) {
				return "", os.WriteFile(g.project+"/have/one", []byte(payload), 0o600)
			},
		},
		"going out": {
			func(g *ground) (string, error) {
				var b bytes.Buffer
				err := send(Copy{Local: g.project + "/src", Untrusted: g.untrusted()}, &b)
				return b.String(), err
			},
			func(g *ground) (string, error) {
				var b bytes.Buffer
				err := pathSend(g.project+"/src", &b)
				return b.String(), err
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := race(t)
			disturbed, begin := 0, time.Now()
			n := 0
			// A busy machine may not run the other process during these rounds, or not stop it.
			// The test needs at least one round with a race and one without.
			for ; (n < rounds || disturbed == 0 || disturbed == n) && time.Since(begin) < longest; n++ {
				out, err := c.try(g)
				if err != nil || strings.Contains(out, g.outside) { // a link is copied as a link
					disturbed++
				}
				if strings.Contains(out, secret) {
					t.Fatalf("round %d: the archive has the secret", n)
				}
				left, _ := filepath.Glob(g.project + "/have/.devvm-cp-*")
				for _, l := range left { // its name had been swapped when the copy removed it
					_ = os.RemoveAll(l)
				}
				if g.sum(t) != g.before {
					t.Fatalf("round %d: outside is another", n)
				}
			}
			t.Logf("%d rounds in %v, %d of them disturbed", n, time.Since(begin).Round(time.Millisecond), disturbed)
			if disturbed == 0 || disturbed == n {
				t.Errorf("%d of %d rounds were disturbed", disturbed, n)
			}
			g = race(t)
			for begin := time.Now(); time.Since(begin) < 30*time.Second; {
				out, _ := c.path(g)
				if strings.Contains(out, secret) || g.sum(t) != g.before {
					t.Logf("control: hit after %v", time.Since(begin).Round(time.Millisecond))
					return
				}
			}
			t.Error("control: paths are not hit either")
		})
	}
}
