package guest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/guest/guesttest"
)

// tree describes the files below dir: mode, time, and content or target.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		text := info.Mode().String() + " " + info.ModTime().UTC().Format(time.RFC3339Nano)
		switch info.Mode().Type() {
		case 0:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += " " + string(data)
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text = "-> " + target
		}
		got[rel] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// plant makes sources and destinations of all kinds.
func plant(t *testing.T, dir string) {
	t.Helper()
	then := time.Unix(1e9, 123456789)
	for name, content := range map[string]string{
		"file": "A", "run.sh": "#!/bin/sh\n", "-odd name'\n\xff": "odd",
		"tree/a": "tree a", "tree/empty": "", "tree/b c/d'e/ü": "deep", "tree/big": strings.Repeat("0123456789", 20000),
		"have/file": "old", "have/tree/a": "old a", "have/tree/kept": "kept", "have/target": "old target", "have/as-dir/x": "x", "plain": "plain",
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Chmod(filepath.Join(dir, "run.sh"), 0o755),
		os.Chmod(filepath.Join(dir, "tree", "a"), 0o400),
		os.Chmod(filepath.Join(dir, "tree", "b c", "d'e"), 0o750),
		os.Symlink("tree", filepath.Join(dir, "link")),
		os.Symlink("a", filepath.Join(dir, "tree", "to-a")),
		os.Symlink("/nowhere", filepath.Join(dir, "tree", "dangling")),
		os.Symlink("file", filepath.Join(dir, "have", "to-file")),
		os.Symlink("tree", filepath.Join(dir, "have", "to-tree")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type() != fs.ModeSymlink {
			err = os.Chtimes(path, then, then)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestCopyAsCP compares both directions with cp.
func TestCopyAsCP(t *testing.T) {
	h := testServer(t)
	c := h.connect(t)
	home := filepath.Join(h.dir, "root") // the guest's
	for i, cs := range []struct {
		source, target string
		fails          bool
	}{
		{"file", "new", false},
		{"file", "have", false},
		{"file", "have/", false},
		{"file", "have/file", false},
		{"file", "have/to-file", false},
		{"file", "have/to-tree", false},
		{"file", "none/", true},
		{"file", "none/new", true},
		{"file", "plain/new", true},
		{"run.sh", "have/as-dir/../new", false},
		{"-odd name'\n\xff", "have", false},
		{"tree", "new", false},
		{"tree", "new/", false},
		{"tree", "have", false},
		{"tree/.", "new", false},
		{"tree/.", "have/tree", false},
		{"tree/", "have", false},
		{"tree", "plain", true},
		{"tree", "have/file", true},
		{"tree/.", "plain", true},
		{"tree", "none/new", true},
		{"link", "new", false},
		{"link", "have/file", false},
		{"tree/dangling", "new", false},
		{"file", "have/as-dir", false},
		{"none", "new", true},
	} {
		t.Run(fmt.Sprintf("%s to %s", cs.source, cs.target), func(t *testing.T) {
			oracle := t.TempDir()
			plant(t, oracle)
			cmd := exec.Command("cp", "--archive", "--no-preserve=ownership", "--", cs.source, cs.target)
			cmd.Dir = oracle
			if out, err := cmd.CombinedOutput(); (err != nil) != cs.fails {
				t.Fatalf("cp: %v: %s", err, out)
			}
			for _, to := range []bool{true, false} {
				local, remote := t.TempDir(), filepath.Join(home, fmt.Sprintf("%d%v", i, to))
				if err := os.Mkdir(remote, 0o755); err != nil {
					t.Fatal(err)
				}
				plant(t, local)
				plant(t, remote)
				rel := filepath.Base(remote) // the guest's paths are relative to its home
				var err error
				got := remote
				if to {
					err = c.CopyTo(t.Context(), guest.Copy{Local: local + "/" + cs.source, Remote: rel + "/" + cs.target})
				} else {
					got = local
					err = c.CopyFrom(t.Context(), guest.Copy{Remote: rel + "/" + cs.source, Local: local + "/" + cs.target})
				}
				if (err != nil) != cs.fails {
					t.Errorf("to the guest %v: %v", to, err)
				}
				want, have := tree(t, oracle), tree(t, got)
				for name := range want { // directories that got a new entry
					if strings.HasPrefix(want[name], "d") && !strings.HasPrefix(name, "new") && name != "have/tree/b c" && name != "have/tree/b c/d'e" {
						want[name], have[name] = want[name][:10], have[name][:min(10, len(have[name]))]
					}
				}
				if diff := cmp.Diff(want, have); diff != "" {
					t.Errorf("to the guest %v (-cp +devvm):\n%s", to, diff)
				}
			}
		})
	}
}

func TestCopy(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		c := h.connect(t)
		remote, local := filepath.Join(t.TempDir(), "x"), t.TempDir()
		plant(t, local)
		var done, total int64
		o := guest.Copy{Local: local, Remote: remote, Advance: func(d, t int64) { done, total = d, t }}
		if err := c.CopyTo(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		if done < 200000 || done != total {
			t.Error("progress", done, total)
		}
		back := filepath.Join(t.TempDir(), "back")
		o.Local = back
		if err := c.CopyFrom(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tree(t, local), tree(t, back)); diff != "" {
			t.Errorf("(-sent +came back):\n%s", diff)
		}
		// The size of a single file is known in advance.
		o.Remote, o.Local = remote+"/tree/big", filepath.Join(t.TempDir(), "big")
		if err := c.CopyFrom(t.Context(), o); err != nil || done != 200000 || total != 200000 {
			t.Error(err, done, total)
		}
		// Links are followed.
		for i, err := range []error{
			c.CopyTo(t.Context(), guest.Copy{Local: filepath.Join(local, "link"), Remote: remote + "/followed", Follow: true}),
			c.CopyFrom(t.Context(), guest.Copy{Remote: remote + "/link", Local: filepath.Join(local, "followed"), Follow: true}),
		} {
			if err != nil {
				t.Error(i, err)
			}
		}
		for _, path := range []string{remote + "/followed/a", local + "/followed/a"} {
			if b, err := os.ReadFile(path); err != nil || string(b) != "tree a" {
				t.Errorf("%s: %q, %v", path, b, err)
			}
		}

		// Streams.
		var b bytes.Buffer
		if err := c.Pack(t.Context(), guest.Copy{Remote: remote + "/tree"}, &b); err != nil {
			t.Fatal(err)
		}
		h2, err := tar.NewReader(bytes.NewReader(b.Bytes())).Next()
		if err != nil || h2.Name != "tree/" {
			t.Error(h2, err)
		}
		dir := t.TempDir()
		if err := c.Unpack(t.Context(), dir, &b); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tree(t, filepath.Join(local, "tree")), tree(t, filepath.Join(dir, "tree"))); diff != "" {
			t.Error(diff)
		}
		if err := c.Unpack(t.Context(), dir, strings.NewReader("no archive, and no multiple of 512")); err == nil || !strings.Contains(err.Error(), "tar") {
			t.Error(err)
		}
		if err := c.Unpack(t.Context(), dir+"/none", &b); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}

		// A pipe is left out.
		if err := exec.Command("mkfifo", filepath.Join(local, "tree", "pipe")).Run(); err != nil {
			t.Fatal(err)
		}
		var warned []string
		o = guest.Copy{Local: filepath.Join(local, "tree"), Remote: remote + "/pipes", Warn: func(s string) { warned = append(warned, s) }}
		if err := c.CopyTo(t.Context(), o); err != nil || len(warned) != 1 || !strings.Contains(warned[0], "pipe") {
			t.Error(err, warned)
		}
		if err := exec.Command("mkfifo", filepath.Join(remote, "tree", "pipe")).Run(); err != nil {
			t.Fatal(err)
		}
		o.Local, o.Remote = filepath.Join(t.TempDir(), "pipes"), remote+"/tree"
		if err := c.CopyFrom(t.Context(), o); err != nil || len(warned) != 2 || !strings.Contains(warned[1], "tree/pipe") {
			t.Error(err, warned)
		}
		if err := c.CopyTo(t.Context(), guest.Copy{Local: filepath.Join(local, "tree", "pipe"), Remote: remote + "/p"}); err == nil {
			t.Error("copied a pipe")
		}
		if err := c.CopyFrom(t.Context(), guest.Copy{Remote: remote + "/tree/pipe", Local: filepath.Join(local, "p")}); err == nil {
			t.Error("copied a pipe")
		}

		// Errors name the path.
		for want, err := range map[string]error{
			"vm:" + remote + "/none: no such file or directory":   c.CopyFrom(t.Context(), guest.Copy{Remote: remote + "/none", Local: back}),
			"vm:" + remote + "/none: no such directory":           c.CopyTo(t.Context(), guest.Copy{Local: local + "/file", Remote: remote + "/none/f"}),
			"lstat " + local + "/none: no such file or directory": c.CopyTo(t.Context(), guest.Copy{Local: local + "/none", Remote: remote}),
			local + "/none/: no such directory":                   c.CopyFrom(t.Context(), guest.Copy{Remote: remote + "/file", Local: local + "/none/"}),
		} {
			if !errors.Is(err, fs.ErrNotExist) || err.Error() != want {
				t.Errorf("%v, want %s", err, want)
			}
		}
		for _, root := range []string{local, remote, dir} {
			for name := range tree(t, root) {
				if strings.Contains(name, ".devvm-cp") {
					t.Error("left behind:", root, name)
				}
			}
		}
	})
}

// A copy that is cancelled leaves nothing behind and changes nothing.
func TestCopyCancelled(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		c := h.connect(t)
		for _, to := range []bool{true, false} {
			from, dir := t.TempDir(), t.TempDir()
			for _, name := range []string{from + "/tree/a", from + "/tree/b", dir + "/tree/a"} {
				if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, make([]byte, 8<<20), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(dir+"/tree/a", []byte("old"), 0o644); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			o := guest.Copy{Advance: func(done, _ int64) {
				if done > 9<<20 {
					cancel()
				}
			}}
			var err error
			if to {
				o.Local, o.Remote = from+"/tree", dir
				err = c.CopyTo(ctx, o)
			} else {
				o.Remote, o.Local = from+"/tree", dir
				err = c.CopyFrom(ctx, o)
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("to the guest %v: %v", to, err)
			}
			// The cleanup in the guest outlives the command, which was told to end.
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
				if left, _ := filepath.Glob(dir + "/tree/.devvm-cp-*"); left == nil {
					break
				}
			}
			var names []string
			for name := range tree(t, dir) {
				names = append(names, name)
			}
			if b, err := os.ReadFile(dir + "/tree/a"); len(names) != 3 || string(b) != "old" || err != nil {
				t.Errorf("to the guest %v: %q, %.10q, %v", to, names, b, err)
			}
			cancel()
		}
	})
}

