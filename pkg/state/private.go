package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/shell"
	"github.com/devvm/devvm/pkg/trust"
	"github.com/devvm/devvm/pkg/ui"
)

// Secure checks that only this user can create files where the project's sockets are: a client
// that gets the path of docker.sock sends registry passwords to it. Every command that uses a
// socket, or prints its path, calls Secure first. Afterwards only root and this user can change
// what Secure has checked.
//
// It creates the short directory if the project's sockets need it.
func (d *Dirs) Secure(name string) error {
	if err := d.makeShort(name); err != nil {
		return err
	}
	return thisUser().private(d.Files(name).Run)
}

// SecureAll is Secure for a command that uses the sockets of several projects.
func (d *Dirs) SecureAll() error {
	for _, dir := range []string{d.Runtime, d.Short} {
		if dir == "" {
			continue
		}
		if err := thisUser().private(filepath.Join(dir, "any")); err != nil {
			return err
		}
	}
	return nil
}

// Where Short may be. mkdtemp chooses the name after the prefix, so nobody knows it before the
// directory exists.
const (
	shortParent = "/tmp"
	shortPrefix = "devvm-"
)

// shortRecord names the file that remembers Short.
func (d Dirs) shortRecord() string { return filepath.Join(d.Data, "sockets") }

// readShort returns the short directory that an earlier command made, or "" if there is none or
// it is no longer private. A reboot empties /tmp, and then anybody can create a directory of that
// name.
func (d Dirs) readShort() string {
	f, err := os.OpenFile(d.shortRecord(), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	return d.shortIn(f)
}

// shortIn returns the directory that the open record names, if it can be trusted.
func (d Dirs) shortIn(record *os.File) string {
	if info, err := record.Stat(); err != nil || !info.Mode().IsRegular() {
		return "" // reading from a pipe would not end
	}
	text, err := io.ReadAll(io.LimitReader(record, LongestSocketPath))
	if err != nil {
		return ""
	}
	dir := strings.TrimSuffix(string(text), "\n")
	if filepath.Dir(dir) != shortParent || !strings.HasPrefix(filepath.Base(dir), shortPrefix) || !d.ownShort(dir) {
		return ""
	}
	return dir
}

// ownShort reports whether a short directory is still as makeShort made it.
func (d Dirs) ownShort(dir string) bool {
	info, err := os.Lstat(dir)
	return err == nil && info.IsDir() && owner(info) == os.Getuid() && info.Mode().Perm() == d.Passable()
}

// makeShort creates the short directory, if the project needs it and there is none.
func (d *Dirs) makeShort(name string) (err error) {
	if !d.tooLong(name) || d.Short != "" && d.ownShort(d.Short) {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("make a directory for sockets, whose path in %s would be too long: %w", d.Runtime, err)
		}
	}()
	if err := os.MkdirAll(d.Data, d.Passable()); err != nil {
		return err
	}
	record, err := os.OpenFile(d.shortRecord(), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	defer record.Close()
	// If several commands find none, only one creates it.
	if err := unix.Flock(int(record.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	if d.Short = d.shortIn(record); d.Short != "" {
		return nil
	}
	dir, err := os.MkdirTemp(shortParent, shortPrefix)
	if err != nil {
		return err
	}
	err = os.Chmod(dir, d.Passable())
	if err == nil {
		err = record.Truncate(0)
	}
	if err == nil {
		_, err = record.WriteAt([]byte(dir+"\n"), 0)
	}
	if err == nil {
		err = record.Sync()
	}
	if err != nil {
		return errors.Join(err, os.Remove(dir))
	}
	d.Short = dir
	return nil
}

// observer is the user for whom a directory must be private, with the calls to examine it.
type observer struct {
	uid      int
	lstat    func(string) (fs.FileInfo, error)
	readlink func(string) (string, error)
	acl      func(string) bool     // it has an access control list
	alone    func(gid uint32) bool // nobody else is in the group, or root
}

func thisUser() observer {
	uid := os.Getuid()
	return observer{uid, os.Lstat, os.Readlink, hasACL, trust.For(uid, trust.List{}).Private}
}

// private returns an error if somebody else could have created the directory, or could replace
// it. The directory need not exist yet, as long as nobody else can create it first.
func (o observer) private(dir string) error {
	// mostLinks is the kernel's own limit (path_resolution(7)).
	const mostLinks = 40
	path, rest := "/", parts(dir)
	open := false // others can make files in path
	for links := 0; ; {
		info, err := o.lstat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && open:
			return exposed(dir, fmt.Sprintf("%s does not exist, and any user can make it", path), "make it: install -d -m 700 "+shell.Quote(path))
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return fmt.Errorf("check the directory of the sockets: %w", err)
		}
		link := info.Mode()&fs.ModeSymlink != 0
		if link && len(rest) > 0 && (owner(info) == 0 || owner(info) == o.uid) {
			if links++; links > mostLinks {
				return fmt.Errorf("check the directory of the sockets: %s: %w", path, unix.ELOOP)
			}
			target, err := o.readlink(path)
			if err != nil {
				return fmt.Errorf("check the directory of the sockets: %w", err)
			}
			if !filepath.IsAbs(target) {
				target = filepath.Join(filepath.Dir(path), target)
			}
			path, rest, open = "/", append(parts(target), rest...), false
			continue
		}
		if len(rest) == 0 {
			return o.judgeLast(path, info)
		}
		if open, err = o.judge(dir, path, info); err != nil {
			return err
		}
		path, rest = filepath.Join(path, rest[0]), rest[1:]
	}
}

// parts returns the names in an absolute path.
func parts(path string) []string {
	return slices.DeleteFunc(strings.Split(filepath.Clean(path), "/"), func(s string) bool { return s == "" })
}

// judgeLast judges the directory that holds the sockets.
func (o observer) judgeLast(dir string, info fs.FileInfo) error {
	switch {
	case !info.IsDir() || owner(info) != o.uid:
		return exposed(dir, describe(dir, info), "remove it; if you cannot, set XDG_RUNTIME_DIR to a directory of yours (mode 0700)")
	case info.Mode().Perm()&0o022 != 0: // others may have put files in it
		return exposed(dir, describe(dir, info), "stop what uses it and remove it: rm -r "+shell.Quote(dir))
	case info.Mode().Perm() != 0o700:
		return exposed(dir, describe(dir, info), "chmod 700 "+shell.Quote(dir))
	}
	return nil
}

// judge judges a directory above. open reports whether others can create files in it.
func (o observer) judge(dir, path string, info fs.FileInfo) (open bool, err error) {
	st := info.Mode()
	listed := st.Perm()&0o020 != 0 && o.acl(path)
	writable := st.Perm()&0o002 != 0 || st.Perm()&0o020 != 0 && (listed || !o.alone(group(info)))
	switch {
	case !info.IsDir(), owner(info) != 0 && owner(info) != o.uid, writable && st&fs.ModeSticky == 0:
		hint := "set XDG_RUNTIME_DIR to a directory of yours (mode 0700) that only you and root can replace"
		why := describe(path, info)
		if listed {
			why += ", and an access control list lets others write (getfacl " + shell.Quote(path) + ")"
		}
		if info.IsDir() && owner(info) == o.uid {
			hint = "look at what is in it, and then: chmod go-w " + shell.Quote(path)
		}
		return false, exposed(dir, why, hint)
	}
	return writable, nil
}

// exposed is the error that somebody else may get at the sockets.
func exposed(dir, why, hint string) error {
	return &ui.Error{
		Code: ui.ExitHost,
		Msg:  fmt.Sprintf("%s is not a safe place for docker.sock: %s. Another user could answer there and read what Docker clients send", dir, why),
		Hint: hint,
	}
}

// describe names a file with its owner and mode.
func describe(path string, info fs.FileInfo) string {
	what := path
	if info.Mode()&fs.ModeSymlink != 0 {
		what += ", a symbolic link,"
	} else if !info.IsDir() {
		what += ", not a directory,"
	}
	uid := owner(info)
	who := "uid " + strconv.Itoa(uid)
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		who = fmt.Sprintf("%s (uid %d)", u.Username, uid)
	}
	return fmt.Sprintf("%s belongs to %s and has mode %04o", what, who, info.Mode().Perm())
}

// hasACL reports whether a directory has an access control list. The permissions of its group are
// then the list's mask. If the directory cannot be asked, it has none.
func hasACL(path string) bool {
	n, err := unix.Lgetxattr(path, "system.posix_acl_access", nil)
	return err == nil && n > 0
}
