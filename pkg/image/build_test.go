package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/devvm/devvm/images"
)

// fakeMmdebstrap stands for the real one: installs nothing, calls the hook,
// and has the helper that runs a command in a user namespace.
const fakeMmdebstrap = `#!/bin/sh
if [ "$1" = --unshare-helper ]; then shift; exec "$@"; fi
echo "I: $*" >&2
[ -z "$FAKE_FAIL" ] || { echo "E: $FAKE_FAIL" >&2; exit 25; }
if [ -n "$FAKE_HANG" ]; then mkdir "$TMPDIR/mmdebstrap.x"; touch "$FAKE_HANG"; sleep 60 & wait; fi
printf installed
`

// fakeRecipe has an assemble that makes files of the right names.
func fakeRecipe(assemble string) fstest.MapFS {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	return fstest.MapFS{
		"fake/packages":           file("one\n# why\ntwo # because\n"),
		"fake/packages.stock":     file("three\n"),
		"fake/mmdebstrap.options": file("--variant=apt\n"),
		"fake/download":           file(""),
		"fake/assemble":           file(assemble),
		"fake/root/etc/issue":     file("x"),
	}
}

const fakeAssemble = `set -eu
[ "$(cat)" = installed ]
[ "$(cat "$1/root/etc/issue")" = x ]
cd "$TMPDIR"; mkdir out; cd out
echo "quiet $2" >cmdline; echo 26.1 >engine; printf 'docker.io 26.1\nkernel 6.12\n' >packages
echo kernel >kernel; echo initrd >initrd; truncate -s "$3" disk.raw
tar -S -c cmdline engine packages kernel initrd disk.raw
`

func buildStore(t *testing.T, assemble string) *Store {
	t.Helper()
	if _, err := testStore(t).tool("qemu-img"); err != nil {
		t.Skip(err)
	}
	s := testStore(t)
	bin := t.TempDir()
	for name, script := range map[string]string{"mmdebstrap": fakeMmdebstrap, "mke2fs": "#!/bin/sh\n", "newuidmap": "#!/bin/sh\n"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	s.keyring = filepath.Join(bin, "mke2fs") // any file
	s.recipes = fakeRecipe(assemble)
	s.now = func() time.Time { return time.Unix(1e9, 0) }
	return s
}

func TestBuild(t *testing.T) {
	s := buildStore(t, fakeAssemble)
	var log bytes.Buffer
	var steps []string
	img, err := s.Build(t.Context(), BuildOptions{Name: "fake", Stock: true, Log: &log, Progress: func(step string) { steps = append(steps, step) }})
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	got, err := s.Resolve(t.Context(), "fake-stock")
	if diff := cmp.Diff(img, got); err != nil || diff != "" {
		t.Errorf("Resolve: %v\n%s", err, diff)
	}
	want := Manifest{
		Name: "fake-stock", Stock: true, Mounts: true, Recipe: img.Recipe, Digest: img.Digest, Files: img.Files, Arch: img.Arch,
		Created: time.Unix(1e9, 0).UTC(), Engine: "26.1", Cmdline: "quiet stock", DiskSize: rootSize,
		Packages: map[string]string{"docker.io": "26.1", "kernel": "6.12"},
	}
	if diff := cmp.Diff(want, img.Manifest); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{StepPackages, StepDisk, StepCheck}, steps); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(log.String(), "--include=one,two,three ") {
		t.Errorf("mmdebstrap was called with %s", log.String())
	}
	if diff := cmp.Diff([]string{"disk.qcow2", "initrd", "kernel", "manifest.json"}, entries(t, img.Dir)); diff != "" {
		t.Error(diff)
	}
	nothingLeft(t, s, img.Digest)
}

// nothingLeft fails if there is more in the store than want, or anything where
// it works.
func nothingLeft(t *testing.T, s *Store, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, entries(t, s.dir), cmp.Transformer("nil", func(s []string) []string { return append([]string{}, s...) })); diff != "" {
		t.Errorf("in the store: %s", diff)
	}
	if got := entries(t, s.work); len(got) != 0 {
		t.Errorf("left behind: %q", got)
	}
}

