package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const gib = 1 << 30

// needTool ends the test where there is no qemu-img.
func needTool(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		if os.Getenv("DEVVM_REQUIRE_QEMU") != "" {
			t.Fatal(ErrNoTool)
		}
		t.Skip(ErrNoTool)
	}
}

// onlyOurs fails if others may read the disk.
func onlyOurs(t *testing.T, path string) {
	t.Helper()
	file, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if file.Mode().Perm() != 0o600 {
		t.Errorf("the disk has mode %04o", file.Mode().Perm())
	}
}

func TestCreateInspectGrow(t *testing.T) {
	needTool(t)
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "a, b=c:d \u00e9.qcow2")
	if err := Create(ctx, path, gib); err != nil {
		t.Fatal(err)
	}
	info, err := Stat(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Info{Format: "qcow2", VirtualSize: gib}); info != want {
		t.Errorf("got %+v, want %+v", info, want)
	}
	file, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if file.Size() > 1<<20 {
		t.Errorf("an empty disk takes %d bytes", file.Size())
	}
	onlyOurs(t, path)

	if err := Create(ctx, path, gib); !errors.Is(err, fs.ErrExist) {
		t.Errorf("making it again: %v, want it refused", err)
	}
	if err := Grow(ctx, path, gib); err != nil {
		t.Errorf("growing it to its own size: %v", err)
	}
	if err := Grow(ctx, path, 2*gib); err != nil {
		t.Fatal(err)
	}
	if info, err := Stat(ctx, path); err != nil || info.VirtualSize != 2*gib {
		t.Errorf("after growing: %+v, %v", info, err)
	}
	if err := Grow(ctx, path, gib); err == nil || !strings.Contains(err.Error(), "only grow") {
		t.Errorf("shrinking: %v, want it refused", err)
	}
	onlyFile(t, path)
}

func TestOverlay(t *testing.T) {
	needTool(t)
	ctx := t.Context()
	dir := t.TempDir()
	base, top := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "top.qcow2")
	if err := Create(ctx, base, gib); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		size, want int64
		err        string
	}{
		{0, gib, ""},
		{gib, gib, ""},
		{3 * gib, 3 * gib, ""},
		{gib / 2, 0, "less than"},
	} {
		os.Remove(top)
		err := CreateOverlay(ctx, top, base, c.size)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("size %d: %v, want %q", c.size, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("size %d: %v", c.size, err)
			continue
		}
		info, err := Stat(ctx, top)
		if err != nil || info.VirtualSize != c.want || info.Backing != base || info.Format != "qcow2" {
			t.Errorf("size %d: %+v, %v", c.size, info, err)
		}
	}
	os.Remove(top)
	if err := CreateOverlay(ctx, top, filepath.Join(dir, "none.qcow2"), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a base: %v", err)
	}
	if err := CreateOverlay(ctx, top, "base.qcow2", 0); err == nil {
		t.Error("a relative base was taken")
	}
	onlyFile(t, base)
}

func TestConvert(t *testing.T) {
	needTool(t)
	ctx := t.Context()
	dir := t.TempDir()
	raw, out := filepath.Join(dir, "raw"), filepath.Join(dir, "out.qcow2")
	content := make([]byte, 1<<20)
	copy(content[4096:], "hello")
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Convert(ctx, raw, out); err != nil {
		t.Fatal(err)
	}
	if info, err := Stat(ctx, out); err != nil || info.Format != "qcow2" || info.VirtualSize != 1<<20 {
		t.Errorf("%+v, %v", info, err)
	}
	if b, err := exec.CommandContext(ctx, "qemu-img", "compare", raw, out).CombinedOutput(); err != nil {
		t.Errorf("the copy differs: %s", b)
	}

	// Images that would bring in other files of the host.
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, content, 0o600); err != nil {
		t.Fatal(err)
	}
	hostile := map[string][]string{
		"backing.qcow2": {"create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw"},
		"data.qcow2":    {"create", "-q", "-f", "qcow2", "-o", "data_file=" + filepath.Join(dir, "data") + ",data_file_raw=on"},
		"extent.vmdk":   {"create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat"},
	}
	for name, args := range hostile {
		path, to := filepath.Join(dir, name), filepath.Join(dir, name+".out")
		if b, err := exec.CommandContext(ctx, "qemu-img", append(args, path, "1M")...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", args, b)
		}
		if err := Convert(ctx, path, to); err == nil {
			t.Errorf("%s was converted", name)
		}
		if _, err := os.Lstat(to); err == nil {
			t.Errorf("%s left a file", name)
		}
	}
}

