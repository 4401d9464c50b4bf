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

// Limits of a file, so that a hostile one costs neither memory nor time.
const (
	maxFile = 256 << 10
	maxKeys = 500
)

// Load reads the configuration of the project in dir; "" is no project, the
// user's own defaults alone. A missing file is no error. All errors are of type
// [*Error]; if several things are wrong, it is the first in the file.
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

// loadFile lays one file over c.
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

// sumOf identifies a file by its text.
func sumOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// readUserFile returns the text of the user's own file, which may be a link to
// wherever the user keeps it; fs.ErrNotExist if there is no such file, or an *Error.
func readUserFile(path string) (string, error) {
	link, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fs.ErrNotExist
	}
	if err != nil {
		return "", &Error{File: path, Msg: "cannot be read", Hint: "ls -ld " + shell.Quote(filepath.Dir(path)), Err: reason(err)}
	}
	// O_NONBLOCK: a named pipe must not make us wait.
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

// readProjectFile returns the text of a project's file; fs.ErrNotExist if there is no such
// file, or an *Error. The directory is the VM's to change, so it is read without following
// a link, and what is judged is what is read.
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
	// O_NONBLOCK: a named pipe must not make us wait.
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

// readOpen reads a plain file of a bounded size.
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

// reason is the error without the path, which the message has already.
func reason(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// apply lays the text of one file over c. It does not touch the disk.
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

// checkText finds what is not text at all, by its line.
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

// syntaxError turns the parser's error into ours.
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

// syntaxHint knows the usual slips.
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

// layer is one file on its way into the configuration.
type layer struct {
	c    Config
	path string
	text string
	env  Env
	user bool
	meta *toml.MetaData
	errs []*Error
}

// table handles the keys of one table; prefix is its name and a dot.
func (l *layer) table(prefix string, t map[string]toml.Primitive) {
	for _, k := range slices.Sorted(maps.Keys(t)) {
		key, prim := prefix+quoteKey(k), t[k]
		line := l.line(prim)
		if f := find(key); f != nil {
			l.value(f, prim, line)
			continue
		}
		if !isTable(key) {
			l.errs = append(l.errs, l.unknown(key, line))
			continue
		}
		var v any
		var sub map[string]toml.Primitive
		_ = l.meta.PrimitiveDecode(prim, &v)
		// The decoder takes a plain value for an empty table.
		if _, ok := v.(map[string]any); !ok || l.meta.PrimitiveDecode(prim, &sub) != nil {
			e := &Error{File: l.path, Line: line, Key: key, Msg: fmt.Sprintf("%s must be a table, not %s", key, typeName(v)), Hint: fmt.Sprintf("write [%s] on a line of its own and its keys below", key)}
			if key == "docker" {
				e.Hint = engineHint
			} else if _, ok := v.([]map[string]any); ok {
				e.Hint = fmt.Sprintf("write [%s], in single brackets", key)
			}
			l.errs = append(l.errs, e)
			continue
		}
		l.table(key+".", sub)
	}
}

// value checks and stores one value.
func (l *layer) value(f *field, prim toml.Primitive, line int) {
	var v any
	if err := l.meta.PrimitiveDecode(prim, &v); err != nil {
		l.errs = append(l.errs, &Error{File: l.path, Line: line, Key: f.Name, Msg: f.Name, Err: err})
		return
	}
	if f.UserOnly && !l.user {
		hint := "remove the line; to choose the libvirt yourself, set " + URIVariable
		if l.env.UserFile != "" {
			hint = fmt.Sprintf("move it to your own file, %s, or set %s", l.env.UserFile, URIVariable)
		}
		l.errs = append(l.errs, &Error{
			File: l.path, Line: line, Key: f.Name,
			Msg: f.Name + " cannot be set by a project: it would choose where your VMs run", Hint: hint,
		})
		return
	}
	// The keys of a table have lines of their own.
	var lines map[string]int
	var sub map[string]toml.Primitive
	if _, ok := v.(map[string]any); ok && l.meta.PrimitiveDecode(prim, &sub) == nil {
		lines = l.lines(sub)
	}
	if p := f.set(&l.c, l.env, v); p != nil {
		e := &Error{File: l.path, Line: line, Key: f.Name, Msg: p.msg, Hint: p.hint}
		if e.Hint == "" {
			first, _, _ := strings.Cut(f.Example, "\n")
			e.Hint = "write " + first
		}
		if !p.full {
			e.Msg = fmt.Sprintf("%s = %s: %s", f.Name, brief(v), p.msg)
		}
		if p.item > 0 {
			lines = l.itemLines(prim, p.item)
		}
		e.Line = cmp.Or(lines[p.sub], line)
		if p.sub != "" {
			e.Key += "." + quoteKey(p.sub)
		}
		l.errs = append(l.errs, e)
		return
	}
	l.c.origins[f.Name] = origin{l.path, line}
	for k, n := range lines {
		l.c.origins[f.Name+"."+quoteKey(k)] = origin{l.path, cmp.Or(n, line)}
	}
}

// lines finds the lines of a table's keys.
func (l *layer) lines(table map[string]toml.Primitive) map[string]int {
	lines := make(map[string]int, len(table))
	for k, p := range table {
		lines[k] = l.line(p)
	}
	return lines
}

// itemLines finds the lines of the keys of a table in a list, and as that of "" the
// first of them.
func (l *layer) itemLines(list toml.Primitive, item int) map[string]int {
	var tables []map[string]toml.Primitive
	if l.meta.PrimitiveDecode(list, &tables) != nil || item > len(tables) {
		return nil
	}
	lines := l.lines(tables[item-1])
	if len(lines) > 0 {
		lines[""] = slices.Min(slices.Collect(maps.Values(lines)))
	}
	return lines
}

// errProbe makes the decoder say where it is.
var errProbe = errors.New("probe")

type probe struct{}

// UnmarshalTOML refuses every value: the decoder's error has the position.
func (*probe) UnmarshalTOML(any) error { return errProbe }

// line finds the line of a value; 0 if the decoder does not know it (a table
// that exists only as part of a dotted key).
func (l *layer) line(prim toml.Primitive) int {
	err := l.meta.PrimitiveDecode(prim, &probe{})
	if p, ok := errors.AsType[toml.ParseError](err); ok && p.Position.Line > 0 {
		return lineOf(l.text, p.Position.Start)
	}
	// A table of dotted keys begins where its first key does.
	var sub map[string]toml.Primitive
	if l.meta.PrimitiveDecode(prim, &sub) != nil {
		return 0
	}
	first := 0
	for _, p := range sub {
		if n := l.line(p); n > 0 && (first == 0 || n < first) {
			first = n
		}
	}
	return first
}

func find(key string) *field {
	for i := range schema {
		if schema[i].Name == key {
			return &schema[i]
		}
	}
	return nil
}

func isTable(key string) bool {
	for i := range schema {
		if strings.HasPrefix(schema[i].Name, key+".") {
			return true
		}
	}
	return false
}

const engineHint = "settings of the engine stand below [docker.daemon]"

// unknown says that a key does not exist, and which may have been meant.
func (l *layer) unknown(key string, line int) *Error {
	e := &Error{File: l.path, Line: line, Key: key, Msg: "unknown key " + briefKey(key)}
	if strings.HasPrefix(key, "docker.") {
		e.Hint = engineHint
		return e
	}
	var names []string
	for _, f := range schema {
		if !f.UserOnly || l.user {
			names = append(names, f.Name)
		}
	}
	table, last := splitKey(key)
	// The right name in the wrong table is more likely than a similar name.
	for _, n := range names {
		t, leaf := splitKey(n)
		if leaf != last || t == table {
			continue
		}
		if t == "" {
			e.Hint = fmt.Sprintf("%q belongs at the top of the file, above the first [table]", leaf)
		} else {
			e.Hint = fmt.Sprintf("%q belongs below [%s]", leaf, t)
		}
		return e
	}
	tables := []string{"docker", "network", "ports", "provision", "share"}
	if near := nearest(key, append(names, tables...)); near != "" {
		e.Hint = fmt.Sprintf("did you mean %q?", near)
	} else {
		e.Hint = "all keys: devvm config --example"
	}
	return e
}

// briefKey is a key in quotes, cut to what fits into a message.
func briefKey(key string) string {
	if r := []rune(key); len(r) > 60 {
		key = string(r[:56]) + " ..."
	}
	if strings.Contains(key, `"`) {
		return key
	}
	return `"` + key + `"`
}

// nearest returns the candidate that a slip of the keyboard may have turned
// into word, or "".
func nearest(word string, candidates []string) string {
	if len(word) > 64 {
		return ""
	}
	best, most := "", 1+len(word)/4
	for _, c := range candidates {
		if len(word) >= 3 && strings.HasPrefix(c, strings.ToLower(word)) {
			return c
		}
		if d := distance(strings.ToLower(word), c); d <= most && d < len(c) {
			best, most = c, d-1
		}
	}
	return best
}

// distance counts the insertions, deletions, replacements and swaps of
// neighbours that turn a into b (optimal string alignment).
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	var before, last []int
	row := make([]int, len(y)+1)
	for j := range row {
		row[j] = j
	}
	for i := range x {
		before, last, row = last, row, make([]int, len(y)+1)
		row[0] = i + 1
		for j := range y {
			cost := 1
			if x[i] == y[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && x[i] == y[j-1] && x[i-1] == y[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(y)]
}

func sortedKeys(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }
