//go:build attack

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// nfsServer is where the VM's kernel mounts the project's directory from.
const nfsServer = "192.0.2.1:2049"

// sh runs a shell's commands as root in the victim's VM.
func (v victim) sh(t *testing.T, script string) string {
	t.Helper()
	return must(t, v.run.argv("exec", "--", "sh", "-c", "cd / && "+script)...)
}

// attackShares is what containers try that share the VM's network: the host's files
// without the mount that gives them out. The control is the same without the VM's rules.
func (s *scene) attackShares(t *testing.T, a victim) {
	s.section("Containers with the VM's own network: the host's files, past the mount")
	dev, mac := a.gateway(t)
	call := func(p place, what, want string, ok func(got string) bool) {
		t.Helper()
		got := ""
		for _, f := range s.try(t, p, nil, "nfs", "-wait", "2s", nfsServer) {
			got = f.String()
		}
		s.attempt(t, p.name, what+" "+nfsServer, want, got, ok(got))
	}
	answers := func(got string) bool { return strings.HasPrefix(got, "answer") }
	silent := func(got string) bool { return got == "silent" || got == "denied" }
	// The mount's own connections have answers, too, to other ports.
	forge := func(what, want string, ok bool, sport string, args ...string) {
		t.Helper()
		argv := append([]string{"forge", "-wait", "2s", "-dev", dev, "-mac", mac, "-src", "192.0.2.2", "-dst", "192.0.2.1", "-port", "2049", "-sport", sport}, args...)
		answered := false
		for _, f := range s.try(t, a.container("container on the VM's network", "--network", "host"), nil, argv...) {
			answered = answered || f.Got == "answer" && strings.HasPrefix(f.Text, "tcp") && strings.HasSuffix(f.Text, ":"+sport)
		}
		s.attempt(t, "container on the VM's network", what, want, fmt.Sprintf("answered: %v", answered), answered == ok)
	}
	on := "systemctl restart devvm-loopback.service"
	t.Cleanup(func() { // whatever fails below
		_, _ = command(context.WithoutCancel(t.Context()), nil, a.run.argv("exec", "--", "sh", "-c", on)...)
	})
	a.sh(t, "nft flush chain ip devvm local && nft delete table netdev devvm")
	call(a.container("container on the VM's network", "--network", "host"), "control: without the VM's rules,", "answer (NFS)", answers)
	forge("control: without the VM's rules, raw frames", "an answer", true, "601")
	forge("control: the same, called another protocol", "an answer", true, "602", "-proto", "35020")
	a.sh(t, on)
	for _, c := range []struct {
		kind  string
		flags []string
	}{
		{"container", nil},
		{"container on the VM's network", []string{"--network", "host"}},
		{"with --cgroup-parent", []string{"--network", "host", "--cgroup-parent", "foo.slice"}},
		{"with the root slice", []string{"--network", "host", "--cgroup-parent", "-.slice"}},
		{"with the VM's cgroups", []string{"--network", "host", "--cgroupns", "host"}},
		{"with all namespaces", []string{"--network", "host", "--uts", "host", "--pid", "host", "--ipc", "host", "--userns", "host"}},
		{"with NET_ADMIN", []string{"--network", "host", "--cap-add", "NET_ADMIN"}},
	} {
		call(a.container(c.kind, c.flags...), "the NFS server", "nothing", silent)
	}
	call(a.root, "a process of root's, no mount,", "nothing", silent)
	forge("raw frames", "no answer", false, "603")
	forge("raw frames, called another protocol", "no answer", false, "604", "-proto", "35020")
	name := "after-the-attack"
	a.sh(t, "echo still here >"+filepath.Join(a.dir, name))
	text, err := os.ReadFile(filepath.Join(a.dir, name))
	s.attempt(t, a.root.name, "control: a file through the mount", "still here", string(text), err == nil && string(text) == "still here\n")
}

