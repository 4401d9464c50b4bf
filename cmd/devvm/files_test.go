package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/ui"
)

// stateFiles are the files and directories of docs/files.md that are kept, as patterns below
// DATA or CACHE, with the names that they have there.
var stateFiles = map[string][]string{
	"DATA/images/DIGEST/":                {"disk.qcow2", "kernel", "initrd", "manifest.json", ""},
	"DATA/templates/ID/":                 {"disk.qcow2", "memory", "manifest.json", "spare", ""},
	"DATA/projects/NAME/lock":            {""},
	"DATA/projects/NAME/project.json":    {""},
	"DATA/projects/NAME/exposures.json":  {""},
	"DATA/projects/NAME/vacant":          {""},
	"DATA/projects/NAME/removing/":       {""},
	"DATA/projects/NAME/vm/":             {""},
	"…/vm/disk.qcow2":                    {""},
	"…/vm/begun":                         {""},
	"…/vm/unused":                        {""},
	"…/vm/management":                    {""},
	"…/vm/stopping":                      {""},
	"…/vm/memory":                        {""},
	"…/vm/console.log":                   {""},
	"…/vm/keys/":                         {"", "id_ed25519", "host_ed25519", "known_hosts"},
	"…/vm/credentials/":                  {"", "devvm.host_key", "system.machine_id"},
	"…/vm/credentials/seed.iso":          nil, // of cloud images, which the fake has not
	"…/vm/provisioned":                   {""},
	"DATA/projects/NAME/undo/":           {"", "disk.qcow2"},
	"DATA/projects/NAME/log/":            {"", "supervisor.log", "net.log"},
	"DATA/host.json":                     {""},
	"CACHE/accel.json":                   {""},
	"CONFIG/config.toml":                 nil, // the user's, TestLoad
	"DATA/projects/NAME/applied.json":    {""},
	"DATA/projects/NAME/owners":          {""},
	"DATA/trusted.json":                  {""},
	"DATA/sandbox/ID/qemu-system-x86_64": nil, // the fake's VMs have none
	"DATA/sockets":                       nil, // TestScript/private
}

// damages are what becomes of them.
var damages = map[string]func(path string) error{
	"gone":  os.RemoveAll,
	"empty": func(path string) error { return errors.Join(os.RemoveAll(path), os.WriteFile(path, nil, 0o600)) },
	"junk": func(path string) error {
		return errors.Join(os.RemoveAll(path), os.WriteFile(path, []byte("junk{\x00\xff"), 0o600))
	},
	"directory": func(path string) error {
		return errors.Join(os.RemoveAll(path), os.MkdirAll(filepath.Join(path, "in the way"), 0o700))
	},
	"mode 000": func(path string) error {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return os.WriteFile(path, nil, 0)
		}
		return os.Chmod(path, 0)
	},
}

// TestStateFiles damages each file that devvm keeps in each way, and runs the verbs: none may
// panic, hang or delete what is in use, and one that fails names the file and the way out.
// Each file is damaged in one way, with the environment variable in all.
func TestStateFiles(t *testing.T) {
	b, err := os.ReadFile("../../docs/files.md")
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("runs in the repository, by make check")
	}
	if err != nil {
		t.Fatal(err)
	}
	kept, _, _ := strings.Cut(string(b), "## While something runs")
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Z…]+/[^`]+)`").FindAllStringSubmatch(kept, -1) {
		if _, ok := stateFiles[row[1]]; !ok {
			t.Errorf("docs/files.md has %s, and this test does not", row[1])
		}
	}
	type damaged struct{ pattern, name, damage string }
	var cases []damaged
	n := 0
	for _, pattern := range sorted(stateFiles) {
		if !strings.Contains(kept, "`"+pattern+"`") {
			t.Errorf("docs/files.md does not have %s", pattern)
		}
		for _, name := range stateFiles[pattern] {
			for i, damage := range sorted(damages) {
				if n++; (n/len(damages)+i)%len(damages) == 0 || os.Getenv("DEVVM_STATE_FILES") == "all" {
					cases = append(cases, damaged{pattern, name, damage})
				}
			}
		}
	}
	// The verbs wait more than they work: a few hosts at a time.
	var hosts [4]*host
	for i := range hosts {
		hosts[i] = newHost(t, true)
		hosts[i].unprivileged()
	}
	t.Parallel() // no sooner: a child of another test would hold a program while it is copied
	for i, h := range hosts {
		t.Run(fmt.Sprint("host ", i), func(t *testing.T) {
			t.Parallel()
			h.T = t
			golden := h.golden()
			for at := i; at < len(cases); at += len(hosts) {
				c := cases[at]
				t.Run(c.pattern+c.name+" "+c.damage, func(t *testing.T) {
					h := *h
					h.T = t
					h.restore(golden)
					h.tryDamaged(strings.TrimSuffix(h.state(c.pattern)+c.name, "/"), damages[c.damage])
				})
			}
		})
	}
}

