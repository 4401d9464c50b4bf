package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// suite writes what came of each case.
type suite struct {
	ctx    context.Context // of the second processes
	top    string
	out    io.Writer
	root   bool
	n      int
	scenes int
}

// scene is a group of cases in an empty directory of its own.
type scene struct {
	*suite
	name, dir string
}

// cases goes through all groups below dir. It fails only if it cannot set up a case.
func cases(ctx context.Context, dir string, out io.Writer) (err error) {
	unix.Umask(0)
	top, err := os.MkdirTemp(dir, "cases")
	if err != nil {
		return err
	}
	if err := os.Chmod(top, 0o777); err != nil {
		return err
	}
	defer func() {
		if r := recover(); r != nil {
			failure, ok := r.(setupError)
			if !ok {
				panic(r)
			}
			err = failure
		}
	}()
	defer os.RemoveAll(top)
	s := &suite{ctx: ctx, top: top, out: out, root: os.Getuid() == 0}
	for _, group := range groups {
		s.scene(group.name, group.run)
	}
	_, err = fmt.Fprintln(out, s.n, "cases")
	return err
}

type setupError struct{ error }

// must ends the suite: a case could not be set up.
func (c *scene) must(err error) {
	if err != nil {
		panic(setupError{fmt.Errorf("%s: %w", c.name, err)})
	}
}

func (s *suite) scene(name string, run func(*scene)) {
	s.scenes++
	dir := fmt.Sprint(s.top, "/", s.scenes)
	c := &scene{s, name, dir}
	c.must(unix.Mkdir(dir, 0o777))
	run(c)
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error { // modes of cases
		if err == nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	c.must(os.RemoveAll(dir))
}

func (c *scene) at(name string) string { return c.dir + "/" + name }

// say writes what came of a case: an error's name, or a value.
func (c *scene) say(what string, v any) {
	c.n++
	if err, ok := v.(error); ok || v == nil {
		v = errorName(err)
	}
	fmt.Fprintf(c.out, "%s: %s: %v\n", c.name, strings.ReplaceAll(what, ": ", ", "), v)
}

func errorName(err error) string {
	if err == nil {
		return "ok"
	}
	for e := err; e != nil; {
		if errno, ok := e.(syscall.Errno); ok { //nolint:errorlint // the chain is walked here
			return unix.ErrnoName(errno)
		}
		u, ok := e.(interface{ Unwrap() error })
		if !ok {
			break
		}
		e = u.Unwrap()
	}
	return err.Error()
}

// look is what lstat says of a file, in words that do not depend on the moment.
func (c *scene) look(path string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return errorName(err)
	}
	kind := map[uint32]string{
		unix.S_IFREG: "file", unix.S_IFDIR: "directory", unix.S_IFLNK: "link", unix.S_IFIFO: "fifo",
		unix.S_IFSOCK: "socket", unix.S_IFCHR: "char", unix.S_IFBLK: "block",
	}[st.Mode&unix.S_IFMT]
	size := fmt.Sprintf(" %d bytes", st.Size)
	if kind == "directory" {
		size = "" // each file system counts them its own way
	}
	return fmt.Sprintf("%s %04o, %d links, %d:%d%s", kind, st.Mode&0o7777, st.Nlink, st.Uid, st.Gid, size)
}

func (c *scene) file(name string, mode uint32, text string) string {
	path := c.at(name)
	c.must(os.WriteFile(path, []byte(text), os.FileMode(mode&0o777|0o600)))
	if mode|0o600 != mode || mode > 0o777 {
		c.must(unix.Chmod(path, mode))
	}
	return path
}

func (c *scene) mkdir(name string, mode uint32) string {
	path := c.at(name)
	c.must(unix.Mkdir(path, mode&0o777|0o700))
	if mode|0o700 != mode || mode > 0o777 {
		c.must(unix.Chmod(path, mode))
	}
	return path
}

// open opens and closes.
func open(path string, flags int, mode uint32) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, mode)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// as has f run in a thread that is another user, with no other groups.
func as(uid, gid int, f func()) {
	done := make(chan any)
	go func() {
		defer func() { done <- recover() }()
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		for _, call := range [][3]uintptr{{unix.SYS_SETGROUPS, 0, 0}, {unix.SYS_SETRESGID, uintptr(gid), uintptr(gid)}, {unix.SYS_SETRESUID, uintptr(uid), uintptr(uid)}} {
			if _, _, errno := syscall.RawSyscall(call[0], call[1], call[2], call[2]); errno != 0 {
				panic(setupError{fmt.Errorf("become user %d: %w", uid, errno)})
			}
		}
		f()
	}()
	if r := <-done; r != nil {
		panic(r)
	}
}

func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }

func links(fi os.FileInfo) uint64 { return fi.Sys().(*syscall.Stat_t).Nlink }

// op is a call that takes a path. Its other path, if it has one, is a file or a new name.
type op struct {
	name string
	call func(c *scene, path string) error
}

var ops = []op{
	{"open to read", func(_ *scene, p string) error { return open(p, unix.O_RDONLY, 0) }},
	{"open to write", func(_ *scene, p string) error { return open(p, unix.O_WRONLY, 0) }},
	{"create", func(_ *scene, p string) error { return open(p, unix.O_WRONLY|unix.O_CREAT, 0o644) }},
	{"create new", func(_ *scene, p string) error { return open(p, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o644) }},
	{"create empty", func(_ *scene, p string) error { return open(p, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, 0o644) }},
	{"open directory", func(_ *scene, p string) error { return open(p, unix.O_RDONLY|unix.O_DIRECTORY, 0) }},
	{"open no link", func(_ *scene, p string) error { return open(p, unix.O_RDONLY|unix.O_NOFOLLOW, 0) }},
	{"stat", func(_ *scene, p string) error { return unix.Stat(p, new(unix.Stat_t)) }},
	{"lstat", func(_ *scene, p string) error { return unix.Lstat(p, new(unix.Stat_t)) }},
	{"access", func(_ *scene, p string) error { return unix.Access(p, unix.R_OK) }},
	{"readlink", func(_ *scene, p string) error { _, err := unix.Readlink(p, make([]byte, 100)); return err }},
	{"mkdir", func(_ *scene, p string) error { return unix.Mkdir(p, 0o755) }},
	{"rmdir", func(_ *scene, p string) error { return unix.Rmdir(p) }},
	{"unlink", func(_ *scene, p string) error { return unix.Unlink(p) }},
	{"symlink", func(_ *scene, p string) error { return unix.Symlink("target", p) }},
	{"mkfifo", func(_ *scene, p string) error { return unix.Mkfifo(p, 0o644) }},
	{"make socket", func(_ *scene, p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o644, 0) }},
	{"link from", func(c *scene, p string) error { return unix.Link(p, c.at("new")) }},
	{"link to", func(c *scene, p string) error { return unix.Link(c.at("other"), p) }},
	{"rename from", func(c *scene, p string) error { return unix.Rename(p, c.at("new")) }},
	{"rename to", func(c *scene, p string) error { return unix.Rename(c.at("other"), p) }},
	{"chmod", func(_ *scene, p string) error { return unix.Chmod(p, 0o640) }},
	{"chown", func(_ *scene, p string) error { return unix.Chown(p, os.Getuid(), os.Getgid()) }},
	{"lchown", func(_ *scene, p string) error { return unix.Lchown(p, os.Getuid(), os.Getgid()) }},
	{"truncate", func(_ *scene, p string) error { return unix.Truncate(p, 3) }},
	{"utimensat", func(_ *scene, p string) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{{Sec: 5}, {Sec: 6}}, 0)
	}},
	{"open path", func(_ *scene, p string) error {
		fd, err := unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err == nil {
			_ = unix.Close(fd)
		}
		return err
	}},
}

