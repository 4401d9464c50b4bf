package state

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/file"
)

// TestMarks goes through the life of a VM.
func TestMarks(t *testing.T) {
	f := testPaths(t)
	check := func(when string, used, begun, lost, vacant bool) {
		t.Helper()
		if f.IsUsed() != used || f.IsBegun() != begun || f.IsLost(false) != lost || Marked(f.Vacant()) != vacant {
			t.Errorf("%s: used %v, begun %v, lost %v, vacant %v", when, f.IsUsed(), f.IsBegun(), f.IsLost(false), Marked(f.Vacant()))
		}
	}
	check("before there is anything", false, false, false, false)
	if err := f.MarkUsed(); err != nil {
		t.Errorf("without a VM: %v", err)
	}
	if err := os.MkdirAll(f.VM, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.MarkNew(); err != nil {
		t.Fatal(err)
	}
	check("about to be made", false, true, false, false)
	writeFile(t, f.Disk(), "")
	writeFile(t, filepath.Join(f.Keys(), "host"), "")
	check("made", false, true, false, false)
	if err := f.MarkAnswering(); err != nil {
		t.Fatal(err)
	}
	check("its engine has answered", false, false, false, false)
	for range 2 {
		if err := f.MarkUsed(); err != nil {
			t.Fatal(err)
		}
		check("used", true, false, false, false)
	}
	if err := f.RemoveVM(); err != nil {
		t.Fatal(err)
	}
	check("removed", false, false, false, true)
	if err := os.MkdirAll(f.VM, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.MarkNew(); err != nil {
		t.Fatal(err)
	}
	check("the next one", false, true, false, false)
}

// TestIsLost: a VM whose disk is gone, though nobody took it away.
func TestIsLost(t *testing.T) {
	for name, tt := range map[string]struct {
		files []string // of the project
		known bool
		lost  bool
	}{
		"nothing":               {nil, false, false},
		"libvirt knows it":      {nil, true, true},
		"a disk":                {[]string{"vm/disk.qcow2", "vm/keys/host"}, true, false},
		"its console":           {[]string{"vm/console.log"}, false, true},
		"it was provisioned":    {[]string{"vm/provisioned"}, false, true},
		"its keys":              {[]string{"vm/keys/host"}, false, true},
		"a file for keys":       {[]string{"vm/keys"}, false, true},
		"only its beginning":    {[]string{"vm/begun", "vm/unused", "vm/keys/host"}, true, false},
		"half of its beginning": {[]string{"vm/begun", "vm/keys/host"}, false, true},
		"on purpose":            {[]string{"vacant", "vm/keys/host"}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := testPaths(t)
			for _, name := range tt.files {
				writeFile(t, filepath.Join(f.Root, name), "")
			}
			if got := f.IsLost(tt.known); got != tt.lost {
				t.Errorf("got %v", got)
			}
		})
	}
}

// TestMarksInTheWay: something else in the place of a mark is a mark, and is removed as one; what
// cannot be made says so.
func TestMarksInTheWay(t *testing.T) {
	f := testPaths(t)
	for _, mark := range []string{f.unused(), f.begun()} {
		writeFile(t, filepath.Join(mark, "inner"), "")
	}
	writeFile(t, f.Disk(), "")
	if !f.IsBegun() || f.IsUsed() {
		t.Error("directories are no marks")
	}
	if err := f.MarkNew(); !errors.Is(err, file.ErrDirectory) {
		t.Errorf("over directories: %v", err)
	}
	if err := errors.Join(f.MarkAnswering(), f.MarkUsed()); err != nil || Exists(f.unused()) || Exists(f.begun()) {
		t.Errorf("they are there: %v", err)
	}
	if err := os.Symlink("nowhere", f.unused()); err != nil {
		t.Fatal(err)
	}
	if f.IsUsed() {
		t.Error("a link that leads nowhere is no mark")
	}
	g := testPaths(t)
	if err := g.MarkNew(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
	if err := Unmark("/proc/self/status"); err == nil || !strings.HasPrefix(err.Error(), "note that the VM is in use: ") {
		t.Errorf("a mark that stays: %v", err)
	}
	// There is no directory for a mark: no project, and so no VM to miss.
	if err := g.RemoveVM(); err != nil || Exists(g.Root) {
		t.Errorf("a project was made to remove a VM: %v", err)
	}
	// A mark that cannot be made keeps the VM.
	writeFile(t, filepath.Join(f.Vacant(), "inner"), "")
	if err := f.RemoveVM(); !errors.Is(err, file.ErrDirectory) || !Exists(f.Disk()) {
		t.Errorf("the VM is gone without a word that it was meant: %v", err)
	}
}

// TestStopping: a mark counts for the QEMU that it names, and for no other.
func TestStopping(t *testing.T) {
	f := testPaths(t)
	if f.IsStopping(0) || f.IsStopping(123) {
		t.Error("without a mark")
	}
	if err := os.MkdirAll(f.VM, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.MarkStopping(123); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(f.Stopping())
	if err != nil || string(whole) != "123\n" {
		t.Fatalf("the mark is %q, %v", whole, err)
	}
	if !f.IsStopping(123) || f.IsStopping(12) || f.IsStopping(1234) || f.IsStopping(0) {
		t.Error("it counts for another one")
	}
	for n := range whole {
		writeFile(t, f.Stopping(), string(whole[:n]))
		for _, pid := range []int{0, 1, 12, 123} {
			if f.IsStopping(pid) {
				t.Errorf("cut after %d bytes, it counts for %d", n, pid)
			}
		}
	}
	if err := os.Remove(f.Stopping()); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(f.Stopping(), 0o700); err != nil {
		t.Fatal(err)
	}
	if f.IsStopping(123) {
		t.Error("a directory counts")
	}
}

// TestUndoFails: what cannot be done leaves a whole VM, and says what failed.
func TestUndoFails(t *testing.T) {
	f := testPaths(t)
	writeFile(t, f.Disk(), "one")
	if err := f.Swap(); err == nil || !strings.HasPrefix(err.Error(), "put the old disk back: ") || !f.IsUsed() {
		t.Errorf("without an undo: %v", err)
	}
	writeFile(t, filepath.Join(f.Vacant(), "inner"), "")
	writeFile(t, filepath.Join(f.Undo, "disk.qcow2"), "zero")
	if err := f.SetAside(); !errors.Is(err, file.ErrDirectory) || !f.IsUsed() {
		t.Errorf("nobody could know that it was meant: %v", err)
	}
	if err := os.RemoveAll(f.Vacant()); err != nil {
		t.Fatal(err)
	}
	// A VM that nobody has used leaves the undo.
	writeFile(t, filepath.Join(f.Undo, "disk.qcow2"), "zero")
	writeFile(t, f.unused(), "")
	if !f.LeavesUndo() {
		t.Error("it would replace one that was used")
	}
	if err := f.SetAside(); err != nil || Exists(f.VM) {
		t.Errorf("it is there: %v, %v", Exists(f.VM), err)
	}
	if got, _ := os.ReadFile(filepath.Join(f.Undo, "disk.qcow2")); string(got) != "zero" {
		t.Errorf("the undo holds %q", got)
	}
	if err := f.Swap(); err != nil || !f.IsUsed() || Exists(f.Undo) || Marked(f.Vacant()) {
		t.Errorf("the undo is not the VM: %v", err)
	}
	if err := f.RemoveVM(); err != nil {
		t.Fatal(err)
	}
	if err := f.Swap(); err == nil || !strings.HasPrefix(err.Error(), "put the old disk back: ") || !Marked(f.Vacant()) {
		t.Errorf("with neither: %v", err)
	}
}
