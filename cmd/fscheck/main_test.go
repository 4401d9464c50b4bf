package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMain lets the cases start this program a second time.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && helpers[os.Args[1]] != nil {
		if err := helpers[os.Args[1]](os.Args[2:]); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestCases: two runs say the same, whatever the time, and no two cases have one name, so
// that what differs between two file systems is what differs.
func TestCases(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // root's cases are other users' too
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var out [2]bytes.Buffer
	for i := range out {
		if err := cases(t.Context(), dir, &out[i]); err != nil {
			t.Fatal(err)
		}
	}
	first, second := strings.Split(out[0].String(), "\n"), strings.Split(out[1].String(), "\n")
	seen := map[string]bool{}
	for i, line := range first {
		if i >= len(second) || line != second[i] {
			t.Errorf("only the first run says %q", line)
		}
		group, rest, _ := strings.Cut(line, ": ")
		what, _, _ := strings.Cut(rest, ": ")
		if name := group + ": " + what; line != "" && seen[name] {
			t.Errorf("two cases are %q", name)
		} else {
			seen[name] = true
		}
	}
	if len(first) < 900 {
		t.Errorf("%d cases only", len(first))
	}
	for _, want := range []string{
		"mkdir: file: EEXIST;", "rmdir: full directory: ENOTEMPTY;", "open to read: 256 bytes: ENAMETOOLONG;",
		"rename: full directory over empty directory: ok;", "append: lines that three processes appended, 500 each: 1500, whole 1500",
	} {
		if !strings.Contains(out[0].String(), want) {
			t.Errorf("no %q", want)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestRandom: what is right is found right, and one wrong byte is found.
func TestRandom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	var out bytes.Buffer
	if err := random(t.Context(), path, randomOptions{length: time.Second, seed: 1, size: 100_000}, &out); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	x := &exerciser{model: b, f: f}
	if err := x.read(0, len(b), f.ReadAt); err != nil {
		t.Error(err)
	}
	at := len(b) / 2
	b[at] ^= 1
	if err := x.read(0, len(b), f.ReadAt); err == nil || !strings.Contains(err.Error(), "1 wrong bytes from "+strconv.Itoa(at)) {
		t.Errorf("one wrong byte: %v", err)
	}
}

// TestTree: the same for a tree of files, whose files say themselves what is in them.
func TestTree(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	if err := tree(t.Context(), dir, time.Second, 1, 3, &out); err != nil {
		t.Fatal(err)
	}
	count, err := verify(dir)
	if err != nil || count < 10 {
		t.Fatalf("%d files, %v", count, err)
	}
	path := filepath.Join(dir, "wrong")
	b := content(5, 5000)
	for _, spoil := range []func(){func() { b[3000] ^= 1 }, func() { b = b[:4000] }, func() { b = nil }} {
		spoil()
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := verify(dir); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("a broken file of %d bytes: %v", len(b), err)
		}
	}
}

func TestMany(t *testing.T) {
	var out bytes.Buffer
	if err := many(t.TempDir(), 1500, &out); err != nil || !strings.Contains(out.String(), "made 1500 files") {
		t.Errorf("%v %s", err, &out)
	}
}
