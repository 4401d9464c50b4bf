package state

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/background"
)

// TestFiles: each file has a place of its own, where docs/files.md says.
func TestFiles(t *testing.T) {
	f := Dirs{Data: "/d", Runtime: "/r"}.Files("app-12345678")
	const root, run = "/d/projects/app-12345678/", "/r/app-12345678/"
	want := map[string]string{
		f.Lock: root + "lock", f.Record: root + "project.json", f.VM: root + "vm", f.Undo: root + "undo", f.Logs: root + "log",
		f.Disk(): root + "vm/disk.qcow2", f.Console(): root + "vm/console.log", f.Keys(): root + "vm/keys", f.Credentials(): root + "vm/credentials",
		f.begun(): root + "vm/begun", f.unused(): root + "vm/unused", f.Provisioned(): root + "vm/provisioned", f.Management(): root + "vm/management",
		f.Stopping(): root + "vm/stopping", f.Vacant(): root + "vacant", f.Removing(): root + "removing", f.Applied(): root + "applied.json",
		f.Owners(): root + "owners", f.Exposures(): root + "exposures.json",
		f.NetLog(): root + "log/net.log", f.SupervisorLog(): root + "log/supervisor.log", f.ProvisionLog(): root + "log/provision.log",
		f.ShareSocket(): run + "share.sock", f.NetLock(): run + "net.lock", f.DialSocket(): run + "dial.sock", f.ControlSocket(): run + "control.sock",
		f.DockerSocket(): run + "docker.sock", f.SupervisorLock(): run + "supervisor.lock",
		f.NetSocket(): "/r/net/app-12345678.sock",
	}
	for got, path := range want {
		if got != path {
			t.Errorf("got %s, want %s", got, path)
		}
	}
	if len(want) != 29 {
		t.Errorf("%d files, of which some are the same", len(want))
	}
	// What undo brings back must be in vm.
	for _, path := range []string{f.Disk(), f.Console(), f.Keys(), f.Credentials(), f.begun(), f.unused(), f.Provisioned(), f.Management(), f.Stopping()} {
		if !strings.HasPrefix(path, f.VM+"/") {
			t.Errorf("%s is not the VM's", path)
		}
	}
	d := Dirs{Data: "/d", Runtime: "/r"}
	if d.Watches() != "/r/watches" || d.Trusted() != "/d/trusted.json" {
		t.Errorf("%s, %s", d.Watches(), d.Trusted())
	}
	if d.Passable() != 0o700 || (Dirs{Shared: true}).Passable() != 0o711 {
		t.Error("who may pass does not depend on whether QEMU is another user")
	}
}

// TestLongestSocket: it is at least as long as that of any project.
func TestLongestSocket(t *testing.T) {
	for _, runtime := range []string{"/r", "/run/user/1000/devvm", "/" + strings.Repeat("x", 49), "/" + strings.Repeat("x", 50), "/" + strings.Repeat("x", 200)} {
		d := Dirs{Data: "/d", Runtime: runtime, Short: "/tmp/devvm-4294967295"}
		longest := d.LongestSocket()
		if len(longest) > LongestSocketPath {
			t.Errorf("runtime directory of %d bytes: %s is too long", len(runtime), longest)
		}
		for _, name := range []string{"a-12345678", Identify("/src/" + strings.Repeat("long", 20)).Name} {
			if got := d.Files(name).ControlSocket(); len(got) > len(longest) {
				t.Errorf("%s is longer than %s", got, longest)
			}
		}
	}
}

// TestProjects lists what has files, also if it is nothing.
func TestProjects(t *testing.T) {
	d := Dirs{Data: filepath.Join(t.TempDir(), "none")}
	if names, err := d.Projects(); err != nil || len(names) != 0 {
		t.Errorf("before the first project: %q, %v", names, err)
	}
	for _, name := range []string{"b-2", "a-1"} {
		if err := os.MkdirAll(d.Files(name).Root, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := d.Projects(); err != nil || strings.Join(names, " ") != "a-1 b-2" {
		t.Errorf("got %q, %v", names, err)
	}
	d.Data = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(d.Data, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if names, err := d.Projects(); err == nil || !strings.HasPrefix(err.Error(), "list the projects: ") {
		t.Errorf("in a file: %q, %v", names, err)
	}
}

// TestRemove: nothing is left of a project, of its neighbour all.
func TestRemove(t *testing.T) {
	d := Dirs{Data: t.TempDir(), Runtime: t.TempDir()}
	f, other := d.Files("app-12345678"), d.Files("web-12345679")
	fill := func(f Files) {
		t.Helper()
		if err := d.MakeRuntime(f); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{f.Disk(), filepath.Join(f.Keys(), "host"), filepath.Join(f.Undo, "disk.qcow2"), f.NetLog(), f.Lock, f.Record, f.DockerSocket(), f.NetSocket(), background.Unfinished(f.NetSocket())} {
			writeFile(t, path, "x")
		}
	}
	fill(f)
	fill(other)
	for range 2 { // a project without files is no error
		if err := f.Remove(); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{f.Root, f.Run, f.NetSocket(), background.Unfinished(f.NetSocket())} {
			if Exists(path) {
				t.Errorf("%s is left", path)
			}
		}
	}
	for _, path := range []string{other.Disk(), other.DockerSocket(), other.NetSocket()} {
		if !Exists(path) {
			t.Errorf("%s of another project is gone", path)
		}
	}
}

// TestRemoveInterrupted: a run that was killed leaves no VM without its disk, and the next goes on.
func TestRemoveInterrupted(t *testing.T) {
	f := testPaths(t)
	writeFile(t, f.Disk(), "two")
	writeFile(t, filepath.Join(f.Removing(), "keys", "host"), "of a VM that was being removed")
	if err := f.Remove(); err != nil || Exists(f.Root) {
		t.Errorf("it is there: %v, %v", Exists(f.Root), err)
	}
}

// TestRemoveAll removes what lets nobody in, a link and not what it leads to.
func TestRemoveAll(t *testing.T) {
	kept := t.TempDir()
	writeFile(t, filepath.Join(kept, "file"), "x")
	dir := filepath.Join(t.TempDir(), "dir")
	writeFile(t, filepath.Join(dir, "closed", "inner", "file"), "x")
	if err := os.Symlink(kept, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, closed := range []string{"closed/inner", "closed"} {
		if err := os.Chmod(filepath.Join(dir, closed), 0); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := RemoveAll(dir); err != nil || Exists(dir) {
		t.Errorf("it is there: %v, %v", Exists(dir), err)
	}
	if !Exists(filepath.Join(kept, "file")) {
		t.Error("it followed a link")
	}
	if err := RemoveAll("/proc/self/status"); err == nil || !strings.HasPrefix(err.Error(), "remove: ") {
		t.Errorf("what the kernel keeps: %v", err)
	}
}

// writeFile writes a file and makes the directories above it.
func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
