package tree_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/tree"
)

// plant makes directories and files ("x/"), and links ("a -> b").
func plant(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := dir + "/" + name
		var err error
		switch link, target, ok := strings.Cut(path, " -> "); {
		case ok:
			err = os.Symlink(target, link)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		default:
			err = os.WriteFile(path, []byte(name), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// open opens a directory for the test.
func open(t *testing.T, path string) *tree.Dir {
	t.Helper()
	at, err := tree.Untrusted{}.Find(path, true)
	if err != nil || at.Dir == nil {
		t.Fatal(err)
	}
	t.Cleanup(at.Close)
	return at.Dir
}

func TestFind(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	plant(t, top, "home/", "home/work -> ../data/work", "home/abs -> "+top+"/data", "home/to-file -> ../data/file", "home/dangling -> none", "home/self -> self",
		"home/into -> ../data/work/p/sub", "home/past -> ../data/work/p/evil/x", "data/", "data/work/", "data/work/p/", "data/work/p/sub/", "data/file", "data/work/p/file", "data/work/p/sub/file",
		"data/work/p/evil -> ../..", "data/work/p/evil-file -> ../../file", "data/work/p/evil-abs -> "+top+"/data", "data/work/p/inner -> sub")
	t.Chdir(filepath.Join(top, "home"))
	const (
		missing = "missing"
		refused = "refused"
		failed  = "failed"
		link    = "link"
	)
	for _, c := range []struct {
		path   string
		follow bool
		want   string // a path below top, or one of the errors above
	}{
		{"/", false, "/"},
		{".", false, "home"},
		{"./", false, "home"},
		{"", true, failed},
		{"work", false, link},
		{"work", true, "data/work"},
		{"work/", false, "data/work"},
		{"work/.", false, "data/work"},
		{"work//p/./sub", false, "data/work/p/sub"},
		{"work/..", false, "data"},
		{"work/../file", false, "data/file"},
		{"abs/file", false, "data/file"},
		{"to-file", true, "data/file"},
		{"to-file", false, link},
		{"dangling", true, missing},
		{"dangling", false, link},
		{"dangling/x", true, failed},
		{"none", false, missing},
		{"none/", false, missing},
		{"none/x", false, failed},
		{"self", true, failed},
		{"self", false, link},
		{"to-file/x", true, failed},
		{"../../../../../../../../../../../../../../" + top + "/data", false, "data"},
		// From here on, the path leads into a directory that a VM can write to.
		{"work/p", false, "data/work/p"},
		{"work/p/file", true, "data/work/p/file"},
		{"work/p/new", true, missing},
		{"work/p/evil", false, link},
		{"work/p/evil", true, refused},
		{"work/p/evil/", false, refused},
		{"work/p/evil/.", false, refused},
		{"work/p/evil/file", false, refused},
		{"work/p/evil-file", true, refused},
		{"work/p/evil-abs/file", true, refused},
		{"work/p/inner", true, refused},
		{"work/p/inner/file", true, refused},
		{"work/p/sub/../evil/file", true, refused},
		{"work/p/sub/..", true, "data/work/p"},
		{"work/p/sub/../../../file", true, "data/file"},
		{"work/p/../../file", true, "data/file"},
		{"into/file", true, "data/work/p/sub/file"},
		{"into/../evil-file", true, refused},
		{"past", true, refused},
		{top + "/data/work/p/evil/file", true, refused},
	} {
		u := tree.NewUntrusted(filepath.Join(top, "data/work/p"), filepath.Join(top, "gone"))
		at, err := u.Find(c.path, c.follow)
		got := failed
		switch _, is := errors.AsType[*tree.LinkError](err); {
		case is:
			got = refused
		case err != nil:
		case !at.Exists:
			got = missing
		case at.Info.IsLink():
			got = link
		default:
			want := filepath.Join(top, c.want)
			if c.want == "/" {
				want = "/"
			}
			got = "elsewhere"
			st, serr := os.Stat(want)
			if serr != nil {
				break
			}
			info := at.Info
			if at.Dir != nil {
				info, serr = at.Dir.Self()
			}
			if serr == nil && info.IsDir() == st.IsDir() && info.Time.Equal(st.ModTime()) {
				got = c.want
			}
		}
		if got != c.want {
			t.Errorf("%q, follow %v: %s (%v), want %s", c.path, c.follow, got, err, c.want)
		}
		if err == nil {
			at.Close()
		}
		// The control: with no untrusted directory, nothing is refused.
		at, err = tree.Untrusted{}.Find(c.path, c.follow)
		if got == refused && err != nil && c.path != "past" {
			t.Errorf("control: %q: %v", c.path, err)
		}
		if err == nil {
			at.Close()
		}
	}
}

// TestFindByAnotherPath: an untrusted directory is recognized by any path, and one that cannot
// be examined at least by its own.
func TestFindByAnotherPath(t *testing.T) {
	top := t.TempDir()
	plant(t, top, "p/", "p/evil -> ..", "way -> p")
	for _, root := range []string{"p", "way", "."} {
		u := tree.NewUntrusted(filepath.Join(top, root))
		for _, path := range []string{"p/evil/x", "way/evil/x"} {
			_, err := u.Find(filepath.Join(top, path), true)
			if e, ok := errors.AsType[*tree.LinkError](err); !ok || e.Target == "" || e.Dir != filepath.Join(top, root) {
				t.Errorf("%s, %s: %v", root, path, err)
			}
		}
	}
}

// TestNoNameIsFollowed: no operation on a directory follows a link in it, and a name is a
// single component.
func TestNoNameIsFollowed(t *testing.T) {
	top := t.TempDir()
	plant(t, top, "d/", "d/sub/", "d/file", "out/", "out/file", "out/sub/", "d/l -> ../out", "d/lf -> ../out/file", "d/new -> ../out/new", "d/in -> sub")
	d, other := open(t, top+"/d"), open(t, top+"/out")
	for name, f := range map[string]func(name string) error{
		"Dir":    func(name string) error { _, err := d.Dir(name); return err },
		"Open":   func(name string) error { _, _, err := d.Open(name); return err },
		"Create": func(name string) error { _, err := d.Create(name); return err },
		"Mkdir":  d.Mkdir,
		"Symlink": func(name string) error {
			return d.Symlink("x", name)
		},
		"Rmdir": d.Rmdir,
	} {
		for _, n := range []string{"l", "lf", "new", "in", "l/file", "../out", "..", ".", "", "/", top + "/out", "sub/..", "a\x00b"} {
			if err := f(n); err == nil {
				t.Errorf("%s(%q): no error", name, n)
			}
		}
	}
	for _, n := range []string{"l", "lf"} {
		if info, err := d.Stat(n); err != nil || !info.IsLink() {
			t.Error(n, info, err)
		}
	}
	if err := d.Move("l", other, "moved"); err != nil {
		t.Error(err)
	}
	if target, err := other.Readlink("moved"); err != nil || target != "../out" {
		t.Error(target, err)
	}
	if err := other.Move("file", d, "lf"); err != nil { // replaces the link
		t.Error(err)
	}
	if b, err := os.ReadFile(top + "/d/lf"); err != nil || string(b) != "out/file" {
		t.Errorf("%q, %v", b, err)
	}
	for _, n := range []string{"..", "../d/x", "", "sub/x"} {
		if err := d.Move("file", other, n); err == nil {
			t.Error("moved to", n)
		}
	}
	if list, err := os.ReadDir(top + "/out"); err != nil || len(list) != 2 {
		t.Error(list, err)
	}
}

// TestHeld: an open directory stays the same when its name is given to something else.
func TestHeld(t *testing.T) {
	top := t.TempDir()
	plant(t, top, "d/", "d/sub/", "out/")
	d := open(t, top+"/d")
	if err := errors.Join(os.Rename(top+"/d", top+"/aside"), os.Symlink("out", top+"/d")); err != nil {
		t.Fatal(err)
	}
	then := time.Unix(1e9, 5)
	f, err := d.Create("f")
	if err == nil {
		err = errors.Join(tree.Chtimes(f, then), f.Close())
	}
	if err := errors.Join(err, d.Mkdir("m"), d.Chtimes(then), d.Chmod(0o750)); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(top + "/aside")
	if err != nil || info.Mode().Perm() != 0o750 || !info.ModTime().Equal(then) {
		t.Error(info.Mode(), info.ModTime(), err)
	}
	if info, err = os.Stat(top + "/aside/f"); err != nil || !info.ModTime().Equal(then) || info.Mode() != 0o600 {
		t.Error(info, err)
	}
	if list, err := os.ReadDir(top + "/out"); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
	if err := d.Empty(); err != nil {
		t.Error(err)
	}
	if names, err := d.Names(); err != nil || len(names) != 0 {
		t.Error(names, err)
	}
}

// TestOpenIsForFiles: a pipe neither blocks nor is read, and a missing file is reported.
func TestOpenIsForFiles(t *testing.T) {
	top := t.TempDir()
	if err := unix.Mkfifo(top+"/pipe", 0o600); err != nil {
		t.Fatal(err)
	}
	plant(t, top, "dir/", "file")
	d := open(t, top)
	for _, name := range []string{"pipe", "dir"} {
		if _, _, err := d.Open(name); !errors.Is(err, tree.ErrChanged) {
			t.Error(name, err)
		}
	}
	if info, err := d.Stat("pipe"); err != nil || info.IsRegular() || info.IsDir() || info.IsLink() {
		t.Error(info, err)
	}
	f, info, err := d.Open("file")
	if err != nil || info.Size != 4 || f.Close() != nil {
		t.Error(info, err)
	}
	if _, err := d.Stat("none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestRemoveAll(t *testing.T) {
	top := t.TempDir()
	plant(t, top, "d/", "d/a/", "d/a/b/", "d/a/b/f", "d/a/l -> ../../out", "d/l -> ../out", "out/", "out/f", "d/closed/")
	if err := os.Chmod(top+"/d/closed", 0); err != nil {
		t.Fatal(err)
	}
	for i := range 3000 { // more than one read returns
		if err := os.WriteFile(filepath.Join(top, "d/a/b", strings.Repeat("n", 1+i%200)+string(rune('A'+i/200))), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := open(t, top)
	for range 2 {
		if err := d.RemoveAll("d"); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := d.Names(); err != nil || len(names) != 1 {
		t.Error(names, err)
	}
	if _, err := os.Stat(top + "/out/f"); err != nil {
		t.Error(err)
	}
}

// TestDeepest: a tree cannot use up all descriptors of this process.
func TestDeepest(t *testing.T) {
	d := open(t, t.TempDir())
	c := tree.NewCursor(d)
	defer c.Close()
	path := "."
	for n := 0; ; n++ {
		at, err := c.To(path)
		if err != nil {
			if n != tree.Deepest+1 || !strings.Contains(err.Error(), "directories deep") {
				t.Error(n, err)
			}
			break
		}
		if err := at.Mkdir("d"); err != nil {
			t.Fatal(err)
		}
		path = strings.TrimPrefix(path+"/d", "./")
	}
	if err := d.RemoveAll("d"); err != nil {
		t.Error(err)
	}
}

func TestCursor(t *testing.T) {
	top := t.TempDir()
	plant(t, top, "a/", "a/b/", "a/c/", "ab/", "a/l -> b")
	d := open(t, top)
	c := tree.NewCursor(d)
	defer c.Close()
	for _, rel := range []string{"a/b", "a/c", ".", "ab", "a", "a/b"} {
		at, err := c.To(rel)
		if err != nil || at.Path() != filepath.Join(top, rel) {
			t.Errorf("%s: %v", rel, err)
		}
	}
	for _, rel := range []string{"a/l", "a/none", "..", "a/../a", "", "/"} {
		if _, err := c.To(rel); err == nil {
			t.Error(rel)
		}
	}
	if _, err := c.To("a/b"); err != nil {
		t.Error(err)
	}
}