// A source that shrinks during a copy is an error.
func TestCopyShrinks(t *testing.T) {
	h := testServer(t)
	c := h.connect(t)
	local, remote := t.TempDir(), t.TempDir()
	if err := errors.Join(os.WriteFile(local+"/a", make([]byte, 9<<20), 0o600), os.WriteFile(local+"/b", make([]byte, 9<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	err := c.CopyTo(t.Context(), guest.Copy{Local: local, Remote: remote + "/x", Advance: func(done, _ int64) {
		if done > 1<<20 && done < 2<<20 {
			_ = os.Truncate(local+"/a", 3<<20)
		}
	}})
	if err == nil || !strings.Contains(err.Error(), local+"/a: became shorter") {
		t.Error(err)
	}
	if left, _ := os.ReadDir(remote); len(left) > 0 {
		t.Error(left)
	}
}

// The kernel's own files do not report their real sizes: 0 in /proc, a page in /sys.
func TestCopyUnknownSize(t *testing.T) {
	h := testServer(t)
	c := h.connect(t)
	for _, source := range []string{"/proc/sys/kernel/random/boot_id", "/sys/kernel/mm/transparent_hugepage/enabled", "/proc/filesystems"} {
		want, err := os.ReadFile(source)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		dir := t.TempDir()
		err = errors.Join(err,
			c.CopyTo(t.Context(), guest.Copy{Local: source, Remote: dir + "/to"}),
			c.CopyFrom(t.Context(), guest.Copy{Remote: source, Local: dir + "/from"}))
		var b bytes.Buffer
		err = errors.Join(err, c.Pack(t.Context(), guest.Copy{Remote: source}, &b))
		if err != nil {
			t.Errorf("%s: %v", source, err)
			continue
		}
		r := tar.NewReader(&b)
		first, err := r.Next()
		if err != nil || first.Name != filepath.Base(source) {
			t.Fatal(first, err)
		}
		packed, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{"a stream": string(packed)}
		for _, name := range []string{"to", "from"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			got[name] = string(b)
		}
		for name, text := range got {
			if text != string(want) {
				t.Errorf("%s, %s: %q, not %q", source, name, text, want)
			}
		}
	}
}

// A file of the kernel that cannot be read is an error, not a warning.
func TestCopyUnreadable(t *testing.T) {
	const source = "/sys/class/net/lo/speed" // lo has none
	if _, err := os.ReadFile(source); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Skip("the loopback device has a speed here: ", err)
	}
	c := testServer(t).connect(t)
	to := filepath.Join(t.TempDir(), "to")
	for name, err := range map[string]error{
		"to":       c.CopyTo(t.Context(), guest.Copy{Local: source, Remote: to}),
		"from":     c.CopyFrom(t.Context(), guest.Copy{Remote: source, Local: to}),
		"a stream": c.Pack(t.Context(), guest.Copy{Remote: source}, io.Discard),
	} {
		if err == nil || !strings.Contains(err.Error(), source) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// Whatever the guest sends, only the destination is written.
func TestCopyFromAHostileGuest(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"a name that leads up":        {{Typeflag: tar.TypeDir, Name: "./"}, {Typeflag: tar.TypeReg, Name: "./../outside/f"}},
		"an absolute name":            {{Typeflag: tar.TypeDir, Name: "./"}, {Typeflag: tar.TypeReg, Name: "/tmp/outside/f"}},
		"a link, then through it":     {{Typeflag: tar.TypeDir, Name: "./"}, {Typeflag: tar.TypeSymlink, Name: "./d", Linkname: "OUTSIDE"}, {Typeflag: tar.TypeReg, Name: "./d/f"}},
		"a link, then a directory":    {{Typeflag: tar.TypeDir, Name: "./"}, {Typeflag: tar.TypeSymlink, Name: "./d", Linkname: "OUTSIDE"}, {Typeflag: tar.TypeDir, Name: "./d"}, {Typeflag: tar.TypeReg, Name: "./d/f"}},
		"a link, then a file over it": {{Typeflag: tar.TypeSymlink, Name: "./d", Linkname: "OUTSIDE/f"}, {Typeflag: tar.TypeReg, Name: "./d"}},
		"a directory where is a link": {{Typeflag: tar.TypeDir, Name: "./"}, {Typeflag: tar.TypeDir, Name: "./have"}, {Typeflag: tar.TypeReg, Name: "./have/f"}},
		"a hard link":                 {{Typeflag: tar.TypeLink, Name: "./d", Linkname: "OUTSIDE/f"}},
		"nothing":                     {},
	} {
		t.Run(name, func(t *testing.T) {
			outside, back, archive := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "archive")
			if err := errors.Join(os.Mkdir(back+"/x", 0o755), os.Symlink(outside, back+"/x/have")); err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			for _, e := range entries {
				e.Linkname, e.Mode = strings.ReplaceAll(e.Linkname, "OUTSIDE", outside), 0o4755
				if err := w.WriteHeader(&e); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(w.Close(), os.WriteFile(archive, b.Bytes(), 0o600)); err != nil {
				t.Fatal(err)
			}
			h := testServer(t, func(o *guesttest.Options) { o.Rewrite = func(string) string { return "cat " + archive } })
			if err := h.connect(t).CopyFrom(t.Context(), guest.Copy{Remote: "/x", Local: back}); err == nil {
				t.Error("no error")
			}
			if list, err := os.ReadDir(outside); len(list) != 0 || err != nil {
				t.Error("wrote outside", list, err)
			}
		})
	}
}

// A small archive does not become a large file.
func TestCopyFromSparse(t *testing.T) {
	from, back := t.TempDir(), t.TempDir()
	if err := exec.Command("truncate", "-s", "1T", filepath.Join(from, "f")).Run(); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"posix", "gnu"} {
		h := testServer(t, func(o *guesttest.Options) {
			o.Rewrite = func(string) string {
				return "tar --create --sparse --format=" + format + " --directory=" + from + " ./f"
			}
		})
		if err := h.connect(t).CopyFrom(t.Context(), guest.Copy{Remote: "/f", Local: back}); err == nil {
			t.Errorf("%s: no error", format)
		}
		if left, err := os.ReadDir(back); len(left) > 0 || err != nil {
			t.Error(left, err)
		}
	}
}
