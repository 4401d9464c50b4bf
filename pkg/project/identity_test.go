package project

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/config"
)

func TestIdentify(t *testing.T) {
	for _, tt := range []struct{ dir, name string }{
		{"/home/u/app", "app-"},
		{"/srv/app", "app-"},
		{"/home/u/My Grand  Project!", "my-grand-project-"},
		{"/home/u/проект", "project-"},
		{"/home/u/a\xffb", "a-b-"},
		{"/home/u/" + strings.Repeat("x", 200), strings.Repeat("x", 24) + "-"},
		{"/home/u/-.-", "project-"},
		{"/", "project-"},
	} {
		p := identify(tt.dir)
		if !strings.HasPrefix(p.Name, tt.name) {
			t.Errorf("identify(%q).Name = %q, want %q…", tt.dir, p.Name, tt.name)
		}
		if !regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*-[0-9a-f]{8}$`).MatchString(p.Name) {
			t.Errorf("identify(%q).Name = %q is no host name", tt.dir, p.Name)
		}
		// RFC 9562: version 8, variant 10.
		if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(p.UUID) {
			t.Errorf("identify(%q).UUID = %q", tt.dir, p.UUID)
		}
		if again := identify(tt.dir); again != p {
			t.Errorf("identify(%q) is not stable: %v, %v", tt.dir, p, again)
		}
	}
	if identify("/a/app").Name == identify("/b/app").Name {
		t.Error("two directories of the same name are one project")
	}
}

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
		p, err := Find(start)
		if err != nil || p.Dir != want {
			t.Errorf("Find(%s) = %q, %v; want %q", start, p.Dir, err, want)
		}
	}
	if _, err := Find(filepath.Join(root, "absent")); err == nil {
		t.Error("Find of a directory that is not there succeeds")
	}
}

func TestUnusual(t *testing.T) {
	home := t.TempDir()
	p, err := New(home)
	if err != nil {
		t.Fatal(err)
	}
	if p.Unusual(home) == "" || identify("/").Unusual(home) == "" {
		t.Error("the home directory or / passes as a usual project")
	}
	if why := identify(filepath.Join(p.Dir, "x")).Unusual(home); why != "" {
		t.Errorf("a directory in the home directory is unusual: %s", why)
	}
}
