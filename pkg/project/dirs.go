package project

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
	"github.com/devvm/devvm/pkg/usernet"
)

// Dirs are devvm's directories on this host, by the XDG Base Directory
// Specification (https://specifications.freedesktop.org/basedir-spec/) for
// users, under /var/lib and /run for root.
type Dirs struct {
	Data    string // images, templates, projects
	Runtime string // sockets; emptied by a reboot
	Short   string // sockets whose path in Runtime would be too long; "": not made yet, see Secure
	Cache   string // what can be learnt again
	Config  string // the user's own defaults
	Shared  bool   // QEMU runs as another user, so it must be able to pass
}

// Environment is what of the process's surroundings decides the directories.
type Environment struct {
	Getenv func(string) string
	UID    int
	Home   string
}

// NewDirs derives the directories. It makes none of them.
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
			return "", &ui.Error{Msg: fmt.Sprintf("neither %s nor HOME is set, so that devvm does not know where its files are", name), Hint: "set HOME to your home directory"}
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
// XDG_RUNTIME_DIR is missing in cron, su and sudo -u, though the directory is
// there: two commands of one user must not disagree on where the sockets are.
func RuntimeHome(env Environment) string {
	for _, dir := range []string{env.Getenv("XDG_RUNTIME_DIR"), filepath.Join("/run/user", strconv.Itoa(env.UID))} {
		if !filepath.IsAbs(dir) {
			continue
		}
		// One that others can write to is not what the specification means.
		if info, err := os.Stat(dir); err == nil && info.IsDir() && owner(info) == env.UID && info.Mode().Perm()&0o022 == 0 {
			return dir
		}
	}
	return ""
}

// watches is where the user's supervisors share what the kernel lets the user watch.
func (d Dirs) watches() string { return filepath.Join(d.Runtime, "watches") }

// sunPath is the longest path of a unix socket, without the closing NUL
// (sun_path in unix(7)).
const sunPath = 107

// longestSocket is the longest file name below a project's runtime directory.
const longestSocket = len("/control.sock.new")

// paths are the files of one project. docs/files.md describes each.
type paths struct {
	root   string // projects/NAME: all that is kept
	lock   string
	record string
	vm     string // replaced as a whole by nuke
	undo   string // the former vm
	logs   string

	run string // runtime/NAME: sockets
	net string // runtime/net: the socket that QEMU connects to; QEMU may run as another user
}

// paths derives where a project's files are.
func (d Dirs) paths(name string) paths {
	root := filepath.Join(d.Data, "projects", name)
	p := paths{
		root:   root,
		lock:   filepath.Join(root, "lock"),
		record: filepath.Join(root, "project.json"),
		vm:     filepath.Join(root, "vm"),
		undo:   filepath.Join(root, "undo"),
		logs:   filepath.Join(root, "log"),
		run:    filepath.Join(d.Runtime, name),
		net:    filepath.Join(d.Runtime, "net"),
	}
	if d.Short != "" && d.tooLong(name) {
		p.run = filepath.Join(d.Short, name[max(0, len(name)-8):])
		p.net = filepath.Join(d.Short, "net")
	}
	return p
}

// tooLong tells whether the kernel can bind no socket of the project in Runtime.
func (d Dirs) tooLong(name string) bool {
	return len(filepath.Join(d.Runtime, name))+longestSocket > sunPath
}

func (f paths) disk() string          { return filepath.Join(f.vm, "disk.qcow2") }
func (f paths) console() string       { return filepath.Join(f.vm, "console.log") }
func (f paths) keys() string          { return filepath.Join(f.vm, "keys") }
func (f paths) credentials() string   { return filepath.Join(f.vm, "credentials") }
func (f paths) begun() string         { return filepath.Join(f.vm, "begun") }
func (f paths) unused() string        { return filepath.Join(f.vm, "unused") }
func (f paths) provisioned() string   { return filepath.Join(f.vm, "provisioned") }
func (f paths) management() string    { return filepath.Join(f.vm, "management") }
func (f paths) stopping() string      { return filepath.Join(f.vm, "stopping") }
func (f paths) vacant() string        { return filepath.Join(f.root, "vacant") }
func (f paths) removing() string      { return filepath.Join(f.root, "removing") }
func (f paths) shares() string        { return filepath.Join(f.root, "shares.json") }
func (f paths) agreed() string        { return filepath.Join(f.root, "agreed.json") }
func (f paths) owners() string        { return filepath.Join(f.root, "owners") }
func (f paths) shareSocket() string   { return filepath.Join(f.run, "share.sock") }
func (f paths) egress() string        { return filepath.Join(f.root, "egress.json") }
func (f paths) netLock() string       { return filepath.Join(f.run, "net.lock") }
func (f paths) dialSocket() string    { return filepath.Join(f.run, "dial.sock") }
func (f paths) controlSocket() string { return filepath.Join(f.run, "control.sock") }
func (f paths) dockerSocket() string  { return filepath.Join(f.run, "docker.sock") }
func (f paths) netSocket() string     { return filepath.Join(f.net, filepath.Base(f.run)+".sock") }
func (f paths) supervisorLock() string {
	return filepath.Join(f.run, "supervisor.lock")
}
func (f paths) exposures() string     { return filepath.Join(f.root, "exposures.json") }
func (f paths) netLog() string        { return filepath.Join(f.logs, "net.log") }
func (f paths) supervisorLog() string { return filepath.Join(f.logs, "supervisor.log") }
func (f paths) provisionLog() string  { return filepath.Join(f.logs, "provision.log") }

// Trusted is the file of the directories whose devvm.toml counts whoever it belongs to.
func (d Dirs) Trusted() string { return filepath.Join(d.Data, "trusted.json") }

// projects returns the names of the projects that have files here, templates in the
// making among them.
func (d Dirs) projects() ([]string, error) {
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

// remove removes all that there is of the project on this host, the directory by which
// it is found last.
func (f paths) remove() error {
	// Each as a whole: what a killed run leaves must not look like a VM without its disk.
	for _, path := range []string{f.vm, f.undo} {
		if err := f.removeWhole(path); err != nil {
			return err
		}
	}
	for _, path := range []string{f.netSocket(), f.netSocket() + usernet.Unfinished, f.run, f.root} {
		if err := removeAll(path); err != nil {
			return err
		}
	}
	return nil
}

// passable is the mode of a directory that QEMU must be able to pass.
func (d Dirs) passable() fs.FileMode {
	if d.Shared {
		return 0o711
	}
	return 0o700
}

// makeRuntime makes the project's runtime directories and refuses those that
// somebody else could write to.
func (d *Dirs) makeRuntime(p paths) error {
	if err := os.MkdirAll(filepath.Dir(filepath.Dir(p.run)), 0o755); err != nil {
		return fmt.Errorf("make runtime directory: %w", err)
	}
	for _, dir := range []struct {
		path string
		mode fs.FileMode
	}{
		{filepath.Dir(p.run), d.passable()},
		{p.run, 0o700},
		{p.net, d.passable()},
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
	return thisUser().private(p.run)
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
	return math.MaxUint32 // nobody's
}

// LongestSocket is the longest path that a socket of any project can have here.
func (d Dirs) LongestSocket() string {
	name := strings.Repeat("x", longestSlug) + "-12345678"
	if d.tooLong(name) {
		return filepath.Join(shortParent, shortPrefix+"4294967295", "12345678", "control.sock") // mkdtemp's number
	}
	return filepath.Join(d.Runtime, name, "control.sock")
}
