package state

import (
	"os"
	"path/filepath"
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
		{"root", env(0, "/root", nil), Dirs{Data: "/var/lib/devvm", Runtime: "/run/devvm", Cache: "/var/cache/devvm", Config: "/etc/devvm", Shared: true}},
		{
			"user without a runtime directory", env(4242424, "/home/u", map[string]string{"XDG_RUNTIME_DIR": "/nonexistent"}),
			Dirs{Data: "/home/u/.local/share/devvm", Runtime: "/home/u/.local/share/devvm/run", Cache: "/home/u/.cache/devvm", Config: "/home/u/.config/devvm"},
		},
		{
			"XDG", env(os.Getuid(), "/home/u", map[string]string{"XDG_DATA_HOME": "/d", "XDG_CACHE_HOME": "relative", "XDG_CONFIG_HOME": "/c", "XDG_RUNTIME_DIR": run}),
			Dirs{Data: "/d/devvm", Runtime: run + "/devvm", Cache: "/home/u/.cache/devvm", Config: "/c/devvm", Shared: os.Getuid() == 0},
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

// A runtime directory that others can write to is not one.
func TestRuntimeHome(t *testing.T) {
	for mode, want := range map[os.FileMode]bool{0o700: true, 0o755: true, 0o770: false, 0o777: false} {
		dir := t.TempDir()
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		got := RuntimeHome(env(os.Getuid(), "/home/u", map[string]string{"XDG_RUNTIME_DIR": dir}))
		if (got == dir) != want {
			t.Errorf("mode %o: %q", mode, got)
		}
	}
}

func TestMakeRuntime(t *testing.T) {
	d := Dirs{Data: t.TempDir(), Runtime: filepath.Join(t.TempDir(), "devvm")}
	f := d.Files("app-12345678")
	for range 2 {
		if err := d.MakeRuntime(f); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(f.Run)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	// What others may only look at is mended.
	if err := os.Chmod(f.Run, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.MakeRuntime(f); err != nil {
		t.Error(err)
	}
	// What others could write to may hold anything.
	if err := os.Chmod(f.Run, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := d.MakeRuntime(f); err == nil {
		t.Error("a directory that others could write to passes")
	}
	// A link that leads elsewhere is refused.
	g := d.Files("evil-12345678")
	if err := os.Symlink(t.TempDir(), g.Run); err != nil {
		t.Fatal(err)
	}
	if err := d.MakeRuntime(g); err == nil {
		t.Error("a symbolic link passes as a runtime directory")
	}
}
