package project

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/guard"
	"github.com/devvm/devvm/pkg/mounts"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/shell"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/tree"
)

// The .git of a worktree or a submodule is a file that names a directory elsewhere
// (gitrepository-layout(5)). The VM can write that file. So devvm believes it only if that directory
// names the project's directory in turn: otherwise a VM could make devvm ask for any directory. The
// directory of git init --separate-git-dir names none: the user is told how to change that.

// longestGit is how many bytes of one of git's files are read at most.
const longestGit = 64 << 10

// gitNotes tell the user how to share a history that is outside of the VM's directories.
func (s *Service) gitNotes(p state.Project, exports []share.Export) []string {
	has := func(path string) bool {
		_, ok := mounts.Table(exports).OnHost(path)
		return ok
	}
	if !has(p.Dir) {
		return nil
	}
	dir, claimed := gitElsewhere(s.Writable(p), p.Dir)
	if dir == "" || has(dir) {
		return nil
	}
	if claimed {
		return []string{
			fmt.Sprintf("git does not work in the VM: .git points to %s, which is not in the VM", dir),
			fmt.Sprintf("If that is this project's repository, tell git so: git --git-dir=%s config core.worktree %s", shell.Quote(dir), shell.Quote(p.Dir)),
			"Then devvm down && devvm up says how to share it.",
		}
	}
	what := fmt.Sprintf("git does not work in the VM: the repository of this working tree is %s, which is not in the VM", dir)
	if why := s.host(p.Dir).Unfit(dir, dir); why != "" {
		return []string{what + " and cannot be: " + why}
	}
	toml := filepath.Join(p.Dir, config.FileName)
	notes := []string{what + ". To share it, add this at the end of " + toml + " and run devvm down && devvm up:"}
	for line := range strings.Lines(guard.Lines(dir, dir, true)) {
		notes = append(notes, strings.TrimSuffix(line, "\n"))
	}
	return append(notes, "To commit in the VM, add writable = true as well. Then git on this host runs hooks that the VM writes there.")
}

// gitElsewhere returns the directory with the history of a working tree, if it is elsewhere, or "".
// claimed says that this directory does not name the working tree in turn.
func gitElsewhere(untrusted tree.Untrusted, dir string) (at string, claimed bool) {
	to, ok := strings.CutPrefix(readGit(untrusted, filepath.Join(dir, ".git")), "gitdir: ")
	to = strings.TrimRight(to, "\r\n")
	if !ok || to == "" || strings.ContainsAny(to, "\x00\n") {
		return "", false
	}
	git := from(dir, to)
	if trees := filepath.Dir(git); filepath.Base(trees) == "worktrees" {
		back := strings.TrimRight(readGit(untrusted, filepath.Join(git, "gitdir")), "\r\n")
		if filepath.Base(back) != ".git" || !sameDir(filepath.Dir(from(git, back)), dir) {
			return "", false
		}
		return filepath.Dir(trees), false
	}
	settings := readGit(untrusted, filepath.Join(git, "config"))
	switch back := workTree(settings); {
	case back != "" && sameDir(from(git, back), dir):
		return git, false
	case back == "" && settings != "" && readGit(untrusted, filepath.Join(git, "HEAD")) != "":
		return git, true
	}
	return "", false
}

// workTree returns core.worktree from a file of git-config(1), as git itself writes it.
func workTree(text string) string {
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = strings.ToLower(line)
		}
		name, value, _ := strings.Cut(line, "=")
		if section == "[core]" && strings.EqualFold(strings.TrimSpace(name), "worktree") {
			return strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return ""
}

// readGit returns the content of one of git's files, or "" if it is not a file, too long, or reached
// through a link that a VM may have made.
func readGit(untrusted tree.Untrusted, path string) string {
	at, err := untrusted.Find(path, true)
	if err != nil {
		return ""
	}
	defer at.Close()
	if at.Dir != nil || !at.Exists {
		return ""
	}
	f, _, err := at.Parent.Open(at.Name)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, longestGit+1))
	if err != nil || len(text) > longestGit {
		return ""
	}
	return string(text)
}

// from resolves a path that may be relative to dir.
func from(dir, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

// sameDir reports whether two paths lead to the same directory.
func sameDir(a, b string) bool {
	one, err1 := os.Stat(a)
	two, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(one, two)
}
