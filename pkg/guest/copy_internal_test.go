package guest

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/tree"
)

// FuzzUnpack: whatever archive the guest sends, nothing outside the destination is written, and
// no staging directory is left.
func FuzzUnpack(f *testing.F) {
	for _, entries := range [][]tar.Header{
		{{Typeflag: tar.TypeReg, Name: "./f"}},
		{{Typeflag: tar.TypeDir, Name: "./"}, {Typeflag: tar.TypeSymlink, Name: "./l", Linkname: "../../outside"}, {Typeflag: tar.TypeReg, Name: "./l/f"}},
		{{Typeflag: tar.TypeDir, Name: "./"}, {Typeflag: tar.TypeReg, Name: "./../../outside/f"}, {Typeflag: tar.TypeFifo, Name: "./p"}},
		{{Typeflag: tar.TypeSymlink, Name: "./f", Linkname: "/"}},
		{{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700}, {Typeflag: tar.TypeDir, Name: "./l/", Mode: 0o700}, {Typeflag: tar.TypeReg, Name: "./l/f"}},
		{{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700}, {Typeflag: tar.TypeLink, Name: "./h", Linkname: "../outside/f"}, {Typeflag: tar.TypeReg, Name: "./h"}},
		{{Typeflag: tar.TypeReg, Name: "./f", PAXRecords: map[string]string{"GNU.sparse.major": "1"}, Format: tar.FormatPAX}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range entries {
			if err := w.WriteHeader(&h); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes(), "/srv/x")
		f.Add(b.Bytes(), ".")
	}
	f.Fuzz(func(t *testing.T, archive []byte, remote string) {
		if strings.ContainsRune(remote, 0) {
			return
		}
		top := t.TempDir()
		dir, outside := filepath.Join(top, "dir"), filepath.Join(top, "outside")
		for _, d := range []string{dir, outside} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		// The VM has made links in the destination too.
		for name, to := range map[string]string{"x": "../outside", "f": "../outside/f", "l": ".."} {
			if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		u := unpacker{Copy: Copy{Local: dir, Remote: remote, Untrusted: tree.NewUntrusted(dir)}}
		if err := u.unpack(tar.NewReader(bytes.NewReader(archive))); err == nil {
			_ = u.install()
		}
		u.clean()
		for d, want := range map[string]int{top: 2, outside: 0} {
			if list, err := os.ReadDir(d); err != nil || len(list) != want {
				t.Fatalf("%s: %v, %v", d, list, err)
			}
		}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if d != nil && strings.HasPrefix(d.Name(), ".devvm-cp-") {
				t.Errorf("left behind: %s", path)
			}
			if d != nil && d.IsDir() {
				_ = os.Chmod(path, 0o700) // so that the test can remove it
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
