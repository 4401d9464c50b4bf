package state

import (
	"encoding/binary"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/ui"
)

// seen is a file as lstat(2) shows it.
type seen struct {
	mode     fs.FileMode
	uid, gid uint32
}

func (s seen) Name() string       { return "" }
func (s seen) Size() int64        { return 0 }
func (s seen) Mode() fs.FileMode  { return s.mode }
func (s seen) ModTime() time.Time { return time.Time{} }
func (s seen) IsDir() bool        { return s.mode.IsDir() }
func (s seen) Sys() any           { return &syscall.Stat_t{Uid: s.uid, Gid: s.gid} }

// TestPrivate judges directories of uid 1000, whose own group is 1000.
func TestPrivate(t *testing.T) {
	dir := func(perm fs.FileMode, uid uint32) seen { return seen{fs.ModeDir | perm, uid, uid} }
	tmp := seen{fs.ModeDir | fs.ModeSticky | 0o777, 0, 0}
	for name, tt := range map[string]struct {
		at    map[string]seen
		links map[string]string
		path  string
		want  string // in the message and its hint; "": it passes
	}{
		"usual":              {at: map[string]seen{"/r": dir(0o755, 0), "/r/u": dir(0o700, 1000), "/r/u/s": dir(0o700, 1000)}, path: "/r/u/s"},
		"not made yet":       {at: map[string]seen{"/r": dir(0o755, 0), "/r/u": dir(0o700, 1000)}, path: "/r/u/s"},
		"in /tmp":            {at: map[string]seen{"/tmp": tmp, "/tmp/s": dir(0o700, 1000)}, path: "/tmp/s"},
		"not made in /tmp":   {at: map[string]seen{"/tmp": tmp}, path: "/tmp/s", want: "any user can make it"},
		"nor above":          {at: map[string]seen{"/tmp": tmp}, path: "/tmp/u/s", want: "/tmp/u does not exist"},
		"another's":          {at: map[string]seen{"/tmp": tmp, "/tmp/s": dir(0o700, 424242)}, path: "/tmp/s", want: "/tmp/s belongs to uid 424242 and has mode 0700"},
		"root's":             {at: map[string]seen{"/tmp": tmp, "/tmp/s": dir(0o700, 0)}, path: "/tmp/s", want: "and has mode 0700"},
		"below another's":    {at: map[string]seen{"/tmp": tmp, "/tmp/u": dir(0o777, 424242), "/tmp/u/s": dir(0o700, 1000)}, path: "/tmp/u/s", want: "/tmp/u belongs to uid 424242 and has mode 0777"},
		"others may look":    {at: map[string]seen{"/s": dir(0o755, 1000)}, path: "/s", want: "chmod 700 /s"},
		"others could write": {at: map[string]seen{"/s": dir(0o777, 1000)}, path: "/s", want: "rm -r /s"},
		"writable parent":    {at: map[string]seen{"/r": dir(0o777, 1000), "/r/s": dir(0o700, 1000)}, path: "/r/s", want: "chmod go-w /r"},
		"own group":          {at: map[string]seen{"/r": dir(0o775, 1000), "/r/s": dir(0o700, 1000)}, path: "/r/s"},
		"another group":      {at: map[string]seen{"/r": {fs.ModeDir | 0o775, 1000, 50}, "/r/s": dir(0o700, 1000)}, path: "/r/s", want: "mode 0775"},
		"own group, a list": {
			at: map[string]seen{"/listed": dir(0o775, 1000), "/listed/s": dir(0o700, 1000)}, path: "/listed/s", want: "an access control list lets others write",
		},
		"a list to read": {at: map[string]seen{"/listed": dir(0o755, 1000), "/listed/s": dir(0o700, 1000)}, path: "/listed/s"},
		"no directory":   {at: map[string]seen{"/s": {0o600, 1000, 1000}}, path: "/s", want: "not a directory"},
		"a link":         {at: map[string]seen{"/s": {fs.ModeSymlink | 0o777, 1000, 1000}}, links: map[string]string{"/s": "/r"}, path: "/s", want: "a symbolic link"},
		"below a link of root's": {
			at: map[string]seen{"/l": {fs.ModeSymlink | 0o777, 0, 0}, "/r": dir(0o755, 0), "/r/s": dir(0o700, 1000)}, links: map[string]string{"/l": "r"}, path: "/l/s",
		},
		"below a link of another's": {
			at:    map[string]seen{"/tmp": tmp, "/tmp/l": {fs.ModeSymlink | 0o777, 424242, 424242}, "/r": dir(0o755, 0), "/r/s": dir(0o700, 1000)},
			links: map[string]string{"/tmp/l": "/r"}, path: "/tmp/l/s", want: "/tmp/l, a symbolic link, belongs to uid 424242",
		},
		"a link that leads to another's": {
			at:    map[string]seen{"/l": {fs.ModeSymlink | 0o777, 1000, 1000}, "/r": dir(0o755, 424242), "/r/s": dir(0o700, 1000)},
			links: map[string]string{"/l": "/r"}, path: "/l/s", want: "/r belongs to uid 424242",
		},
		"a loop": {at: map[string]seen{"/l": {fs.ModeSymlink | 0o777, 0, 0}}, links: map[string]string{"/l": "/l"}, path: "/l/s", want: "too many levels"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.at["/"] = dir(0o755, 0)
			o := observer{
				uid: 1000,
				lstat: func(path string) (fs.FileInfo, error) {
					if s, ok := tt.at[path]; ok {
						return s, nil
					}
					return nil, fs.ErrNotExist
				},
				readlink: func(path string) (string, error) { return tt.links[path], nil },
				acl:      func(path string) bool { return path == "/listed" },
				alone:    func(gid uint32) bool { return gid == 1000 },
			}
			got := explanation(o.private(tt.path))
			if (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestPrivateList: a real access control list that lets another user write into a directory above
// counts, though its group is nobody else's; one that only lets read does not.
func TestPrivateList(t *testing.T) {
	above := filepath.Join(t.TempDir(), "above")
	if err := os.MkdirAll(filepath.Join(above, "s"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(above, 0o770); err != nil {
		t.Fatal(err)
	}
	// Its tree of directories is the test's own, whoever that runs as.
	o := thisUser()
	o.alone = func(uint32) bool { return true }
	if err := o.judgeAbove(above); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		rights uint16 // of the other user, and the mask
		fine   bool
	}{{7, false}, {5, true}} {
		list := binary.LittleEndian.AppendUint32(nil, 2) // acl(5), as include/uapi/linux/posix_acl_xattr.h has it
		for _, e := range []struct {
			tag, rights uint16
			id          uint32
		}{{1, 7, math.MaxUint32}, {2, tt.rights, 4242}, {4, 0, math.MaxUint32}, {0x10, tt.rights, math.MaxUint32}, {0x20, 0, math.MaxUint32}} {
			list = binary.LittleEndian.AppendUint16(list, e.tag)
			list = binary.LittleEndian.AppendUint16(list, e.rights)
			list = binary.LittleEndian.AppendUint32(list, e.id)
		}
		if err := unix.Setxattr(above, "system.posix_acl_access", list, 0); err != nil {
			t.Skipf("no access control lists here: %v", err)
		}
		err := o.judgeAbove(above)
		if tt.fine != (err == nil) || err != nil && !strings.Contains(err.Error(), "access control list") {
			t.Errorf("rights %d: %v", tt.rights, err)
		}
	}
}

// judgeAbove judges one directory that is above a socket.
func (o observer) judgeAbove(dir string) error {
	info, err := o.lstat(dir)
	if err == nil {
		_, err = o.judge(filepath.Join(dir, "s"), dir, info)
	}
	return err
}

// long is a set of directories in which no socket can be bound.
func long(t *testing.T) Dirs {
	t.Helper()
	data := t.TempDir()
	d := Dirs{Data: data, Runtime: filepath.Join(data, strings.Repeat("long/", 30)+"run")}
	t.Cleanup(func() {
		if dir := d.readShort(); dir != "" {
			_ = os.RemoveAll(dir)
		}
	})
	return d
}

// A socket path that the kernel cannot bind gets a short, private stand-in, which all
// commands find again.
func TestShort(t *testing.T) {
	d := long(t)
	if d.readShort() != "" {
		t.Error("there is one before anybody needs it")
	}
	var wait sync.WaitGroup
	made := make([]string, 8)
	for i := range made {
		wait.Go(func() {
			one := d
			if err := one.Secure("app-12345678"); err != nil {
				t.Error(err)
			}
			made[i] = one.Short
		})
	}
	wait.Wait()
	for _, dir := range made {
		if dir == "" || dir != made[0] || dir != d.readShort() {
			t.Fatalf("they do not agree: %q, and remembered is %q", made, d.readShort())
		}
	}
	d.Short = made[0]
	f := d.Files("app-12345678")
	for _, path := range []string{f.DockerSocket(), f.ControlSocket(), f.DialSocket(), f.NetSocket()} {
		if len(path) > LongestSocketPath || !strings.HasPrefix(path, d.Short+"/") {
			t.Errorf("%s: %d bytes", path, len(path))
		}
	}
	if other := d.Files("web-12345679"); other.Run == f.Run {
		t.Error("two projects share a runtime directory")
	}
	if usual := (Dirs{Runtime: "/run/user/1000/devvm", Short: "/tmp/devvm-1"}).Files("app-12345678"); usual.Run != "/run/user/1000/devvm/app-12345678" {
		t.Errorf("run = %s", usual.Run)
	}
	if err := d.MakeRuntime(f); err != nil {
		t.Error(err)
	}
	if err := d.Secure("app-12345678"); err != nil {
		t.Error(err)
	}
}

// What is at the remembered path is not always what was made there.
func TestShortLost(t *testing.T) {
	elsewhere := t.TempDir()
	for name, damage := range map[string]func(d Dirs) error{
		"gone":          func(d Dirs) error { return os.Remove(d.Short) },
		"others' too":   func(d Dirs) error { return os.Chmod(d.Short, 0o777) },
		"a file":        func(d Dirs) error { _ = os.Remove(d.Short); return os.WriteFile(d.Short, nil, 0o700) },
		"a link":        func(d Dirs) error { _ = os.Remove(d.Short); return os.Symlink(elsewhere, d.Short) },
		"record empty":  func(d Dirs) error { return os.Truncate(d.shortRecord(), 0) },
		"record leads":  func(d Dirs) error { return os.WriteFile(d.shortRecord(), []byte(elsewhere+"\n"), 0o600) },
		"record climbs": func(d Dirs) error { return os.WriteFile(d.shortRecord(), []byte("/tmp/devvm-1/../x\n"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			d := long(t)
			if err := d.Secure("app-12345678"); err != nil {
				t.Fatal(err)
			}
			first := d.Short
			t.Cleanup(func() { _ = os.Remove(first) })
			if err := damage(d); err != nil {
				t.Fatal(err)
			}
			if got := d.readShort(); got != "" {
				t.Errorf("it still counts: %s", got)
			}
			d.Short = d.readShort()
			if err := d.Secure("app-12345678"); err != nil {
				t.Fatal(err)
			}
			if d.Short == "" || d.Short == first || d.Short != d.readShort() {
				t.Errorf("made anew: %q, before %q, remembered %q", d.Short, first, d.readShort())
			}
		})
	}
}

// explanation is all that a user is told of an error.
func explanation(err error) string {
	if err == nil {
		return ""
	}
	return err.Error() + "\n" + ui.Hint(err)
}