// paths are what each of ops is tried on: those that are wrong, and each kind of file.
// What is made is in an empty directory, with a file "other" beside it.
var paths = []struct {
	name string
	make func(c *scene) string
}{
	{"missing", func(c *scene) string { return c.at("missing") }},
	{"below missing", func(c *scene) string { return c.at("missing/x") }},
	{"below a file", func(c *scene) string { return c.at("other/x") }},
	{"below a loop", func(c *scene) string {
		c.must(unix.Symlink("loop", c.at("loop")))
		return c.at("loop/x")
	}},
	{"a loop", func(c *scene) string {
		c.must(unix.Symlink("loop", c.at("loop")))
		return c.at("loop")
	}},
	{"255 bytes", func(c *scene) string { return c.at(strings.Repeat("n", 255)) }},
	{"256 bytes", func(c *scene) string { return c.at(strings.Repeat("n", 256)) }},
	{"4096 bytes of path", func(c *scene) string { return c.dir + strings.Repeat("/.", 2048) + "/x" }},
	{"empty", func(*scene) string { return "" }},
	{"file", func(c *scene) string { return c.file("f", 0o644, "hello") }},
	{"file and slash", func(c *scene) string { return c.file("f", 0o644, "hello") + "/" }},
	{"empty directory", func(c *scene) string { return c.mkdir("d", 0o755) }},
	{"directory and slash", func(c *scene) string { return c.mkdir("d", 0o755) + "/" }},
	{"full directory", func(c *scene) string {
		d := c.mkdir("d", 0o755)
		c.file("d/f", 0o644, "")
		return d
	}},
	{"dot", func(c *scene) string { return c.mkdir("d", 0o755) + "/." }},
	{"dot dot", func(c *scene) string { return c.mkdir("d", 0o755) + "/.." }},
	{"link to file", func(c *scene) string {
		c.file("f", 0o644, "hello")
		c.must(unix.Symlink("f", c.at("l")))
		return c.at("l")
	}},
	{"link to directory", func(c *scene) string {
		c.mkdir("d", 0o755)
		c.must(unix.Symlink("d", c.at("l")))
		return c.at("l")
	}},
	{"link to directory and slash", func(c *scene) string {
		c.mkdir("d", 0o755)
		c.must(unix.Symlink("d", c.at("l")))
		return c.at("l/")
	}},
	{"link to nothing", func(c *scene) string {
		c.must(unix.Symlink("nothing", c.at("l")))
		return c.at("l")
	}},
	{"fifo", func(c *scene) string {
		c.must(unix.Mkfifo(c.at("p"), 0o644))
		return c.at("p")
	}},
	{"socket", func(c *scene) string {
		c.must(unix.Mknod(c.at("p"), unix.S_IFSOCK|0o644, 0))
		return c.at("p")
	}},
}

type group struct {
	name string
	run  func(*scene)
}

var groups = append(pathGroups(), []group{
	{"rename", renames},
	{"names", names},
	{"modes", modes},
	{"owners", owners},
	{"permissions", permissions},
	{"times", times},
	{"open", opens},
	{"size", sizes},
	{"mmap", maps},
	{"links", linkCounts},
	{"removed while open", removed},
	{"locks", locks},
	{"append", appends},
	{"directories", directories},
	{"attributes", attributes},
	{"special", specials},
}...)

// pathGroups tries each call on each path, and looks at what is there afterwards.
func pathGroups() (all []group) {
	for _, o := range ops {
		all = append(all, group{o.name, func(c *scene) {
			for _, p := range paths {
				c.scene(o.name, func(c *scene) {
					c.file("other", 0o644, "other")
					path := p.make(c)
					err := o.call(c, path)
					var left []string
					entries, listErr := os.ReadDir(c.dir)
					if listErr != nil {
						left = append(left, "list: "+errorName(listErr))
					}
					for _, e := range entries {
						name := e.Name()
						if len(name) > 20 {
							name = name[:20] + "…"
						}
						left = append(left, name+" "+c.look(c.at(e.Name())))
					}
					// Owners have a group of their own.
					c.say(p.name, strings.ReplaceAll(errorName(err)+"; "+strings.Join(left, "; "), fmt.Sprintf(", %d:%d", os.Getuid(), os.Getgid()), ""))
				})
			}
		}})
	}
	return all
}

