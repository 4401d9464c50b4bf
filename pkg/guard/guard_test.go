package guard_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/devvm/devvm/pkg/guard"
	"github.com/devvm/devvm/pkg/mounts"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func local(driver string, options map[string]string) *mount.VolumeOptions {
	return &mount.VolumeOptions{DriverConfig: &mount.Driver{Name: driver, Options: options}}
}

func TestBinds(t *testing.T) {
	for _, c := range []struct {
		specs  []string
		mounts []mount.Mount
		want   []guard.Bind
	}{
		{[]string{"/a:/b"}, nil, []guard.Bind{{Path: "/a"}}},
		{[]string{"/a/../c//d/:/b:z,ro"}, nil, []guard.Bind{{Path: "/c/d", ReadOnly: true}}},
		{[]string{"/a:/b:ro", "/a:/c"}, nil, []guard.Bind{{Path: "/a"}}},
		{[]string{"name:/b", "/b", "", ":", "/a:b", "/a:/b:ro:x", "./a:/b", "a"}, nil, nil},
		{nil, []mount.Mount{
			{Type: "bind", Source: "/a", ReadOnly: true},
			{Type: "bind", Source: "rel"},
			{Type: "bind"},
			{Type: "volume", Source: "name"},
			{Type: "volume", Source: "name", VolumeOptions: &mount.VolumeOptions{}},
			{Type: "tmpfs"},
			{Type: "volume", Source: "/odd"},
			{Type: "image", Source: "/odd"},
		}, []guard.Bind{{Path: "/a", ReadOnly: true}}},
		{nil, []mount.Mount{
			{Type: "volume", VolumeOptions: local("local", map[string]string{"type": "none", "o": "bind", "device": "/a"})},
			{Type: "volume", VolumeOptions: local("", map[string]string{"type": "none", "o": "rbind,ro", "device": "/b"})},
			{Type: "volume", ReadOnly: true, VolumeOptions: local("", map[string]string{"o": "bind", "device": "/c/"})},
			{Type: "volume", VolumeOptions: local("", map[string]string{"type": "tmpfs", "o": "size=1m", "device": "/dev/x"})},
			{Type: "volume", VolumeOptions: local("", map[string]string{"type": "nfs", "o": "addr=192.0.2.9", "device": ":/x"})},
			{Type: "volume", VolumeOptions: local("other", map[string]string{"o": "bind", "device": "/d"})},
			{Type: "volume", VolumeOptions: local("", map[string]string{"o": "bind", "device": "rel"})},
		}, []guard.Bind{{Path: "/a"}, {Path: "/b", ReadOnly: true}, {Path: "/c", ReadOnly: true}}},
	} {
		if diff := cmp.Diff(c.want, guard.Binds(container.HostConfig{Binds: c.specs, Mounts: c.mounts})); diff != "" {
			t.Errorf("%q %v: %s", c.specs, c.mounts, diff)
		}
	}
}

// FuzzBinds: what comes out is a clean absolute path that stands at the beginning of
// what went in.
func FuzzBinds(f *testing.F) {
	for _, s := range []string{"/a:/b", "/a:/b:ro", "a:/b", "/a", "::", "//:/", "/a/..:/b:rw,z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list := guard.Binds(container.HostConfig{Binds: []string{s}})
		if len(list) > 1 {
			t.Fatal(list)
		}
		for _, b := range list {
			if source, _, _ := strings.Cut(s, ":"); path.Clean(source) != b.Path || !path.IsAbs(b.Path) {
				t.Fatalf("%q → %q", s, b.Path)
			}
		}
		g := guard.Guard{Dir: "/home/u/app"}
		for _, b := range list {
			if m := g.Refuse([]guard.Bind{b}, []guard.Found{{Host: guard.Directory, Real: b.Path, VM: guard.Missing}}); !strings.Contains(m, b.Path) {
				t.Fatalf("%q: %q", b.Path, m)
			}
		}
	})
}

var home = guard.Guard{
	Dir: "/home/u/app",
	Shares: mounts.Table{
		{Source: "/home/u/app", Target: "/home/u/app"},
		{Source: "/data/set", Target: "/srv/set"},
	},
	Unfit: func(source, target string) string {
		switch {
		case source == "/home/u" || source == "/home" || source == "/":
			return source + " contains devvm's own files (/home/u/.local/share/devvm), among them the keys of other VMs"
		case target == "/tmp" || strings.HasPrefix(target, "/etc") || strings.HasPrefix(target, "/usr/lib"):
			return target + " would hide the VM's own " + target
		}
		return ""
	},
}

