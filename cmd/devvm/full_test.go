package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fullSize is the small file system of TestFullDisk, in bytes.
const fullSize = 96 << 20

// TestFullDisk fills the host's disk up to some bytes, in a file system of its own, and runs a
// verb: that ends, and says what to do. When there is room again up converges, what is in the VM
// is as it was, and all room is given back by rm.
func TestFullDisk(t *testing.T) {
	if os.Getenv("DEVVM_TEST_INSIDE") == "" {
		flags := "-m"
		if os.Getuid() != 0 {
			flags = "-Urm"
		}
		if err := exec.CommandContext(t.Context(), "unshare", flags, "true").Run(); err != nil {
			t.Skip("no mount namespaces here")
		}
		only := "^TestFullDisk$"
		if _, of, ok := strings.Cut(flag.Lookup("test.run").Value.String(), "/"); ok {
			only += "/" + of
		}
		args := []string{flags, os.Args[0], "-test.run=" + only, "-test.v", fmt.Sprintf("-test.short=%v", testing.Short())}
		cmd := exec.CommandContext(t.Context(), "unshare", args...)
		cmd.Env = append(os.Environ(), "DEVVM_TEST_INSIDE=1")
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	rooms := []int64{0, 8 << 10, 64 << 10, 512 << 10, 4 << 20}
	verbs := [][]string{
		{"up"},
		{"down"},
		{"nuke", "--yes"},
		{"new"},
		{"suspend"},
		{"resume"},
		{"snapshot", "create"},
		{"nuke", "--undo", "--yes"},
		{"template", "build"},
		{"image", "import"},
		{"image", "export", "debian-13"},
		{"rm", "--yes"},
	}
	if testing.Short() {
		rooms, verbs = rooms[:1], [][]string{{"down"}, {"nuke", "--yes"}}
	}
	for _, verb := range verbs {
		for _, room := range rooms {
			t.Run(fmt.Sprintf("%s/%d", strings.Join(verb, " "), room), func(t *testing.T) { testFullDisk(t, room, verb) })
		}
	}
}

func testFullDisk(t *testing.T, room int64, verb []string) {
	data := filepath.Join(t.TempDir(), "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", data, "tmpfs", 0, fmt.Sprintf("size=%d", fullSize)); err != nil {
		t.Fatal(err)
	}
	h := newHostAt(t, true, data)
	t.Cleanup(func() {
		h.kill("")
		_ = unix.Unmount(data, unix.MNT_DETACH)
	})
	// What devvm asks for room beforehand is another test's matter, see full.txtar.
	config := filepath.Join(h.dir, "config", "devvm")
	if err := errors.Join(os.MkdirAll(config, 0o755), os.WriteFile(filepath.Join(config, "free"), []byte("1000000000000"), 0o644)); err != nil {
		t.Fatal(err)
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := h.run(args...)
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return out
	}
	export := filepath.Join(h.dir, "exported")
	must("up")
	must("image", "export", "debian-13", export)
	marker := filepath.Join("vm", "guest", "token") // beside the fake's disk
	before, err := filepath.Glob(filepath.Join(data, "devvm", "projects", "app-*"))
	if err != nil || len(before) != 1 {
		t.Fatal(before, err)
	}
	root := before[0]
	must("exec", "true") // it is in use
	if err := os.WriteFile(filepath.Join(root, marker), []byte("survivor"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := verb
	switch verb[0] {
	case "new":
		must("rm", "--yes")
		args = []string{"up"}
	case "up":
		must("down")
	case "resume":
		must("suspend")
		args = []string{"up"}
	case "image":
		if verb[1] == "import" {
			args = append(args, export, "--name", "other")
		} else {
			args = append(args, filepath.Join(data, "export.tar"))
		}
	}
	if strings.Join(verb, " ") == "nuke --undo --yes" {
		must("nuke", "--yes")
	}
	ballast := filepath.Join(data, "ballast")
	fill(t, ballast, room)
	out, err := h.run(args...)
	t.Logf("%v with %d bytes: %v\n%s", args, room, err, out)
	if strings.Contains(out, "panic:") || strings.Contains(out, "goroutine ") {
		t.Errorf("it panics")
	}
	if err != nil && !strings.Contains(out, "hint: ") {
		t.Errorf("no next step")
	}
	failed := err != nil
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	must("up")
	must("status")
	switch verb[0] {
	case "rm", "new":
	case "nuke":
		// Whatever came of it, the VM is there or is the undo.
		_, here := os.Stat(filepath.Join(root, marker))
		_, undo := os.Stat(filepath.Join(root, "undo", "guest", "token"))
		if here != nil && undo != nil {
			t.Errorf("the VM is lost")
		}
	default:
		if b, err := os.ReadFile(filepath.Join(root, marker)); err != nil || string(b) != "survivor" {
			t.Errorf("the VM is lost: %q, %v", b, err)
		}
	}
	if verb[0] == "image" && failed {
		if left, _ := filepath.Glob(filepath.Join(data, "devvm", "images", ".tmp-*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	must("rm", "--yes")
	h.expectNothing()
}

// fill takes all room but some bytes.
func fill(t *testing.T, path string, room int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The supervisor writes, too: what was free a moment ago may not be.
	for {
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		more := int64(st.Bavail)*st.Bsize - room
		if more <= 0 {
			return
		}
		at, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Fallocate(int(f.Fd()), 0, at, more); !errors.Is(err, unix.ENOSPC) {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}
