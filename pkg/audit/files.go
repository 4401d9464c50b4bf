package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Dirs are devvm's directories, as in docs/files.md. A directory need not exist.
type Dirs struct {
	Data    string
	Runtime []string // where sockets are or may be
	Config  string   // the user's defaults
	Saves   string   // where libvirt keeps the memory of suspended VMs
	Shared  bool     // QEMU runs as its own user and must traverse some directories
}

// rule is the most that a file may allow.
type rule struct {
	dir, file fs.FileMode // the most permissive modes
	qemu      bool        // may belong to QEMU's user
}

var (
	private = rule{dir: 0o700, file: 0o600}
	public  = rule{dir: 0o755, file: 0o755}
)

// dataRule returns the rule for a path below the data directory. Unknown paths are private.
func dataRule(path string, shared bool) rule {
	passable := private
	if shared {
		passable = rule{dir: 0o711, file: 0o600, qemu: true}
	}
	f := strings.Split(path, "/")
	switch {
	case f[0] == "images" && len(f) == 3 && (f[2] == "kernel" || f[2] == "initrd"):
		return rule{file: 0o755, qemu: shared} // libvirt changes their owner while a VM runs
	case path == ".", f[0] == "images", f[0] == "templates":
		return public
	case f[0] != "projects":
		return private
	case len(f) <= 2: // projects, projects/NAME: nobody else can list them
		return rule{dir: 0o711, file: 0o600}
	case f[2] != "vm" && f[2] != "undo": // lock, log, record
		return private
	case len(f) > 3 && f[3] == "keys":
		return private
	}
	return passable
}

// runtimeRule returns the rule for a path below a runtime directory.
func runtimeRule(path string, shared bool) rule {
	if shared && (path == "." || path == "net" || strings.HasPrefix(path, "net/")) {
		return rule{dir: 0o711, file: 0o600, qemu: true}
	}
	return private
}

// files walks devvm's directories and checks modes and owners.
func files(h Host, d Dirs) Finding {
	f := Finding{Name: "files", Status: OK}
	w := walk{h: h, shared: d.Shared}
	if d.Data != "" {
		w.parents(d.Data)
		w.tree(d.Data, d.Runtime, dataRule)
	}
	for _, dir := range d.Runtime {
		w.parents(dir)
		w.tree(dir, nil, runtimeRule)
	}
	if d.Config != "" {
		w.tree(d.Config, nil, func(string, bool) rule { return rule{dir: 0o775, file: 0o775} })
	}
	if d.Saves != "" {
		w.saves(d.Saves)
	}
	f.What = fmt.Sprintf("%s and directories of %s have the owners and modes that they should have", count(w.n, "file"), userName(h.UID))
	if w.n == 0 {
		f.What = "there are none yet"
	}
	if len(w.unread) > 0 {
		f.Status, f.What, f.Details = Unknown, fmt.Sprintf("%s could not be checked", count(len(w.unread), "file")), w.unread
	}
	if len(w.bad) > 0 {
		slices.Sort(w.bad)
		f.Status, f.Details = Fail, append(w.bad, w.unread...)
		f.What = fmt.Sprintf("%s of devvm's with a wrong owner or mode", count(len(w.bad), "file"))
		f.Meaning = "another user of this host may reach what only its owner should"
		f.Fix = strings.Join(w.fix, "\n")
	}
	return f
}

// walk is the state of one pass over the files.
type walk struct {
	h      Host
	shared bool
	n      int
	bad    []string
	fix    []string
	unread []string
}

// parents checks that nobody else can replace dir, if it exists, through one of the directories
// above it.
func (w *walk) parents(dir string) {
	if _, err := os.Lstat(w.h.path(dir)); errors.Is(err, fs.ErrNotExist) {
		return
	}
	for dir := filepath.Dir(dir); ; dir = filepath.Dir(dir) {
		info, err := os.Lstat(w.h.path(dir))
		if err == nil {
			switch owner := uidOf(info); {
			case owner != 0 && owner != w.h.UID && owner >= 0:
				w.bad = append(w.bad, fmt.Sprintf("%s belongs to %s, who can replace what is in it", dir, userName(owner)))
			case info.Mode()&fs.ModeSymlink == 0 && info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0:
				w.bad = append(w.bad, fmt.Sprintf("%s: anyone can replace what is in it (mode %04o)", dir, info.Mode().Perm()))
			}
		}
		if dir == filepath.Dir(dir) {
			return
		}
	}
}

// tree checks a directory and everything below it, except the directories in not.
func (w *walk) tree(root string, not []string, rules func(path string, shared bool) rule) {
	err := filepath.WalkDir(w.h.path(root), func(full string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // does not exist, or was removed meanwhile
		}
		path := filepath.Join(root, strings.TrimPrefix(full, w.h.path(root)))
		if err != nil {
			w.unread = append(w.unread, oneLine(path+": "+pathless(err).Error()))
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if slices.Contains(not, path) {
			return fs.SkipDir
		}
		info, err := e.Info()
		if err != nil {
			return nil //nolint:nilerr // removed meanwhile
		}
		w.n++
		w.check(path, info, rules(rel, w.shared))
		// A base image being built holds a whole file system with its own users.
		if e.IsDir() && strings.HasPrefix(e.Name(), ".") && path != root {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		w.unread = append(w.unread, oneLine(err.Error()))
	}
}

// check judges one file.
func (w *walk) check(path string, info fs.FileInfo, r rule) {
	owner := uidOf(info)
	if owner != w.h.UID && !(r.qemu && slices.Contains(qemuUsers(), owner)) {
		w.bad = append(w.bad, fmt.Sprintf("%s belongs to %s", path, userName(owner)))
		return
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return // a link's own mode means nothing
	}
	most := r.file
	if info.IsDir() {
		most = r.dir
	}
	if mode := info.Mode().Perm(); mode&^most != 0 || info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 && !info.IsDir() {
		w.wrong(path, mode, mode&most)
	}
}

// wrong records a mode that is too permissive.
func (w *walk) wrong(path string, mode, want fs.FileMode) {
	w.bad = append(w.bad, fmt.Sprintf("%s has mode %04o, not %04o", path, mode, want))
	w.fix = append(w.fix, fmt.Sprintf("chmod %04o '%s'", want, strings.ReplaceAll(path, "'", `'\''`)))
}

// saves checks the memory that libvirt saves for suspended VMs.
func (w *walk) saves(dir string) {
	entries, err := os.ReadDir(w.h.path(dir))
	if err != nil {
		return // does not exist, or is not readable by this user
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasPrefix(e.Name(), domainPrefix) {
			continue
		}
		w.n++
		if info.Mode().Perm()&0o077 != 0 {
			w.wrong(filepath.Join(dir, e.Name()), info.Mode().Perm(), 0o600)
		}
	}
}

// qemuUsers returns the users that a system's libvirt runs QEMU as, on Debian and on Fedora.
func qemuUsers() []int {
	var out []int
	for _, name := range []string{"libvirt-qemu", "qemu"} {
		if u, err := user.Lookup(name); err == nil {
			if uid, err := strconv.Atoi(u.Uid); err == nil {
				out = append(out, uid)
			}
		}
	}
	return out
}

func uidOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// gidOf returns the group of a file, -1 if unknown.
func gidOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Gid)
	}
	return -1
}

// pathless strips the path from an error, because the message already has it.
func pathless(err error) error {
	if p, found := errors.AsType[*fs.PathError](err); found {
		return p.Err
	}
	return err
}
