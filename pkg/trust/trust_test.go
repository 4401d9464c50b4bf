package trust

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestJudge(t *testing.T) {
	const me, other, mine, wheel = 1000, 1001, 1000, 10
	user := Rule{UID: me, Private: func(gid uint32) bool { return gid == mine || gid == 0 }}
	root := Rule{UID: 0, Private: func(gid uint32) bool { return gid == 0 }}
	for _, c := range []struct {
		what string
		rule Rule
		o    Object
		why  string // part of the reason; "": it counts
	}{
		{"the user's", user, Object{UID: me, GID: mine, Mode: 0o644}, ""},
		{"root's", user, Object{UID: 0, GID: 0, Mode: 0o755}, ""},
		{"another's", user, Object{UID: other, GID: mine, Mode: 0o600}, "another user's"},
		{"another's link", user, Object{UID: other, GID: mine, Mode: 0o777, Link: true}, "another user's"},
		{"the user's link", user, Object{UID: me, GID: mine, Mode: 0o777, Link: true}, ""},
		{"for all", user, Object{UID: me, GID: mine, Mode: 0o666}, "others can write"},
		{"like /tmp", user, Object{UID: 0, GID: 0, Mode: 0o1777}, "others can write"},
		{"for the user's own group", user, Object{UID: me, GID: mine, Mode: 0o664}, ""},
		{"for root's own group", user, Object{UID: 0, GID: 0, Mode: 0o775}, ""},
		{"for that group, by a list", user, Object{UID: me, GID: mine, Mode: 0o664, ACL: true}, "access control list"},
		{"with a list that only reads", user, Object{UID: me, GID: mine, Mode: 0o644, ACL: true}, ""},
		{"for another group", user, Object{UID: me, GID: wheel, Mode: 0o664}, "the group can write"},
		{"like /usr/local", user, Object{UID: 0, GID: 50, Mode: 0o2775}, "the group can write"},
		{"no groups are known", Rule{UID: me}, Object{UID: me, GID: mine, Mode: 0o664}, "the group can write"},
		{"root's, for root", root, Object{UID: 0, GID: 0, Mode: 0o644}, ""},
		{"a user's, for root", root, Object{UID: me, GID: mine, Mode: 0o600}, "another user's"},
		{"for a user's group, for root", root, Object{UID: 0, GID: mine, Mode: 0o775}, "the group can write"},
	} {
		err := c.rule.Check("/p", c.o)
		if got := c.rule.judge(c.o); c.why == "" && got != "" || !strings.Contains(got, c.why) || (err == nil) != (got == "") {
			t.Errorf("%s: %q, %v", c.what, got, err)
		}
		trusting := c.rule
		trusting.Trusted = func(dir string) bool { return dir == "/p" }
		if err := trusting.Check("/p", c.o); err != nil {
			t.Errorf("%s, trusted: %v", c.what, err)
		}
		if err := trusting.Check("/p/sub", c.o); (err == nil) != (c.why == "") {
			t.Errorf("%s, another trusted: %v", c.what, err)
		}
	}
	err := user.Check("/p", Object{Path: "/p/devvm.toml", UID: 0, Mode: 0o1777})
	if err == nil || err.Error() != "devvm does not go by /p/devvm.toml: others can write it (owner root, mode 1777)" {
		t.Error(err)
	}
}

func TestPrivate(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\nbob:x:1001:100::/home/bob:/bin/sh\neve:x:1002:1004::/:\nnot a line\n"
	for _, c := range []struct {
		what, group string
		gid, uid    uint32
		want        bool
	}{
		{"no member", "ann:x:1000:", 1000, 1000, true},
		{"the user as a member", "ann:x:1000:ann", 1000, 1000, true},
		{"another member", "ann:x:1000:bob", 1000, 1000, false},
		{"more members", "ann:x:1000:ann,bob", 1000, 1000, false},
		{"another name", "users:x:1000:", 1000, 1000, false},
		{"two names", "ann:x:1000:\nusers:x:1000:bob", 1000, 1000, false},
		{"not in the file", "bob:x:1001:", 1000, 1000, false},
		{"somebody's first group", "ann:x:1004:", 1004, 1000, false},
		{"a user that is not in the file", "ann:x:1000:", 1000, 7, false},
		{"root's", "root:x:0:", 0, 0, true},
		{"root's with a member", "root:x:0:ann", 0, 0, false},
	} {
		if got := private(c.gid, c.uid, passwd, c.group); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

func TestLook(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Chmod(dir, 0o1777); err != nil {
		t.Fatal(err)
	}
	f, err := OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o, err := Look(dir, int(f.Fd()))
	if err != nil || o.Mode != 0o1777 || int(o.UID) != os.Getuid() || o.ACL || o.Link || o.Path != dir {
		t.Errorf("%+v, %v", o, err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(".", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, filepath.Join(link, "x")} {
		if _, err := OpenDir(path); !errors.Is(err, unix.ELOOP) {
			t.Errorf("OpenDir(%s): %v", path, err)
		}
	}
	// An acl(5) as Linux stores it: version 2, then tag, permissions and ID of each entry.
	list := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 7, ^uint32(0)}, {2, 7, 65534}, {4, 5, ^uint32(0)}, {0x10, 7, ^uint32(0)}, {0x20, 0, ^uint32(0)}} {
		list = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(list, e.tag), e.perm), e.id)
	}
	if err := unix.Setxattr(dir, "system.posix_acl_access", list, 0); err != nil {
		t.Skipf("no access control lists here: %v", err)
	}
	if o, err := Look(dir, int(f.Fd())); err != nil || !o.ACL {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestList(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data", "trusted.json")
	l := NewList(path)
	if dirs, err := l.Dirs(); err != nil || len(dirs) != 0 || l.Has("/a") {
		t.Error(dirs, err)
	}
	for _, dir := range []string{"/b", "/a", "/b"} {
		if err := l.Add(dir); err != nil {
			t.Fatal(err)
		}
	}
	if dirs, err := l.Dirs(); err != nil || strings.Join(dirs, " ") != "/a /b" || !l.Has("/a") || l.Has("/a/b") || l.Has("") {
		t.Error(dirs, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Error(info, err)
	}
	if found, err := l.Remove("/c"); found || err != nil {
		t.Error(found, err)
	}
	if found, err := l.Remove("/a"); !found || err != nil || l.Has("/a") || !l.Has("/b") {
		t.Error(found, err)
	}
	if err := l.Add("/\xff"); err == nil {
		t.Error("a path that JSON cannot hold is kept")
	}
	// A damaged list trusts nothing and is not overwritten.
	if err := os.WriteFile(path, []byte(`{"dirs":["/b"`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Dirs(); err == nil || l.Has("/b") || l.Add("/c") == nil {
		t.Error("a damaged list is good")
	}
}
