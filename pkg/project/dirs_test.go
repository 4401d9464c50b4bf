package project

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func env(uid int, home string, vars map[string]string) Environment {
	return Environment{UID: uid, Home: home, Getenv: func(k string) string { return vars[k] }}
}

func TestNewDirs(t *testing.T) {
	run := t.TempDir()
	for _, tt := range []struct {
		name string
		env  Environment
		want Dirs
	}{
		{"root", env(0, "/root", nil), Dirs{"/var/lib/devvm", "/run/devvm", "/var/cache/devvm", "/etc/devvm", true}},
		{
			"user without a runtime directory", env(4242424, "/home/u", map[string]string{"XDG_RUNTIME_DIR": "/nonexistent"}),
			Dirs{"/home/u/.local/share/devvm", "/home/u/.local/share/devvm/run", "/home/u/.cache/devvm", "/home/u/.config/devvm", false},
		},
		{
			"XDG", env(os.Getuid(), "/home/u", map[string]string{"XDG_DATA_HOME": "/d", "XDG_CACHE_HOME": "relative", "XDG_CONFIG_HOME": "/c", "XDG_RUNTIME_DIR": run}),
			Dirs{"/d/devvm", run + "/devvm", "/home/u/.cache/devvm", "/c/devvm", os.Getuid() == 0},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := NewDirs(tt.env)
			if err != nil || got != tt.want {
				t.Errorf("got %+v, %v\nwant %+v", got, err, tt.want)
			}
		})
	}
	if _, err := NewDirs(env(1000, "", nil)); err == nil {
		t.Error("no home directory and no XDG variables: no error")
	}
}

// A socket path that the kernel cannot bind gets a short, private stand-in.
func TestLongRuntimeDirectory(t *testing.T) {
	d := Dirs{Runtime: "/home/u/" + strings.Repeat("long/", 30) + "run"}
	f := d.paths("app-12345678")
	for _, path := range []string{f.dockerSocket(), f.controlSocket(), f.dialSocket(), f.netSocket()} {
		if len(path) > sunPath {
			t.Errorf("%s: %d bytes", path, len(path))
		}
	}
	if other := d.paths("web-12345679"); other.run == f.run {
		t.Error("two projects share a runtime directory")
	}
	if short := (Dirs{Runtime: "/run/user/1000/devvm"}).paths("app-12345678"); short.run != "/run/user/1000/devvm/app-12345678" {
		t.Errorf("run = %s", short.run)
	}
}

func TestMakeRuntime(t *testing.T) {
	d := Dirs{Data: t.TempDir(), Runtime: filepath.Join(t.TempDir(), "devvm")}
	f := d.paths("app-12345678")
	// A directory with a mode that others could use is mended.
	if err := os.MkdirAll(f.run, 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.makeRuntime(f); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(f.run)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	// A link that leads elsewhere is refused.
	g := d.paths("evil-12345678")
	if err := os.Symlink(t.TempDir(), g.run); err != nil {
		t.Fatal(err)
	}
	if err := d.makeRuntime(g); err == nil {
		t.Error("a symbolic link passes as a runtime directory")
	}
}
