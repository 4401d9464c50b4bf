package config

import (
	"bytes"
	"strings"
	"unicode"
)

// Change is a key whose value differs between two configurations.
type Change struct {
	Key      string
	Was, Now string // both empty if the values are lists, tables or long
}

// String renders the change for people: "cpus 2 → 4".
func (c Change) String() string {
	if c.Was == c.Now {
		return c.Key
	}
	return c.Key + " " + c.Was + " → " + c.Now
}

// Changes lists the keys that differ between two configurations and whose changes apply at the
// given time, in the order of the documentation.
func Changes(was, now Config, then Applies) []Change {
	var all []Change
	for _, f := range schema {
		before, after := f.get(was), f.get(now)
		if f.Applies != then || bytes.Equal(canonical(before, ""), canonical(after, "")) {
			continue
		}
		c := Change{Key: f.Name}
		if b, ok := short(before); ok {
			if a, ok := short(after); ok {
				c.Was, c.Now = b, a
			}
		}
		all = append(all, c)
	}
	return all
}

// short renders a value for people, if it is a single one that fits on a shared line.
func short(v any) (string, bool) {
	const most = 40 // characters
	switch v := v.(type) {
	case string:
		return v, len(v) <= most && !strings.ContainsFunc(v, unicode.IsControl)
	case bool, int, int64:
		return literal(v), true
	}
	return "", false
}
