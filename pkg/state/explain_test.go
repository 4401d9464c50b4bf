package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/ui"
)

// TestExplain: an error about a file of devvm's gets a hint that fits it, and keeps its words.
func TestExplain(t *testing.T) {
	d := Dirs{Data: "/d/devvm", Runtime: "/r/devvm", Cache: "/c/devvm", Config: "/e/devvm"}
	at := func(path string, err error) error { return &fs.PathError{Op: "open", Path: path, Err: err} }
	for name, tt := range map[string]struct {
		err  error
		hint string // "": it stays as it is
	}{
		"a directory":       {at("/d/devvm/projects/a/lock", unix.EISDIR), "something else is where devvm keeps a file; move it away and run the command again: mv /d/devvm/projects/a/lock /d/devvm/projects/a/lock.away"},
		"found by replace":  {at("/d/devvm/x", file.ErrDirectory), "mv /d/devvm/x /d/devvm/x.away"},
		"a file above":      {at("/c/devvm/x/y", unix.ENOTDIR), "mv /c/devvm/x/y /c/devvm/x/y.away"},
		"not empty":         {at("/d/devvm/x", unix.ENOTEMPTY), "something else is where devvm keeps a file"},
		"to be quoted":      {at("/d/devvm/it's", unix.EISDIR), `mv '/d/devvm/it'\''s' '/d/devvm/it'\''s.away'`},
		"the directory":     {at("/d/devvm", unix.ENOTDIR), "mv /d/devvm /d/devvm.away"},
		"read-only":         {at("/e/devvm/x", unix.EROFS), "its file system is read-only; devvm has to write there"},
		"full":              {at("/d/devvm/x", unix.ENOSPC), "make room there: devvm df shows what devvm takes, devvm prune frees what nothing uses"},
		"over quota":        {at("/d/devvm/x", unix.EDQUOT), "make room there"},
		"of a rename":       {&os.LinkError{Op: "rename", Old: "/tmp/x", New: "/d/devvm/x", Err: unix.ENOTEMPTY}, "mv /d/devvm/x /d/devvm/x.away"},
		"forbidden":         {at("/r/devvm/x", unix.EACCES), "give yourself access, or move it away (mv /r/devvm/x /r/devvm/x.away), and run the command again"},
		"elsewhere":         {at("/d/devvm2/x", unix.EACCES), ""},
		"the user's own":    {at("/home/u/devvm.toml", unix.EACCES), ""},
		"without a file":    {unix.EACCES, ""},
		"something else":    {at("/d/devvm/x", unix.EIO), ""},
		"missing":           {at("/d/devvm/x", fs.ErrNotExist), ""},
		"no short one":      {at("/tmp/devvm-1/x", unix.EACCES), ""},
		"explained already": {&ui.Error{Msg: "no", Hint: "do this", Err: at("/d/devvm/x", unix.EISDIR)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := fmt.Errorf("do something: %w", tt.err)
			got := d.Explain(err)
			if got.Error() != err.Error() || !errors.Is(got, tt.err) {
				t.Errorf("the words changed: %q", got)
			}
			if tt.hint == "" {
				if got != err { //nolint:errorlint // the same value
					t.Errorf("it was explained: %q", ui.Hint(got))
				}
				return
			}
			if hint := ui.Hint(got); !strings.Contains(hint, tt.hint) {
				t.Errorf("hint %q, want %q", hint, tt.hint)
			}
			if again := d.Explain(got); again != got { //nolint:errorlint // as above
				t.Errorf("explained twice: %q", ui.Hint(again))
			}
		})
	}
	if err := d.Explain(nil); err != nil {
		t.Error(err)
	}
	busy := d.Explain(&ui.Error{Code: ui.ExitBusy, Err: at("/d/devvm/x", unix.EISDIR)})
	if ui.ExitCode(busy) != ui.ExitBusy || ui.Hint(busy) == "" {
		t.Errorf("the exit code is lost: %d, %q", ui.ExitCode(busy), ui.Hint(busy))
	}
}

// TestWhose: who may open the door is the owner of what is nearest.
func TestWhose(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	me := "uid " + strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil {
		me = u.Username
	}
	want := fmt.Sprintf("belongs to %s, mode 0750 (%s)", me, dir)
	for _, path := range []string{dir, filepath.Join(dir, "none"), filepath.Join(dir, "no", "such", "file")} {
		if got := whose(path); got != want {
			t.Errorf("%s %s, want %s", path, got, want)
		}
	}
	if got := whose("nothing/here"); !strings.Contains(got, " (.)") {
		t.Errorf("a relative path %s", got)
	}
	// Nobody in /etc/passwd has the number: it is shown itself.
	if os.Getuid() == 0 {
		if err := os.Chown(dir, 4242424, -1); err != nil {
			t.Fatal(err)
		}
		if got := whose(dir); !strings.HasPrefix(got, "belongs to uid 4242424, ") {
			t.Errorf("it %s", got)
		}
	}
}
