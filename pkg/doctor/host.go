package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is the machine that is examined. [System] is the one that this runs on;
// tests make others.
type Host struct {
	Root   string // what stands for "/"
	Getenv func(string) string
	UID    int
	User   string // login name
	Arch   string // as in GOARCH

	// Exec runs a program and returns what it says on both streams.
	Exec func(ctx context.Context, name string, args ...string) (string, error)
	// Free is the space, in bytes, that this user can still write at a path
	// that exists.
	Free func(path string) (int64, error)
	// OpenRW opens a device for reading and writing and closes it again.
	OpenRW func(path string) error
}

// System is the machine and user that this process runs on and as.
func System() Host {
	name := os.Getenv("USER")
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	return Host{
		Root: "/", Getenv: os.Getenv, UID: os.Getuid(), User: name, Arch: runtime.GOARCH,
		Exec: run,
		Free: func(path string) (int64, error) {
			var st unix.Statfs_t
			if err := unix.Statfs(path, &st); err != nil {
				return 0, &fs.PathError{Op: "statfs", Path: path, Err: err}
			}
			return int64(st.Bavail) * st.Bsize, nil
		},
		OpenRW: func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return f.Close()
		},
	}
}

func run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	return out.String(), err
}

// path is where a path of the host is for us.
func (h Host) path(p string) string { return filepath.Join(h.Root, p) }

// read returns a small file's text, "" if it cannot be read.
func (h Host) read(p string) string {
	b, err := os.ReadFile(h.path(p))
	if err != nil {
		return ""
	}
	return string(b)
}

// number reads a file that holds one number.
func (h Host) number(p string) (n int64, known bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(h.read(p)), 10, 64)
	return n, err == nil
}

func (h Host) exists(p string) bool {
	_, err := os.Stat(h.path(p))
	return err == nil
}

// look finds the first of the programs on PATH or in the administrator's
// directories, which users often have not on their PATH; a name with slashes
// is a path. The result is a path of the host, "" if there is none.
func (h Host) look(names ...string) string {
	dirs := append(filepath.SplitList(h.Getenv("PATH")), "/usr/local/sbin", "/usr/sbin", "/sbin")
	for _, name := range names {
		if filepath.IsAbs(name) {
			if h.executable(name) {
				return name
			}
			continue
		}
		for _, dir := range dirs {
			if p := filepath.Join(dir, name); filepath.IsAbs(dir) && h.executable(p) {
				return p
			}
		}
	}
	return ""
}

func (h Host) executable(p string) bool {
	info, err := os.Stat(h.path(p))
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// owner is the uid and gid of a path.
func (h Host) owner(p string) (uid, gid int, err error) {
	info, err := os.Stat(h.path(p))
	if err != nil {
		return 0, 0, err
	}
	st, found := info.Sys().(*syscall.Stat_t)
	if !found {
		return 0, 0, errors.ErrUnsupported
	}
	return int(st.Uid), int(st.Gid), nil
}

// free is Free for a path that need not exist yet.
func (h Host) free(p string) (int64, error) {
	for !h.exists(p) && p != "/" && p != "." {
		p = filepath.Dir(p)
	}
	return h.Free(h.path(p))
}

// sudo puts sudo before a command where it is needed.
func (h Host) sudo(format string, args ...any) string {
	cmd := fmt.Sprintf(format, args...)
	if h.UID != 0 {
		cmd = "sudo " + cmd
	}
	return cmd
}

// group finds the name and the members of a group.
func (h Host) group(gid int) (name string, members []string) {
	for line := range strings.Lines(h.read("/etc/group")) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 4 && f[2] == strconv.Itoa(gid) {
			return f[0], strings.Split(f[3], ",")
		}
	}
	return "", nil
}

// members finds the members of a group by its name.
func (h Host) members(group string) (members []string, found bool) {
	for line := range strings.Lines(h.read("/etc/group")) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 4 && f[0] == group {
			return strings.Split(f[3], ","), true
		}
	}
	return nil, false
}

// OS is what os-release says about the distribution.
type OS struct {
	ID      string
	Like    []string
	Version string // "12"; empty for rolling distributions
	Name    string // for people
}

// ReadOS reads /etc/os-release, else /usr/lib/os-release
// (https://www.freedesktop.org/software/systemd/man/latest/os-release.html).
func ReadOS(h Host) OS {
	text := h.read("/etc/os-release")
	if text == "" {
		text = h.read("/usr/lib/os-release")
	}
	o := OS{ID: "linux", Name: "Linux"}
	for line := range strings.Lines(text) {
		key, value, found := strings.Cut(strings.TrimSpace(line), "=")
		if !found || strings.HasPrefix(key, "#") {
			continue
		}
		value = unquote(value)
		switch key {
		case "ID":
			o.ID = value
		case "ID_LIKE":
			o.Like = strings.Fields(value)
		case "VERSION_ID":
			o.Version = value
		case "PRETTY_NAME":
			o.Name = value
		}
	}
	return o
}

// unquote takes the shell's quotes off a value.
func unquote(s string) string {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		quote := s[0]
		s = s[1 : len(s)-1]
		if quote == '"' {
			s = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\$`, `$`, "\\`", "`").Replace(s)
		}
	}
	return s
}
