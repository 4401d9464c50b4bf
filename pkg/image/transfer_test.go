package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/disk"
)

// putReal makes an image with a real, empty disk.
func putReal(t *testing.T, s *Store) Image {
	t.Helper()
	out, err := s.newScratch(t.Context(), s.dir, tempPrefix, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	defer out.remove(t.Context())
	m := Manifest{Name: "debian-13", Created: time.Unix(1e9, 0).UTC(), Arch: runtime.GOARCH, Cmdline: "quiet", DiskSize: 1 << 20, Files: map[string]File{}}
	if err := disk.Create(t.Context(), out.path("disk.qcow2"), m.DiskSize); errors.Is(err, disk.ErrNoTool) {
		t.Skip(err)
	} else if err != nil {
		t.Fatal(err)
	}
	for role, name := range fileNames {
		if role != RoleDisk {
			if err := os.WriteFile(out.path(name), []byte(role), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if m.Files[role], err = sumFile(t.Context(), out.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	img, err := out.commit(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

func TestExportImport(t *testing.T) {
	ctx := t.Context()
	from := testStore(t)
	img := putReal(t, from)
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := from.Export(ctx, "debian-13", file); err != nil {
		t.Fatal(err)
	}
	if err := from.Export(ctx, "debian-13", file); !errors.Is(err, os.ErrExist) {
		t.Errorf("Export over a file: %v", err)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(file))))
	defer server.Close()

	for name, in := range map[string]struct {
		src  string
		opts ImportOptions
	}{
		"tar":       {file, ImportOptions{}},
		"with sum":  {file, ImportOptions{SHA256: "sha256:" + strings.ToUpper(fileSum(t, file))}},
		"directory": {img.Dir, ImportOptions{}},
		"URL":       {server.URL + "/image.tar", ImportOptions{SHA256: fileSum(t, file)}},
		"renamed":   {file, ImportOptions{Name: "mine"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := testStore(t)
			var done, total int64
			in.opts.Progress = func(d, t int64) { done, total = d, t }
			got, err := s.Import(ctx, in.src, in.opts)
			if err != nil {
				t.Fatal(err)
			}
			want := img.Manifest
			want.Source = in.src
			if in.opts.Name != "" {
				want.Name = in.opts.Name
			}
			if diff := cmp.Diff(want, got.Manifest); diff != "" {
				t.Error(diff)
			}
			if name != "directory" && (done != total || done == 0) {
				t.Errorf("progress ended at %d of %d", done, total)
			}
			nothingLeft(t, s, img.Digest)
			if _, err := s.Import(ctx, in.src, in.opts); err != nil {
				t.Errorf("importing it again: %v", err)
			}
		})
	}
	if _, err := from.Import(ctx, file, ImportOptions{Name: "mine"}); !errors.Is(err, ErrExists) {
		t.Errorf("importing an image under a second name: %v", err)
	}
}

func TestImportRefuses(t *testing.T) {
	ctx := t.Context()
	img := putReal(t, testStore(t))
	manifest, err := os.ReadFile(filepath.Join(img.Dir, manifestName))
	if err != nil {
		t.Fatal(err)
	}
	content := func(path string) []byte {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	type entry struct {
		tar.Header
		data []byte
	}
	reg := func(name string, data []byte) entry {
		return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: 0o644}, data}
	}
	good := []entry{reg(manifestName, manifest), reg("kernel", content(img.Kernel())), reg("initrd", content(img.Initrd())), reg("disk.qcow2", content(img.Disk()))}
	with := func(i int, e entry) []entry {
		es := slices.Clone(good)
		es[i] = e
		return es
	}
	altered := func(f func(m *Manifest)) entry {
		m := img.Manifest
		f(&m)
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return reg(manifestName, data)
	}
	backed := func() []entry {
		dir := t.TempDir()
		path := filepath.Join(dir, "disk.qcow2")
		if err := disk.CreateOverlay(ctx, path, img.Disk(), 0); err != nil {
			t.Fatal(err)
		}
		f, err := sumFile(ctx, path)
		if err != nil {
			t.Fatal(err)
		}
		es := with(0, altered(func(m *Manifest) {
			m.Files = map[string]File{RoleDisk: f}
			m.Digest = m.digest()
		}))
		return []entry{es[0], reg("disk.qcow2", content(path))}
	}

	for name, c := range map[string]struct {
		entries []entry
		want    string
	}{
		"traversal":          {with(1, reg("../kernel", []byte("kernel"))), "does not have"},
		"absolute":           {with(1, reg("/kernel", []byte("kernel"))), "does not have"},
		"unknown file":       {append(slices.Clone(good), reg("more", nil)), "does not have"},
		"twice":              {append(slices.Clone(good), good[1]), "once only"},
		"missing":            {good[:3], "disk.qcow2 is missing"},
		"no manifest":        {good[1:], "begins with"},
		"symbolic link":      {with(1, entry{tar.Header{Typeflag: tar.TypeSymlink, Name: "kernel", Linkname: "/etc/passwd"}, nil}), "not a regular file"},
		"hard link":          {with(1, entry{tar.Header{Typeflag: tar.TypeLink, Name: "kernel", Linkname: "initrd"}, nil}), "not a regular file"},
		"other content":      {with(1, reg("kernel", []byte("kernAl"))), ErrChecksum.Error()},
		"other size":         {with(1, reg("kernel", []byte("kernel2"))), "its manifest says 6"},
		"other command line": {with(0, altered(func(m *Manifest) { m.Cmdline = "init=/bin/sh" })), ErrChecksum.Error()},
		"other architecture": {with(0, altered(func(m *Manifest) { m.Arch = "z80" })), "for z80"},
		"disk on a disk":     {backed(), "refers to other files"},
	} {
		t.Run(name, func(t *testing.T) {
			var buf bytes.Buffer
			tw := tar.NewWriter(&buf)
			for _, e := range c.entries {
				if err := tw.WriteHeader(&e.Header); err != nil {
					t.Fatal(err)
				}
				tw.Write(e.data)
			}
			tw.Close()
			file := filepath.Join(t.TempDir(), "image.tar")
			if err := os.WriteFile(file, buf.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			s := testStore(t)
			if _, err := s.Import(ctx, file, ImportOptions{}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Import: %v, want %q", err, c.want)
			}
			nothingLeft(t, s)
		})
	}

	t.Run("link in directory", func(t *testing.T) {
		dir := t.TempDir()
		for _, e := range good {
			os.WriteFile(filepath.Join(dir, e.Name), e.data, 0o600)
		}
		os.Remove(filepath.Join(dir, "kernel"))
		os.Symlink(img.Kernel(), filepath.Join(dir, "kernel"))
		s := testStore(t)
		if _, err := s.Import(ctx, dir, ImportOptions{}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("Import: %v", err)
		}
		nothingLeft(t, s)
	})
}

// TestImportPipe: a pipe that nobody writes to is refused, not waited for.
func TestImportPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "disk.qcow2")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, src := range []string{pipe, filepath.Dir(pipe)} {
		if _, err := testStore(t).Import(t.Context(), src, ImportOptions{}); err == nil {
			t.Errorf("%s: imported", src)
		}
	}
}

func TestImportDisk(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	raw := make([]byte, 1<<20)
	raw[510], raw[511] = 0x55, 0xaa
	path := filepath.Join(dir, "cloud.img")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()

	s := testStore(t)
	if _, err := s.tool("qemu-img"); err != nil {
		t.Skip(err)
	}
	img, err := s.Import(ctx, server.URL+"/cloud.img?x=1", ImportOptions{SHA256: fileSum(t, path)})
	if err != nil {
		t.Fatal(err)
	}
	if !img.CloudInit || img.Name != "cloud" || img.DiskSize != 1<<20 || img.Kernel() != "" || img.Initrd() != "" {
		t.Errorf("Import: %+v", img)
	}
	nothingLeft(t, s, img.Digest)

	overlay := filepath.Join(dir, "overlay.qcow2")
	if err := disk.CreateOverlay(ctx, overlay, img.Disk(), 0); err != nil {
		t.Fatal(err)
	}
	write := func(name, data string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for name, c := range map[string]struct {
		src  string
		opts ImportOptions
		want string
	}{
		"wrong sum":         {path, ImportOptions{SHA256: strings.Repeat("0", 64)}, ErrChecksum.Error()},
		"not a sum":         {path, ImportOptions{SHA256: "xyz"}, "hexadecimal"},
		"URL without sum":   {server.URL + "/cloud.img", ImportOptions{}, "needs the checksum"},
		"URL of nothing":    {server.URL + "/none", ImportOptions{SHA256: strings.Repeat("0", 64)}, "404"},
		"nothing":           {filepath.Join(dir, "none"), ImportOptions{}, "no such file"},
		"on another disk":   {overlay, ImportOptions{}, "its backing file is"},
		"compressed":        {write("a.gz", "\x1f\x8b\x08"), ImportOptions{}, "unpack it first"},
		"something else":    {write("notes.txt", "hello"), ImportOptions{}, "neither"},
		"empty":             {write("empty", ""), ImportOptions{}, "neither"},
		"not a name":        {path, ImportOptions{Name: "a/b"}, "name"},
		"checksum of a dir": {dir, ImportOptions{SHA256: strings.Repeat("0", 64)}, "directory has no checksum"},
		"another directory": {dir, ImportOptions{}, "manifest.json"},
		"device":            {"/dev/null", ImportOptions{}, "not a regular file"},
	} {
		if _, err := s.Import(ctx, c.src, c.opts); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	nothingLeft(t, s, img.Digest)
}

// TestImportCutOff has a server that ends in mid-file.
func TestImportCutOff(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000000")
		io.WriteString(w, "QFI\xfb"+strings.Repeat("x", 5000))
	}))
	defer server.Close()
	s := testStore(t)
	_, err := s.Import(t.Context(), server.URL, ImportOptions{Name: "x", SHA256: strings.Repeat("0", 64)})
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Import: %v", err)
	}
	nothingLeft(t, s)
}