// renames tries each kind over each kind.
func renames(c *scene) {
	kinds := []string{"file", "empty directory", "full directory", "link to file", "link to directory", "link to nothing", "fifo", "socket"}
	for _, from := range kinds {
		for _, to := range kinds {
			c.scene(c.name, func(c *scene) {
				a := &scene{c.suite, c.name, c.mkdir("a", 0o755)}
				b := &scene{c.suite, c.name, c.mkdir("b", 0o755)}
				var src, dst string
				for _, p := range paths {
					if p.name == from {
						src = p.make(a)
					}
					if p.name == to {
						dst = p.make(b)
					}
				}
				err := unix.Rename(src, dst)
				c.say(from+" over "+to, fmt.Sprint(errorName(err), "; ", c.look(src), "; ", c.look(dst)))
			})
		}
	}
	f := c.file("f", 0o644, "f")
	g := c.file("g", 0o644, "g")
	d := c.mkdir("d", 0o755)
	c.say("over itself", unix.Rename(f, f))
	c.must(unix.Link(f, c.at("f2")))
	c.say("over another link of the file", unix.Rename(f, c.at("f2")))
	c.say("both links stay", c.look(f)+"; "+c.look(c.at("f2")))
	c.say("directory into itself", unix.Rename(d, d+"/x"))
	c.say("directory into itself, deeper", unix.Rename(d, d+"/x/y"))
	c.say("RENAME_NOREPLACE on existing", unix.Renameat2(unix.AT_FDCWD, f, unix.AT_FDCWD, g, unix.RENAME_NOREPLACE))
	c.say("RENAME_NOREPLACE to new", unix.Renameat2(unix.AT_FDCWD, g, unix.AT_FDCWD, c.at("h"), unix.RENAME_NOREPLACE))
	c.say("RENAME_EXCHANGE", unix.Renameat2(unix.AT_FDCWD, f, unix.AT_FDCWD, d, unix.RENAME_EXCHANGE))
	e := c.mkdir("e", 0o755)
	c.mkdir("e/sub", 0o755)
	n := c.mkdir("n", 0o755)
	c.must(unix.Rename(e+"/sub", n+"/sub"))
	c.say("links of the directories after a directory has moved", c.look(e)+"; "+c.look(n))
	fd, err := unix.Open(n+"/sub/../..", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	c.must(err)
	var there, here unix.Stat_t
	c.must(unix.Fstat(fd, &there))
	c.must(unix.Stat(c.dir, &here))
	c.say("dot dot of a moved directory", there.Ino == here.Ino)
	_ = unix.Close(fd)
}

// names that are unusual and right.
func names(c *scene) {
	all := []string{"ä ö ü", "日本語", "\xff\xfe not UTF-8", "line\nbreak", "-rf", " ", "trailing.", "trailing ", "back\\slash", "a:b*?\"<>|", "CON", "e\u0301", "\u00e9", "Case", "case", ".hidden", "~", "\x01\x7f", strings.Repeat("é", 127), strings.Repeat("x", 255), "...", ".nfs000001"}
	for _, name := range all {
		c.must(os.WriteFile(c.at(name), []byte(name), 0o644))
	}
	wrong := 0
	for _, name := range all {
		if b, err := os.ReadFile(c.at(name)); err != nil || string(b) != name {
			wrong++
		}
	}
	c.say("files with another content", wrong)
	have, err := list(c.dir)
	c.must(err)
	for _, name := range all {
		if !have[name] {
			c.say("not listed", fmt.Sprintf("%q", name))
		}
	}
	for _, n := range []int{1, 100, 1023, 1024, 4095, 4096} {
		err := unix.Symlink(strings.Repeat("t", n), c.at(fmt.Sprint("link", n)))
		b := make([]byte, 5000)
		got, _ := unix.Readlink(c.at(fmt.Sprint("link", n)), b)
		c.say(fmt.Sprint("symbolic link with a target of ", n, " bytes"), fmt.Sprint(errorName(err), " ", got))
	}
	deep := c.dir
	for len(deep) < 3900 {
		deep += "/" + strings.Repeat("d", 100)
		if err := unix.Mkdir(deep, 0o755); err != nil {
			c.say("deep directories", err)
			return
		}
	}
	c.say("file in a path of 3,900 bytes", os.WriteFile(deep+"/f", nil, 0o644))
}

func modes(c *scene) {
	for _, mode := range []uint32{0, 0o777, 0o640, 0o444, 0o200, 0o1777, 0o2755, 0o2745, 0o4755, 0o6711, 0o7777} {
		f := c.file(fmt.Sprintf("f%o", mode), 0o600, "x")
		d := c.mkdir(fmt.Sprintf("d%o", mode), 0o700)
		c.say(fmt.Sprintf("chmod %04o file", mode), errorName(unix.Chmod(f, mode))+" "+c.look(f))
		c.say(fmt.Sprintf("chmod %04o directory", mode), errorName(unix.Chmod(d, mode))+" "+c.look(d))
		err := open(c.at(fmt.Sprintf("g%o", mode)), unix.O_CREAT|unix.O_RDWR, mode)
		c.say(fmt.Sprintf("create %04o", mode), errorName(err)+" "+c.look(c.at(fmt.Sprintf("g%o", mode))))
		err = unix.Mkdir(c.at(fmt.Sprintf("e%o", mode)), mode)
		c.say(fmt.Sprintf("mkdir %04o", mode), errorName(err)+" "+c.look(c.at(fmt.Sprintf("e%o", mode))))
		_ = unix.Chmod(d, 0o700)
		_ = unix.Chmod(c.at(fmt.Sprintf("e%o", mode)), 0o700)
	}
	unix.Umask(0o027)
	_ = open(c.at("masked"), unix.O_CREAT|unix.O_RDWR, 0o666)
	_ = unix.Mkdir(c.at("maskeddir"), 0o777)
	_ = unix.Mkfifo(c.at("maskedfifo"), 0o666)
	unix.Umask(0)
	c.say("umask", c.look(c.at("masked"))+"; "+c.look(c.at("maskeddir"))+"; "+c.look(c.at("maskedfifo")))
	f := c.file("link", 0o600, "x")
	c.must(unix.Symlink("link", c.at("l")))
	c.must(unix.Chmod(c.at("l"), 0o604))
	c.say("chmod of a link is its target's", c.look(f))
	c.say("fchmodat2 of a link itself", unix.Fchmodat(unix.AT_FDCWD, c.at("l"), 0o600, unix.AT_SYMLINK_NOFOLLOW))
	suid := func(what string, do func(path string) error) {
		path := c.file("suid", 0o6777, "text")
		if c.root {
			c.must(unix.Chmod(c.dir, 0o777))
			as(1000, 1000, func() { c.say(what+" by another user", errorName(do(path))+" "+c.look(path)) })
		} else {
			c.say(what, errorName(do(path))+" "+c.look(path))
		}
		c.must(os.Remove(path))
	}
	suid("set-user-ID bit after a write", func(path string) error {
		fd, err := unix.Open(path, unix.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		_, err = unix.Write(fd, []byte("other"))
		return err
	})
	suid("set-user-ID bit after truncation", func(path string) error { return unix.Truncate(path, 1) })
}

func owners(c *scene) {
	f := c.file("f", 0o6755, "x")
	d := c.mkdir("d", 0o755)
	c.must(unix.Symlink("f", c.at("l")))
	uid, gid := os.Getuid(), os.Getgid()
	c.say("chown to itself", errorName(unix.Chown(f, uid, gid))+" "+c.look(f))
	c.say("chown -1", unix.Chown(f, -1, -1))
	c.say("chown file to another user", errorName(unix.Chown(f, 1234, -1))+" "+c.look(f))
	c.say("chown file to another group", errorName(unix.Chown(f, -1, 4321))+" "+c.look(f))
	c.say("chown directory", errorName(unix.Chown(d, 1234, 4321))+" "+c.look(d))
	c.say("lchown link", errorName(unix.Lchown(c.at("l"), 77, 78))+" "+c.look(c.at("l"))+"; "+c.look(f))
	c.say("chown by link", errorName(unix.Chown(c.at("l"), 79, 80))+" "+c.look(c.at("l"))+"; "+c.look(f))
	c.say("chown to the largest number", errorName(unix.Chown(f, 1<<32-2, 1<<32-2))+" "+c.look(f))
	if !c.root {
		return
	}
	c.must(unix.Rename(f, c.at("moved")))
	c.say("owner after a rename", c.look(c.at("moved")))
	c.must(unix.Link(c.at("moved"), c.at("linked")))
	c.say("owner of another link", c.look(c.at("linked")))
	g := c.mkdir("g", 0o2777)
	c.must(unix.Chown(g, 0, 4321))
	c.must(unix.Chmod(g, 0o2777))
	as(1000, 1000, func() {
		c.say("made by user 1000 in a set-group-ID directory: file", errorName(open(g+"/f", unix.O_CREAT|unix.O_WRONLY, 0o644))+" "+c.look(g+"/f"))
		c.say("made by user 1000 in a set-group-ID directory: directory", errorName(unix.Mkdir(g+"/d", 0o755))+" "+c.look(g+"/d"))
		c.say("made by user 1000 in a set-group-ID directory: link", errorName(unix.Symlink("x", g+"/l"))+" "+c.look(g+"/l"))
		c.say("made by user 1000 in a set-group-ID directory: fifo", errorName(unix.Mkfifo(g+"/p", 0o644))+" "+c.look(g+"/p"))
	})
}

// permissions is who may do what to whose files. Only root can be several users.
func permissions(c *scene) {
	mine := func(who string) {
		dir := c.at("of" + who)
		c.must(unix.Mkdir(dir, 0o755))
		for _, mode := range []uint32{0, 0o200, 0o400, 0o600} {
			path := fmt.Sprintf("%s/f%o", dir, mode)
			c.must(os.WriteFile(path, []byte("x"), 0o600))
			c.must(unix.Chmod(path, mode))
			c.say(fmt.Sprintf("own file %03o, user %s: read", mode, who), open(path, unix.O_RDONLY, 0))
			c.say(fmt.Sprintf("own file %03o, user %s: write", mode, who), open(path, unix.O_WRONLY, 0))
			c.say(fmt.Sprintf("own file %03o, user %s: access to write", mode, who), unix.Access(path, unix.W_OK))
			c.say(fmt.Sprintf("own file %03o, user %s: truncate", mode, who), unix.Truncate(path, 0))
			sub := fmt.Sprintf("%s/d%o", dir, mode)
			c.must(unix.Mkdir(sub, 0o700))
			c.must(os.WriteFile(sub+"/in", []byte("x"), 0o600))
			c.must(unix.Chmod(sub, mode))
			_, err := os.ReadDir(sub)
			c.say(fmt.Sprintf("own directory %03o, user %s: list", mode, who), err)
			c.say(fmt.Sprintf("own directory %03o, user %s: open a file in it", mode, who), open(sub+"/in", unix.O_RDONLY, 0))
			c.say(fmt.Sprintf("own directory %03o, user %s: make a file in it", mode, who), open(sub+"/new", unix.O_CREAT|unix.O_WRONLY, 0o600))
			c.must(unix.Chmod(sub, 0o700))
		}
	}
	who := fmt.Sprint(os.Getuid())
	mine(who)
	if !c.root {
		return
	}
	as(1000, 1000, func() { mine("1000") })
	// What user 1000 has, as seen by user 2000, and by a member of the group.
	var files, dirs []string
	as(1000, 1000, func() {
		for _, mode := range []uint32{0o600, 0o640, 0o644, 0o660, 0o666} {
			path := c.at(fmt.Sprintf("theirs%o", mode))
			c.must(os.WriteFile(path, []byte("x"), 0o600))
			c.must(unix.Chmod(path, mode))
			files = append(files, path)
		}
		for _, mode := range []uint32{0o700, 0o755, 0o775, 0o777, 0o1777} {
			path := c.at(fmt.Sprintf("theirdir%o", mode))
			c.must(unix.Mkdir(path, 0o700))
			c.must(os.WriteFile(path+"/in", []byte("x"), 0o666))
			c.must(unix.Mkdir(path+"/sub", 0o777))
			c.must(unix.Chmod(path, mode))
			dirs = append(dirs, path)
		}
	})
	for _, user := range []struct {
		name     string
		uid, gid int
	}{{"another user", 2000, 2000}, {"one of the group", 2000, 1000}} {
		as(user.uid, user.gid, func() {
			for _, path := range files {
				say := func(what string, err error) { c.say(filepath.Base(path)+", "+user.name+": "+what, err) }
				say("read", open(path, unix.O_RDONLY, 0))
				say("write", open(path, unix.O_WRONLY, 0))
				say("chmod", unix.Chmod(path, 0o777))
				say("chown", unix.Chown(path, user.uid, user.gid))
				say("truncate", unix.Truncate(path, 1))
				say("set times", unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: 5}, {Sec: 6}}, 0))
				say("touch", unix.UtimesNanoAt(unix.AT_FDCWD, path, nil, 0))
			}
			for i, path := range dirs {
				say := func(what string, err error) { c.say(filepath.Base(path)+", "+user.name+": "+what, err) }
				_, err := os.ReadDir(path)
				say("list", err)
				say("open a file in it", open(path+"/in", unix.O_RDONLY, 0))
				mine := fmt.Sprint(path, "/", user.gid, i)
				say("make a file in it", open(mine, unix.O_CREAT|unix.O_WRONLY, 0o644))
				say("remove one's own file in it", unix.Unlink(mine))
				say("rename another's file in it", unix.Rename(path+"/in", path+"/out"))
				_ = unix.Rename(path+"/out", path+"/in")
				say("remove another's file in it", unix.Unlink(path+"/in"))
				say("remove another's directory in it", unix.Rmdir(path+"/sub"))
			}
		})
		as(1000, 1000, func() {
			for _, path := range files {
				c.must(os.WriteFile(path, []byte("x"), 0o600))
			}
			for _, path := range dirs {
				_ = os.Mkdir(path+"/sub", 0o777)
				c.must(os.WriteFile(path+"/in", []byte("x"), 0o666))
			}
		})
	}
}

