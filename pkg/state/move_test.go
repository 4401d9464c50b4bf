package state

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/ui"
)

// TestNew: the identity of a project is the directory, by whatever name.
func TestNew(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "My App")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(root, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(root, "file"), "")
	want := Identify(dir)
	if !strings.HasPrefix(want.Name, "my-app-") || want.Dir != dir {
		t.Errorf("got %+v", want)
	}
	t.Chdir(root)
	for _, name := range []string{dir, link, dir + "/", dir + "/../link/.", "My App", "./link"} {
		if got, err := New(name); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for name, why := range map[string]string{
		"none":      "no such file or directory",
		"file":      root + "/file is not a directory",
		"file/none": "not a directory",
	} {
		got, err := New(name)
		if err == nil || got != (Project{}) || !strings.HasPrefix(err.Error(), "project directory: ") || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// TestRecordDamaged: a record that is cut, empty, of something else or a directory says nothing,
// and the next one takes its place.
func TestRecordDamaged(t *testing.T) {
	f := testPaths(t)
	dir := t.TempDir()
	if err := os.MkdirAll(f.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteAdopts(dir, Project{Name: "old-12345679", Dir: "/old"}, true); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(f.Record)
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.ReadRecord()
	if err != nil || string(r.Dir) != dir || r.DirID != DirIDOf(dir) || r.Adopts != "old-12345679" || string(r.From) != "/old" || !r.Same {
		t.Fatalf("%+v, %v", r, err)
	}
	if got, id := f.Recorded(); f.Adopts() != "old-12345679" || f.RecordedDir() != dir || got != dir || id != r.DirID {
		t.Errorf("%q, %q, %q", f.Adopts(), got, id)
	}
	says := func(content string) {
		t.Helper()
		writeFile(t, f.Record, content)
		if dir, id := f.Recorded(); dir != "" || id != "" || f.Adopts() != "" || f.RecordedDir() != "" {
			t.Errorf("%q says %q, %q, %q", content, dir, id, f.Adopts())
		}
	}
	for n := range whole {
		says(string(whole[:n]))
	}
	for _, content := range []string{"{}", "null", "[]", "1", `{"dir":"not base64!"}`, `{"dir":7}`, `{"adopts":{}}`, string(whole) + "}", "\x00\xff"} {
		says(content)
	}
	if err := f.NoteDir(dir); err != nil || f.RecordedDir() != dir || f.Adopts() != "" {
		t.Errorf("a damaged one stays: %v, %q", err, f.RecordedDir())
	}
	if err := os.Remove(f.Record); err != nil {
		t.Fatal(err)
	}
	if dir, id := f.Recorded(); dir != "" || id != "" {
		t.Errorf("without a file: %q, %q", dir, id)
	}
	if err := os.Mkdir(f.Record, 0o700); err != nil {
		t.Fatal(err)
	}
	if f.Adopts() != "" || f.RecordedDir() != "" {
		t.Error("a directory says something")
	}
	if err := f.WriteRecord(dir); !errors.Is(err, file.ErrDirectory) {
		t.Errorf("over a directory: %v", err)
	}
}

// TestReplaced: a directory that was made anew at the old path is not the VM's; a copy of the
// files is nobody's, and whoever has not used the VM loses nothing.
func TestReplaced(t *testing.T) {
	f := testPaths(t)
	dir := filepath.Join(t.TempDir(), "app")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	writeFile(t, f.Disk(), "")
	if err := f.WriteRecord(dir); err != nil {
		t.Fatal(err)
	}
	if f.IsReplaced(dir) || !f.KeepsDir(dir, true) || !f.KeepsDir(dir, false) {
		t.Error("the same directory counts as another one")
	}
	moved := dir + "-moved"
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	if f.IsReplaced(dir) || f.KeepsDir(dir, false) {
		t.Error("a directory that is gone is there")
	}
	if f.IsReplaced(moved) {
		t.Error("the directory itself is another one under its new name")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if !f.IsReplaced(dir) || !f.KeepsDir(dir, false) || f.KeepsDir(dir, true) {
		t.Error("a new directory at the old path is taken for the old one")
	}
	_, id := f.Recorded()
	if err := f.NoteDir(dir); err != nil {
		t.Fatal(err)
	}
	if _, now := f.Recorded(); now != id {
		t.Error("the new directory has taken the VM of the old one")
	}
	writeFile(t, f.unused(), "")
	if f.IsReplaced(dir) {
		t.Error("a VM that nobody has used waits for a directory")
	}
	if err := f.NoteDir(dir); err != nil {
		t.Fatal(err)
	}
	if got, now := f.Recorded(); got != dir || now != DirIDOf(dir) {
		t.Errorf("noted: %q, %q", got, now)
	}
}

// TestAdopter: of a VM that is being taken over, both sides say so, and how to go on.
func TestAdopter(t *testing.T) {
	for _, data := range []string{"data", "[d]a*t?a"} { // no patterns
		t.Run(data, func(t *testing.T) {
			d := Dirs{Data: filepath.Join(t.TempDir(), data), Runtime: t.TempDir()}
			to := t.TempDir()
			old, next, third := d.Files("old-12345678"), d.Files(Identify(to).Name), d.Files("web-12345679")
			for _, f := range []Files{old, next, third} {
				if err := os.MkdirAll(f.Root, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if dir, ok := old.Adopter(); ok {
				t.Errorf("nobody takes it over: %s", dir)
			}
			if err := next.WriteAdopts(to, Project{Name: "old-12345678", Dir: "/old"}, false); err != nil {
				t.Fatal(err)
			}
			writeFile(t, third.Record, "{")
			if dir, ok := old.Adopter(); !ok || dir != to {
				t.Errorf("%q, %v takes it over, want %s", dir, ok, to)
			}
			for _, f := range []Files{next, third} {
				if dir, ok := f.Adopter(); ok {
					t.Errorf("%s takes over %s", dir, f.Root)
				}
			}
			for verb, free := range map[string]bool{"up": false, "down": false, "nuke": false, "move": true, "rm": true} {
				l, err := old.Acquire(t.Context(), verb, nil)
				if free != (err == nil) {
					t.Errorf("%s of the old one: %v", verb, err)
				}
				if err != nil && (err.Error() != to+" was taking over the VM of this project when devvm move was interrupted" ||
					ui.Hint(err) != "finish that with: devvm move --project "+Identify(to).Name+" (or, if that directory is gone: devvm rm --project "+Identify(to).Name+")") {
					t.Errorf("%s of the old one: %q, %q", verb, err, ui.Hint(err))
				}
				if err == nil {
					_ = l.Close()
				}
			}
			for verb, free := range map[string]bool{"up": true, "down": false, "nuke": false, "move": true, "rm": true} {
				l, err := next.Acquire(t.Context(), verb, nil)
				if free != (err == nil) {
					t.Errorf("%s of the new one: %v", verb, err)
				}
				if err != nil && (!strings.HasPrefix(err.Error(), "this directory was taking over the VM of another one") || ui.Hint(err) != "finish that with: devvm move") {
					t.Errorf("%s of the new one: %q, %q", verb, err, ui.Hint(err))
				}
				if err == nil {
					_ = l.Close()
				}
			}
			// What refused has given the lock back, and another project is free.
			l, err := third.Acquire(t.Context(), "down", nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = l.Close()
			if err := old.Remove(); err != nil {
				t.Fatal(err)
			}
			if _, ok := old.Adopter(); !ok {
				t.Error("a project that is gone is not taken over any more")
			}
		})
	}
}

// TestRecordNowhere: no directory, no record.
func TestRecordNowhere(t *testing.T) {
	f := testPaths(t)
	if err := f.WriteRecord(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, ok := f.Adopter(); ok {
		t.Error("nothing takes it over")
	}
}
