//go:build vmtest

package image

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/disk"
)

// TestBuildForReal builds both variants for real, as the user that runs the test.
// DEVVM_TEST_IMAGES keeps them.
func TestBuildForReal(t *testing.T) {
	dir := os.Getenv("DEVVM_TEST_IMAGES")
	if dir == "" {
		dir = filepath.Join(t.TempDir(), "images")
	}
	s := NewStore(dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err := s.CheckHost(t.Context()); err != nil {
		t.Skip(err)
	}
	for _, stock := range []bool{false, true} {
		start := time.Now()
		img, err := s.Build(t.Context(), BuildOptions{
			Stock:    stock,
			Log:      t.Output(),
			Progress: func(step string) { t.Logf("%6.1fs %s", time.Since(start).Seconds(), step) },
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s, engine %s, %d MiB, %.0f s", img.Name, img.Digest, img.Engine, img.Size()>>20, time.Since(start).Seconds())
		if img.Engine == "" || img.Packages["docker.io"] == "" || img.Recipe != RecipeDigest(img.Name) {
			t.Errorf("manifest: %+v", img.Manifest)
		}
		for role, want := range img.Files {
			got, err := sumFile(t.Context(), filepath.Join(img.Dir, want.Name))
			if err != nil || got != want {
				t.Errorf("%s: got %+v, %v, want %+v", role, got, err, want)
			}
		}
		info, err := disk.Stat(t.Context(), img.Disk())
		if err != nil || info.VirtualSize != img.DiskSize || info.Backing != "" {
			t.Errorf("disk: %+v, %v", info, err)
		}
		again, err := s.Resolve(t.Context(), img.Digest[:12])
		if err != nil || again.Dir != img.Dir {
			t.Errorf("Resolve: %v, %v", again.Dir, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, tempPrefix+"*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
