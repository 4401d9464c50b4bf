package project

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/devvm/devvm/pkg/tree"
)

// TestGitElsewhere: the history of git's own worktrees and submodules is found.
func TestGitElsewhere(t *testing.T) {
	git, err := exec.LookPath("git")
	if err != nil {
		t.Skip("there is no git")
	}
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), git, append([]string{"-C", top, "-c", "user.name=n", "-c", "user.email=e@x", "-c", "protocol.file.allow=always"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v\n%s", args, err, out)
		}
	}
	run("init", "-q", "main")
	run("-C", "main", "commit", "-q", "--allow-empty", "-m", "m")
	run("-C", "main", "worktree", "add", "-q", "-b", "b", filepath.Join(top, "a \"tree\""))
	run("init", "-q", "super")
	run("-C", "super", "submodule", "add", "-q", filepath.Join(top, "main"), "lib")
	run("init", "-q", "--separate-git-dir", filepath.Join(top, "apart's.git"), "apart")
	run("init", "-q", "--separate-git-dir", filepath.Join(top, "said.git"), "said")
	run("--git-dir="+filepath.Join(top, "said.git"), "config", "core.worktree", filepath.Join(top, "said")) // as up advises
	for dir, want := range map[string]string{
		"main": "", "super": "", "nowhere": "",
		"apart":      filepath.Join(top, "apart's.git"),
		"said":       filepath.Join(top, "said.git"),
		"a \"tree\"": filepath.Join(top, "main/.git"),
		"super/lib":  filepath.Join(top, "super/.git/modules/lib"),
	} {
		at := filepath.Join(top, dir)
		if got, claimed := gitElsewhere(tree.NewUntrusted(at), at); got != want || claimed != (dir == "apart") {
			t.Errorf("%s: %q, want %q; only claimed: %v", dir, got, want, claimed)
		}
	}
}

// TestGitHostile: whatever a VM makes of .git, it names no directory that does not name the
// project's in turn.
func TestGitHostile(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	app, other := filepath.Join(top, "app"), filepath.Join(top, "other/.git/worktrees/x")
	dotGit := filepath.Join(app, ".git")
	write := func(path, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write(dotGit, "gitdir: "+other+"\n")
	write(filepath.Join(other, "gitdir"), dotGit+"\n")
	ask := func() string {
		got, claimed := gitElsewhere(tree.NewUntrusted(app), app)
		if claimed {
			t.Errorf("%q is taken for a repository", got)
		}
		return got
	}
	if got := ask(); got != filepath.Join(top, "other/.git") { // the control
		t.Fatalf("a good one: %q", got)
	}
	mine := filepath.Join(top, "mine/.git/worktrees/x")
	write(filepath.Join(mine, "gitdir"), filepath.Join(top, "mine-tree/.git\n"))
	write(filepath.Join(top, "secret/config"), "[core]\n\tworktree = ../mine-tree\n")
	write(filepath.Join(top, "secret/f"), "")
	if err := os.Mkdir(filepath.Join(top, "mine-tree"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"a worktree of another":    "gitdir: " + mine,
		"a repository of another":  "gitdir: " + filepath.Join(top, "secret"),
		"a directory without git":  "gitdir: " + top,
		"nothing":                  "gitdir: /nowhere/worktrees/x",
		"the directory itself":     "gitdir: .",
		"another word":             "gitfile: " + other,
		"no path":                  "gitdir: \n",
		"two lines":                "gitdir: " + other + "\n" + other,
		"NUL":                      "gitdir: " + other + "\x00",
		"a long one":               "gitdir: " + other + strings.Repeat("\n", longestGit),
		"a name that is very long": "gitdir: /" + strings.Repeat("x", 5000),
	} {
		write(dotGit, text)
		if got := ask(); got != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
	for name, make := range map[string]func() error{
		"a link":      func() error { return os.Symlink(filepath.Join(top, "good"), dotGit) },
		"a pipe":      func() error { return syscall.Mkfifo(dotGit, 0o600) },
		"a directory": func() error { return os.Mkdir(dotGit, 0o755) },
		"a way by a link of its": func() error {
			return errors.Join(os.Symlink(top, filepath.Join(app, "up")), os.WriteFile(dotGit, []byte("gitdir: "+filepath.Join(app, "up/other/.git/worktrees/x")), 0o600))
		},
	} {
		write(filepath.Join(top, "good"), "gitdir: "+other+"\n")
		if err := errors.Join(os.RemoveAll(dotGit), make()); err != nil {
			t.Fatal(err)
		}
		if got := ask(); got != "" {
			t.Errorf("%s: %q", name, got)
		}
	}
}