func TestErrors(t *testing.T) {
	needTool(t)
	ctx := t.Context()
	dir := t.TempDir()
	path := filepath.Join(dir, "d.qcow2")

	if _, err := Stat(ctx, path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := Create(ctx, filepath.Join(dir, "no/d.qcow2"), gib); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if err := Create(ctx, "d.qcow2", gib); err == nil {
		t.Error("a relative path was taken")
	}
	if err := Create(ctx, path, -1); err == nil {
		t.Error("a negative size was taken")
	}

	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := Create(cancelled, path, gib); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}

	t.Run("no tool", func(t *testing.T) {
		t.Setenv("PATH", dir)
		if err := Create(ctx, path, gib); !errors.Is(err, ErrNoTool) {
			t.Errorf("%v", err)
		}
	})
	t.Run("killed", func(t *testing.T) {
		bin := t.TempDir()
		script := "#!/bin/sh\nfor last; do :; done\ntouch \"$7\"\nexec sleep 60\n" // leaves half a file
		if err := os.WriteFile(filepath.Join(bin, "qemu-img"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		if err := Create(ctx, path, gib); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}

	// What a killed run has left does no harm.
	if err := os.WriteFile(path+".new", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(ctx, path, gib); err != nil {
		t.Error(err)
	}
	onlyFile(t, path)
}

func TestNoSpace(t *testing.T) {
	needTool(t)
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	src := filepath.Join(t.TempDir(), "raw")
	content := make([]byte, 8<<20)
	for i := 0; i < len(content); i += 8 {
		binary.LittleEndian.PutUint64(content[i:], uint64(i)*0x9e3779b97f4a7c15+1)
	}
	if err := os.WriteFile(src, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Convert(t.Context(), src, filepath.Join(dir, "d.qcow2")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestInUse(t *testing.T) {
	needTool(t)
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Skip("needs qemu-io to hold a disk")
	}
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "d.qcow2")
	if err := Create(ctx, path, gib); err != nil {
		t.Fatal(err)
	}
	hold := exec.CommandContext(ctx, "qemu-io", path)
	in, err := hold.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := hold.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 16)); err != nil { // its prompt: the disk is open
		t.Fatal(err)
	}
	if _, err := Stat(ctx, path); err != nil {
		t.Errorf("looking at a disk in use: %v", err)
	}
	if err := Grow(ctx, path, 2*gib); !errors.Is(err, ErrInUse) {
		t.Errorf("growing a disk in use: %v, want ErrInUse", err)
	}
	in.Close()
	if err := hold.Wait(); err != nil {
		t.Error(err)
	}
}

// onlyFile fails if the directory holds anything but the file.
func onlyFile(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != filepath.Base(path) {
		t.Errorf("the directory holds %v", entries)
	}
}

// TestDamaged: a disk whose beginning is not qcow2's is damaged, not a raw disk that lies on
// nothing.
func TestDamaged(t *testing.T) {
	needTool(t)
	ctx := t.Context()
	dir := t.TempDir()
	base := filepath.Join(dir, "base.qcow2")
	if err := Create(ctx, base, gib); err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(path string) error{
		"magic":     func(path string) error { return writeAt(path, 0, make([]byte, 4)) },
		"header":    func(path string) error { return writeAt(path, 4, []byte("\xff\xff\xff\xff\xff\xff\xff\xff")) },
		"empty":     func(path string) error { return os.Truncate(path, 0) },
		"short":     func(path string) error { return os.Truncate(path, 40) },
		"directory": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	} {
		top := filepath.Join(dir, name+".qcow2")
		if err := CreateOverlay(ctx, top, base, 0); err != nil {
			t.Fatal(err)
		}
		if err := damage(top); err != nil {
			t.Fatal(err)
		}
		if info, err := Stat(ctx, top); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), top) {
			t.Errorf("%s: Stat: %+v, %v", name, info, err)
		}
		if err := Grow(ctx, top, 2*gib); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: Grow: %v", name, err)
		}
		if err := CreateOverlay(ctx, filepath.Join(dir, name+".top"), top, 0); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: an overlay on it: %v", name, err)
		}
	}
}

// writeAt overwrites a part of a file.
func writeAt(path string, at int64, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, at)
	return errors.Join(err, f.Close())
}
