package share

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Many requests that look for something in one directory read it once.
func TestListOnce(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(dir, old, old); err != nil {
		t.Fatal(err)
	}
	files := newFiles(8)
	defer files.close()
	e, err := newExport(Export{Source: dir, Target: "/t"}, files)
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	var got [8]*listing
	var all sync.WaitGroup
	for i := range got {
		all.Go(func() {
			root, err := e.openRoot()
			if err != nil {
				t.Error(err)
				return
			}
			defer root.close()
			if got[i], err = e.list(root); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, l := range got {
		if l != got[0] || len(l.entries) != 1 {
			t.Fatalf("listings %p and %p: %+v", got[0], l, l)
		}
	}

	// What is kept is bounded by all that it has.
	e.listings = []*listing{{dir: key{ino: 1}, entries: make([]entry, manyListed)}, {dir: key{ino: 2}}}
	root, err := e.openRoot()
	if err != nil {
		t.Fatal(err)
	}
	defer root.close()
	if _, err := e.list(root); err != nil {
		t.Fatal(err)
	}
	if len(e.listings) != 2 || len(e.listings[0].entries) != 0 {
		t.Errorf("%d listings are kept", len(e.listings))
	}
}
