package config

import (
	"fmt"
	"strings"
)

// maxDepth bounds the nesting of tables and lists. The decoder's memory grows with the square
// of the depth, so the depth is checked first.
const maxDepth = 32

// checkDepth reports nesting that is too deep. It knows just enough TOML to tell strings and
// comments from the rest. If the text is not valid, the decoder stops at the same place or
// earlier.
func checkDepth(path, text string) error {
	line, dots, depth := 1, 0, 0
	for i := 0; i < len(text); {
		switch c := text[i]; c {
		case '"', '\'':
			n := stringLen(text[i:])
			line += strings.Count(text[i:i+n], "\n")
			i += n
			continue
		case '#':
			n := strings.IndexByte(text[i:], '\n')
			if n < 0 {
				return nil
			}
			i += n
			continue
		case '\n':
			line++
			dots = 0
		case '=', ',':
			dots = 0
		case '[', '{':
			depth++
			dots = 0
		case ']', '}':
			depth = max(depth-1, 0)
			dots = 0
		case '.':
			dots++
		}
		if dots > maxDepth || depth > maxDepth {
			return &Error{File: path, Line: line, Msg: fmt.Sprintf("nested more than %d levels deep", maxDepth), Hint: "no key of devvm.toml needs that: look for a bracket that is not closed"}
		}
		i++
	}
	return nil
}

// stringLen is the length of the string literal at the start of s, or of all of s if the
// literal does not end.
func stringLen(s string) int {
	q := s[:1]
	long := strings.HasPrefix(s, q+q+q)
	i := 1
	if long {
		i = 3
	}
	for i < len(s) {
		switch {
		case s[i] == '\\' && q == `"`:
			i += 2
			continue
		case s[i] == '\n' && !long:
			return i // not valid TOML
		case s[i] == q[0] && !long:
			return i + 1
		case s[i] == q[0] && strings.HasPrefix(s[i:], q+q+q):
			i += 3
			for n := 0; n < 2 && i < len(s) && s[i] == q[0]; n++ {
				i++ // up to two quotes may precede the closing ones
			}
			return i
		}
		i++
	}
	return len(s)
}

// lineOf is the line in which the value at an offset begins. For a string, the decoder's offset
// is that of its first character.
func lineOf(text string, offset int) int {
	head := strings.TrimRight(text[:min(max(offset, 0), len(text))], "\r\n")
	return strings.Count(head, "\n") + 1
}
