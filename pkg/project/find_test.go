package project

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/trust"
)

func TestFind(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(root, "app", "src", "deep")
	plain := filepath.Join(root, "plain")
	for _, d := range []string{deep, plain} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "app", config.FileName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(root, "link")
	if err := os.Symlink(filepath.Join(root, "app"), link); err != nil {
		t.Fatal(err)
	}
	for start, want := range map[string]string{
		deep:                            filepath.Join(root, "app"),
		filepath.Join(root, "app"):      filepath.Join(root, "app"),
		link:                            filepath.Join(root, "app"),
		filepath.Join(link, "src"):      filepath.Join(root, "app"),
		plain:                           plain,
		filepath.Join(plain, "..", "."): root,
	} {
		p, err := judged(t, "").Find(start)
		if err != nil || p.Dir != want {
			t.Errorf("Find(%s) = %q, %v; want %q", start, p.Dir, err, want)
		}
	}
	if _, err := judged(t, "").Find(filepath.Join(root, "absent")); err == nil {
		t.Error("Find of a directory that is not there succeeds")
	}
}

// judged is a service that looks for projects as a user does whose home directory it is.
func judged(t *testing.T, home string) *Service {
	return &Service{Home: home, Trust: trust.For(os.Getuid(), trust.NewList(filepath.Join(t.TempDir(), "trusted.json")))}
}

func TestFindStops(t *testing.T) {
	home := canonical(t.TempDir())
	outside := filepath.Dir(home)
	app := filepath.Join(home, "app")
	if err := os.Mkdir(app, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, config.FileName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for start, want := range map[string]string{app: app, home: home, outside: outside} {
		if p, err := judged(t, home).Find(start); err != nil || p.Dir != want {
			t.Errorf("Find(%s) = %q, %v; want %q", start, p.Dir, err, want)
		}
	}
	// The control: from the same place, for somebody who lives elsewhere.
	if p, err := judged(t, t.TempDir()).Find(app); err != nil || p.Dir != outside {
		t.Errorf("the file above the home directory is not found by others: %q, %v", p.Dir, err)
	}
}

func TestFindMount(t *testing.T) {
	if _, err := os.Stat("/proc/sys"); err != nil {
		t.Skip(err)
	}
	// /proc is a mount of its own, and so is not looked beyond.
	a, err := look("/proc")
	if err != nil {
		t.Fatal(err)
	}
	b, err := look("/")
	if err != nil || a.mount == b.mount {
		t.Errorf("/proc and / are on one mount: %d, %v", a.mount, err)
	}
	if c, err := look("/proc/self"); err == nil {
		t.Errorf("a symbolic link is looked through: %+v", c)
	}
}

// Whoever can write the file, or in a directory on the way to it, decides.
func TestFindTrust(t *testing.T) {
	root := canonical(t.TempDir())
	app := filepath.Join(root, "app")
	sub := filepath.Join(app, "sub")
	file := filepath.Join(app, config.FileName)
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s := judged(t, "")
	for _, path := range []string{file, app, sub} {
		if p, err := s.Find(sub); err != nil || p.Dir != app {
			t.Fatalf("the control: %q, %v", p.Dir, err)
		}
		was, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, was.Mode().Perm()|0o002); err != nil {
			t.Fatal(err)
		}
		_, err = s.Find(sub)
		if e, ok := errors.AsType[*trust.Error](err); !ok || e.Path != path || e.Dir != app {
			t.Errorf("others can write %s: %v", path, err)
		}
		trusting := *s
		trusting.Trust.Trusted = func(dir string) bool { return dir == app }
		if p, err := trusting.Find(sub); err != nil || p.Dir != app {
			t.Errorf("trusted: %q, %v", p.Dir, err)
		}
		if err := os.Chmod(path, was.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
	// Somebody else's: this user is another than the one who has made it.
	other := *s
	other.Trust.UID++
	_, err := other.Find(sub)
	if _, ok := errors.AsType[*trust.Error](err); ok == (os.Getuid() == 0) {
		t.Errorf("files of user %d: %v", os.Getuid(), err)
	}
	// A link is found, for its reader to refuse.
	if err := errors.Join(os.Remove(file), os.Symlink("/etc/passwd", file)); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Find(sub); err != nil || p.Dir != app {
		t.Errorf("a link: %q, %v", p.Dir, err)
	}
}

func TestUnusual(t *testing.T) {
	home := t.TempDir()
	s := judged(t, home)
	p, err := state.New(home)
	if err != nil {
		t.Fatal(err)
	}
	if s.Unusual(p) == "" || s.Unusual(state.Identify("/")) == "" {
		t.Error("the home directory or / passes as a usual project")
	}
	x := filepath.Join(p.Dir, "x")
	if err := os.Mkdir(x, 0o755); err != nil {
		t.Fatal(err)
	}
	if why := s.Unusual(state.Identify(x)); why != "" {
		t.Errorf("a directory in the home directory is unusual: %s", why)
	}
	if err := unix.Chmod(x, 0o1777); err != nil {
		t.Fatal(err)
	}
	if why := s.Unusual(state.Identify(x)); !strings.Contains(why, "not yours alone") {
		t.Errorf("a directory like /tmp: %q", why)
	}
}
