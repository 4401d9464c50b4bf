package image

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func testStore(t *testing.T) *Store {
	t.Helper()
	s := NewStore(filepath.Join(t.TempDir(), "images [it is no pattern"), slog.New(slog.NewTextHandler(t.Output(), nil)))
	s.work = t.TempDir()
	return s
}

// put makes an image whose files hold content, not what their names say.
func put(t *testing.T, s *Store, name, content string, created time.Time) Image {
	t.Helper()
	out, err := s.newScratch(t.Context(), s.dir, tempPrefix, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	defer out.remove(t.Context())
	m := Manifest{Name: name, Created: created.UTC(), Arch: runtime.GOARCH, DiskSize: 1, Files: map[string]File{}}
	for role, file := range fileNames {
		if m.Files[role], err = save(t.Context(), out.path(file), strings.NewReader(content+role)); err != nil {
			t.Fatal(err)
		}
	}
	img, err := out.commit(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func unused(string) bool { return false }

// entries are the names in a directory, but for locks.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range list {
		if e.Name() != ".lock" && e.Name() != ".build.lock" {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestStore(t *testing.T) {
	s := testStore(t)
	ctx := t.Context()
	if got, err := s.List(ctx); err != nil || len(got) != 0 {
		t.Fatalf("List of no store: %v, %v", got, err)
	}
	now := time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)
	old := put(t, s, "debian-13", "a", now)
	newer := put(t, s, "debian-13", "b", now.Add(time.Hour))
	other := put(t, s, "other", "c", now.Add(-time.Hour))

	got, err := s.List(ctx)
	if diff := cmp.Diff([]Image{newer, old, other}, got); err != nil || diff != "" {
		t.Fatalf("List: %v\n%s", err, diff)
	}
	for ref, want := range map[string]Image{
		"debian-13": newer, old.Digest: old, old.Digest[:8]: old, "sha256:" + other.Digest: other, "other": other,
	} {
		if got, err := s.Resolve(ctx, ref); err != nil || got.Digest != want.Digest {
			t.Errorf("Resolve(%q) = %s, %v, want %s", ref, got.Digest, err, want.Digest)
		}
	}
	for _, ref := range []string{"", "none", old.Digest[:3], "../" + old.Digest} {
		if _, err := s.Resolve(ctx, ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("Resolve(%q): %v, want ErrNotFound", ref, err)
		}
	}
	for _, path := range []string{newer.Disk(), newer.Kernel(), newer.Initrd(), filepath.Join(newer.Dir, manifestName)} {
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o444 {
			t.Errorf("%s: %v, %v, want a file of mode 0444", path, info, err)
		}
	}
	if info, err := os.Stat(newer.Dir); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%s: %v, %v, want mode 0755", newer.Dir, info, err)
	}

	if _, err := s.Remove(ctx, "other", func(d string) bool { return d == other.Digest }); !errors.Is(err, ErrInUse) {
		t.Errorf("Remove of an image in use: %v", err)
	}
	if freed, err := s.Prune(ctx, func(d string) bool { return d == old.Digest }); err != nil || freed != 0 {
		t.Errorf("Prune with the only old image in use: %d, %v", freed, err)
	}
	if freed, err := s.Prune(ctx, unused); err != nil || freed == 0 {
		t.Errorf("Prune: %d, %v", freed, err)
	}
	if gone, err := s.Remove(ctx, "other", unused); err != nil || gone.Digest != other.Digest {
		t.Errorf("Remove: %v, %v", gone, err)
	}
	if diff := cmp.Diff([]string{newer.Digest}, entries(t, s.dir)); diff != "" {
		t.Error(diff)
	}
}

func TestCommitAgain(t *testing.T) {
	s := testStore(t)
	first := put(t, s, "debian-13", "a", time.Unix(1, 0))
	second := put(t, s, "debian-13", "a", time.Unix(2, 0))
	if !second.Created.Equal(first.Created) {
		t.Error("an image that was there has been replaced")
	}
	if err := os.Truncate(first.Kernel(), 1); err != nil && os.Geteuid() == 0 {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 { // the file is read-only
		if err := os.Remove(first.Kernel()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Resolve(t.Context(), "debian-13"); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), first.Kernel()) {
		t.Errorf("Resolve of a damaged image: %v", err)
	}
	if all, err := s.Damaged(t.Context()); err != nil || len(all) != 1 || all[0].Digest != first.Digest {
		t.Errorf("Damaged: %v, %v", all, err)
	}
	if _, err := s.Remove(t.Context(), first.Digest[:8], func(string) bool { return true }); !errors.Is(err, ErrInUse) {
		t.Errorf("Remove of a damaged image in use: %v", err)
	}
	third := put(t, s, "debian-13", "a", time.Unix(3, 0))
	if got, err := s.Resolve(t.Context(), "debian-13"); err != nil || !got.Created.Equal(third.Created) {
		t.Errorf("a damaged image has not been replaced: %v, %v", got, err)
	}
}

func TestDamaged(t *testing.T) {
	change := func(f func(*Manifest)) func(t *testing.T, img Image) {
		return func(t *testing.T, img Image) {
			m := img.Manifest
			m.Files = map[string]File{}
			for role, file := range img.Files {
				m.Files[role] = file
			}
			f(&m)
			data, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(img.Dir, manifestName)
			if err := errors.Join(os.Remove(path), os.WriteFile(path, data, 0o444)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, damage := range map[string]func(t *testing.T, img Image){
		"no manifest": func(t *testing.T, img Image) { os.Remove(filepath.Join(img.Dir, manifestName)) },
		"no disk":     func(t *testing.T, img Image) { os.Remove(img.Disk()) },
		"not JSON": func(t *testing.T, img Image) {
			path := filepath.Join(img.Dir, manifestName)
			os.Remove(path)
			os.WriteFile(path, []byte("{"), 0o444)
		},
		"other command line": change(func(m *Manifest) { m.Cmdline = "init=/bin/sh" }),
		"other digest":       change(func(m *Manifest) { m.Cmdline = "quiet"; m.Digest = m.digest() }),
		"path as name":       change(func(m *Manifest) { m.Name = "../x" }),
		"file elsewhere": change(func(m *Manifest) {
			f := m.Files[RoleKernel]
			f.Name = "../kernel"
			m.Files[RoleKernel] = f
		}),
		"no kernel":     change(func(m *Manifest) { delete(m.Files, RoleKernel); m.Digest = m.digest() }),
		"unknown role":  change(func(m *Manifest) { m.Files["more"] = m.Files[RoleKernel]; m.Digest = m.digest() }),
		"two-line boot": change(func(m *Manifest) { m.Cmdline = "a\nb"; m.Digest = m.digest() }),
	} {
		t.Run(name, func(t *testing.T) {
			s := testStore(t)
			damage(t, put(t, s, "debian-13", "a", time.Unix(1, 0)))
			if got, err := s.List(t.Context()); err != nil || len(got) != 0 {
				t.Errorf("List: %v, %v", got, err)
			}
		})
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"debian-13": true, "a": true, "A_b.c": true,
		"": false, "-f": false, ".tmp-x": false, "a/b": false, "a b": false, "ä": false,
		strings.Repeat("a", 64): false /* a digest */, strings.Repeat("x", 65): false,
	} {
		if got := validName(name); got != want {
			t.Errorf("validName(%q) = %v", name, got)
		}
	}
}

func TestLockWaitEnds(t *testing.T) {
	s := testStore(t)
	unlock, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := s.Prune(ctx, unused); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Prune of a locked store: %v", err)
	}
}

func TestSweep(t *testing.T) {
	s := testStore(t)
	left, err := s.newScratch(t.Context(), s.dir, tempPrefix, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	left.lock.Close() // its process was killed
	if err := os.WriteFile(left.path("disk.raw"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	work, err := s.newScratch(t.Context(), s.work, workPrefix+"0-", 0o711) // sweeps
	if err != nil {
		t.Fatal(err)
	}
	if got := entries(t, s.dir); len(got) != 0 {
		t.Errorf("left in the store: %q", got)
	}
	// What is at work stays, a lock without directory and the removed go.
	if err := errors.Join(
		os.WriteFile(filepath.Join(s.dir, tempPrefix+"1.lock"), nil, 0o600),
		os.Mkdir(filepath.Join(s.dir, tempPrefix+"removed-1"), 0o755),
	); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prune(t.Context(), unused); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, s.dir); len(got) != 0 {
		t.Errorf("left in the store: %q", got)
	}
	if _, err := os.Stat(work.dir); err != nil {
		t.Errorf("a directory at work was swept: %v", err)
	}
	// Who cannot have the store's lock does not wait for it.
	if err := os.Mkdir(filepath.Join(s.dir, tempPrefix+"2"), 0o700); err != nil {
		t.Fatal(err)
	}
	unlock, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Sweep(t.Context())
	if got := entries(t, s.dir); len(got) != 1 {
		t.Errorf("another process has the lock: %q", got)
	}
	unlock()
	s.Sweep(t.Context())
	if got := entries(t, s.dir); len(got) != 0 {
		t.Errorf("left in the store: %q", got)
	}
	if _, err := os.Stat(work.dir); err != nil {
		t.Errorf("a directory at work was swept: %v", err)
	}
	work.remove(t.Context())
	if got := entries(t, s.work); len(got) != 0 {
		t.Errorf("left in the work directory: %q", got)
	}
}

// Users of a namespace unpack in the directory for builds, so they must get there.
func TestWork(t *testing.T) {
	public := t.TempDir()
	for _, dir := range []string{public, filepath.Dir(public)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if base := filepath.Dir(filepath.Dir(public)); !forEverybody(base) {
		t.Skipf("%s is not for everybody", base)
	}
	private := filepath.Join(public, "private")
	below := filepath.Join(private, "tmp")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(private, 0o700); err != nil {
		t.Fatal(err)
	}
	for tmp, want := range map[string]string{"": "/var/tmp", "x": "/var/tmp", public: public, private: "/var/tmp", below: "/var/tmp", "/nonexistent": "/var/tmp"} {
		t.Setenv("TMPDIR", tmp)
		if got := NewStore(t.TempDir(), slog.Default()).Work(); got != want {
			t.Errorf("TMPDIR=%s: %s, want %s", tmp, got, want)
		}
	}
}