func sorted[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// tryDamaged runs the verbs on a host with one file damaged.
func (h *host) tryDamaged(path string, damage func(string) error) {
	h.Helper()
	// It may be another's directory in which it is.
	spoil := func() {
		h.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			h.Fatal(err)
		}
		if err := damage(path); err != nil {
			h.Fatal(err)
		}
		h.own(path)
	}
	spoil()
	for _, verb := range []string{"status", "ls", "df", "prune"} {
		h.try(path, verb)
	}
	if h.try(path, "up") == 0 {
		if out, code := h.tell("status"); code != 0 {
			h.Errorf("after up, status says %d:\n%s", code, out)
		}
		h.guarded(path, true)
		spoil()
		h.try(path, "status")
		h.try(path, "prune")
		if h.try(path, "suspend") == 0 {
			spoil()
			h.try(path, "up")
			spoil()
		}
		h.try(path, "down")
		h.guarded(path, true)
	}
	h.try(path, "nuke", "--yes")
	spoil()
	if h.try(path, "rm", "--yes") == 0 {
		if left, _ := filepath.Glob(filepath.Join(h.dir, "data", "devvm", "projects", "*")); len(left) > 0 {
			h.Errorf("rm has left %v", left)
		}
	}
}

// try runs a verb and judges what it says.
func (h *host) try(path string, args ...string) int {
	h.Helper()
	start := time.Now()
	out, code := h.tell(args...)
	h.Logf("%v: %d in %v\n%s", args, code, time.Since(start).Round(time.Millisecond), out)
	if strings.Contains(out, "panic") || strings.Contains(out, "goroutine ") {
		h.Errorf("%v panics:\n%s", args, out)
	}
	switch code {
	case ui.ExitOK, ui.ExitNoVM, ui.ExitNotRunning:
	case ui.ExitError, ui.ExitUsage, ui.ExitHost:
		if strings.Contains(out, "could not be built") { // there is none, and here none can be
			break
		}
		if !strings.Contains(out, path) {
			h.Errorf("%v does not name the file, %s:\n%s", args, path, out)
		}
		if !strings.Contains(out, "hint: ") && !strings.Contains(out, "next  ") {
			h.Errorf("%v says no way out:\n%s", args, out)
		}
	default:
		h.Errorf("%v: exit code %d:\n%s", args, code, out)
	}
	h.guarded(path, !slices.Contains(args, "--yes"))
	return code
}

// guarded fails unless what the VM lies on is there, and its own disk if it must be; but for
// what was damaged.
func (h *host) guarded(damaged string, disk bool) {
	h.Helper()
	for path := range h.precious {
		if !disk && strings.Contains(path, "/projects/") {
			continue
		}
		if path == damaged || strings.HasPrefix(path, damaged+"/") {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			h.Errorf("%s was removed: %v", path, err)
		} else if st := info.Sys().(*syscall.Stat_t); st.Size == 0 {
			h.Errorf("%s is empty", path)
		}
	}
}

// tell runs devvm to its end, which must come soon.
func (h *host) tell(args ...string) (string, int) {
	h.Helper()
	out, err := h.run(args...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return out, 0
	case errors.As(err, &exit) && exit.Exited():
		return out, exit.ExitCode()
	}
	h.Fatalf("%v: %v\n%s", args, err, out)
	return "", -1
}

