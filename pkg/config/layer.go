package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// layer is a file that is being applied to the configuration.
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
		// The decoder accepts a plain value as an empty table.
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
	// The keys of a table have their own lines.
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

// itemLines finds the lines of the keys of one table in a list. The entry "" is the first of
// those lines.
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

// errProbe makes the decoder report its position.
var errProbe = errors.New("probe")

type probe struct{}

// UnmarshalTOML rejects every value, because the decoder's error holds the position.
func (*probe) UnmarshalTOML(any) error { return errProbe }

// line finds the line of a value; 0 if the decoder does not know it (a table that exists only
// as part of a dotted key).
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

// unknown makes the error for an unknown key and suggests the key that was probably meant.
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

// briefKey quotes a key and shortens it to fit into a message.
func briefKey(key string) string {
	if r := []rune(key); len(r) > 60 {
		key = string(r[:56]) + " ..."
	}
	if strings.Contains(key, `"`) {
		return key
	}
	return `"` + key + `"`
}

// nearest returns the candidate that word is most likely a typo of, or "".
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

// distance counts the insertions, deletions, replacements and swaps of adjacent letters that
// turn a into b (optimal string alignment).
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
