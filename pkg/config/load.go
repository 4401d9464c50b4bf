package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/shell"
	"github.com/devvm/devvm/pkg/trust"
)

// Limits on a file, so that a hostile one costs neither memory nor time.
const (
	maxFile = 256 << 10
	maxKeys = 500
)

// Load reads the configuration of the project in dir. If dir is "", it reads only the user's
// own defaults. A missing file is not an error. All errors are of type [*Error]; of several,
// Load returns the first in the file.
func Load(dir string, env Env) (Config, error) {
	c := Default(env)
	var err error
	if env.UserFile != "" {
		if c, err = loadFile(c, env.UserFile, env, true); err != nil {
			return Config{}, err
		}
	}
	if dir != "" {
		if c, err = loadFile(c, filepath.Join(dir, FileName), env, false); err != nil {
			return Config{}, err
		}
	}
	if env.URI != "" {
		if p := checkURI(env.URI); p != nil {
			return Config{}, &Error{Key: "host.uri", Msg: fmt.Sprintf("%s = %s: %s", URIVariable, brief(env.URI), p.msg), Hint: p.hint}
		}
		c.URI = env.URI
		c.origins["host.uri"] = origin{file: "$" + URIVariable}
	}
	return c, nil
}

// loadFile applies a file to c.
func loadFile(c Config, path string, env Env, user bool) (Config, error) {
	read := readUserFile
	if !user {
		read = func(path string) (string, error) { return readProjectFile(path, env.Trust) }
	}
	text, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return Config{}, err
	}
	if user {
		c.UserFile = path
	} else {
		c.File, c.Sum = path, sumOf(text)
	}
	return apply(c, path, text, env, user)
}

// sumOf returns a checksum of a file's text.
func sumOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// readUserFile returns the text of the user's own file, which may be a link. The error is
// fs.ErrNotExist if there is no such file, else an *Error.
func readUserFile(path string) (string, error) {
	link, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fs.ErrNotExist
	}
	if err != nil {
		return "", &Error{File: path, Msg: "cannot be read", Hint: "ls -ld " + shell.Quote(filepath.Dir(path)), Err: reason(err)}
	}
	// O_NONBLOCK: a named pipe must not block us.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) && link.Mode()&fs.ModeSymlink != 0 {
		return "", &Error{File: path, Msg: "is a symbolic link to a file that does not exist", Hint: "remove the link or make the file that it names"}
	}
	if err != nil {
		return "", unreadable(path, err)
	}
	defer f.Close()
	return readOpen(path, f)
}

