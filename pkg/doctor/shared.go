package doctor

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/shell"
	"github.com/devvm/devvm/pkg/trust"
)

// made are directories that a tool fills with files that nobody edits, by name. One of
// the files beside it, or in it, tells that it is that tool's; none: the name is enough.
var made = map[string][]string{
	"node_modules":     {},
	"bower_components": {},
	".venv":            {"pyvenv.cfg"},
	"venv":             {"pyvenv.cfg"},
	".tox":             {},
	".nox":             {},
	"__pypackages__":   {},
	"target":           {"Cargo.toml", "pom.xml", "build.sbt"},
	".gradle":          {},
	"build":            {"build.gradle", "build.gradle.kts", "CMakeLists.txt"},
	"vendor":           {"composer.json", "Gemfile", "go.mod"},
	".bundle":          {},
	".next":            {"package.json"},
	".nuxt":            {"package.json"},
	"deps":             {"mix.exs"},
	"_build":           {"mix.exs"},
	".stack-work":      {},
	"dist-newstyle":    {},
	"Pods":             {"Podfile"},
}

// Limits of the look at what is shared.
const (
	manyFiles  = 2000   // from here on a directory is worth a volume
	countTo    = 20000  // more is not counted
	countRoom  = 4      // times as many entries are looked at for that
	countDepth = 64     // directories below one that is counted
	lookAt     = 100000 // entries outside of such directories
	lookDepth  = 5      // directories below a shared one
	showMost   = 5
)

// hot is a directory that would be faster in a volume.
type hot struct {
	share, rel string
	files      int
}

// sharedFiles looks for directories that tools fill and that the VM has from the host.
func (d *doctor) sharedFiles(ctx context.Context) Result {
	if len(d.o.Shared) == 0 {
		return ok("no directory of this host is shared with a VM here", "")
	}
	var found []hot
	budget := lookAt
	for _, share := range d.o.Shared {
		if t := d.openShare(share); t != nil {
			found = t.hotBelow(ctx, "", &budget, found)
			t.close()
		}
	}
	if len(found) == 0 {
		return ok("nothing that is shared is better in a volume", "")
	}
	slices.SortStableFunc(found, func(a, b hot) int { return b.files - a.files })
	more := ""
	if len(found) > showMost {
		more = fmt.Sprintf(", and %d more", len(found)-showMost)
		found = found[:showMost]
	}
	var what, compose, run []string
	for _, f := range found {
		count := fmt.Sprint(f.files)
		if f.files >= countTo {
			count = fmt.Sprintf("more than %d", countTo)
		}
		what = append(what, fmt.Sprintf("%s (%s files)", filepath.Join(f.share, f.rel), count))
		if f.share != found[0].share { // the lines are for one container
			continue
		}
		volume := volumeName(f.rel)
		compose = append(compose, fmt.Sprintf("#   - %s:/app/%s", volume, f.rel))
		run = append(run, fmt.Sprintf("-v %s:%s", volume, shell.Quote("/app/"+f.rel)))
	}
	fix := "# in compose.yaml, for a service that has " + found[0].share + " at /app, and each name below the top-level volumes:\n#   volumes:\n" +
		strings.Join(compose, "\n") + "\n# or: docker run -v " + shell.Quote(found[0].share) + ":/app " + strings.Join(run, " ")
	return warn("shared with the VM: "+strings.Join(what, ", ")+more,
		"each small file there costs a question to this host; in a named volume it is on the VM's own disk, many times faster", fix)
}

// tree is a shared directory, in which the VM can put anything under any name: nothing in
// it is opened but from its descriptor downwards, and no link leads out of it.
type tree struct {
	share string
	root  *os.Root
}

// openShare opens a shared directory; nil if it is gone, or a link by now.
func (d *doctor) openShare(share string) *tree {
	dir, err := trust.OpenDir(d.h.path(share))
	if err != nil {
		return nil
	}
	defer dir.Close()
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())))
	if err != nil {
		return nil
	}
	return &tree{share, root}
}

func (t *tree) close() { _ = t.root.Close() }