func TestBuildFails(t *testing.T) {
	t.Run("mmdebstrap", func(t *testing.T) {
		s := buildStore(t, fakeAssemble)
		t.Setenv("FAKE_FAIL", "no network")
		_, err := s.Build(t.Context(), BuildOptions{Name: "fake"})
		var failed *CommandError
		if !errors.As(err, &failed) || failed.Command != "mmdebstrap" || !strings.Contains(failed.Output, "E: no network") {
			t.Errorf("Build: %v", err)
		}
		nothingLeft(t, s)
	})
	t.Run("assemble", func(t *testing.T) {
		s := buildStore(t, "cat >/dev/null; mkdir $TMPDIR/x; echo no space >&2; exit 1")
		_, err := s.Build(t.Context(), BuildOptions{Name: "fake"})
		var failed *CommandError
		if !errors.As(err, &failed) || failed.Command != "assemble" || !strings.Contains(failed.Output, "no space") {
			t.Errorf("Build: %v", err)
		}
		nothingLeft(t, s)
	})
	t.Run("incomplete", func(t *testing.T) {
		s := buildStore(t, "cat >/dev/null; cd $TMPDIR; echo >engine; tar -c engine")
		if _, err := s.Build(t.Context(), BuildOptions{Name: "fake"}); err == nil {
			t.Error("Build took a tar without a disk")
		}
		nothingLeft(t, s)
	})
	t.Run("unknown recipe", func(t *testing.T) {
		s := buildStore(t, fakeAssemble)
		if _, err := s.Build(t.Context(), BuildOptions{}); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "there is fake") {
			t.Errorf("Build: %v", err)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		s := buildStore(t, fakeAssemble)
		ready := filepath.Join(t.TempDir(), "ready")
		t.Setenv("FAKE_HANG", ready)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
				if _, err := os.Stat(ready); err == nil {
					cancel()
					return
				}
			}
		}()
		if _, err := s.Build(ctx, BuildOptions{Name: "fake"}); !errors.Is(err, context.Canceled) {
			t.Errorf("Build: %v", err)
		}
		nothingLeft(t, s)
	})
}

func TestBuildTwice(t *testing.T) {
	s := buildStore(t, fakeAssemble)
	unlock, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	unlock, err = s.flock(t.Context(), ".build.lock", nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := openRecipe(s.recipes, "fake")
	if err != nil {
		t.Fatal(err)
	}
	var other Image
	var steps []string
	img, err := s.Build(t.Context(), BuildOptions{Name: "fake", Progress: func(step string) {
		steps = append(steps, step)
		if step == StepWait { // the other build ends now
			if other, err = s.build(t.Context(), r, BuildOptions{Name: "fake", Log: t.Output(), Progress: func(string) {}}); err != nil {
				t.Error(err)
			}
			unlock()
		}
	}})
	if err != nil || img.Digest != other.Digest {
		t.Errorf("Build: %s, %v, want %s", img.Digest, err, other.Digest)
	}
	if diff := cmp.Diff([]string{StepWait}, steps); diff != "" {
		t.Error(diff)
	}
}

func TestCheckHost(t *testing.T) {
	s := testStore(t)
	t.Setenv("PATH", t.TempDir())
	s.sbin, s.keyring = t.TempDir(), filepath.Join(t.TempDir(), "none")
	err := s.CheckHost(t.Context())
	for _, want := range []string{"(Debian package mmdebstrap)", "(Debian package e2fsprogs)", "(Debian package qemu-utils)", "(Debian package debian-archive-keyring)"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("CheckHost: %v, want %s", err, want)
		}
	}
	var missing *ToolError
	if !errors.As(err, &missing) {
		t.Errorf("CheckHost: %v, want a ToolError", err)
	}
}

func TestCheckSpace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "yet")
	if err := checkSpace(dir, 1); err != nil {
		t.Error(err)
	}
	var full *SpaceError
	if err := checkSpace(dir, 1<<62); !errors.As(err, &full) || full.Need != 1<<62 || full.Have <= 0 {
		t.Errorf("checkSpace: %v", err)
	}
}

func TestRecipes(t *testing.T) {
	if diff := cmp.Diff([]string{Default}, recipeNames(images.FS)); diff != "" {
		t.Error(diff)
	}
	trim, stock := RecipeDigest(Default), RecipeDigest(Default+stockSuffix)
	if !validDigest(trim) || !validDigest(stock) || trim == stock {
		t.Errorf("digests: %q, %q", trim, stock)
	}
	if got := RecipeDigest("none"); got != "" {
		t.Errorf("RecipeDigest of no recipe: %q", got)
	}
}

func TestTail(t *testing.T) {
	var out tail
	for range 1000 {
		out.Write([]byte("a line of the middle\n"))
	}
	out.Write([]byte("1\n2\n\n3\n4\n5\n6\n"))
	if got := out.String(); got != "1\n2\n3\n4\n5\n6" {
		t.Errorf("tail: %q", got)
	}
}
