package background

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

func TestPlace(t *testing.T) {
	for _, tt := range []struct {
		name string
		then func(t *testing.T, path string) // done to the lock's file
		want bool
	}{
		{"untouched", func(*testing.T, string) {}, true},
		{"removed", remove, false},
		{"replaced", func(t *testing.T, path string) {
			remove(t, path)
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, false},
		{"its directory is removed", func(t *testing.T, path string) { remove(t, filepath.Dir(path)) }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "run")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "lock")
			place, err := Take(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer place.Close()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 3*placeEvery)
				defer cancel()
				began := time.Now()
				tt.then(t, path)
				if got := place.Held(ctx); got != tt.want {
					t.Errorf("Held = %v, want %v", got, tt.want)
				}
				if took := time.Since(began); !tt.want && took > placeEvery {
					t.Errorf("seen after %v, want %v", took, placeEvery)
				}
			})
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}