// attackSocket: another user makes first the directory in /tmp where docker.sock of
// somebody with long paths is to be.
func (s *scene) attackSocket(t *testing.T, l lan) {
	s.section("Another user: the directory of docker.sock, made first")
	own := filepath.Join(s.work, "long", strings.Repeat("a-long-name/", 8))
	must(t, "install", "-d", "-m", "755", filepath.Join(s.work, "long"))
	must(t, "mkdir", "-p", own)
	must(t, "chown", "-R", s.user+":", filepath.Join(s.work, "long"))
	must(t, "chmod", "700", own)
	project := filepath.Join(s.work, "long", "project")
	must(t, "install", "-d", "-o", s.user, project)
	owner := s.asUser(l.host, "env", "XDG_RUNTIME_DIR="+own, "XDG_DATA_HOME="+own)
	owner.name = "their owner"
	other := within(l.host).with("runuser", "-u", "nobody", "--")
	other.name = "another user"
	socket := func(p place) (string, error) {
		out, err := command(t.Context(), nil, p.argv(s.program, "-C", project, "env", "--json")...)
		var env map[string]string
		if err == nil {
			err = json.Unmarshal([]byte(out), &env)
		}
		return strings.TrimPrefix(env["DOCKER_HOST"], "unix://"), err
	}

	// Up to 2026-12 the name was one that anybody can work out.
	uid := strings.TrimSpace(must(t, "id", "-u", s.user))
	sum := sha256.Sum256([]byte(filepath.Join(own, "devvm")))
	foretold := fmt.Sprintf("/tmp/devvm-%s-%s", uid, hex.EncodeToString(sum[:4]))
	first, err := socket(owner)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(first)
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Dir(dir)) })
	listen := func(dir string) {
		t.Helper()
		must(t, other.argv("mkdir", "-p", "-m", "777", dir)...)
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		in := other.argv(s.attacker, "serve", "-say", "another user's", "unix:"+filepath.Join(dir, "docker.sock"))
		cmd := exec.CommandContext(t.Context(), in[0], in[1:]...)
		hold, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = hold.Close(); _ = cmd.Wait() })
	}
	where := filepath.Join(foretold, filepath.Base(dir))
	listen(where)
	s.reads(t, owner.with(s.attacker), "control: who listens at the old name", "unix:"+filepath.Join(where, "docker.sock"), "another user's")
	got, err := socket(owner)
	s.attempt(t, owner.name, "devvm env, the old name taken", "another directory, as before", got, err == nil && got == first && !strings.HasPrefix(got, foretold))

	// The remembered one is gone, as after a reboot, and somebody has read its name before.
	must(t, "rm", "-rf", filepath.Dir(dir))
	listen(dir)
	s.reads(t, owner.with(s.attacker), "control: who listens at the lost name", "unix:"+first, "another user's")
	second, err := socket(owner)
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Dir(filepath.Dir(second))) })
	s.attempt(t, owner.name, "devvm env, the lost name taken", "a new directory", second, err == nil && second != first)

	// A runtime directory of another user's, or in one.
	theirs := filepath.Join("/tmp", fmt.Sprintf("theirs-%d", os.Getpid()))
	must(t, other.argv("mkdir", "-m", "777", theirs)...)
	t.Cleanup(func() { _ = os.RemoveAll(theirs) })
	must(t, owner.argv("mkdir", "-m", "700", filepath.Join(theirs, "run"))...)
	for _, run := range []string{theirs, filepath.Join(theirs, "run")} {
		got, err = socket(s.asUser(l.host, "env", "XDG_RUNTIME_DIR="+run))
		s.attempt(t, owner.name, "devvm env, XDG_RUNTIME_DIR="+run, "refused or elsewhere", fmt.Sprintf("%s %v", got, err != nil), err != nil || !strings.HasPrefix(got, theirs))
	}
}

// attackCompose: a compose file that the VM has written names a file of the host's.
func (s *scene) attackCompose(t *testing.T, a victim) {
	s.section("A compose file written in the VM that names the host's files, run by devvm docker compose")
	canary := filepath.Join(s.data, "home", ".aws", "credentials")
	must(t, "install", "-d", "-o", s.user, filepath.Dir(canary))
	if err := os.WriteFile(canary, []byte("CANARY=of-the-host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Dir(canary)) })
	file := filepath.Join(a.dir, "evil.yaml")
	a.sh(t, fmt.Sprintf(`printf 'services:\n  x:\n    image: box\n    env_file: %%s\n' %s >%s`, canary, file))
	owner := s.asUser("devvm-host", "cat", canary)
	out, _ := command(t.Context(), nil, owner.argv()...)
	s.attempt(t, "its owner", "control: the file is there on the host", "of-the-host", out, strings.Contains(out, "of-the-host"))
	config := a.run.argv("docker", "compose", "-f", file, "config")
	out, err := command(t.Context(), nil, config...)
	s.attempt(t, "devvm docker compose", "env_file: "+canary, "no such file", fmt.Sprintf("%.60s %v", out, err != nil), err != nil && !strings.Contains(out+err.Error(), "of-the-host"))
	a.sh(t, fmt.Sprintf("mkdir -p %s && echo CANARY=of-the-VM >%s", filepath.Dir(canary), canary))
	out, err = command(t.Context(), nil, config...)
	s.attempt(t, "devvm docker compose", "control: the VM's own file of that name", "of-the-VM", fmt.Sprintf("read: %v %v", strings.Contains(out, "of-the-VM"), err), err == nil && strings.Contains(out, "of-the-VM") && !strings.Contains(out, "of-the-host"))
}
