package state

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/ui"
)

// TestNewDirsHome: without a home the user learns which variable to set.
func TestNewDirsHome(t *testing.T) {
	for name, vars := range map[string]map[string]string{
		"XDG_DATA_HOME":   nil,
		"XDG_CACHE_HOME":  {"XDG_DATA_HOME": "/d"},
		"XDG_CONFIG_HOME": {"XDG_DATA_HOME": "/d", "XDG_CACHE_HOME": "/c"},
	} {
		got, err := NewDirs(env(4242424, "", vars))
		if got != (Dirs{}) || err == nil || err.Error() != "neither "+name+" nor HOME is set, so devvm does not know where its files are" ||
			ui.Hint(err) != "set HOME to your home directory" {
			t.Errorf("%s: %+v, %v, hint %q", name, got, err, ui.Hint(err))
		}
	}
	// An earlier command's directory for sockets is found again.
	d := long(t)
	if err := d.Secure("app-12345678"); err != nil {
		t.Fatal(err)
	}
	got, err := NewDirs(env(os.Getuid(), "/none", map[string]string{"XDG_DATA_HOME": filepath.Dir(d.Data), "XDG_RUNTIME_DIR": "/none"}))
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(d.Data) == "devvm" && got.Short != d.Short {
		t.Errorf("short is %q, want %q", got.Short, d.Short)
	}
	if runtime := RuntimeHome(env(os.Getuid(), "", map[string]string{"XDG_RUNTIME_DIR": "run"})); runtime == "run" {
		t.Error("a relative path counts")
	}
}

// TestSecureAll judges every directory that sockets may be in.
func TestSecureAll(t *testing.T) {
	safe := func() string {
		dir := filepath.Join(t.TempDir(), "d")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	d := Dirs{Data: t.TempDir(), Runtime: safe(), Short: safe()}
	if err := d.SecureAll(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{d.Runtime, d.Short} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		err := d.SecureAll()
		if ui.ExitCode(err) != ui.ExitHost || !strings.Contains(err.Error(), "any is not a safe place for docker.sock: "+dir+" belongs to ") ||
			ui.Hint(err) != "look at what is in it, and then: chmod go-w "+dir {
			t.Errorf("%v, hint %q", err, ui.Hint(err))
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := (&Dirs{Runtime: safe()}).SecureAll(); err != nil {
		t.Errorf("without a short one: %v", err)
	}
}

// TestShortFails: a directory for sockets that cannot be made or remembered is no directory, and
// the error says what it is for.
func TestShortFails(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(d Dirs) error
		want   error
	}{
		"a file for the data": {func(d Dirs) error { return errors.Join(os.Remove(d.Data), os.WriteFile(d.Data, nil, 0o600)) }, unix.ENOTDIR},
		"a directory":         {func(d Dirs) error { return os.Mkdir(d.shortRecord(), 0o700) }, unix.EISDIR},
		"a link":              {func(d Dirs) error { return os.Symlink("elsewhere", d.shortRecord()) }, unix.ELOOP},
		"a pipe":              {func(d Dirs) error { return unix.Mkfifo(d.shortRecord(), 0o600) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			d := long(t)
			if err := tt.damage(d); err != nil {
				t.Fatal(err)
			}
			before, _ := filepath.Glob(filepath.Join(shortParent, shortPrefix+"*"))
			err := d.Secure("app-12345678")
			if err == nil || d.Short != "" || !strings.HasPrefix(err.Error(), "make a directory for sockets, whose path in "+d.Runtime+" would be too long: ") ||
				tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("%q, %v", d.Short, err)
			}
			after, _ := filepath.Glob(filepath.Join(shortParent, shortPrefix+"*"))
			if len(after) > len(before) {
				t.Errorf("left behind: %q, before %q", after, before)
			}
			if err := d.Secure("app-12345678"); err == nil {
				t.Error("the second try passes")
			}
		})
	}
}

// TestMakeRuntimeFails: what is in the way of a runtime directory is named.
func TestMakeRuntimeFails(t *testing.T) {
	d := Dirs{Data: t.TempDir(), Runtime: filepath.Join(t.TempDir(), "devvm")}
	f := d.Files("app-12345678")
	if err := os.WriteFile(d.Runtime, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := d.MakeRuntime(f)
	if ui.ExitCode(err) != ui.ExitHost || !strings.Contains(err.Error(), d.Runtime+", not a directory, belongs to ") || !strings.HasPrefix(ui.Hint(err), "remove it; if you cannot, set XDG_RUNTIME_DIR") {
		t.Errorf("a file: %v, hint %q", err, ui.Hint(err))
	}
	if err := errors.Join(os.Remove(d.Runtime), os.Mkdir(d.Runtime, 0o700), os.WriteFile(f.net, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := d.MakeRuntime(f); ui.ExitCode(err) != ui.ExitHost || !strings.Contains(err.Error(), f.net+", not a directory") {
		t.Errorf("a file for QEMU's socket: %v", err)
	}
	deep := Dirs{Data: d.Data, Runtime: filepath.Join(f.net, "x", "devvm")}
	if err := deep.MakeRuntime(deep.Files("app-12345678")); !errors.Is(err, unix.ENOTDIR) || !strings.HasPrefix(err.Error(), "make runtime directory: ") {
		t.Errorf("below a file: %v", err)
	}
	// QEMU of another user passes to its socket, and sees no other.
	if err := os.Remove(f.net); err != nil {
		t.Fatal(err)
	}
	d.Shared = true
	if err := d.MakeRuntime(f); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{d.Runtime: 0o711, f.Run: 0o700, f.net: 0o711} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
}

// TestPrivateFails: a directory that cannot be looked at is not safe, and the error says what was
// being done.
func TestPrivateFails(t *testing.T) {
	link := seen{fs.ModeSymlink | 0o777, 0, 0}
	for name, o := range map[string]observer{
		"no look": {lstat: func(string) (fs.FileInfo, error) { return nil, unix.EIO }},
		"no link": {
			lstat: func(path string) (fs.FileInfo, error) {
				if path == "/" {
					return seen{fs.ModeDir | 0o755, 0, 0}, nil
				}
				return link, nil
			},
			readlink: func(string) (string, error) { return "", unix.EIO },
		},
	} {
		if err := o.private("/r/s"); !errors.Is(err, unix.EIO) || !strings.HasPrefix(err.Error(), "check the directory of the sockets: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A file of which the kernel does not tell the owner is nobody's.
	if who, which := owner(untold{}), group(untold{}); who != -1 || which != 1<<32-1 {
		t.Errorf("it belongs to %d:%d", who, which)
	}
}

// untold is a file that is not of the operating system's.
type untold struct{ fs.FileInfo }

func (untold) Sys() any { return nil }