func times(c *scene) {
	set := func(what string, sec, nsec int64) {
		f := c.file("f", 0o644, "x")
		err := unix.UtimesNanoAt(unix.AT_FDCWD, f, []unix.Timespec{{Sec: sec, Nsec: nsec}, {Sec: sec + 1, Nsec: nsec}}, 0)
		var st unix.Stat_t
		c.must(unix.Stat(f, &st))
		at, mt := st.Atim.Sec == sec && st.Atim.Nsec == nsec, st.Mtim.Sec == sec+1 && st.Mtim.Nsec == nsec
		c.say("set to "+what, fmt.Sprint(errorName(err), ", access ", at, ", change ", mt))
	}
	set("a second", 1_000_000_000, 0)
	set("a nanosecond", 1_000_000_000, 123456789)
	set("0", 0, 0)
	set("1969", -100, 0)
	set("1901", -1<<31, 0)
	set("2037", 1<<31-2, 999999999)
	set("2039", 1<<31+100, 5)
	set("2105", 1<<32-100, 5)
	set("2107", 1<<32+100, 5)
	set("2400", 13_569_465_600, 5)
	f := c.file("g", 0o644, "x")
	c.must(unix.UtimesNanoAt(unix.AT_FDCWD, f, []unix.Timespec{{Sec: 100}, {Sec: 200}}, 0))
	c.must(unix.UtimesNanoAt(unix.AT_FDCWD, f, []unix.Timespec{{Sec: 300}, {Nsec: unix.UTIME_OMIT}}, 0))
	var st unix.Stat_t
	c.must(unix.Stat(f, &st))
	c.say("UTIME_OMIT", fmt.Sprint(st.Atim.Sec, " ", st.Mtim.Sec))
	c.must(unix.UtimesNanoAt(unix.AT_FDCWD, f, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}, 0))
	c.must(unix.Stat(f, &st))
	c.say("UTIME_NOW is within two seconds of now", time.Since(time.Unix(st.Mtim.Unix())).Abs() < 2*time.Second)
	c.must(unix.Symlink("g", c.at("l")))
	c.must(unix.UtimesNanoAt(unix.AT_FDCWD, c.at("l"), []unix.Timespec{{Sec: 7}, {Sec: 8}}, unix.AT_SYMLINK_NOFOLLOW))
	c.must(unix.Lstat(c.at("l"), &st))
	c.say("times of a link itself", st.Mtim.Sec)
	// Which calls change which times of a file, and of its directory.
	moves := func(what string, do func(d, f string) error) {
		d := c.mkdir("d", 0o777)
		f := d + "/f"
		c.must(os.WriteFile(f, []byte("text"), 0o666))
		old := []unix.Timespec{{Sec: 1000}, {Sec: 1000}}
		c.must(unix.UtimesNanoAt(unix.AT_FDCWD, f, old, 0))
		c.must(unix.UtimesNanoAt(unix.AT_FDCWD, d, old, 0))
		fd, err := unix.Open(f, unix.O_PATH, 0)
		c.must(err)
		var before, after, dir, dirBefore unix.Stat_t
		c.must(unix.Fstat(fd, &before))
		c.must(unix.Stat(d, &dirBefore))
		time.Sleep(20 * time.Millisecond) //nolint:forbidigo // the kernel's clock for this has a grain
		err = do(d, f)
		c.must(unix.Fstat(fd, &after))
		c.must(unix.Stat(d, &dir))
		_ = unix.Close(fd)
		c.say(what, fmt.Sprintf("%s, mtime %t, ctime %t, directory's mtime %t, ctime %t", errorName(err),
			before.Mtim != after.Mtim, before.Ctim != after.Ctim, dirBefore.Mtim != dir.Mtim, dirBefore.Ctim != dir.Ctim))
		c.must(os.RemoveAll(d))
	}
	moves("times that chmod changes", func(_, f string) error { return unix.Chmod(f, 0o600) })
	moves("times that chown changes", func(_, f string) error { return unix.Chown(f, os.Getuid(), os.Getgid()) })
	moves("times that link changes", func(d, f string) error { return unix.Link(f, d+"/g") })
	moves("times that rename changes", func(d, f string) error { return unix.Rename(f, d+"/g") })
	moves("times that truncate changes", func(_, f string) error { return unix.Truncate(f, 0) })
	moves("times that truncate to the same size changes", func(_, f string) error { return unix.Truncate(f, 4) })
	moves("times that O_TRUNC changes", func(_, f string) error { return open(f, unix.O_WRONLY|unix.O_TRUNC, 0) })
	moves("times that write changes", func(_, f string) error { return os.WriteFile(f, []byte("more"), 0) })
	moves("times that an empty write changes", func(_, f string) error {
		fd, err := unix.Open(f, unix.O_WRONLY, 0)
		c.must(err)
		defer unix.Close(fd)
		_, err = unix.Write(fd, nil)
		return err
	})
	moves("times that reading changes", func(_, f string) error { _, err := os.ReadFile(f); return err })
	moves("times that mkdir beside changes", func(d, _ string) error { return unix.Mkdir(d+"/x", 0o755) })
	moves("times that create beside changes", func(d, _ string) error { return open(d+"/x", unix.O_CREAT|unix.O_WRONLY, 0o644) })
	moves("times that symlink beside changes", func(d, _ string) error { return unix.Symlink("x", d+"/x") })
	moves("times that a failed create changes", func(d, _ string) error { return open(d+"/f", unix.O_CREAT|unix.O_EXCL, 0o644) })
	moves("times that unlink changes", func(_, f string) error {
		if err := unix.Link(f, filepath.Dir(filepath.Dir(f))+"/kept"); err != nil {
			return err
		}
		defer os.Remove(filepath.Dir(filepath.Dir(f)) + "/kept")
		return unix.Unlink(f)
	})
}

