package mounts_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/mounts"
)

// tree makes a home with a project, links and devvm's own directory.
func tree(t *testing.T) (top string, h mounts.Host) {
	t.Helper()
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"home/app/inner", "home/other/deep", "home/.data/keys"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"home/link": "other", "home/app/out": "../other", "home/app/in": "inner", "home/data": ".data"} {
		if err := os.Symlink(to, filepath.Join(top, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(top, "home/file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(top, "home")
	// devvm's own directory by a link, and one that is not there yet.
	return top, mounts.Host{Project: filepath.Join(home, "app"), Home: home, Private: []string{"", filepath.Join(home, "data"), filepath.Join(home, "data/new")}}
}

// TestHost has mounts of a configuration lead where they should, or says why they cannot. TOP in
// the table is the test's directory.
func TestHost(t *testing.T) {
	top, h := tree(t)
	at := func(s string) string { return strings.ReplaceAll(s, "TOP", top) }
	app := "TOP/home/app at TOP/home/app rw"
	for _, c := range []struct {
		name   string
		mounts []config.Mount
		want   []string // each as "source at target mode"
		err    string   // a part of it
	}{
		{"none", nil, []string{app}, ""},
		{"absolute", []config.Mount{{Source: "TOP/home/other/deep/.."}}, []string{app, "TOP/home/other at TOP/home/other ro"}, ""},
		{"of the home", []config.Mount{{Source: "~/other", Target: "/srv/o", Writable: true}}, []string{"TOP/home/other at /srv/o rw", app}, ""},
		{"relative, by a link", []config.Mount{{Source: "../link"}}, []string{app, "TOP/home/other at TOP/home/link ro"}, ""},
		{"in the project", []config.Mount{{Source: "inner"}}, []string{app, "TOP/home/app/inner at TOP/home/app/inner ro"}, ""},
		{"above another comes first", []config.Mount{{Source: "inner", Target: "/srv/a/b"}, {Source: "../other", Target: "/srv/a"}}, []string{"TOP/home/other at /srv/a ro", "TOP/home/app/inner at /srv/a/b ro", app}, ""},
		{"a link in the project", []config.Mount{{Source: "in"}}, nil, "TOP/home/app/in is a symbolic link or below one"},
		{"out of the project", []config.Mount{{Source: "out/deep"}}, nil, "TOP/home/app/out/deep is a symbolic link or below one"},
		{"missing", []config.Mount{{Source: "../none"}}, nil, "default: the mount of ../none: there is no TOP/home/none"},
		{"a variable", []config.Mount{{Source: "$HOME/x"}}, nil, "there is no TOP/home/app/$HOME/x (variables are not expanded; ~/ is your home)"},
		{"a file", []config.Mount{{Source: "~/file"}}, nil, "TOP/home/file is not a directory"},
		{"one target twice", []config.Mount{{Source: "inner", Target: "/srv/a"}, {Source: "../other", Target: "/srv/a"}}, nil, "two directories would be at /srv/a in the VM"},
		{"the project's target", []config.Mount{{Source: "inner", Target: "TOP/home/app"}}, nil, "two directories would be at TOP/home/app in the VM"},
		{"the VM's own", []config.Mount{{Source: "inner", Target: "/etc/x"}}, nil, "/etc/x would hide the VM's own /etc"},
		{"the home", []config.Mount{{Source: "~"}}, nil, "TOP/home contains devvm's own files (TOP/home/.data), among them the keys of other VMs"},
		{"keys", []config.Mount{{Source: "~/data/keys"}}, nil, "TOP/home/.data/keys contains devvm's own files (TOP/home/.data)"},
	} {
		cfg := config.Default(config.Env{})
		for _, m := range c.mounts {
			m.Source, m.Target = at(m.Source), at(m.Target)
			cfg.Mounts = append(cfg.Mounts, m)
		}
		table, note, err := h.Table(cfg)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), at(c.err)) {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		var got []string
		for _, e := range table {
			mode := " ro"
			if e.Writable {
				mode = " rw"
			}
			got = append(got, strings.ReplaceAll(e.Source+" at "+e.Target+mode, top, "TOP"))
		}
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil || note != "" {
			t.Errorf("%s: %v %q %s", c.name, err, note, diff)
		}
	}

	h.Project = h.Home
	table, note, err := h.Table(config.Default(config.Env{}))
	if err != nil || len(table) > 0 || !strings.Contains(note, "to silence this, set mount = false in devvm.toml") {
		t.Errorf("a project with devvm's own files: %v %v %q", table, err, note)
	}
	cfg := config.Default(config.Env{})
	cfg.Mount = false
	if table, note, err := h.Table(cfg); err != nil || table == nil || len(table) > 0 || note != "" {
		t.Errorf("mount = false: %v %v %q", table, err, note)
	}
}

func TestGuestDir(t *testing.T) {
	top, _ := tree(t)
	table := mounts.Table{{Source: filepath.Join(top, "home/other"), Target: "/srv/o"}}
	t.Chdir(filepath.Join(top, "home/link"))
	for dir, want := range map[string]string{"home/link/deep": "/srv/o/deep", "home/app/out": "/srv/o", "home/app": "", "home/other/none": ""} {
		if got := table.GuestDir(filepath.Join(top, dir)); got != want {
			t.Errorf("%s: %q", dir, got)
		}
	}
	if got := table.GuestDir("deep"); got != "/srv/o/deep" {
		t.Errorf("a relative path: %q", got)
	}
}

func TestReal(t *testing.T) {
	top, _ := tree(t)
	for p, want := range map[string]string{"home/link/deep": "home/other/deep", "home/link/none/x": "home/other/none/x", "home/none": "home/none"} {
		if got := mounts.Real(filepath.Join(top, p)); got != filepath.Join(top, want) {
			t.Errorf("%s: %s", p, got)
		}
	}
}
