package machine

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// runProvision carries out the steps of a script on this host, in place of a guest.
func runProvision(t *testing.T, dir, script string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	for _, step := range provisionSteps(nil, script) {
		for i := range step.Argv {
			step.Argv[i] = strings.ReplaceAll(step.Argv[i], "/var/lib/devvm", dir)
		}
		cmd := exec.CommandContext(t.Context(), step.Argv[0], step.Argv[1:]...)
		cmd.Dir = dir
		cmd.Stdin, cmd.Stdout, cmd.Stderr = step.Stdin, &out, &errOut
		_ = cmd.Run()
		if code = cmd.ProcessState.ExitCode(); code != 0 {
			break
		}
	}
	return code, out.String(), strings.ReplaceAll(errOut.String(), dir, "DIR")
}

func TestProvisionSaysWhere(t *testing.T) {
	for _, program := range []string{"perl", "bash"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(err)
		}
	}
	if to, _ := filepath.EvalSymlinks("/bin/sh"); filepath.Base(to) != "dash" {
		t.Skip("/bin/sh is ", to)
	}
	for _, c := range []struct{ name, script, stderr string }{
		{"one line", "false", "the script failed in line 1: false\n"},
		{"a line of many", "echo one\n\nfalse # why\necho never\n", "the script failed in line 3: false # why\n"},
		{"a compound command", "echo one\nif true; then\n  false\nfi\necho never\n", "the script failed in lines 2 to 4:\nif true; then\n  false\nfi\n"},
		{"a function", "f() {\n  false\n}\nf\n", "the script failed in line 4: f\n"},
		{"a here document", "cat >/dev/null <<EOF\nx\nEOF\nx=$(cat <<EOF\nx\nEOF\n)\nfalse\n", "the script failed in line 8: false\n"},
		{"a continued line", "echo a \\\n  b\nfalse \\\n  c\n", "the script failed in lines 3 to 4:\nfalse \\\n  c\n"},
		{"with its interpreter", "#!/bin/sh\nset -e\nfalse\n", "the script failed in line 3: false\n"},
		{"with a detour", "#!/usr/bin/env sh\nexit 3\n", "the script failed in line 2: exit 3\n"},
		{"without a last line end", "#!/bin/sh -e\ntrue\nfalse", "the script failed in line 3: false\n"},
		{"a syntax error", "echo one\nif\n", "DIR/provision: 4: /dev/fd/3: Syntax error: end of file unexpected (expecting \"then\")\nthe script failed in line 2: if\n"},
		{"traced", "#!/bin/sh -ex\nfalse\n", "+ false\n"},
		{"bash", "#!/bin/bash -e\ntrue\nf() { false; }\nf\n", "the script failed at: false\n"},
		{"bash with a detour", "#!/usr/bin/env bash\nset -e\ncat </nonexistent\n", "DIR/provision: line 3: /nonexistent: No such file or directory\nthe script failed at: cat < /nonexistent\n"},
		{"bash, with a trap of its own", "#!/bin/bash -e\ntrap 'echo mine >&2' EXIT\nfalse\n", "mine\n"},
		{"bash, by env with options", "#!/usr/bin/env -S bash -O extglob -e\nfalse\n", "the script failed at: false\n"},
		{"bash, traced by env", "#!/usr/bin/env -S bash -o xtrace -e\nfalse\n", "+ false\n"},
		{"bash, traced", "#!/bin/bash -ex\nfalse\n", "+ false\n"},
		{"bash, verbose", "#!/bin/bash -ev\nfalse\n", "#!/bin/bash -ev\nfalse\n"},
		{"another language", "#!/usr/bin/perl\nexit 4\n", ""},
		{"good", "echo good >&2\n", "good\n"},
		{"good, bash", "#!/bin/bash\necho good >&2\n", "good\n"},
		{"long lines", "false " + strings.Repeat("x", 5000), ""},
		{"many lines", strings.Repeat("true\n", 5000) + "false", ""},
		{"some hundred lines", strings.Repeat("true\n", 199) + "false", "the script failed in line 200: false\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, _, stderr := runProvision(t, t.TempDir(), c.script)
			if stderr != c.stderr || (code == 0) != strings.HasPrefix(c.name, "good") {
				t.Errorf("exit code %d, said\n%swant\n%s", code, stderr, c.stderr)
			}
		})
	}
}

// A script is the same with devvm's watching as without.
func TestProvisionLeavesTheScriptAlone(t *testing.T) {
	if _, err := exec.LookPath("perl"); err != nil {
		t.Skip(err)
	}
	const script = `echo "$0 $# $-"
wc -l <"$0"
cd /; ls /proc/self/fd | wc -l
cat
x=$(echo inner; echo error >&2) 2>&1
echo "$x"
(exit 7) || echo "$?"
trap 'echo trapped' EXIT
env | grep -c -e BASH_ENV -e DEVVM || true
sh -c 'ls /proc/self/fd | wc -l'
exec 2>>/dev/null
kill -9 $$
`
	for _, interpreter := range []string{"/bin/sh -eu", "/bin/bash"} {
		if _, err := os.Stat(strings.Fields(interpreter)[0]); err != nil {
			continue
		}
		dir := t.TempDir()
		script := "#!" + interpreter + "\n" + script
		code, stdout, stderr := runProvision(t, dir, script)
		var out, errOut bytes.Buffer
		plain := exec.CommandContext(t.Context(), filepath.Join(dir, "provision"))
		plain.Dir, plain.Stdout, plain.Stderr = dir, &out, &errOut
		_ = plain.Run()
		// What a shell says of its options is not the same with -c in bash alone, which runs
		// the script by itself here.
		if code != plain.ProcessState.ExitCode() || stdout != out.String() || !strings.HasPrefix(stderr, strings.ReplaceAll(errOut.String(), dir, "DIR")) {
			t.Errorf("%s: exit code %d, %q, %q; by itself %d, %q, %q", interpreter, code, stdout, stderr, plain.ProcessState.ExitCode(), out.String(), errOut.String())
		}
	}
}
