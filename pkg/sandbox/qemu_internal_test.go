package sandbox

import (
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var arguments = []string{
	"/links/qemu-system-x86_64", "-name", "guest=devvm-app-1a2b3c4d,debug-threads=on", "-S",
	"-object", `{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/home/u/.config/libvirt/qemu/lib/domain-1-devvm-app/master-key.aes"}`,
	"-machine", "pc-q35-7.2,usb=off",
}

// The policy of a VM's QEMU has its own files, one by one, and libvirt's directory of this
// run.
func TestQEMUPolicy(t *testing.T) {
	q := QEMU{
		Read:   []string{"/home/u/devvm/images/1/kernel", "/home/u/devvm/templates/2/disk.qcow2"},
		Write:  []string{"/home/u/devvm/projects/app/vm/disk.qcow2"},
		Append: "/home/u/devvm/projects/app/vm/console.log",
		Net:    "/run/user/1/devvm/net/app.sock",
	}
	var own []string
	for line := range strings.Lines(q.Policy(arguments).String()) {
		if strings.Contains(line, "/home/") {
			own = append(own, strings.TrimSpace(line))
		}
	}
	want := []string{
		"read /home/u/devvm/images/1/kernel",
		"read /home/u/devvm/templates/2/disk.qcow2",
		"read /home/u/.config/libvirt/qemu/lib/domain-1-devvm-app",
		"write /home/u/devvm/projects/app/vm/disk.qcow2",
		"write /home/u/devvm/projects/app/vm/console.log",
	}
	if !slices.Equal(own, want) {
		t.Errorf("got %q\nwant %q", own, want)
	}
	if p := q.Policy(arguments); p.TCP || len(p.Connect) > 0 {
		t.Errorf("QEMU may connect: %s", p)
	}
	if dir := ownDir([]string{"-object", `{"qom-type":"secret","file":"x"}`, "-object", "secret,file=/etc/x"}); dir != "" {
		t.Errorf("took %q for libvirt's directory", dir)
	}
}

// A machine without a sandbox does not start; QEMU that is only asked what it can do does.
func TestIsProbe(t *testing.T) {
	for _, tt := range []struct {
		args string
		want bool
	}{
		{"q -S -no-user-config -nodefaults -nographic -machine none,accel=kvm:tcg -qmp unix:/x", true},
		{"q -M none", true},
		{"q -machine pc-q35-7.2 -append none", false},
		{"q -machine nonesuch", false},
		{"q -machine", false},
		{"q none", false},
	} {
		if got := isProbe(strings.Fields(tt.args)); got != tt.want {
			t.Errorf("%s: %v", tt.args, got)
		}
	}
	if isProbe(arguments) {
		t.Error("a VM counts as a probe")
	}
	t.Setenv(Env, "")
	if err := RunQEMU(arguments, nil); err == nil || !strings.Contains(err.Error(), "by their definition") && !strings.Contains(err.Error(), "there is no") {
		t.Errorf("got %v", err)
	}
}

// The card's socket becomes a connection; other cards stay as they are.
func TestConnect(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	other := `{"type":"stream","id":"other","server":false,"addr":{"type":"unix","path":"/other"}}`
	args := []string{"q", "-netdev", other, "-netdev", `{"type":"stream","id":"net0","server":false,"addr":{"type":"unix","path":"` + socket + `"},"reconnect-ms":200}`}
	got, err := connect(args, socket)
	if err != nil {
		t.Fatal(err)
	}
	if conn, err := l.Accept(); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	if got[2] != other || !strings.HasPrefix(got[4], `{"addr":{"str":"`) || strings.Contains(got[4], "reconnect") || strings.Contains(got[4], socket) {
		t.Errorf("got %q", got)
	}
	if strings.Contains(args[4], "fd") {
		t.Error("the arguments were changed in place")
	}
	if _, err := connect(args[:3], socket); err == nil {
		t.Error("connected no card")
	}
}
