package project

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/template"
	"github.com/devvm/devvm/pkg/tree"
)

// TestWritable: what a VM can write is known of all projects, and a record that cannot be
// read makes it more, not less.
func TestWritable(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"here", "other", "mounted", "read", "gone", "elsewhere"} {
		if err := errors.Join(os.Mkdir(filepath.Join(top, dir), 0o755), os.Symlink("..", filepath.Join(top, dir, "link"))); err != nil {
			t.Fatal(err)
		}
	}
	s := &Service{Env: machine.Env{
		Dirs: state.Dirs{Data: filepath.Join(top, "data"), Runtime: filepath.Join(top, "run")},
		Log:  slog.New(slog.DiscardHandler),
	}}
	s.Templates = template.NewStore(filepath.Join(top, "templates"), s.Log)
	note := func(name, dir string, exports []share.Export) state.Files {
		f := s.Dirs.Files(name)
		err := os.MkdirAll(f.Root, 0o755)
		if dir != "" {
			err = errors.Join(err, f.WriteRecord(filepath.Join(top, dir)))
		}
		if exports != nil {
			r := applied.Record{Start: &applied.Start{Config: config.Default(config.Env{}), Exports: exports}}
			err = errors.Join(err, r.Write(f.Applied()))
		}
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	refused := func(dir string) bool {
		at, err := s.Writable(state.Identify(filepath.Join(top, "here"))).Find(filepath.Join(top, dir, "link"), true)
		if err == nil {
			at.Close()
			return false
		}
		if _, ok := errors.AsType[*tree.LinkError](err); !ok {
			t.Fatal(err)
		}
		return true
	}
	if !refused("here") || refused("other") {
		t.Error("of no other project: its own directory, and nothing else")
	}
	note("other", "other", []share.Export{
		{Source: filepath.Join(top, "mounted"), Target: "/srv", Writable: true},
		{Source: filepath.Join(top, "read"), Target: "/ro"},
	})
	note("begun", "", nil)
	gone := note("gone", "gone", nil)
	for dir, want := range map[string]bool{"here": true, "other": true, "mounted": true, "gone": true, "read": false, "elsewhere": false} {
		if got := refused(dir); got != want {
			t.Errorf("%s: refused: %v", dir, got)
		}
	}
	for path, text := range map[string]string{gone.Applied(): "{", gone.Record: "{}"} {
		was, _ := os.ReadFile(path)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{"here", "other", "mounted", "elsewhere"} {
			if !refused(dir) {
				t.Errorf("%s: a link is followed, and %s is not to be read", dir, filepath.Base(path))
			}
		}
		err := os.Remove(path)
		if was != nil {
			err = errors.Join(err, os.WriteFile(path, was, 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
		if refused("elsewhere") {
			t.Error("still")
		}
	}
}