func opens(c *scene) {
	f := c.file("f", 0o644, "hello")
	fd, err := unix.Open(f, unix.O_RDWR|unix.O_APPEND, 0)
	c.must(err)
	_, _ = unix.Seek(fd, 0, io.SeekStart)
	_, err = unix.Write(fd, []byte(" world"))
	at, _ := unix.Seek(fd, 0, io.SeekCurrent)
	c.say("append goes to the end", fmt.Sprint(errorName(err), " ", at, " ", c.look(f)))
	c.say("ftruncate of an appending file", unix.Ftruncate(fd, 3))
	_ = unix.Close(fd)
	fd, err = unix.Open(f, unix.O_RDONLY, 0)
	c.must(err)
	_, err = unix.Write(fd, []byte("x"))
	c.say("write to what is open to read", err)
	c.say("ftruncate of what is open to read", unix.Ftruncate(fd, 0))
	c.say("fsync of what is open to read", unix.Fsync(fd))
	c.say("fchmod", errorName(unix.Fchmod(fd, 0o600))+" "+c.look(f))
	_, err = unix.Seek(fd, -1, io.SeekStart)
	c.say("seek before the start", err)
	_ = unix.Close(fd)
	fd, err = unix.Open(f, unix.O_WRONLY, 0)
	c.must(err)
	_, err = unix.Read(fd, make([]byte, 1))
	c.say("read what is open to write", err)
	_ = unix.Close(fd)
	c.say("O_PATH", open(f, unix.O_PATH, 0))
	fd, err = unix.Open(c.dir, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	c.say("O_TMPFILE", err)
	if err == nil {
		_ = unix.Close(fd)
	}
	fd, err = unix.Open(c.at("ro"), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o444)
	c.must(err)
	_, err = unix.Write(fd, []byte("text"))
	c.say("write to a new file of mode 0444", errorName(err)+" "+c.look(c.at("ro")))
	_ = unix.Close(fd)
	for _, flag := range []struct {
		name string
		flag int
	}{{"O_SYNC", unix.O_SYNC}, {"O_DSYNC", unix.O_DSYNC}, {"O_NOATIME", unix.O_NOATIME}, {"O_DIRECT", unix.O_DIRECT}, {"O_LARGEFILE", unix.O_LARGEFILE}} {
		fd, err := unix.Open(f, unix.O_RDWR|flag.flag, 0)
		c.say(flag.name, err)
		if err != nil {
			continue
		}
		n, err := unix.Pwrite(fd, aligned(block), 0)
		c.say(flag.name+" write", fmt.Sprint(n, " ", errorName(err)))
		n, err = unix.Pread(fd, aligned(2 * block)[:block], 0)
		c.say(flag.name+" read", fmt.Sprint(n, " ", errorName(err)))
		if flag.flag == unix.O_DIRECT {
			n, err = unix.Pread(fd, aligned(block)[1:], 1)
			c.say("O_DIRECT read that is not aligned", fmt.Sprint(n, " ", errorName(err)))
		}
		_ = unix.Close(fd)
	}
	c.must(unix.Mkfifo(c.at("p"), 0o644))
	c.say("open a fifo to write that nobody reads", open(c.at("p"), unix.O_WRONLY, 0))
	c.say("open a fifo to read", open(c.at("p"), unix.O_RDONLY, 0))
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(c.at("p"), []byte("through"), 0) }()
	b, _ := os.ReadFile(c.at("p"))
	c.say("through a fifo", fmt.Sprint(string(b), " ", errorName(<-done)))
	// A program on the file system, and writing to it while it runs.
	self, err := os.ReadFile("/proc/self/exe")
	c.must(err)
	program := c.file("program", 0o600, string(self))
	c.say("run without the x bit", c.command(program, "helper-true").Run())
	c.must(unix.Chmod(program, 0o755))
	cmd := c.command(program, "helper-cat")
	in, err := cmd.StdinPipe()
	c.must(err)
	err = cmd.Start()
	c.say("run", err)
	if err == nil {
		c.say("open to write what runs", open(program, unix.O_WRONLY, 0))
		c.say("truncate what runs", unix.Truncate(program, 0))
		_ = in.Close()
		c.say("it ends well", cmd.Wait())
	}
	fd, err = unix.Open(program, unix.O_WRONLY, 0)
	if err == nil {
		c.say("run what is open to write", c.command(program, "helper-true").Run())
		_ = unix.Close(fd)
	}
	script := c.file("script", 0o755, "#!"+program+" helper-true\n")
	c.say("run a script", c.command(script).Run())
}

