package file_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/devvm/devvm/pkg/file"
)

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, mode := range []fs.FileMode{0o600, 0o644} {
		for _, text := range []string{"first", "second", "second", ""} {
			if err := file.Replace(path, []byte(text), mode); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || string(got) != text {
				t.Errorf("%q, %v", got, err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != mode {
				t.Errorf("%v, %v", info.Mode(), err)
			}
		}
	}
	// The same again is not written again, and a link is replaced, not followed.
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Replace(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("it was written again: %v", err)
	}
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.Symlink("f", link), file.Replace(link, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%v, %v", info, err)
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	// What cannot be replaced stays, and nothing is left beside it.
	busy := filepath.Join(dir, "d")
	if err := os.MkdirAll(filepath.Join(busy, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := file.Replace(busy, []byte("x"), 0o600); !errors.Is(err, file.ErrDirectory) {
		t.Errorf("a directory was replaced: %v", err)
	}
	if err := file.Replace(filepath.Join(dir, "none", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Error(entries, err)
	}
}

func TestUsed(t *testing.T) {
	dir := t.TempDir()
	if n := file.Used(filepath.Join(dir, "none")); n != 0 {
		t.Error(n)
	}
	whole, sparse := filepath.Join(dir, "a", "whole"), filepath.Join(dir, "sparse")
	if err := os.Mkdir(filepath.Dir(whole), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := file.Replace(whole, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(file.Replace(sparse, nil, 0o600), os.Truncate(sparse, 1<<30)); err != nil {
		t.Fatal(err)
	}
	if n := file.Used(whole); n < 64<<10 || file.Used(dir) != n+file.Used(sparse) || n > 1<<20 {
		t.Errorf("%d of %d", n, file.Used(dir))
	}
}

func TestFree(t *testing.T) {
	dir := t.TempDir()
	here, err := file.Free(dir)
	if err != nil || here <= 0 {
		t.Error(here, err)
	}
	if there, err := file.Free(filepath.Join(dir, "not", "yet")); err != nil || there <= 0 {
		t.Error(there, err)
	}
}

func TestSettle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := errors.Join(file.Replace(path, nil, 0o600), file.SetMode(path, 0o400)); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o400 {
		t.Error(info, err)
	}
	if err := file.SetMode(path+"none", 0o400); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestGlob(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a[b*")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, name := range []string{".tmp-1", ".tmp-2", "sub/x"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		want = append(want, path)
	}
	for pattern, want := range map[string][]string{".tmp-*": want[:2], "*/*": want[2:], "none": nil} {
		if got, err := file.Glob(dir, pattern); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v", pattern, got, err)
		}
	}
	if got, err := file.Glob(filepath.Join(dir, "none"), "*"); err != nil || len(got) != 0 {
		t.Errorf("no directory: %q, %v", got, err)
	}
	if _, err := file.Glob(dir, "["); err == nil {
		t.Error("a bad pattern is taken")
	}
}