// hotBelow adds what is below a directory of a share.
func (t *tree) hotBelow(ctx context.Context, rel string, budget *int, found []hot) []hot {
	entries := t.entries(rel, *budget)
	*budget -= len(entries)
	has := func(name string) bool {
		return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == name })
	}
	for _, e := range entries {
		if !e.IsDir() || ctx.Err() != nil || e.Name() == ".git" {
			continue
		}
		path := filepath.Join(rel, e.Name())
		signs, known := made[e.Name()]
		if known && (len(signs) == 0 || slices.ContainsFunc(signs, has) || t.exists(filepath.Join(path, signs[0]))) {
			n, left := 0, countTo*countRoom
			if t.count(ctx, path, 0, &n, &left); n >= manyFiles {
				found = append(found, hot{t.share, path, n})
			}
			continue
		}
		if strings.Count(path, "/") < lookDepth && *budget > 0 {
			found = t.hotBelow(ctx, path, budget, found)
		}
	}
	return found
}

// open opens a file or directory of a share. O_NONBLOCK: a pipe must not make us wait.
func (t *tree) open(rel string, flags int) (*os.File, error) {
	return t.root.OpenFile(filepath.Join(".", rel), os.O_RDONLY|unix.O_NONBLOCK|flags, 0)
}

func (t *tree) exists(rel string) bool {
	_, err := t.root.Lstat(rel)
	return err == nil
}

// entries reads a directory, as far as some number.
func (t *tree) entries(rel string, most int) []fs.DirEntry {
	f, err := t.open(rel, unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	defer f.Close()
	if most <= 0 {
		return nil
	}
	list, _ := f.ReadDir(most)
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list
}

// count adds the files below a directory to n, up to countTo, and takes what it has looked
// at from left.
func (t *tree) count(ctx context.Context, rel string, depth int, n, left *int) {
	f, err := t.open(rel, unix.O_DIRECTORY)
	if err != nil {
		return
	}
	defer f.Close()
	for *n < countTo && *left > 0 && ctx.Err() == nil {
		list, err := f.ReadDir(256)
		*left -= len(list)
		for _, e := range list {
			switch {
			case !e.IsDir():
				*n++
			case depth < countDepth:
				t.count(ctx, filepath.Join(rel, e.Name()), depth+1, n, left)
			}
		}
		if err != nil || len(list) == 0 {
			return
		}
	}
	*n = min(*n, countTo)
}

// volumeName makes a name that Docker takes of a path: [a-zA-Z0-9][a-zA-Z0-9_.-]*.
func volumeName(rel string) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r) {
			return r
		}
		return '-'
	}, rel)
	if name = strings.TrimLeft(name, "_.-"); len(name) < 2 {
		name = "made-" + name
	}
	return name
}

// checkStat is the line of git's that has it compare only what is the same on all sides
// (git-config(1), core.checkStat).
var checkStat = regexp.MustCompile(`(?mi)^\s*checkstat\s*=\s*minimal\s*$`)

// gitIndex looks for large repositories in what is shared. git notes the owner of each
// file, whom the VM shows otherwise.
func (d *doctor) gitIndex(context.Context) Result {
	var found, fix []string
	for _, share := range d.o.Shared {
		n := 0
		if t := d.openShare(share); t != nil && d.h.UID != 0 {
			if !checkStat.Match(t.start(".git/config", 64<<10)) {
				n = t.indexed(".git/index")
			}
			t.close()
		}
		if n >= manyFiles {
			found = append(found, fmt.Sprintf("%s (%d files)", share, n))
			fix = append(fix, fmt.Sprintf("git -C %s config core.checkStat minimal", shell.Quote(share)))
		}
	}
	if len(found) == 0 {
		return ok("git does not read shared files more often than it must", "")
	}
	return warn("git on this host and git in containers do not agree on who owns the files of "+strings.Join(found, ", "),
		"each reads all files again after the other has", strings.Join(fix, "\n"))
}

// indexed returns how many files an index of git's names: the third word of its header
// (gitformat-index(5)), 0 for none.
func (t *tree) indexed(path string) int {
	head := t.start(path, 12)
	if len(head) < 12 || string(head[:4]) != "DIRC" {
		return 0
	}
	return int(binary.BigEndian.Uint32(head[8:]))
}

// start reads the start of a file that may be the VM's work: of no pipe, which it would
// wait for.
func (t *tree) start(path string, most int64) []byte {
	f, err := t.open(path, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	b, _ := io.ReadAll(io.LimitReader(f, most))
	return b
}
