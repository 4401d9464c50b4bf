package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// advice lists the beginnings of hints that describe a value or an action elsewhere, and leave
// it to the reader what to write.
var advice = []string{
	"", "units: ", "ports are ", "all keys: ", "the images of this host: ", "settings of the engine stand below",
	"choose another range, such as", "save the file as UTF-8", "no key of devvm.toml needs that", "names are lower-case letters",
	"a port is a number", "write only its host", "put it in quotes", "each line is key", "move it to your own file",
	"this is no file for devvm", "share a directory above", "daemon.json has only", "choose another number", "an entry is a name",
	"a long script", "remove \\u0000", `write "10.20.0.0/16" for the range`, `write "*.example.org" for names`,
	`write a path like`, `write "~/directory"`, "packages are strings", "destinations are strings", "write script = '''",
}

var (
	assignment = regexp.MustCompile(`(?:^|\s)([a-z_]+) = ("[^"]*"|\[[^\]]*\]|\{[^}]*\}|[0-9]+|true|false)`)
	bareValue  = regexp.MustCompile(`^write ("[^"]*"|true|false)`)
	nearWord   = regexp.MustCompile(`^did you mean "([^"]*)"\?$`)
	belongs    = regexp.MustCompile(`^"([a-z_]+)" belongs (?:below \[([a-z]+)\]|at the top)`)
	singleHead = regexp.MustCompile(`^write (\[[a-z]+\])`)
)

// followed returns what devvm.toml may be after following a hint; none if the hint is advice.
func followed(text string, e *Error) []string {
	lines := strings.Split(text, "\n")
	with := func(line string) string {
		out := append([]string{}, lines...)
		if e.Line == 0 || e.Line > len(out) {
			return line + "\n"
		}
		out[e.Line-1] = line
		return strings.Join(out, "\n")
	}
	table, leaf, _ := strings.Cut(e.Key, ".")
	if leaf == "" {
		table, leaf = "", table
	}
	head := ""
	if table != "" {
		head = table + "."
	}
	set := func(key, value string) string { // replaces the whole file
		if table == "mounts" || e.Key == "mounts" && key != "mounts" {
			return fmt.Sprintf("[[mounts]]\n%s = %s\n", key, value)
		}
		return fmt.Sprintf("%s%s = %s\n", head, key, value)
	}
	switch {
	case nearWord.MatchString(e.Hint):
		near := nearWord.FindStringSubmatch(e.Hint)[1]
		was := ""
		if e.Line > 0 {
			was = lines[e.Line-1]
		}
		_, value, _ := strings.Cut(was, "=")
		out := []string{with(near + " =" + value), with(near[strings.LastIndexByte(near, '.')+1:] + " =" + value), set(leaf, fmt.Sprintf("%q", near)), set(leaf, fmt.Sprintf("[%q]", near))}
		if strings.HasPrefix(was, "[") {
			out = append(out, with("["+near+"]"))
		}
		return out
	case e.Hint == "remove the line":
		return []string{with("")}
	case belongs.MatchString(e.Hint):
		m := belongs.FindStringSubmatch(e.Hint)
		_, value, _ := strings.Cut(lines[e.Line-1], "=")
		line := m[1] + " =" + value + "\n"
		if m[2] != "" {
			return []string{with("") + "\n[" + m[2] + "]\n" + line}
		}
		return []string{line + with("")}
	case singleHead.MatchString(e.Hint):
		return []string{singleHead.FindStringSubmatch(e.Hint)[1] + "\n"}
	case assignment.MatchString(e.Hint):
		if strings.Contains(e.Hint, "source = ") && !strings.Contains(e.Hint, "mounts = ") {
			return []string{"[[mounts]]\n" + strings.ReplaceAll(strings.TrimPrefix(e.Hint, "write "), `", `, "\"\n") + "\n"}
		}
		m := assignment.FindStringSubmatch(e.Hint)
		if strings.HasPrefix(m[2], "[{") || strings.HasPrefix(m[2], "[ {") {
			return []string{strings.TrimPrefix(e.Hint, "write ") + "\n"}
		}
		return []string{set(m[1], m[2]), m[1] + " = " + m[2] + "\n"}
	case bareValue.MatchString(e.Hint):
		value := bareValue.FindStringSubmatch(e.Hint)[1]
		return []string{set(leaf, value), with(leaf + " = " + value), strings.ReplaceAll(text, strings.TrimSpace(after(lines[max(0, e.Line-1)])), value)}
	}
	return nil
}

func after(line string) string {
	_, value, _ := strings.Cut(line, "=")
	return value
}

// follow does what a hint says and checks that the error is gone.
func follow(t *testing.T, name, text string, e *Error) {
	t.Helper()
	for _, words := range advice {
		if words == "" && e.Hint == "" || words != "" && strings.HasPrefix(e.Hint, words) {
			return
		}
	}
	texts := followed(text, e)
	if len(texts) == 0 {
		t.Errorf("%s: nobody knows how to follow the hint %q: teach it to this test, or say that it is advice", name, e.Hint)
		return
	}
	var last error
	for _, text := range texts {
		dir := t.TempDir()
		env := bigHost
		env.UserFile = filepath.Join(dir, "config.toml")
		write(t, filepath.Join(dir, FileName), text)
		_, err := Load(dir, env)
		if err == nil {
			return
		}
		if other, ok := errors.AsType[*Error](err); ok && other.Msg != e.Msg && !strings.HasPrefix(other.Msg, "unknown key") && (!strings.HasPrefix(other.Msg, "not valid") || strings.Contains(other.Msg, "already")) {
			return
		}
		last = err
	}
	t.Errorf("%s: after the hint %q was followed (%q): %v", name, e.Hint, texts, last)
}