func sizes(c *scene) {
	f := c.file("f", 0o644, "hello")
	c.must(unix.Truncate(f, 2))
	c.must(unix.Truncate(f, 6))
	b, _ := os.ReadFile(f)
	c.say("shrunk and grown", fmt.Sprintf("%q", b))
	c.say("truncate to -1", unix.Truncate(f, -1))
	c.say("truncate to 1 TiB", errorName(unix.Truncate(f, 1<<40))+" "+c.look(f))
	var st unix.Stat_t
	c.must(unix.Stat(f, &st))
	c.say("which is sparse", st.Blocks < 1000)
	c.say("truncate to 15 TiB", unix.Truncate(f, 15<<40))
	c.say("truncate to 8 EiB - 1", unix.Truncate(f, 1<<63-1))
	c.must(unix.Truncate(f, 0))
	file, err := os.OpenFile(f, os.O_RDWR, 0)
	c.must(err)
	defer file.Close()
	for _, at := range []int64{100 << 10, 1<<31 - 3, 1 << 32, 1 << 40} {
		_, err := file.WriteAt([]byte("there"), at)
		got := make([]byte, 8)
		_, _ = file.ReadAt(got, at-3)
		c.say(fmt.Sprint("write and read at ", at), fmt.Sprintf("%s %q", errorName(err), got))
	}
	c.must(file.Sync())
	c.must(unix.Stat(f, &st))
	c.say("sparse after that", st.Blocks < 1000)
	_, err = file.WriteAt([]byte("x"), 1<<63-2)
	c.say("write at 8 EiB", err)
	c.must(file.Truncate(1 << 20))
	hole, err := unix.Seek(int(file.Fd()), 0, unix.SEEK_HOLE)
	c.say("SEEK_HOLE", fmt.Sprint(errorName(err), " ", hole))
	data, err := unix.Seek(int(file.Fd()), 0, unix.SEEK_DATA)
	c.say("SEEK_DATA", fmt.Sprint(errorName(err), " ", data))
	fd := int(file.Fd())
	c.say("fallocate", errorName(unix.Fallocate(fd, 0, 0, 2<<20))+" "+c.look(f))
	c.say("fallocate, size kept", errorName(unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 4<<20)))
	c.say("punch a hole", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 100<<10, 4096))
	c.say("zero a range", unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 0, 4096))
	c.must(os.WriteFile(c.at("a"), bytes.Repeat([]byte("a"), 100_000), 0o644))
	a, err := os.Open(c.at("a"))
	c.must(err)
	defer a.Close()
	to, err := os.Create(c.at("b"))
	c.must(err)
	defer to.Close()
	c.say("copy_file_range", inParts(100_000, func(n int) (int, error) {
		return unix.CopyFileRange(int(a.Fd()), nil, int(to.Fd()), nil, n, 0)
	}))
	from := new(int64)
	c.say("sendfile", inParts(100_000, func(n int) (int, error) { return unix.Sendfile(int(to.Fd()), int(a.Fd()), from, n) }))
	c.say("FICLONE", unix.IoctlFileClone(int(to.Fd()), int(a.Fd())))
	got, err := os.ReadFile(c.at("b"))
	c.must(err)
	c.say("what was copied", bytes.Equal(got, bytes.Repeat([]byte("a"), len(got))))
	c.say("posix_fadvise", unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED))
	c.say("sync_file_range", unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE))
	c.say("fdatasync", unix.Fdatasync(fd))
	c.say("syncfs", unix.Syncfs(fd))
}

// inParts says how many bytes some calls of f copied. One call copies fewer than it is asked
// for when a signal comes, on ext4 too, and Go's runtime sends its threads signals.
func inParts(n int, f func(n int) (int, error)) string {
	for done := 0; ; {
		part, err := f(n - done)
		done += max(part, 0)
		if err != nil || part == 0 || done == n {
			return fmt.Sprint(done, " ", errorName(err))
		}
	}
}

func maps(c *scene) {
	path := c.file("f", 0o644, strings.Repeat("x", 10000))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	c.must(err)
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 10000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	c.say("shared", err)
	if err != nil {
		return
	}
	copy(m[5000:], "mapped")
	b := make([]byte, 6)
	_, _ = f.ReadAt(b, 5000)
	c.say("read sees what was written in memory", string(b))
	_, _ = f.WriteAt([]byte("called"), 6000)
	c.say("memory sees what was written", string(m[6000:6006]))
	c.say("msync", unix.Msync(m, unix.MS_SYNC))
	c.must(unix.Munmap(m))
	got, err := os.ReadFile(path)
	c.must(err)
	c.say("after munmap", string(got[5000:5006])+" "+string(got[6000:6006]))
	m, err = unix.Mmap(int(f.Fd()), 0, 10000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	c.say("private", err)
	if err == nil {
		copy(m, "mine")
		_, _ = f.ReadAt(b, 0)
		c.say("a private write is not in the file", string(b))
		c.must(unix.Munmap(m))
	}
	m, err = unix.Mmap(int(f.Fd()), 0, 10000, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_SHARED)
	c.say("to execute", err)
	if err == nil {
		c.must(unix.Munmap(m))
	}
	ro, err := os.Open(path)
	c.must(err)
	defer ro.Close()
	_, err = unix.Mmap(int(ro.Fd()), 0, 10000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	c.say("to write what is open to read", err)
	m, err = unix.Mmap(int(f.Fd()), 0, 10000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	c.must(err)
	c.must(f.Close())
	c.must(os.Remove(path))
	copy(m, "gone")
	c.say("of a removed file", string(m[:4])+" "+errorName(unix.Msync(m, unix.MS_SYNC)))
	c.must(unix.Munmap(m))
}

func linkCounts(c *scene) {
	f := c.file("f", 0o644, "x")
	for i := range 1000 {
		if err := unix.Link(f, c.at(fmt.Sprint("l", i))); err != nil {
			c.say("link", err)
			break
		}
	}
	c.say("a thousand links", c.look(f))
	c.must(os.WriteFile(c.at("l500"), []byte("other"), 0))
	b, _ := os.ReadFile(f)
	c.say("they are one file", string(b))
	for i := range 1000 {
		_ = unix.Unlink(c.at(fmt.Sprint("l", i)))
	}
	c.say("and one link again", c.look(f))
	c.must(unix.Symlink("f", c.at("s")))
	c.say("link of a symbolic link", errorName(unix.Link(c.at("s"), c.at("s2")))+" "+c.look(c.at("s2")))
	c.say("link through a symbolic link", errorName(unix.Linkat(unix.AT_FDCWD, c.at("s"), unix.AT_FDCWD, c.at("s3"), unix.AT_SYMLINK_FOLLOW))+" "+c.look(c.at("s3")))
	d := c.mkdir("d", 0o755)
	c.say("links of an empty directory", c.look(d))
	c.must(unix.Mkdir(d+"/e", 0o755))
	c.say("links of a directory with another", c.look(d))
	c.must(unix.Rmdir(d + "/e"))
	c.say("links of it when that has gone", c.look(d))
	var a, b2 unix.Stat_t
	c.must(unix.Stat(f, &a))
	c.must(unix.Rename(f, c.at("moved")))
	c.must(unix.Stat(c.at("moved"), &b2))
	c.say("the number of a file stays when it is renamed", a.Ino == b2.Ino)
}

func removed(c *scene) {
	d := c.mkdir("d", 0o755)
	path := d + "/f"
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	c.must(err)
	_, _ = f.WriteString("hello")
	c.must(os.Remove(path))
	c.say("name", c.look(path))
	b := make([]byte, 5)
	_, err = f.ReadAt(b, 0)
	c.say("read", string(b)+" "+errorName(err))
	_, err = f.WriteAt([]byte("world"), 5)
	c.say("write", err)
	c.say("truncate", f.Truncate(7))
	c.say("chmod", f.Chmod(0o600))
	var st unix.Stat_t
	c.must(unix.Fstat(int(f.Fd()), &st))
	c.say("fstat", fmt.Sprint(st.Nlink, " links, ", st.Size, " bytes"))
	again, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	c.say("open again by /proc/self/fd", err)
	if err == nil {
		_ = again.Close()
	}
	c.say("names in its directory", entries(d))
	c.say("remove its directory", unix.Rmdir(d))
	c.say("close", f.Close())
	c.say("remove its directory then", unix.Rmdir(d))
	// Replaced while it is open.
	path = c.file("replaced", 0o644, "old")
	f, err = os.Open(path)
	c.must(err)
	c.must(os.Rename(c.file("new", 0o644, "new"), path))
	got, err := io.ReadAll(f)
	c.say("replaced while open", string(got)+" "+errorName(err))
	_ = f.Close()
	c.say("names afterwards", entries(c.dir))
	// A directory that is open, or where one is.
	d = c.mkdir("open", 0o755)
	fd, err := unix.Open(d, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	c.must(err)
	c.must(unix.Rmdir(d))
	c.say("fstat of a removed directory", unix.Fstat(fd, &st))
	_, err = unix.Openat(fd, "x", unix.O_CREAT|unix.O_WRONLY, 0o644)
	c.say("create in a removed directory", err)
	_, err = unix.ReadDirent(fd, make([]byte, 1000))
	c.say("list a removed directory", err)
	_ = unix.Close(fd)
	d = c.mkdir("renamed", 0o755)
	fd, err = unix.Open(d, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	c.must(err)
	c.must(os.WriteFile(d+"/f", []byte("in it"), 0o644))
	c.must(unix.Rename(d, c.at("elsewhere")))
	in, err := unix.Openat(fd, "f", unix.O_RDONLY, 0)
	c.say("open in a renamed directory", err)
	_ = unix.Close(in)
	_ = unix.Close(fd)
}

// entries are the names in a directory, but for those that NFS gives to removed files.
func entries(dir string) string {
	names, err := os.ReadDir(dir)
	if err != nil {
		return errorName(err)
	}
	out := []string{}
	for _, e := range names {
		name := e.Name()
		if strings.HasPrefix(name, ".nfs") {
			name = ".nfs…"
		}
		out = append(out, name)
	}
	if len(out) == 0 {
		return "none"
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// helpers are the second processes that cases need.
var helpers = map[string]func(args []string) error{
	"helper-true": func([]string) error { return nil },
	"helper-cat":  func([]string) error { _, err := io.Copy(io.Discard, os.Stdin); return err },
	// flock and fcntl: take a lock without waiting.
	"helper-lock": func(args []string) error {
		f, err := os.OpenFile(args[1], os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if args[0] == "flock" {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		} else {
			err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 10})
		}
		_, err = os.Stdout.WriteString(errorName(err))
		return err
	},
	"helper-append": func(args []string) error {
		f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		for i := range 500 {
			if _, err := fmt.Fprintf(f, "%s %03d %s\n", args[1], i, strings.Repeat(args[1], 90)); err != nil {
				return err
			}
		}
		return f.Close()
	},
}

func (s *suite) command(name string, args ...string) *exec.Cmd {
	return exec.CommandContext(s.ctx, name, args...)
}

func (s *suite) helper(args ...string) *exec.Cmd {
	cmd := s.command("/proc/self/exe", args...)
	cmd.Stderr = os.Stderr
	return cmd
}

func locks(c *scene) {
	path := c.file("f", 0o644, strings.Repeat("x", 100))
	other := func(kind string) string {
		out, err := c.helper("helper-lock", kind, path).Output()
		c.must(err)
		return string(out)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	c.must(err)
	fd := int(f.Fd())
	c.say("flock", unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB))
	c.say("flock by another process", other("flock"))
	c.say("flock shared", unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB))
	c.say("flock unlock", unix.Flock(fd, unix.LOCK_UN))
	c.say("flock by another process then", other("flock"))
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 15}
	c.say("fcntl", unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock))
	c.say("fcntl by another process", other("fcntl"))
	c.say("flock is another matter", other("flock"))
	lock.Len = 10
	lock.Type = unix.F_UNLCK
	lock.Start = 10
	c.say("fcntl unlock of a part", unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lock))
	c.say("fcntl by another process of that part", other("fcntl"))
	c.must(unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}))
	lock = unix.Flock_t{Type: unix.F_WRLCK}
	c.say("open file description lock", unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock))
	c.say("fcntl by another process against it", other("fcntl"))
	_ = f.Close()
	c.say("closed: fcntl by another process", other("fcntl"))
	ro, err := os.Open(path)
	c.must(err)
	c.say("exclusive flock of what is open to read", unix.Flock(int(ro.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	lock = unix.Flock_t{Type: unix.F_WRLCK}
	c.say("fcntl write lock of what is open to read", unix.FcntlFlock(ro.Fd(), unix.F_SETLK, &lock))
	_, err = unix.FcntlInt(ro.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	c.say("lease", err)
	_ = ro.Close()
}

func appends(c *scene) {
	path := c.file("log", 0o644, "")
	var running []*exec.Cmd
	for _, word := range []string{"a", "b", "c"} {
		cmd := c.helper("helper-append", path, word)
		c.must(cmd.Start())
		running = append(running, cmd)
	}
	for _, cmd := range running {
		c.say("process "+cmd.Args[3], cmd.Wait())
	}
	b, err := os.ReadFile(path)
	c.must(err)
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	whole := 0
	for _, line := range lines {
		if f := strings.Fields(line); len(f) == 3 && f[2] == strings.Repeat(f[0], 90) {
			whole++
		}
	}
	c.say("lines that three processes appended, 500 each", fmt.Sprint(len(lines), ", whole ", whole))
}

func directories(c *scene) {
	const n = 3000
	d := c.mkdir("large", 0o755)
	for i := range n {
		c.must(os.WriteFile(fmt.Sprint(d, "/", i), nil, 0o644))
	}
	names, err := list(d)
	c.must(err)
	c.say("large directory", len(names))
	// Removed while it is being listed.
	f, err := os.Open(d)
	c.must(err)
	seen, failed := 0, 0
	for {
		some, err := f.Readdirnames(100)
		for _, name := range some {
			seen++
			if os.Remove(d+"/"+name) != nil {
				failed++
			}
		}
		if err != nil {
			break
		}
	}
	_ = f.Close()
	c.say("names seen while they were removed", fmt.Sprint(seen, ", not there ", failed))
	c.say("and nothing is left", unix.Rmdir(d))
	c.mkdir("d", 0o755)
	c.file("f", 0o644, "")
	c.must(unix.Symlink("x", c.at("l")))
	c.must(unix.Mkfifo(c.at("p"), 0o644))
	all, err := os.ReadDir(c.dir)
	c.must(err)
	var types []string
	for _, e := range all {
		types = append(types, e.Name()+" "+e.Type().String())
	}
	c.say("types in the listing", strings.Join(types, ", "))
	fd, err := unix.Open(c.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	c.must(err)
	c.say("fsync of a directory", unix.Fsync(fd))
	_, err = unix.Read(fd, make([]byte, 10))
	c.say("read of a directory", err)
	c.say("flock of a directory", unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB))
	_ = unix.Close(fd)
	w, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	c.must(err)
	_, err = unix.InotifyAddWatch(w, c.dir, unix.IN_CREATE|unix.IN_DELETE)
	c.say("inotify", err)
	c.file("watched", 0o644, "")
	got, err := unix.Read(w, make([]byte, 4096))
	c.say("inotify of what the VM does", fmt.Sprint(got > 0, " ", errorName(err)))
	_ = unix.Close(w)
}

func attributes(c *scene) {
	f := c.file("f", 0o644, "x")
	for _, name := range []string{"user.test", "trusted.test", "security.capability", "system.posix_acl_access"} {
		value := []byte("value")
		switch name {
		case "security.capability": // VFS_CAP_REVISION_2, cap_net_bind_service
			value = []byte{0, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		case "system.posix_acl_access": // user::rw- group::r-- other::r--
			value = []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255}
		}
		c.say("set "+name, unix.Setxattr(f, name, value, 0))
		n, err := unix.Getxattr(f, name, make([]byte, 100))
		c.say("get "+name, fmt.Sprint(n, " ", errorName(err)))
	}
	_, err := unix.Listxattr(f, make([]byte, 1000))
	c.say("list", err)
	var fs unix.Statfs_t
	c.say("statfs", unix.Statfs(f, &fs))
	c.say("longest name", fs.Namelen)
	c.say("there is room, and there are inodes", fs.Blocks > 0 && fs.Bavail > 0 && fs.Files > 0 && fs.Ffree > 0)
	fd, err := unix.Open(f, unix.O_RDONLY, 0)
	c.must(err)
	_, err = unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	c.say("flags of chattr", err)
	_ = unix.Close(fd)
	var stx unix.Statx_t
	c.must(unix.Statx(unix.AT_FDCWD, f, 0, unix.STATX_BTIME, &stx))
	c.say("time of birth", stx.Mask&unix.STATX_BTIME != 0)
	_, _, err = unix.NameToHandleAt(unix.AT_FDCWD, f, 0)
	c.say("name_to_handle_at", err)
}

func specials(c *scene) {
	c.say("char device", errorName(unix.Mknod(c.at("c"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))))+" "+c.look(c.at("c")))
	c.say("overlay's whiteout", errorName(unix.Mknod(c.at("w"), unix.S_IFCHR|0o644, 0))+" "+c.look(c.at("w")))
	c.say("block device", errorName(unix.Mknod(c.at("b"), unix.S_IFBLK|0o644, int(unix.Mkdev(7, 0))))+" "+c.look(c.at("b")))
	c.say("mknod of a file", errorName(unix.Mknod(c.at("f"), unix.S_IFREG|0o640, 0))+" "+c.look(c.at("f")))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	c.must(err)
	defer unix.Close(fd)
	address := &unix.SockaddrUnix{Name: c.at("s")}
	err = unix.Bind(fd, address)
	c.say("bind a socket", errorName(err)+" "+c.look(c.at("s")))
	if err == nil {
		c.must(unix.Listen(fd, 1))
		to, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		c.must(err)
		c.say("connect to it", unix.Connect(to, address))
		_ = unix.Close(to)
	}
	wd, err := os.Getwd()
	c.must(err)
	d := c.mkdir("cwd", 0o755)
	c.must(os.Chdir(d))
	c.must(unix.Rmdir(d))
	c.say("stat of a removed working directory", unix.Stat(".", new(unix.Stat_t)))
	_, err = os.Open("..")
	c.say("the directory above it", err)
	c.must(os.Chdir(wd))
}