func TestServes(t *testing.T) {
	for _, c := range []struct {
		path, resolved string
		want           bool
	}{
		{"/home/u/app", "/home/u/app", true},
		{"/home/u/app/new/dir", "/home/u/app/new/dir", true},
		{"/home/u/app/link", "/data/set/x", true}, // out of one share and into another
		{"/home/u/app/link", "/home/u/other", false},
		{"/home/u/application", "/home/u/application", false},
		{"/srv/set/x", "/data/set/x", true},
		{"/data/set", "/data/set", false},
		{"/", "/", false},
	} {
		if got := home.Serves(guard.Bind{Path: c.path}, c.resolved); got != c.want {
			t.Errorf("%s (%s): %v", c.path, c.resolved, got)
		}
	}
}

// TestRefuse compares what users are told with testdata/messages.txt.
func TestRefuse(t *testing.T) {
	off := home
	off.Shares = nil
	inTmp := guard.Guard{Dir: "/tmp/it's mine", Shares: mounts.Table{{Source: "/tmp/it's mine", Target: "/tmp/it's mine"}}, Unfit: home.Unfit}
	unfit := off
	unfit.Dir = "/home/u"
	const ro = true
	var b bytes.Buffer
	for _, c := range []struct {
		name    string
		g       guard.Guard
		path    string
		ro      bool
		host    guard.Kind
		real    string
		vm      guard.Kind
		refused bool
	}{
		{"a directory of the host", home, "/home/u/other", false, guard.Directory, "/home/u/other", guard.Missing, true},
		{"read-only", home, "/home/u/other", ro, guard.Directory, "/home/u/other", guard.Missing, true},
		{"odd characters", home, "/home/u/a \"b\"\\\n", false, guard.Directory, "/home/u/a \"b\"\\\n", guard.Missing, true},
		{"reached by a link", home, "/home/u/link", false, guard.Directory, "/data/other", guard.Missing, true},
		{"left by Docker in the VM", home, "/home/u/other", false, guard.Directory, "/home/u/other", guard.Empty, true},
		{"the way to a share", home, "/home/u", false, guard.Directory, "/home/u", guard.Directory, true},
		{"the way to a share at its top", home, "/home", ro, guard.Directory, "/home", guard.Directory, true},
		{"nowhere", home, "/home/u/new", false, guard.Missing, "", guard.Missing, true},
		{"nowhere, and not to be shared", home, "/usr/lib/it's new", false, guard.Missing, "", guard.Missing, true},
		{"a file", home, "/home/u/conf/f", ro, guard.File, "/home/u/conf/f", guard.Missing, true},
		{"a file beside devvm's own", home, "/home/u/.npmrc", false, guard.File, "/home/u/.npmrc", guard.Missing, true},
		{"a file of the system", home, "/etc/timezone", ro, guard.File, "/etc/timezone", guard.Missing, true},
		{"a file where Docker made a directory", home, "/etc/timezone", ro, guard.File, "/etc/timezone", guard.Empty, true},
		{"a socket", home, "/run/user/1000/bus", false, guard.Socket, "/run/user/1000/bus", guard.Missing, true},
		{"docker.sock of the host", home, "/run/user/1000/devvm/app/docker.sock", false, guard.Socket, "/run/user/1000/devvm/app/docker.sock", guard.Missing, true},
		{"a directory of sockets", home, "/tmp/.X11-unix", false, guard.Sockets, "/tmp/.X11-unix", guard.Empty, true},
		{"a directory of sockets elsewhere", home, "/var/run/postgresql", false, guard.Sockets, "/run/postgresql", guard.Missing, true},
		{"a socket in /tmp", home, "/tmp/s", false, guard.Socket, "/tmp/s", guard.Missing, true},
		{"/tmp, where the VM's is empty", home, "/tmp", false, guard.Directory, "/tmp", guard.Empty, true},
		{"/tmp, where the VM's is not", home, "/tmp", ro, guard.Directory, "/tmp", guard.Directory, true},
		{"/var/tmp", home, "/var/tmp", false, guard.Directory, "/var/tmp", guard.Directory, true},
		{"/tmp without the project's directory", off, "/tmp", false, guard.Directory, "/tmp", guard.Directory, true},
		{"a temporary name", home, "/tmp/tmp.Xq1", false, guard.Directory, "/tmp/tmp.Xq1", guard.Missing, true},
		{"a temporary name that Docker made in the VM", home, "/tmp/tmp.Xq1", false, guard.Directory, "/tmp/tmp.Xq1", guard.Empty, true},
		{"a temporary file", home, "/var/tmp/f", false, guard.File, "/var/tmp/f", guard.Missing, true},
		{"a temporary name that is nowhere", home, "/tmp/tmp.Xq1", false, guard.Missing, "", guard.Missing, true},
		{"a name in /tmp, where the project is", inTmp, "/tmp/other", false, guard.Directory, "/tmp/other", guard.Missing, true},
		{"/tmp, where the project is", inTmp, "/tmp", false, guard.Directory, "/tmp", guard.Directory, true},
		{"a device", home, "/dev/kvm", false, guard.Other, "/dev/kvm", guard.Missing, true},
		{"a link out of the share", home, "/home/u/app/data", false, guard.Directory, "/mnt/big/data", guard.Missing, true},
		{"shared at another path", home, "/data/set/x", false, guard.Directory, "/data/set/x", guard.Missing, true},
		{"a link on the host to what is shared", home, "/home/u/l/src", false, guard.Directory, "/home/u/app/src", guard.Missing, true},
		{"mount = false", off, "/home/u/app/src", false, guard.Directory, "/home/u/app/src", guard.Missing, true},
		{"mount = false, shared earlier", off, "/home/u/app", false, guard.Directory, "/home/u/app", guard.Empty, true},
		{"a project's directory that cannot be shared", unfit, "/home/u/x", false, guard.Directory, "/home/u/x", guard.Missing, true},

		{"the VM's own", home, "/etc/localtime", ro, guard.File, "/etc/localtime", guard.File, false},
		{"the VM's own directory", home, "/lib/modules", ro, guard.Directory, "/usr/lib/modules", guard.Directory, false},
		{"the VM's root", home, "/", ro, guard.Directory, "/", guard.Directory, false},
		{"the VM's /dev/shm", home, "/dev/shm", false, guard.Directory, "/dev/shm", guard.Empty, false},
		{"the VM's /run", home, "/var/run", false, guard.Directory, "/run", guard.Directory, false},
		{"the VM's file in /tmp", home, "/tmp/f", false, guard.File, "/tmp/f", guard.File, false},
		{"a socket of the VM", home, "/run/containerd/containerd.sock", false, guard.Missing, "", guard.Socket, false},
		{"an empty directory of the kernel's", home, "/sys/fs/bpf", false, guard.Directory, "/sys/fs/bpf", guard.Empty, false},
		{"made in the VM", home, "/srv/cache", false, guard.Missing, "", guard.Empty, false},
		{"made in the VM, full", home, "/home/u/cache", false, guard.Directory, "/home/u/cache", guard.Directory, false},
		{"copied to the VM", home, "/home/u/.npmrc", ro, guard.File, "/home/u/.npmrc", guard.File, false},
		{"not readable here", home, "/root/x", false, guard.Unknown, "", guard.Empty, false},
		{"not known", home, "/home/u/other", false, guard.Directory, "/home/u/other", guard.Unknown, false},
		{"temporary, with a share in it", guard.Guard{Shares: mounts.Table{{Source: "/var/tmp/a/b", Target: "/var/tmp/a/b"}}}, "/var/tmp/a", false, guard.Directory, "/var/tmp/a", guard.Directory, true},
		{"the system's, with a share in it", guard.Guard{Shares: mounts.Table{{Source: "/var/www/a", Target: "/var/www/a"}}}, "/var/www", false, guard.Directory, "/var/www", guard.Directory, false},
	} {
		got := c.g.Refuse([]guard.Bind{{Path: c.path, ReadOnly: c.ro}}, []guard.Found{{Host: c.host, Real: c.real, VM: c.vm}})
		if (got != "") != c.refused {
			t.Errorf("%s: %q", c.name, got)
		}
		if got != "" {
			fmt.Fprintf(&b, "== %s\n%s\n\n", c.name, got)
		}
	}
	got := home.Refuse(
		[]guard.Bind{{Path: "/home/u/a"}, {Path: "/srv/cache"}, {Path: "/home/u/b"}, {Path: "/home/u/app/x"}},
		[]guard.Found{
			{Host: guard.Directory, Real: "/home/u/a", VM: guard.Missing},
			{Host: guard.Missing, VM: guard.Directory},
			{Host: guard.Directory, Real: "/home/u/b", VM: guard.Empty},
			{Host: guard.Directory, Real: "/home/u/a", VM: guard.Missing},
		})
	fmt.Fprintf(&b, "== several\n%s\n", got)

	const file = "testdata/messages.txt"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Error(diff)
	}
}
