// Package state is what devvm keeps about a project on this host: its identity ([Project]), where
// its files are ([Dirs], [Files]), the lock that lets one command change them (Acquire), and the
// small files among them, marks and records, each of which is replaced as a whole.
//
// It starts no processes and asks no VM. docs/files.md describes each file.
package state

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/devvm/devvm/pkg/ui"
)

// Dirs are devvm's directories on this host, by the XDG Base Directory
// Specification (https://specifications.freedesktop.org/basedir-spec/) for
// users, under /var/lib and /run for root.
type Dirs struct {
	Data    string // images, templates, projects
	Runtime string // sockets; emptied by a reboot
	Short   string // sockets whose path in Runtime would be too long; "": not made yet, see Secure
	Cache   string // what can be found out again
	Config  string // the user's own defaults
	Shared  bool   // QEMU runs as another user, which must be able to pass through
}

// Environment is the part of the process's environment that decides the directories.
type Environment struct {
	Getenv func(string) string
	UID    int
	Home   string
}

// NewDirs derives the directories. It creates none of them.
func NewDirs(env Environment) (Dirs, error) {
	d, err := derive(env)
	if err == nil {
		d.Short = d.readShort()
	}
	return d, err
}

func derive(env Environment) (Dirs, error) {
	if env.UID == 0 && env.Getenv("XDG_DATA_HOME") == "" {
		return Dirs{
			Data:    "/var/lib/devvm",
			Runtime: "/run/devvm",
			Cache:   "/var/cache/devvm",
			Config:  "/etc/devvm",
			Shared:  true,
		}, nil
	}
	xdg := func(name, fallback string) (string, error) {
		if dir := env.Getenv(name); filepath.IsAbs(dir) { // the specification says to ignore relative ones
			return filepath.Join(dir, "devvm"), nil
		}
		if env.Home == "" {
			return "", &ui.Error{Msg: fmt.Sprintf("neither %s nor HOME is set, so devvm does not know where its files are", name), Hint: "set HOME to your home directory"}
		}
		return filepath.Join(env.Home, fallback, "devvm"), nil
	}
	var d Dirs
	var err error
	for _, v := range []struct {
		dir            *string
		name, fallback string
	}{
		{&d.Data, "XDG_DATA_HOME", ".local/share"},
		{&d.Cache, "XDG_CACHE_HOME", ".cache"},
		{&d.Config, "XDG_CONFIG_HOME", ".config"},
	} {
		if *v.dir, err = xdg(v.name, v.fallback); err != nil {
			return Dirs{}, err
		}
	}
	d.Shared = env.UID == 0
	d.Runtime = filepath.Join(d.Data, "run")
	if dir := RuntimeHome(env); dir != "" {
		d.Runtime = filepath.Join(dir, "devvm")
	}
	return d, nil
}

// RuntimeHome returns the user's runtime directory, or "" if there is none.
//
// XDG_RUNTIME_DIR is not set in cron, su and sudo -u, though the directory exists. All commands
// of a user must agree on where the sockets are.
func RuntimeHome(env Environment) string {
	for _, dir := range []string{env.Getenv("XDG_RUNTIME_DIR"), filepath.Join("/run/user", strconv.Itoa(env.UID))} {
		if !filepath.IsAbs(dir) {
			continue
		}
		// The specification demands a directory that others cannot write to.
		if info, err := os.Stat(dir); err == nil && info.IsDir() && owner(info) == env.UID && info.Mode().Perm()&0o022 == 0 {
			return dir
		}
	}
	return ""
}

// Watches is the directory through which the user's supervisors share the number of watches that
// the kernel gives the user.
func (d Dirs) Watches() string { return filepath.Join(d.Runtime, "watches") }

// LongestSocketPath is the longest path of a unix socket, without the closing NUL
// (sun_path in unix(7)).
const LongestSocketPath = 107

// longestSocket is the longest file name below a project's runtime directory.
const longestSocket = len("/control.sock.new")

// tooLong reports whether the path of a project's socket in Runtime would be too long.
func (d Dirs) tooLong(name string) bool {
	return len(filepath.Join(d.Runtime, name))+longestSocket > LongestSocketPath
}

// Trusted is the file that lists the directories whose devvm.toml counts whoever owns it.
func (d Dirs) Trusted() string { return filepath.Join(d.Data, "trusted.json") }

// Projects returns the names of the projects that have files here, including templates that are
// being made.
func (d Dirs) Projects() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(d.Data, "projects"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the projects: %w", err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// Passable is the mode of a directory that QEMU must be able to pass through.
func (d Dirs) Passable() fs.FileMode {
	if d.Shared {
		return 0o711
	}
	return 0o700
}

// MakeRuntime creates the project's runtime directories. It returns an error if somebody else
// could write to them.
func (d *Dirs) MakeRuntime(p Files) error {
	if err := os.MkdirAll(filepath.Dir(filepath.Dir(p.Run)), 0o755); err != nil {
		return fmt.Errorf("make runtime directory: %w", err)
	}
	for _, dir := range []struct {
		path string
		mode fs.FileMode
	}{
		{filepath.Dir(p.Run), d.Passable()},
		{p.Run, 0o700},
		{p.net, d.Passable()},
	} {
		err := os.Mkdir(dir.path, dir.mode)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make runtime directory: %w", err)
		}
		info, err := os.Lstat(dir.path)
		if err != nil {
			return fmt.Errorf("check runtime directory: %w", err)
		}
		if !info.IsDir() || owner(info) != os.Getuid() || info.Mode().Perm()&0o022 != 0 {
			return thisUser().judgeLast(dir.path, info)
		}
		if info.Mode().Perm() != dir.mode { // Mkdir is subject to umask
			if err := os.Chmod(dir.path, dir.mode); err != nil {
				return fmt.Errorf("protect runtime directory: %w", err)
			}
		}
	}
	return thisUser().private(p.Run)
}

// owner returns the uid that owns the file.
func owner(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// group returns the gid of the file's group.
func group(info fs.FileInfo) uint32 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Gid
	}
	return math.MaxUint32 // no group
}

// LongestSocket is the longest path that a socket of any project can have here.
func (d Dirs) LongestSocket() string {
	name := strings.Repeat("x", longestSlug) + "-12345678"
	if d.tooLong(name) {
		return filepath.Join(shortParent, shortPrefix+"4294967295", "12345678", "control.sock") // mkdtemp's number
	}
	return filepath.Join(d.Runtime, name, "control.sock")
}
