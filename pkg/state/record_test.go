package state

import (
	"os"
	"path/filepath"
	"testing"
)

// What a directory is known by goes with it when it is renamed, and not with a copy.
func TestBeing(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := os.Mkdir(a, 0o700); err != nil {
		t.Fatal(err)
	}
	being := BeingOf(a)
	if err := os.Rename(a, b); err != nil {
		t.Fatal(err)
	}
	if being == "" || BeingOf(b) != being || BeingOf(a) != "" {
		t.Errorf("%q before, %q after, %q in its place", being, BeingOf(b), BeingOf(a))
	}
	if err := os.CopyFS(a, os.DirFS(b)); err != nil {
		t.Fatal(err)
	}
	if BeingOf(a) == being {
		t.Error("a copy is the same directory")
	}
	for being, sure := range map[string]bool{"": false, "12 0.000000000": false, "12 1.000000000": true, "12 0.000000001": true} {
		if IsSure(being) != sure {
			t.Errorf("%q is sure: %v", being, !sure)
		}
	}
}
