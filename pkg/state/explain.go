package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/shell"
	"github.com/devvm/devvm/pkg/ui"
)

// Explain adds to an error about one of devvm's own files who owns the file and what to do. It
// returns other errors, and those that say so already, as they are.
func (d Dirs) Explain(err error) error {
	if err == nil || ui.Hint(err) != "" {
		return err
	}
	path := pathOf(err)
	if path == "" || !d.has(path) {
		return err
	}
	quoted := shell.Quote(path)
	hint := ""
	switch {
	case errors.Is(err, file.ErrDirectory), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENOTEMPTY):
		hint = fmt.Sprintf("something else is where devvm keeps a file; move it away and run the command again: mv %s %s", quoted, shell.Quote(path+".away"))
	case errors.Is(err, fs.ErrPermission):
		hint = fmt.Sprintf("it %s; give yourself access, or move it away (mv %s %s), and run the command again", whose(path), quoted, shell.Quote(path+".away"))
	case errors.Is(err, unix.EROFS):
		hint = "its file system is read-only; devvm has to write there"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		hint = "make room there: devvm df shows what devvm takes, devvm prune frees what nothing uses"
	default:
		return err
	}
	return &ui.Error{Code: ui.ExitCode(err), Err: err, Hint: hint}
}

// pathOf returns the file that an error is about, or "" if it does not say.
func pathOf(err error) string {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Path
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.New
	}
	return ""
}

// has reports whether a path is in one of devvm's own directories.
func (d Dirs) has(path string) bool {
	for _, dir := range []string{d.Data, d.Runtime, d.Cache, d.Config, d.Short} {
		if dir != "" && (path == dir || strings.HasPrefix(path, dir+string(filepath.Separator))) {
			return true
		}
	}
	return false
}

// whose says who owns a file, or else the nearest directory above it that can be looked at.
func whose(path string) string {
	for {
		info, err := os.Lstat(path)
		if err == nil {
			name := "uid " + strconv.Itoa(owner(info))
			if u, err := user.LookupId(strconv.Itoa(owner(info))); err == nil {
				name = u.Username
			}
			return fmt.Sprintf("belongs to %s, mode %04o (%s)", name, info.Mode().Perm(), path)
		}
		if path == filepath.Dir(path) {
			return "cannot be inspected"
		}
		path = filepath.Dir(path)
	}
}
