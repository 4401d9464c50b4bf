package project

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
	being := beingOf(a)
	if err := os.Rename(a, b); err != nil {
		t.Fatal(err)
	}
	if being == "" || beingOf(b) != being || beingOf(a) != "" {
		t.Errorf("%q before, %q after, %q in its place", being, beingOf(b), beingOf(a))
	}
	if err := os.CopyFS(a, os.DirFS(b)); err != nil {
		t.Fatal(err)
	}
	if beingOf(a) == being {
		t.Error("a copy is the same directory")
	}
	for being, sure := range map[string]bool{"": false, "12 0.000000000": false, "12 1.000000000": true, "12 0.000000001": true} {
		if isSure(being) != sure {
			t.Errorf("%q is sure: %v", being, !sure)
		}
	}
}
