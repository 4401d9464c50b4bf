package mounts_test

import (
	"path"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/guard"
	"github.com/devvm/devvm/pkg/mounts"
	"github.com/devvm/devvm/pkg/share"
)

// refused tells whether a container may not bind a path that is a directory here and, as is said,
// in the VM.
func refused(p string, vm guard.Kind, shares ...share.Export) bool {
	g := guard.Guard{Dir: "/home/u/app", Shares: shares}
	return g.Refuse([]guard.Bind{{Path: p}}, []guard.Found{{Host: guard.Directory, Real: p, VM: vm}}) != ""
}

// TestOwnPaths goes through all paths of the VM's own: whether a directory can be mounted on each,
// above it and below it, and what becomes of a container that binds it. The last rows are not the
// VM's own.
func TestOwnPaths(t *testing.T) {
	const (
		no  = false // refused
		yes = true
	)
	seen := map[string]bool{}
	for _, c := range []struct {
		path string
		// A mount: on the path, on the directory above it, on a directory below it.
		on, above, below bool
		// A bind of the path: with things in it, with a mount below it, empty. Then the last two
		// for a directory below the path.
		full, way, empty, wayBelow, emptyBelow bool
	}{
		{"/bin", no, no, no, yes, yes, no, yes, no},
		{"/boot", no, no, no, yes, yes, no, yes, no},
		{"/dev", no, no, no, yes, yes, yes, yes, yes},
		{"/etc", no, no, no, yes, yes, no, yes, no},
		{"/lib", no, no, no, yes, yes, no, yes, no},
		{"/lib32", no, no, no, yes, yes, no, yes, no},
		{"/lib64", no, no, no, yes, yes, no, yes, no},
		{"/libx32", no, no, no, yes, yes, no, yes, no},
		{"/proc", no, no, no, yes, yes, yes, yes, yes},
		{"/root", no, no, yes, yes, no, no, no, no},
		{"/run", no, no, yes, yes, yes, yes, yes, yes},
		{"/run/containerd", no, no, no, yes, yes, yes, yes, yes},
		{"/run/devvm", no, no, no, yes, yes, yes, yes, yes},
		{"/run/docker", no, no, no, yes, yes, yes, yes, yes},
		{"/run/systemd", no, no, no, yes, yes, yes, yes, yes},
		{"/sbin", no, no, no, yes, yes, no, yes, no},
		{"/sys", no, no, no, yes, yes, yes, yes, yes},
		{"/tmp", no, no, yes, no, no, no, no, no},
		{"/usr", no, no, yes, yes, yes, no, yes, no},
		{"/usr/bin", no, no, no, yes, yes, no, yes, no},
		{"/usr/lib", no, no, no, yes, yes, no, yes, no},
		{"/usr/sbin", no, no, no, yes, yes, no, yes, no},
		{"/var", no, no, yes, yes, yes, no, yes, no},
		{"/var/lib/containerd", no, no, no, yes, yes, no, yes, no},
		{"/var/lib/devvm", no, no, no, yes, yes, no, yes, no},
		{"/var/lib/docker", no, no, no, yes, yes, no, yes, no},
		{"/var/log", no, no, yes, yes, yes, no, yes, no},
		{"/var/run", no, no, no, yes, yes, yes, yes, yes},
		{"/var/tmp", no, no, yes, no, no, no, no, no},

		{"/home", yes, no, yes, yes, no, no, no, no},
		{"/home/u/app", yes, yes, yes, yes, no, no, no, no},
		{"/opt", yes, no, yes, yes, no, no, no, no},
		{"/srv/etc", yes, yes, yes, yes, no, no, no, no},
		{"/etcetera", yes, no, yes, yes, no, no, no, no},
		{"/var/temporary", yes, no, yes, yes, yes, no, yes, no},
	} {
		seen[c.path] = true
		low := path.Join(c.path, "x")
		mount := func(target string) bool { return mounts.Host{}.Unfit("/data", target) == "" }
		bind := func(p string, vm guard.Kind, shares ...share.Export) bool { return !refused(p, vm, shares...) }
		for _, got := range []struct {
			what      string
			got, want bool
		}{
			{"a mount on it", mount(c.path), c.on},
			{"a mount above it", mount(path.Dir(c.path)), c.above},
			{"a mount below it", mount(low), c.below},
			{"a bind of it", bind(c.path, guard.Directory), c.full},
			{"a bind of it with a mount below", bind(c.path, guard.Directory, share.Export{Source: "/data", Target: low}), c.way},
			{"a bind of it, empty", bind(c.path, guard.Empty), c.empty},
			{"a bind below it with a mount below", bind(low, guard.Directory, share.Export{Source: "/data", Target: path.Join(low, "y")}), c.wayBelow},
			{"a bind below it, empty", bind(low, guard.Empty), c.emptyBelow},
		} {
			if got.got != got.want {
				t.Errorf("%s: %s: passes: %v, want %v", c.path, got.what, got.got, got.want)
			}
		}
	}
	for i, p := range mounts.OwnPaths() {
		if !seen[p] {
			t.Errorf("%s is not in this test", p)
		}
		if all := mounts.OwnPaths(); i > 0 && all[i-1] >= p {
			t.Errorf("%s must not come after %s", p, all[i-1])
		}
	}
}

// The VM's own path that is named is the first that would be hidden.
func TestUnfitTarget(t *testing.T) {
	for target, own := range map[string]string{"/": "/bin", "/usr": "/usr", "/usr/lib/x": "/usr/lib", "/var/lib": "/var/lib/containerd", "/run": "/run", "/run/docker/x": "/run/docker", "/var/run/docker": "/var/run", "/var/tmp": "/var/tmp"} {
		if got := (mounts.Host{}).Unfit("/data", target); got != target+" would hide the VM's own "+own {
			t.Errorf("%s: %q", target, got)
		}
	}
	for length, fit := range map[int]bool{245: true, 246: false, 1000: false} {
		p := "/" + strings.Repeat("x", length-1)
		why := mounts.Host{}.Unfit(p, p)
		if (why == "") != fit || !fit && !strings.Contains(why, "mounts 245 at most") {
			t.Errorf("%d bytes: %q", length, why)
		}
	}
	if why := (mounts.Host{}).Unfit("/a", "/a\nb"); !strings.Contains(why, "control character") {
		t.Errorf("a newline: %q", why)
	}
}