// unprivileged lets devvm run as a user whom a file's mode keeps out, as root it would not.
func (h *host) unprivileged() {
	h.Helper()
	if os.Geteuid() != 0 {
		return
	}
	h.uid = 65534
	if err := os.Chmod(filepath.Dir(h.dir), 0o711); err != nil { // made by TempDir
		h.Fatal(err)
	}
	for _, dir := range []string{h.dir, h.runtime} {
		h.own(dir)
	}
}

// own gives a tree to the user that devvm runs as.
func (h *host) own(path string) {
	h.Helper()
	if h.uid == 0 {
		return
	}
	err := filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, h.uid, h.uid)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.Fatal(err)
	}
}

// golden makes a project with a stopped VM that was used, and the undo of another one; it
// returns where a copy of all that is.
func (h *host) golden() string {
	h.Helper()
	for _, args := range [][]string{{"up"}, {"exec", "true"}, {"nuke", "--yes"}, {"exec", "true"}, {"down"}} {
		if out, code := h.tell(args...); code != 0 {
			h.Fatalf("%v: %d\n%s", args, code, out)
		}
	}
	h.precious = map[string]bool{}
	for _, pattern := range []string{"images/*/disk.qcow2", "images/*/kernel", "templates/*/disk.qcow2", "projects/*/vm/disk.qcow2", "projects/*/undo/disk.qcow2"} {
		found, err := filepath.Glob(filepath.Join(h.dir, "data", "devvm", pattern))
		if err != nil || len(found) != 1 {
			h.Fatalf("%s: %v, %v", pattern, found, err)
		}
		h.precious[found[0]] = true
	}
	golden := filepath.Join(h.dir, "golden")
	h.copyTrees(h.dir, golden)
	return golden
}

// restore puts all back as golden has left it.
func (h *host) restore(golden string) {
	h.Helper()
	h.kill("")
	for deadline := time.Now().Add(10 * time.Second); len(ours(h.dir)) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.Fatalf("left running: %v", ours(h.dir))
		}
	}
	for _, dir := range []string{filepath.Join(h.dir, "data"), filepath.Join(h.dir, "fake"), filepath.Join(h.dir, "cache"), filepath.Join(h.runtime, "devvm")} {
		if out, err := exec.CommandContext(h.Context(), "sh", "-c", `chmod -R u+rwx "$1" 2>/dev/null; rm -rf "$1"`, "sh", dir).CombinedOutput(); err != nil {
			h.Fatalf("%v: %s", err, out)
		}
	}
	h.copyTrees(golden, h.dir)
}

func (h *host) copyTrees(from, to string) {
	h.Helper()
	if err := os.MkdirAll(to, 0o755); err != nil {
		h.Fatal(err)
	}
	for _, name := range []string{"data", "fake", "cache"} {
		if _, err := os.Stat(filepath.Join(from, name)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if out, err := exec.CommandContext(h.Context(), "cp", "-a", "--sparse=always", filepath.Join(from, name), filepath.Join(to, name)).CombinedOutput(); err != nil {
			h.Fatalf("%v: %s", err, out)
		}
	}
}

// state is the path that a pattern of docs/files.md stands for.
func (h *host) state(pattern string) string {
	h.Helper()
	at := pattern
	for from, to := range map[string]string{"DATA/": "data/devvm/", "CACHE/": "cache/devvm/", "…/": "data/devvm/projects/NAME/"} {
		at = strings.Replace(at, from, to, 1)
	}
	at = filepath.Join(h.dir, at) + map[bool]string{true: "/"}[strings.HasSuffix(at, "/")]
	for _, all := range []struct{ name, dir string }{{"DIGEST", "images"}, {"ID", "templates"}, {"NAME", "projects"}} {
		if !strings.Contains(at, "/"+all.name) {
			continue
		}
		found, err := filepath.Glob(filepath.Join(h.dir, "data", "devvm", all.dir, "[^.]*"))
		if err != nil || len(found) != 1 {
			h.Fatalf("%s: %v, %v", all.dir, found, err)
		}
		at = strings.Replace(at, "/"+all.name, fmt.Sprint("/", filepath.Base(found[0])), 1)
	}
	return at
}
