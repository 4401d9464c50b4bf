package state

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/ui"
)

func testPaths(t *testing.T) Files {
	t.Helper()
	return Dirs{Data: t.TempDir(), Runtime: t.TempDir()}.Files("app-12345678")
}

func TestLock(t *testing.T) {
	f := testPaths(t)
	first, err := f.Acquire(t.Context(), "up", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Acquire(t.Context(), "down", nil)
	if ui.ExitCode(err) != ui.ExitBusy || !strings.Contains(err.Error(), "up, pid") {
		t.Fatalf("got %v", err)
	}
	// A waiting command takes over when the holder is done, even if the holder
	// was an rm that removed the lock's file.
	waiting := make(chan struct{})
	got := make(chan error, 1)
	go func() {
		second, err := f.Acquire(t.Context(), "up", func(string) { close(waiting) })
		if err == nil {
			defer second.Close()
			if !sameFile(second, f.Lock) {
				t.Error("locked a file that is not there any more")
			}
		}
		got <- err
	}()
	<-waiting
	if err := os.RemoveAll(f.Root); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

func TestRecord(t *testing.T) {
	f := testPaths(t)
	if err := os.MkdirAll(f.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	const dir = "/home/u/caf\xe9 \n" // need not be UTF-8
	if err := f.WriteRecord(dir); err != nil {
		t.Fatal(err)
	}
	if got := f.RecordedDir(); got != dir {
		t.Errorf("got %q", got)
	}
	left, _ := filepath.Glob(filepath.Join(f.Root, ".*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A nuke that is cut off anywhere leaves a whole VM or a whole undo.
func TestSetAsideAndSwap(t *testing.T) {
	f := testPaths(t)
	put := func(dir, content string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "disk.qcow2"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check := func(vm, undo string) {
		t.Helper()
		for dir, want := range map[string]string{f.VM: vm, f.Undo: undo} {
			got, _ := os.ReadFile(filepath.Join(dir, "disk.qcow2"))
			if string(got) != want {
				t.Errorf("%s holds %q, want %q", filepath.Base(dir), got, want)
			}
		}
	}
	put(f.VM, "one")
	if err := f.SetAside(); err != nil {
		t.Fatal(err)
	}
	check("", "one")
	// Cut off here and run again: the new vm directory holds no disk yet.
	if err := os.MkdirAll(f.VM, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.SetAside(); err != nil {
		t.Fatal(err)
	}
	check("", "one")
	put(f.VM, "two")
	if err := f.Swap(); err != nil {
		t.Fatal(err)
	}
	check("one", "two")
	if err := f.Swap(); err != nil {
		t.Fatal(err)
	}
	check("two", "one")
	if err := f.SetAside(); err != nil {
		t.Fatal(err)
	}
	check("", "two")
	if err := f.Swap(); err != nil {
		t.Fatal(err)
	}
	check("two", "")
}
