// Package shell speaks to the shells that users and guests have.
//
// It imports no other package of devvm and cannot fail. A NUL byte, which no program can
// be given, is its callers' matter.
package shell

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const fish = "fish"

// Known tells whether there are commands here for the shell of that name.
func Known(name string) bool {
	return slices.Contains([]string{"bash", "zsh", fish, "sh", "dash", "ksh"}, name)
}

// Detect names the shell that runs this program: its parent process, else the user's
// login shell, else sh.
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

// Export is the command by which a known shell sets a variable for itself and all that it
// starts. (fish's lines end in a semicolon, since its eval may join them.)
func Export(name, variable, value string) string {
	if name == fish {
		return fmt.Sprintf("set -gx %s %s;", variable, quoteFish(value))
	}
	return fmt.Sprintf("export %s=%s", variable, Quote(value))
}

// Unset is the command by which a known shell forgets a variable.
func Unset(name, variable string) string {
	if name == fish {
		return fmt.Sprintf("set -e %s;", variable)
	}
	return "unset " + variable
}

// Quote returns what a POSIX shell reads as the one word s: s itself, if nothing in it
// can mean something to a shell, else in single quotes, within which only these are
// special (POSIX.1-2024, Shell Command Language, 2.2).
func Quote(s string) string {
	if s != "" && !strings.ContainsFunc(s, special) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// special says that r may mean something to some shell. Everything outside a short list
// does: locale and shell decide about the rest.
func special(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return false
	}
	return !strings.ContainsRune("_-./:,@+", r)
}

// quoteFish is Quote for fish, where a backslash is special within quotes, too
// (https://fishshell.com/docs/current/language.html#quotes).
func quoteFish(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}
