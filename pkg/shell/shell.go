// Package shell writes commands for the shells of users and guests.
//
// It imports no other package of devvm and cannot fail. Callers must reject NUL bytes, which no
// program can receive.
package shell

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const fish = "fish"

// Known reports whether the package has commands for the shell of that name.
func Known(name string) bool {
	return slices.Contains([]string{"bash", "zsh", fish, "sh", "dash", "ksh"}, name)
}

// Detect returns the name of the shell that runs this program: its parent process, else the
// user's login shell, else sh.
func Detect(getenv func(string) string, parent int) string {
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", parent)); err == nil {
		if name := strings.TrimSpace(string(comm)); Known(name) {
			return name
		}
	}
	if name := filepath.Base(getenv("SHELL")); Known(name) {
		return name
	}
	return "sh"
}

// Export returns the command with which a known shell sets a variable for itself and everything
// it starts. (fish's lines end in a semicolon, because its eval may join them.)
func Export(name, variable, value string) string {
	if name == fish {
		return fmt.Sprintf("set -gx %s %s;", variable, quoteFish(value))
	}
	return fmt.Sprintf("export %s=%s", variable, Quote(value))
}

// Unset returns the command with which a known shell unsets a variable.
func Unset(name, variable string) string {
	if name == fish {
		return fmt.Sprintf("set -e %s;", variable)
	}
	return "unset " + variable
}

// Quote returns s as a single word for a POSIX shell: s itself if nothing in it can be special
// to a shell, else in single quotes, within which only single quotes are special (POSIX.1-2024,
// Shell Command Language, 2.2).
func Quote(s string) string {
	if s != "" && !strings.ContainsFunc(s, special) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// special reports whether r may be special to some shell. Everything outside a short list may
// be, because locale and shell decide about the rest.
func special(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune("_-./:,@+", r)
}

// quoteFish is Quote for fish, where a backslash is also special within quotes
// (https://fishshell.com/docs/current/language.html#quotes).
func quoteFish(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}
