//go:build attack

package main

import "testing"

// sshd is where the sshd of a VM listens, in a network namespace of its own.
const sshd = "tcp:192.0.2.4:22"

// attackManagement is what containers and processes of the VM try against its sshd. The control
// is root in the VM, who enters the namespace, and reaches nobody but the gateway from there.
func (s *scene) attackManagement(t *testing.T, a victim, decoys *service) {
	s.section("Containers, and processes of the VM: the VM's own sshd")
	inside := a.run.with("exec", "--", "nsenter", "--net=/run/netns/devvm", "/usr/local/bin/attacker")
	inside.name = "root in the VM of a, in the namespace of sshd"
	if !s.reads(t, inside, "control: sshd", sshd, "SSH-2.0") {
		t.Fatal("nothing shows that the attempts below could have an answer")
	}
	targets := [][2]string{{sshd, "the VM's sshd"}, {"tcp:192.0.2.2:22", "port 22 of the VM"}}
	for _, p := range []place{
		a.root,
		a.container("container"),
		a.container("container on the VM's network", "--network", "host"),
		a.container("privileged container", "--privileged", "--network", "host"),
	} {
		s.none(t, p, targets, "-wait", "3s")
	}
	s.none(t, inside, [][2]string{
		{"tcp:" + hostAddr + ":" + decoy, "the host's service"},
		{"tcp:" + metadataAddr + ":80", "metadata"},
		{"tcp:" + behindOther + ":9", "somebody behind the host"},
	}, "-wait", "3s", "-say", "from the namespace of sshd")
	heard := decoys.saw("from the namespace of sshd")
	s.attempt(t, "the host's services", "they heard the namespace", "they did not", map[bool]string{true: "heard", false: "not heard"}[heard], !heard)
}
