package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// literal writes a value as TOML on one line.
func literal(v any) string {
	switch v := v.(type) {
	case string:
		return quote(v)
	case float64:
		s := strconv.FormatFloat(v, 'f', -1, 64)
		if !strings.ContainsAny(s, ".IN") {
			s += ".0"
		}
		return s
	case []string:
		list := make([]string, len(v))
		for i := range v {
			list[i] = quote(v[i])
		}
		return "[" + strings.Join(list, ", ") + "]"
	case []any:
		list := make([]string, len(v))
		for i := range v {
			list[i] = literal(v[i])
		}
		return "[" + strings.Join(list, ", ") + "]"
	case []map[string]any:
		list := make([]string, len(v))
		for i := range v {
			list[i] = literal(v[i])
		}
		return "[" + strings.Join(list, ", ") + "]"
	case map[string]any:
		list := make([]string, 0, len(v))
		for _, k := range slices.Sorted(maps.Keys(v)) {
			list = append(list, quoteKey(k)+" = "+literal(v[k]))
		}
		return "{" + strings.Join(list, ", ") + "}"
	case time.Time:
		return v.Format(time.RFC3339)
	default: // bool and integers
		return fmt.Sprint(v)
	}
}

// quote writes a TOML basic string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case !strconv.IsPrint(r) && r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		case !strconv.IsPrint(r):
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// quoteKey writes one part of a key, quoted if TOML requires it.
func quoteKey(k string) string {
	for _, r := range k {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_') {
			return quote(k)
		}
	}
	if k == "" {
		return `""`
	}
	return k
}

// brief is literal, shortened to fit into a message.
func brief(v any) string {
	s := []rune(literal(v))
	if len(s) > 60 {
		return string(s[:56]) + " ..."
	}
	return string(s)
}
