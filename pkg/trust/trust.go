// Package trust decides whose files devvm obeys.
//
// A devvm.toml decides what a VM gets from its host. So it counts only if nobody but the user
// and root can have written it or put it where it is found. A [Rule] judges the file and the
// directories on the way to it, by descriptors. A [List] holds the directories whose files
// count regardless of their owner.
//
// It imports pkg/file and pkg/shell of devvm. A file that does not count is an [*Error], which
// names path, owner and mode.
package trust

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/shell"
)

// Object is a file or directory, with what decides who can write to it.
type Object struct {
	Path     string
	UID, GID uint32
	Mode     uint32 // permissions and the sticky bit, as in stat(2)
	Link     bool   // a symbolic link, whose permissions mean nothing
	ACL      bool   // its group's permissions are the mask of an access control list
}

// Look describes the file behind a descriptor, which may be O_PATH. The path is for messages.
func Look(path string, fd int) (Object, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Object{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	o := Object{Path: path, UID: st.Uid, GID: st.Gid, Mode: st.Mode & 0o7777, Link: st.Mode&unix.S_IFMT == unix.S_IFLNK}
	// fgetxattr(2) does not accept an O_PATH descriptor. A failed query counts as no list.
	n, err := unix.Getxattr("/proc/self/fd/"+strconv.Itoa(fd), "system.posix_acl_access", nil)
	o.ACL = err == nil && n > 0
	return o, nil
}

// Rule decides whose files count.
type Rule struct {
	UID     uint32                // the user's; root's always count too
	Private func(gid uint32) bool // the group has no member except the user, or root
	Trusted func(dir string) bool // the user has said that all files in this directory count
}

// For returns the rule of the user uid, with that user's list of trusted directories.
func For(uid int, list List) Rule {
	return Rule{
		UID: uint32(uid), //nolint:gosec // user IDs have 32 bits
		Private: func(gid uint32) bool {
			passwd, perr := os.ReadFile("/etc/passwd")
			group, gerr := os.ReadFile("/etc/group")
			if perr != nil || gerr != nil {
				return false
			}
			return private(gid, uint32(uid), string(passwd), string(group)) || private(gid, 0, string(passwd), string(group)) //nolint:gosec // as above
		},
		Trusted: list.Has,
	}
}

// Error says that a file or directory does not count, and why.
type Error struct {
	Object
	Why string // completes "devvm does not go by PATH: "
	Dir string // the project's directory, which the user can trust
	own bool   // the user can change the object's mode
}

// Hint returns what to do about it.
func (e *Error) Hint() string {
	hint := "if you trust whoever can write there: devvm trust " + shell.Quote(e.Dir)
	switch {
	case os.Getuid() == 0 && e.UID != 0 && os.Getenv("SUDO_UID") == strconv.FormatUint(uint64(e.UID), 10):
		hint = "to use your own VMs, run devvm without sudo\n" + hint
	case e.own:
		hint = "keep others from writing there: chmod go-w " + shell.Quote(e.Path) + "\n" + hint
	}
	return hint + "\nto go without it, make a project of the current directory: devvm init"
}

// Error returns a message with path, owner and mode.
func (e *Error) Error() string {
	return fmt.Sprintf("devvm does not go by %s: %s (owner %s, mode %04o)", e.Path, e.Why, e.Owner(), e.Mode)
}

// Owner returns the name of the object's owner, or the number if there is no name.
func (o Object) Owner() string {
	id := strconv.FormatUint(uint64(o.UID), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

// Check returns an *Error if an object does not count for the project in dir.
func (r Rule) Check(dir string, o Object) error {
	why := r.judge(o)
	if why == "" || r.Trusted != nil && r.Trusted(dir) {
		return nil
	}
	return &Error{Object: o, Why: why, Dir: dir, own: o.UID == r.UID && !o.ACL}
}

// judge returns why an object does not count, "" if it does.
func (r Rule) judge(o Object) string {
	switch {
	case o.UID != r.UID && o.UID != 0:
		return "it is another user's"
	case o.Link:
		return ""
	case o.Mode&0o002 != 0:
		return "others can write it"
	case o.Mode&0o020 != 0 && o.ACL:
		return "others can write it, by an access control list"
	case o.Mode&0o020 != 0 && (r.Private == nil || !r.Private(o.GID)):
		return "the group can write it"
	}
	return ""
}

// CheckOpen is Check for an open file.
func (r Rule) CheckOpen(project, path string, f *os.File) error {
	o, err := Look(path, int(f.Fd()))
	if err != nil {
		return err
	}
	return r.Check(project, o)
}

// OpenDir opens a directory as a starting point for lookups (O_PATH). No part of the path may
// be a symbolic link.
func OpenDir(dir string) (*os.File, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(unix.AT_FDCWD, dir, how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), dir), nil
		case !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN):
			return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
		}
	}
}

// private reports whether a group belongs to one user alone: it has the user's name and no
// other member, neither in /etc/group nor as anybody's primary group.
func private(gid, uid uint32, passwd, group string) bool {
	id, own := strconv.FormatUint(uint64(gid), 10), strconv.FormatUint(uint64(uid), 10)
	name := ""
	for line := range strings.Lines(passwd) { // passwd(5): name:password:UID:GID:…
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 4 {
			continue
		}
		switch {
		case f[2] == own:
			if name == "" {
				name = f[0]
			}
		case f[3] == id:
			return false
		}
	}
	found := false
	for line := range strings.Lines(group) { // group(5): name:password:GID:members
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 4 || f[2] != id {
			continue
		}
		if name == "" || f[0] != name || f[3] != "" && f[3] != name {
			return false
		}
		found = true
	}
	return found
}
