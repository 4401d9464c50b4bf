package guest

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/devvm/devvm/pkg/shell"
)

// Quote renders words as one line that a POSIX shell splits into exactly these words. A NUL
// byte, which no program can receive, is an error.
func Quote(words ...string) (string, error) {
	var b strings.Builder
	for i, w := range words {
		if strings.ContainsRune(w, 0) {
			return "", fmt.Errorf("argument %q holds a NUL byte", w)
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(shell.Quote(w))
	}
	return b.String(), nil
}

// shellLine renders a command as the line that the guest's shell runs: change directory, choose
// a terminal, set the environment, then exec the program. The program's environment includes
// mark, unless that is empty.
func (c Command) shellLine(mark string) (string, error) {
	var b strings.Builder
	for _, d := range []struct{ path, otherwise string }{{c.Start, "2>/dev/null || :"}, {c.Dir, "|| exit 126"}} {
		if d.path == "" {
			continue
		}
		dir, err := Quote(d.path)
		if err != nil {
			return "", fmt.Errorf("directory: %w", err)
		}
		// With CDPATH, cd would print and look in other directories.
		fmt.Fprintf(&b, "unset CDPATH; cd -- %s %s\n", dir, d.otherwise)
	}
	if c.TTY != nil {
		term, err := termScript(c.TTY.Term)
		if err != nil {
			return "", err
		}
		b.WriteString(term)
	}
	if c.User != "" {
		if !IsUser(c.User) {
			return "", fmt.Errorf("%q names no user", c.User)
		}
		user, group, _ := strings.Cut(c.User, ":")
		fmt.Fprintf(&b, becomeScript, user, group)
	}
	for _, kv := range c.Env {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || !IsName(name) {
			return "", fmt.Errorf("environment entry %q is not NAME=value", kv)
		}
		quoted, err := Quote(value)
		if err != nil {
			return "", fmt.Errorf("environment variable %s: %w", name, err)
		}
		fmt.Fprintf(&b, "export %s=%s\n", name, quoted)
	}
	if c.User != "" && len(c.Argv) == 0 {
		return "", errors.New("a user is for a command with arguments")
	}
	if len(c.Argv) == 0 && c.Line == "" {
		if b.Len() > 0 {
			b.WriteString(`exec "${SHELL:-/bin/sh}" -l`)
		}
		return b.String(), nil
	}
	if mark != "" {
		fmt.Fprintf(&b, "export %s=%s\n", markName, mark)
	}
	switch {
	case len(c.Argv) > 0 && c.Line != "":
		return "", errors.New("command with both Argv and Line")
	case len(c.Argv) > 0:
		words, err := Quote(c.Argv...)
		if err != nil {
			return "", err
		}
		// exec makes signals and exit codes the program's own. It would take a program name
		// that starts with a dash for an option.
		switch {
		case c.User != "":
			b.WriteString(`exec "$@" `)
		case strings.HasPrefix(c.Argv[0], "-"):
			b.WriteString(" ") // and so would the shell, at the start of the line
		default:
			b.WriteString("exec ")
		}
		b.WriteString(words)
	default:
		line, err := Quote(c.Line)
		if err != nil {
			return "", err
		}
		// Use another shell: only a new program shows mark in its environment in /proc.
		fmt.Fprintf(&b, `exec "${SHELL:-/bin/sh}" -c %s`, line)
	}
	return b.String(), nil
}

// becomeScript changes "$@" so that it runs as a user. It runs before the command's own
// variables are set, so none of them can affect it. As in a container, a number needs no entry:
// its group is then 0 and its home the root directory. The user gets the terminal, for programs
// that open it by name.
const becomeScript = `user=%s group=%s
if entry=$(getent passwd "$user"); then
	set -f; IFS=:; set -- $entry; unset IFS
	name=$1 uid=$3 gid=$4 home=$6 groups=--init-groups
else
	case $user in *[!0-9]*) echo "no user is named $user in the VM" >&2; exit 126 ;; esac
	name=$user uid=$user gid=0 home=/ groups=--clear-groups
fi
if [ "$group" ]; then
	if entry=$(getent group "$group"); then
		set -f; IFS=:; set -- $entry; unset IFS
		gid=$3
	else
		case $group in *[!0-9]*) echo "no group is named $group in the VM" >&2; exit 126 ;; esac
		gid=$group
	fi
	groups=--clear-groups
fi
set -- setpriv --reuid="$uid" --regid="$gid" $groups --
if [ "$uid:$gid" = "$(id -u):$(id -g)" ] && [ -z "$group" ]; then set --; fi
if tty=$(tty); then chown "$uid" "$tty"; fi
export HOME="$home" USER="$name" LOGNAME="$name"
set +f
`

// IsUser reports whether s can be a user, or a user and a group separated by a colon.
func IsUser(s string) bool { return userPattern.MatchString(s) }

var userPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?$`)

// IsName reports whether s can be the name of an environment variable.
func IsName(s string) bool {
	for i, r := range s {
		letter := r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != ""
}
