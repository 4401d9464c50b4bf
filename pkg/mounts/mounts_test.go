package mounts_test

import (
	"testing"

	"github.com/devvm/devvm/pkg/mounts"
)

// TestTable leads from paths of the host to paths of the VM and back.
func TestTable(t *testing.T) {
	table := mounts.Table{
		{Source: "/home/u/app", Target: "/home/u/app", Writable: true},
		{Source: "/home/u/app/inner", Target: "/srv/inner"},
		{Source: "/data", Target: "/srv/set"},
		{Source: "/data/deep", Target: "/srv/set/other"},
	}
	root := mounts.Table{{Source: "/", Target: "/host"}, {Source: "/x", Target: "/"}}
	for _, c := range []struct {
		table       mounts.Table
		host, guest string
	}{
		{table, "/home/u/app", "/home/u/app"},
		{table, "/home/u/app/a/b", "/home/u/app/a/b"},
		{table, "/home/u/app/inner", "/srv/inner"},
		{table, "/home/u/app/inner/x", "/srv/inner/x"},
		{table, "/home/u/app/..x", "/home/u/app/..x"},
		{table, "/data/x", "/srv/set/x"},
		{table, "/data/deep/x", "/srv/set/other/x"},
		{root, "/etc", "/host/etc"},
		{root, "/", "/host"},
		{root, "/x/y", "/y"},
	} {
		if got, ok := c.table.InVM(c.host); !ok || got != c.guest {
			t.Errorf("%s is at %q in the VM, not at %s", c.host, got, c.guest)
		}
		if got, ok := c.table.OnHost(c.guest); !ok || got != c.host {
			t.Errorf("%s is %q on the host, not %s", c.guest, got, c.host)
		}
	}
	for _, p := range []string{"/", "/home/u", "/home/u/application", "/srv", "/srv/settings", "/dat", ""} {
		if got, ok := table.InVM(p); ok {
			t.Errorf("%q of the host is at %q in the VM", p, got)
		}
		if got, ok := table.OnHost(p); ok {
			t.Errorf("%q of the VM is %q on the host", p, got)
		}
	}
	if got, _ := table.OnHost("/home/u/app/inner"); got != "/home/u/app/inner" {
		t.Errorf("by its other path: %q", got)
	}
	// What another mount covers is still the answer.
	if got, _ := table.InVM("/data/other"); got != "/srv/set/other" {
		t.Errorf("covered: %q", got)
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		dir, path string
		want      bool
	}{
		{"/a", "/a", true},
		{"/a", "/a/b", true},
		{"/a", "/a/..b", true},
		{"/a", "/a/b/../c", true},
		{"/", "/a", true},
		{"/", "/", true},
		{"/a/", "/a", true},
		{"/a", "/ab", false},
		{"/a/b", "/a", false},
		{"/a", "/", false},
		{"/a", "/a/..", false},
		{"/a", "/a/../b", false},
		{"/a", "/..a", false},
		{"", "/a", false},
		{"/a", "", false},
		{"/", "", false},
	} {
		if got := mounts.Within(c.dir, c.path); got != c.want {
			t.Errorf("%q in %q: %v", c.path, c.dir, got)
		}
	}
}
