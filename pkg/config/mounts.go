package config

import (
	"fmt"
	"path"
	"strings"
)

// Mount is a directory of the host that the VM has besides the project's own.
type Mount struct {
	// Source is the path on the host as written: absolute, below "~/", or relative to the
	// project's directory.
	Source   string
	Target   string // absolute path in the VM; empty: same as the source
	Writable bool
}

// maxMounts is how many directories a VM may have.
const maxMounts = 32

// setMounts checks the key mounts.
func setMounts(c *Config, _ Env, v any) *problem {
	const want = "a list of tables: [[mounts]]"
	var tables []map[string]any
	switch v := v.(type) {
	case []map[string]any:
		tables = v
	case []any:
		for _, e := range v {
			t, ok := e.(map[string]any)
			if !ok {
				return wrongType(want, v)
			}
			tables = append(tables, t)
		}
	default:
		return wrongType(want, v)
	}
	if len(tables) > maxMounts {
		return &problem{msg: fmt.Sprintf("%d mounts are too many: a VM can have at most %d", len(tables), maxMounts), hint: "share a directory above them", full: true}
	}
	mounts := []Mount{}
	for i, t := range tables {
		m, p := mountOf(t)
		if p != nil {
			p.item = i + 1
			return p
		}
		mounts = append(mounts, m)
	}
	c.Mounts = mounts
	return nil
}

func mountOf(t map[string]any) (Mount, *problem) {
	var m Mount
	fail := func(key, msg, hint string) (Mount, *problem) {
		return m, &problem{msg: msg, hint: hint, sub: key, full: true}
	}
	const example = `write source = "../shared", target = "/srv/shared", writable = true`
	for _, k := range sortedKeys(t) {
		ok := false
		switch k {
		case "source":
			m.Source, ok = t[k].(string)
		case "target":
			m.Target, ok = t[k].(string)
		case "writable":
			m.Writable, ok = t[k].(bool)
		default:
			hint := example
			if near := nearest(k, []string{"source", "target", "writable"}); near != "" {
				hint = fmt.Sprintf("did you mean %q?", near)
			}
			return fail(k, "unknown key "+briefKey("mounts."+quoteKey(k)), hint)
		}
		if !ok {
			return fail(k, fmt.Sprintf("mounts.%s = %s is %s", k, brief(t[k]), typeName(t[k])), example)
		}
	}
	switch {
	case m.Source == "":
		return fail("", "a mount has no source: the directory of the host", example)
	case strings.ContainsRune(m.Source+m.Target, 0):
		return fail("", "a path of a mount holds a NUL character", "remove \\u0000")
	case strings.HasPrefix(m.Source, "~") && m.Source != "~" && !strings.HasPrefix(m.Source, "~/"):
		return fail("source", fmt.Sprintf("mounts.source = %s: only your own home has a short form", brief(m.Source)), `write "~/directory" or an absolute path`)
	case m.Target != "" && (!path.IsAbs(m.Target) || path.Clean(m.Target) != m.Target):
		return fail("target", fmt.Sprintf("mounts.target = %s is not a plain absolute path", brief(m.Target)), `write a path like "/srv/shared", or leave it out: the path on the host`)
	}
	return m, nil
}

// table renders a mount as TOML has it.
func (m Mount) table() map[string]any {
	t := map[string]any{"source": m.Source}
	if m.Target != "" {
		t["target"] = m.Target
	}
	if m.Writable {
		t["writable"] = true
	}
	return t
}

// mountTables renders all mounts as TOML has them.
func (c Config) mountTables() []map[string]any {
	tables := []map[string]any{}
	for _, m := range c.Mounts {
		tables = append(tables, m.table())
	}
	return tables
}