// readProjectFile returns the text of a project's file. The error is fs.ErrNotExist if there is
// no such file, else an *Error. The VM can change the directory, so no link is followed, and
// the checks are on the open file that is then read.
func readProjectFile(path string, rule *trust.Rule) (string, error) {
	project := filepath.Dir(path)
	dir, err := trust.OpenDir(project)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fs.ErrNotExist
	case errors.Is(err, unix.ELOOP):
		return "", &Error{File: path, Msg: "is below a symbolic link, which devvm does not follow here", Hint: "name the directory itself: cd into it, or --project DIRECTORY"}
	case err != nil:
		return "", &Error{File: path, Msg: "cannot be read", Hint: "ls -ld " + shell.Quote(project), Err: reason(err)}
	}
	defer dir.Close()
	// O_NONBLOCK: a named pipe must not block us.
	fd, err := unix.Openat(int(dir.Fd()), filepath.Base(path), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return "", fs.ErrNotExist
	case errors.Is(err, unix.ELOOP):
		return "", &Error{File: path, Msg: "is a symbolic link, which devvm does not follow in a project", Hint: "replace it by a copy of the file that it names"}
	case err != nil:
		return "", unreadable(path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if rule != nil {
		err := rule.CheckOpen(project, project, dir)
		if err == nil {
			err = rule.CheckOpen(project, path, f)
		}
		if bad, ok := errors.AsType[*trust.Error](err); ok {
			return "", &Error{Err: err, Hint: bad.Hint()}
		}
		if err != nil {
			return "", unreadable(path, err)
		}
	}
	return readOpen(path, f)
}

// unreadable explains why a file was not opened.
func unreadable(path string, err error) *Error {
	e := &Error{File: path, Msg: "cannot be read", Err: reason(err)}
	if errors.Is(err, fs.ErrPermission) {
		e.Hint = "chmod u+r " + shell.Quote(path) + ", if the file is yours"
	}
	return e
}

// readOpen reads a regular file of limited size.
func readOpen(path string, f *os.File) (string, error) {
	fail := func(hint, format string, args ...any) (string, error) {
		return "", &Error{File: path, Msg: fmt.Sprintf(format, args...), Hint: hint}
	}
	info, err := f.Stat()
	if err != nil {
		return "", &Error{File: path, Msg: "cannot be read", Err: reason(err)}
	}
	switch {
	case info.IsDir():
		return fail("devvm's configuration is a file: move the directory away", "is a directory")
	case !info.Mode().IsRegular():
		return fail("devvm's configuration is a plain file: remove this one", "is not a plain file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", &Error{File: path, Msg: "cannot be read", Err: reason(err)}
	}
	if len(data) > maxFile {
		return fail("a long script is better kept in the project and called from provision.script", "is larger than %d KiB", maxFile>>10)
	}
	return string(data), nil
}

// reason strips the path from an error, because the message already has it.
func reason(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// apply applies the text of a file to c. It does not access the disk.
func apply(c Config, path, text string, env Env, user bool) (Config, error) {
	if err := checkText(path, text); err != nil {
		return Config{}, err
	}
	text = strings.TrimPrefix(text, "\ufeff")
	if err := checkDepth(path, text); err != nil {
		return Config{}, err
	}
	var root map[string]toml.Primitive
	meta, err := toml.Decode(text, &root)
	if err != nil {
		return Config{}, syntaxError(path, text, err)
	}
	if n := len(meta.Keys()); n > maxKeys {
		return Config{}, &Error{File: path, Msg: fmt.Sprintf("holds %d keys, more than %d", n, maxKeys), Hint: "this is no file for devvm: move what is in [docker.daemon] or others elsewhere"}
	}
	l := layer{c: c, path: path, text: text, env: env, user: user, meta: &meta}
	l.c.origins = maps.Clone(c.origins)
	l.table("", root)
	if len(l.errs) > 0 {
		slices.SortStableFunc(l.errs, func(a, b *Error) int {
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key))
		})
		return Config{}, l.errs[0]
	}
	return l.c, nil
}

// checkText finds the first line that is not text.
func checkText(path, text string) error {
	if strings.HasPrefix(text, "\xff\xfe") || strings.HasPrefix(text, "\xfe\xff") {
		return &Error{File: path, Msg: "is UTF-16", Hint: "save the file as UTF-8"}
	}
	if utf8.ValidString(text) {
		return nil
	}
	line := 1
	for rest := text; ; {
		r, n := utf8.DecodeRuneInString(rest)
		if r == utf8.RuneError && n == 1 {
			return &Error{File: path, Line: line, Msg: fmt.Sprintf("is not UTF-8: there is a byte 0x%02x", rest[0]), Hint: "save the file as UTF-8"}
		}
		if r == '\n' {
			line++
		}
		rest = rest[n:]
	}
}

// syntaxError turns the parser's error into an *Error.
func syntaxError(path, text string, err error) error {
	e := &Error{File: path, Msg: "is not valid TOML", Err: err}
	if p, ok := errors.AsType[toml.ParseError](err); ok {
		e.Line = min(p.Position.Line, strings.Count(text, "\n")+1)
		e.Msg = "not valid TOML: " + strings.TrimSuffix(p.Message, ".")
		e.Err = nil
		if e.Line > 0 {
			e.Hint = syntaxHint(strings.Split(text, "\n")[e.Line-1], p.Message)
		}
	}
	return e
}

// syntaxHint knows the common mistakes.
func syntaxHint(line, msg string) string {
	if !strings.HasPrefix(msg, "expected") {
		return ""
	}
	key, value, ok := strings.Cut(line, "=")
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	switch {
	case ok && value != "" && !strings.ContainsAny(value, `"'[{#`):
		return fmt.Sprintf("strings and sizes stand in quotes: %s = %s", key, quote(value))
	case ok || strings.HasPrefix(key, "["):
		return ""
	}
	if key, value, ok = strings.Cut(line, ":"); ok && strings.TrimSpace(value) != "" {
		return fmt.Sprintf("TOML has = between key and value: %s = %s", strings.TrimSpace(key), strings.TrimSpace(value))
	}
	return "each line is key = value"
}
