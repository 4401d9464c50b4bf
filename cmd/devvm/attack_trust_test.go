//go:build attack

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// refused runs devvm, which must end with exit code 2 and say the words, and make nothing.
func (s *scene) refused(t *testing.T, p place, who, what, words string, args ...string) {
	t.Helper()
	before := s.projects(t)
	got := s.outcome(t, p, args...)
	made := s.projects(t) != before
	ok := strings.HasPrefix(got, "exit code 2") && strings.Contains(got, words) && !made
	if made {
		got += " (and a project was made)"
	}
	s.attempt(t, who, what, "refused: "+words, got, ok)
}

// outcome is a command's exit code and what it says.
func (s *scene) outcome(t *testing.T, p place, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	argv := p.argv(args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("exit code %d: %s", cmd.ProcessState.ExitCode(), out)
}

// projects are the user's projects, as they are on the disk.
func (s *scene) projects(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.data, "data", "devvm", "projects"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// attackTrust is what another user tries who can write above the owner's directory. It needs
// neither a VM nor a network.
func (s *scene) attackTrust(t *testing.T) {
	s.section("Another user's devvm.toml above the owner's directory")
	user := s.asUser("", s.program)
	user.prefix = user.prefix[len(within("").prefix):]
	public := filepath.Join(s.work, "public")
	mine := filepath.Join(public, "mine", "deep")
	file := filepath.Join(public, "devvm.toml")
	if err := os.MkdirAll(mine, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("cpus = 1\n[provision]\nscript = 'echo evil'\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "chown", "-R", s.user+":", public)
	const who = "another user"

	got := s.outcome(t, user, "-C", mine, "config")
	s.attempt(t, "the owner", "control: the same file, the owner's", "it counts", got, strings.Contains(got, "echo evil"))

	must(t, "chown", "nobody", file)
	s.refused(t, user, who, "a file of nobody's", "owner nobody", "-C", mine, "up", "--yes")
	must(t, "chown", "root:", public)
	must(t, "chmod", "1777", public)
	s.refused(t, user, who, "a file of nobody's in a directory like /tmp", "mode 1777", "-C", mine, "up", "--yes")
	s.refused(t, user, who, "the same, from the directory itself", "mode 1777", "-C", public, "up", "--yes")
	s.refused(t, user, who, "the same, by --project", "does not go by", "--project", public, "up", "--yes")
	must(t, "chmod", "755", public)
	must(t, "rm", file)
	must(t, "ln", "-s", "/etc/passwd", file)
	must(t, "chown", "-h", "nobody", file)
	s.refused(t, user, who, "a link of nobody's", "owner nobody", "-C", mine, "up", "--yes")
	must(t, "chown", "-h", s.user, file)
	s.refused(t, user, who, "a link, whosever it is", "symbolic link", "-C", mine, "config")
	must(t, "rm", file)
	if err := os.WriteFile(file, []byte("cpus = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "chown", s.user+":", file)
	must(t, "chmod", "777", filepath.Dir(mine))
	s.refused(t, user, who, "a directory in between that all can write", "mode 0777", "-C", mine, "up", "--yes")
	must(t, "chmod", "755", filepath.Dir(mine))
	must(t, "chown", "nobody:", mine)
	s.refused(t, user, who, "a directory of nobody's in between", "owner nobody", "-C", mine, "up", "--yes")

	got = s.outcome(t, user, "trust", public)
	got += s.outcome(t, user, "-C", mine, "config")
	s.attempt(t, "the owner", "control: devvm trust", "it counts", got, strings.Contains(got, "cpus = 1 "))
	must(t, user.argv("trust", "--remove", public)...)
}

// attackGrowth is what root in a VM that may reach little writes into devvm.toml files, for
// the owner's next up.
func (s *scene) attackGrowth(t *testing.T, v victim) {
	s.section("Root in a VM that may reach little writes devvm.toml files")
	who := v.root.name
	sub := filepath.Join(v.dir, "sub")
	file := filepath.Join(v.dir, "devvm.toml")
	write := func(script string) {
		t.Helper()
		must(t, v.run.argv("exec", "--", "sh", "-ec", "cd "+v.dir+"; "+script)...)
	}
	at := func(dir string) place {
		p := v.run
		for i, word := range p.prefix {
			if word == "-C" {
				p = place{p.name, append(append(append([]string{}, p.prefix[:i+1]...), dir), p.prefix[i+2:]...)}
			}
		}
		return p
	}
	// An image that is not there: an up that asks nothing comes as far as to look for it.
	write(`cp devvm.toml kept.toml; mkdir sub; printf 'image = "none"\n[network]\negress = "all"\n[provision]\nscript = "evil"\n' >sub/devvm.toml`)
	s.refused(t, at(sub), who, "a project below the VM's directory", `egress = "all"`, "up")
	write("rm devvm.toml")
	s.refused(t, at(v.dir), who, "to take devvm.toml away", `egress = "all"`, "up")
	s.refused(t, at(sub), who, "the project below, without the outer file", `egress = "all"`, "up")
	write("rm -r sub; mkdir sub")
	s.refused(t, at(sub), who, "no file at all, below", `egress = "all"`, "up")

	outside := filepath.Join(s.work, "projects", "outside")
	if err := os.MkdirAll(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "devvm.toml"), []byte("image = \"none\"\n[network]\negress = \"all\"\n[provision]\nscript = \"evil\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	must(t, "chown", "-R", s.user+":", outside)
	got := s.outcome(t, at(outside), "up")
	s.attempt(t, "the owner", "control: the same file where no VM can write", "no question", got, strings.Contains(got, "no such image"))

	memory, err := command(t.Context(), nil, "awk", "/^MemTotal/ { print int($2 / 1024) - 64 }", "/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ what, text, words string }{
		{"memory", `memory = "` + strings.TrimSpace(memory) + `MiB"`, "memory = "},
		{"disk", `disk = "15TiB"`, `disk = "15TiB" (was: `},
		{"what provisioning runs", `provision = { script = "evil" }`, "provision.script + evil"},
		{"a directory of the host's", `mounts = [{ source = "/etc", target = "/srv/etc" }]`, "mounts + /etc (read-only)"},
		{"what the engine runs", `docker = { daemon = { runtimes = { x = { path = "/x" } } } }`, "docker.daemon.runtimes"},
		{"another number of a port", `ports = { map = { 80 = 8080 } }`, "ports.map + 80 = 8080"},
	} {
		write("{ echo '" + c.text + "'; cat kept.toml; } >devvm.toml")
		s.refused(t, at(v.dir), who, "more of "+c.what, c.words, "up")
	}
	canary := filepath.Join(s.data, "home", "canary")
	if err := os.WriteFile(canary, []byte("secret of the owner\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "chown", s.user+":", canary)
	write("ln -sf " + canary + " devvm.toml")
	got = s.outcome(t, at(v.dir), "config")
	s.attempt(t, who, "devvm.toml as a link to a file of the owner's", "it is not read", got, strings.Contains(got, "symbolic link") && !strings.Contains(got, "secret"))
	write("ln -sf " + filepath.Dir(canary) + " sub/link; rm devvm.toml; printf 'mounts = [{ source = \"sub/link\" }]\n' >devvm.toml; cat kept.toml >>devvm.toml")
	s.refused(t, at(v.dir), who, "a mount inside that is a link", "devvm follows none", "up")

	write("rm -r sub devvm.toml; mv kept.toml devvm.toml")
	got = s.outcome(t, at(v.dir), "up")
	s.attempt(t, "the owner", "control: the file that was agreed to", "no question", got, strings.HasPrefix(got, "exit code 0") && !strings.Contains(got, "agree"))
	if info, err := os.Lstat(file); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%s: %v", file, err)
	}
}
