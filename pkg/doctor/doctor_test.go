package doctor

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const (
	debian12 = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n"
	debian13 = "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nVERSION_ID=\"13\"\nID=debian\n"
	ubuntu24 = "PRETTY_NAME=\"Ubuntu 24.04.3 LTS\"\nVERSION_ID=\"24.04\"\nID=ubuntu\nID_LIKE=debian\n"
	mint     = "NAME=\"Linux Mint\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_ID=\"22\"\n"
	fedora42 = "NAME='Fedora Linux'\nVERSION_ID=42\nID=fedora\nPRETTY_NAME='Fedora Linux 42'\n"
	archNow  = "NAME=\"Arch Linux\"\nPRETTY_NAME=\"Arch Linux\"\nID=arch\nBUILD_ID=rolling\n"
	leap16   = "PRETTY_NAME=\"openSUSE Leap 16.0\"\nID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\nVERSION_ID=\"16.0\"\n"
	rocky9   = "PRETTY_NAME=\"Rocky Linux 9\"\nID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=\"9.4\"\n"
	nixos    = "# comment\nPRETTY_NAME=\"NixOS \\\"x\\\"\"\nID=nixos\n"
)

// bench is a host of files in a directory.
type bench struct {
	t    *testing.T
	h    Host
	o    Options
	env  map[string]string
	free map[string]int64
	open error
	gid  int                                            // of /dev/kvm
	exec map[string]func(args []string) (string, error) // by the program's base name
}

// newHost is a user's host on which everything is as it should be.
func newHost(t *testing.T, osRelease string) *bench {
	t.Helper()
	b := &bench{
		t: t, env: map[string]string{"PATH": "/usr/bin:bin:/opt/x", "XDG_RUNTIME_DIR": "/run/me"},
		free: map[string]int64{"/": 100 << 30},
		exec: map[string]func([]string) (string, error){
			"qemu-system-x86_64": says("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c) 2003-2025\n"),
			"qemu-img":           says("qemu-img version 10.0.2 (Debian)\n"),
			"mmdebstrap":         says(""),
			"docker":             says("Docker version 28.2.2, build e6534b4\n"),
		},
	}
	b.h = Host{
		Root: t.TempDir(), UID: os.Getuid(), User: "me", Arch: "amd64",
		Getenv: func(k string) string { return b.env[k] },
		Exec: func(_ context.Context, name string, args ...string) (string, error) {
			f := b.exec[filepath.Base(name)]
			if f == nil {
				return "", fmt.Errorf("unexpected program %s", name)
			}
			return f(args)
		},
		Free: func(path string) (int64, error) {
			path = "/" + strings.Trim(strings.TrimPrefix(path, b.h.Root), "/")
			best := ""
			for p := range b.free {
				if (p == "/" || path == p || strings.HasPrefix(path, p+"/")) && len(p) > len(best) {
					best = p
				}
			}
			return b.free[best], nil
		},
		OpenRW: func(string) error { return b.open },
	}
	if b.h.UID == 0 {
		b.h.UID = 1000 // what the files' owner is checked against is set by own
	}
	b.o = Options{
		Version: "1.0", Data: "/home/me/.local/share/devvm", Work: "/var/tmp", Memory: 4 << 30, Runtime: "/run/me/devvm", Socket: "/run/me/devvm/x/docker.sock",
		Libvirt: func(context.Context) (vm.Host, error) {
			return vm.Host{URI: "qemu:///session", Libvirt: "11.3.0", QEMU: "10.0.2", KVMListed: true, QEMUUser: -1, Sandbox: "/data/sandbox/qemu-system-x86_64"}, nil
		},
		Accel: func(vm.Host) vm.Verdict { return vm.Verdict{Accel: vm.AccelKVM, Proven: true} },
	}
	b.file("/etc/os-release", osRelease)
	b.file("/proc/sys/kernel/osrelease", "6.12.43\n")
	b.file("/proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu vmx sse\n\nprocessor\t: 1\nflags\t\t: fpu\n")
	b.file("/proc/meminfo", "MemTotal:       16000000 kB\nMemFree:        1 kB\nMemAvailable:   12000000 kB\n")
	b.file("/proc/modules", "kvm_intel 1 0 - Live\n")
	b.file("/etc/subuid", "other:100000:65536\nme:165536:65536\n")
	b.file("/etc/subgid", "other:100000:65536\nme:165536:65536\n")
	b.write("/dev/kvm", "", 0o660)
	b.gid = os.Getgid()
	if os.Getuid() == 0 {
		b.gid = 999
		if err := os.Chown(b.h.path("/dev/kvm"), 0, b.gid); err != nil {
			t.Fatal(err)
		}
	}
	b.file("/etc/group", fmt.Sprintf("root:x:0:\nkvm:x:%d:other\n", b.gid))
	b.file("/run/me/.keep", "")
	b.file("/var/tmp/.keep", "")
	b.file(keyring, "")
	b.file("/var/lib/apt/lists/deb.example.org_debian_dists_trixie_main_binary-amd64_Packages.lz4", "")
	b.file("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so", "")
	for _, p := range []string{"/usr/bin/qemu-system-x86_64", "/usr/bin/qemu-img", "/usr/sbin/libvirtd", "/usr/sbin/virtlogd", "/usr/bin/mmdebstrap", "/usr/sbin/mke2fs", "/usr/bin/newuidmap", "/opt/x/docker"} {
		b.program(p)
	}
	return b
}

// files makes many empty files in a directory.
func (b *bench) files(dir string, n int) {
	b.t.Helper()
	full := b.h.path(dir)
	if err := os.MkdirAll(full, 0o755); err != nil {
		b.t.Fatal(err)
	}
	for i := range n {
		f, err := os.Create(filepath.Join(full, fmt.Sprint(i)))
		if err != nil {
			b.t.Fatal(err)
		}
		_ = f.Close()
	}
}

func says(out string) func([]string) (string, error) {
	return func([]string) (string, error) { return out, nil }
}

func fails(out string) func([]string) (string, error) {
	return func([]string) (string, error) { return out, errors.New("exit status 25") }
}

func (b *bench) write(path, text string, mode fs.FileMode) {
	b.t.Helper()
	full := b.h.path(path)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(text), mode); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) file(path, text string) { b.t.Helper(); b.write(path, text, 0o644) }
func (b *bench) program(path string)    { b.t.Helper(); b.write(path, "", 0o755) }

func (b *bench) remove(paths ...string) {
	b.t.Helper()
	for _, p := range paths {
		if err := os.RemoveAll(b.h.path(p)); err != nil {
			b.t.Fatal(err)
		}
	}
}

// gitIndex is the start of an index of git's of so many files.
func gitIndex(files uint32) string {
	return string(binary.BigEndian.AppendUint32([]byte("DIRC\x00\x00\x00\x02"), files))
}

// own makes the fake user the owner of the files.
func (b *bench) own() { b.h.UID = os.Getuid() }

func (b *bench) find(name string) Result {
	b.t.Helper()
	for _, c := range Checks(b.h, b.o) {
		if c.Name == name {
			return c.Run(b.t.Context())
		}
	}
	b.t.Fatalf("no check %q", name)
	return Result{}
}

// bare removes all that devvm needs.
func (b *bench) bare() {
	b.remove("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/share", "/opt")
	b.o.Libvirt = func(context.Context) (vm.Host, error) { return vm.Host{}, vm.ErrNoLibvirt }
}

func (b *bench) render(findings []Finding) string {
	var s strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&s, "%s: %s", f.Name, f.Status)
		if f.Blocks {
			s.WriteString(", blocks")
		}
		fmt.Fprintf(&s, "\n  %s\n", f.What)
		if f.Meaning != "" {
			fmt.Fprintf(&s, "  %s\n", f.Meaning)
		}
		for line := range strings.Lines(f.Fix) {
			fmt.Fprintf(&s, "    %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
	return strings.ReplaceAll(s.String(), b.h.Root, "ROOT")
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: %s", path, diff)
	}
}

func TestGoodHost(t *testing.T) {
	b := newHost(t, debian13)
	b.h.UID = 1000
	if os.Getuid() != 0 {
		b.own()
	}
	b.env["XDG_RUNTIME_DIR"] = ""
	findings := Run(t.Context(), Checks(b.h, b.o))
	for _, f := range findings {
		if f.Status != OK || f.Blocks || f.What == "" || f.Fix != "" {
			t.Errorf("%+v", f)
		}
	}
	if Blocks(findings) {
		t.Error("blocks")
	}
	golden(t, "good.txt", b.render(findings))
}

// A host that has nothing, on each distribution.
func TestBareHosts(t *testing.T) {
	for name, release := range map[string]string{
		"debian-12": debian12, "debian-13": debian13, "ubuntu-24.04": ubuntu24, "fedora": fedora42,
		"arch": archNow, "opensuse": leap16, "rocky": rocky9, "nixos": nixos,
	} {
		for _, root := range []bool{false, true} {
			b := newHost(t, release)
			b.bare()
			b.remove("/dev/kvm", "/etc/subuid", "/etc/subgid", "/run/me", "/proc/modules")
			b.env["XDG_RUNTIME_DIR"] = ""
			b.h.UID = 1000
			file := "bare-" + name + ".txt"
			if root {
				b.h.UID, b.h.User = 0, "root"
				file = "bare-" + name + "-root.txt"
			}
			findings := Run(t.Context(), Checks(b.h, b.o))
			if !Blocks(findings) {
				t.Errorf("%s: does not block", name)
			}
			for _, f := range findings {
				if f.Blocks && f.Status != Fail {
					t.Errorf("%s: %+v", name, f)
				}
				if root && strings.Contains(f.Fix, "sudo") {
					t.Errorf("%s: root needs no sudo: %s", name, f.Fix)
				}
			}
			plan := InstallPlan(t.Context(), b.h)
			js, err := json.MarshalIndent(plan, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, file, b.render(findings)+"\n"+string(js)+"\n")
		}
	}
}

// What each fix of each check says is valid for a shell: words or comments.
func TestFixesAreShell(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	command := regexp.MustCompile(`^    (# |(sudo )?[a-z/][A-Za-z0-9/._-]*( |$))`)
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		report, _, _ := strings.Cut(string(text), "\n{")
		for line := range strings.Lines(report) {
			if strings.HasPrefix(line, "    ") && !command.MatchString(line) {
				t.Errorf("%s: %q", f, line)
			}
		}
	}
}

func TestChecks(t *testing.T) {
	type want struct {
		status Status
		blocks bool
		what   string // part of What or Meaning
		fix    string // part of Fix; "-": none
	}
	for _, c := range []struct {
		name  string
		check string
		setup func(b *bench)
		want  want
	}{
		{"other architecture", "system", func(b *bench) { b.h.Arch = "arm64" }, want{Fail, true, "x86-64 only", "-"}},
		{"unknown distribution", "system", func(b *bench) { b.file("/etc/os-release", nixos) }, want{OK, false, `NixOS "x"`, "-"}},
		{"os-release elsewhere", "system", func(b *bench) { b.remove("/etc/os-release"); b.file("/usr/lib/os-release", leap16) }, want{OK, false, "openSUSE Leap 16.0", "-"}},
		{"no os-release", "system", func(b *bench) { b.remove("/etc/os-release") }, want{OK, false, "Linux, Linux 6.12.43", "-"}},

		{"old QEMU", "QEMU", func(b *bench) { b.exec["qemu-system-x86_64"] = says("QEMU emulator version 6.2.0 (Debian)\n") }, want{Fail, true, "QEMU 6.2.0 is too old", "# upgrade"}},
		{"QEMU 7.1", "QEMU", func(b *bench) { b.exec["qemu-system-x86_64"] = says("QEMU emulator version 7.1.0\n") }, want{Fail, true, "7.1.0", "#"}},
		{"QEMU 7.2", "QEMU", func(b *bench) { b.exec["qemu-system-x86_64"] = says("QEMU emulator version 7.2.22\n") }, want{OK, false, "cannot reconnect", "-"}},
		{"QEMU 8", "QEMU", func(b *bench) { b.exec["qemu-system-x86_64"] = says("QEMU emulator version 8.0.0\n") }, want{OK, false, "QEMU 8.0.0", "-"}},
		{"QEMU 10.10", "QEMU", func(b *bench) { b.exec["qemu-system-x86_64"] = says("QEMU emulator version 10.10.3-rc1\n") }, want{OK, false, "QEMU 10.10.3", "-"}},
		{"QEMU says nonsense", "QEMU", func(b *bench) { b.exec["qemu-system-x86_64"] = says("hello\n") }, want{Fail, true, "does not run: hello", "/usr/bin/qemu-system-x86_64 --version"}},
		{"QEMU says nothing", "QEMU", func(b *bench) { b.exec["qemu-system-x86_64"] = says("") }, want{Fail, true, "it says nothing", "--version"}},
		{"QEMU does not run", "QEMU", func(b *bench) { b.exec["qemu-system-x86_64"] = fails("") }, want{Fail, true, "exit status 25", "--version"}},
		{"QEMU under another name", "QEMU", func(b *bench) {
			b.remove("/usr/bin/qemu-system-x86_64")
			b.program("/usr/libexec/qemu-kvm")
			b.exec["qemu-kvm"] = says("QEMU emulator version 9.0.0 (qemu-kvm-9.0.0-10.el9)\n")
		}, want{OK, false, "QEMU 9.0.0", "-"}},
		{"QEMU not executable", "QEMU", func(b *bench) {
			b.remove("/usr/bin/qemu-system-x86_64")
			b.file("/usr/bin/qemu-system-x86_64", "")
		}, want{Fail, true, "not installed", "sudo apt-get install -y --no-install-recommends qemu-system-x86"}},
		{"qemu-img broken", "qemu-img", func(b *bench) { b.exec["qemu-img"] = fails("error while loading shared libraries: x\n") }, want{Fail, true, "shared libraries", "/usr/bin/qemu-img --version"}},

		{"libvirt too old", "libvirt", func(b *bench) {
			b.o.Libvirt = func(context.Context) (vm.Host, error) { return vm.Host{URI: "qemu:///session", Libvirt: "8.0.0"}, nil }
		}, want{Warn, false, "libvirt 8.0.0 answers", "# upgrade"}},
		{"no virtlogd", "libvirt", func(b *bench) { b.remove("/usr/sbin/virtlogd") }, want{Fail, true, "virtlogd is not installed", "libvirt-daemon-log"}},
		{"another daemon than on PATH", "libvirt", func(b *bench) { b.remove("/usr/sbin") }, want{OK, false, "libvirt 11.3.0", "-"}},
		{"not asked", "libvirt", func(b *bench) { b.o.Libvirt = nil }, want{OK, false, "not checked", "-"}},
		{"session does not start", "libvirt", func(b *bench) { b.o.Libvirt = noLibvirt("exit status 1") }, want{Fail, true, "does not answer at qemu:///session", "/usr/sbin/libvirtd --timeout=30 --verbose"}},
		{"system, not in the group", "libvirt", func(b *bench) {
			b.o.URI = "qemu:///system"
			b.o.Libvirt = noLibvirt("/run/libvirt/libvirt-sock: permission denied (is this user in the group libvirt?)")
			b.file("/etc/group", "root:x:0:\nlibvirt:x:7:you\n")
		}, want{Fail, true, "permission denied", "sudo usermod -aG libvirt me"}},
		{"system, in the group since the login", "libvirt", func(b *bench) {
			b.o.URI = "qemu:///system"
			b.o.Libvirt = noLibvirt("/run/libvirt/libvirt-sock: permission denied")
			b.file("/etc/group", "root:x:0:\nlibvirt:x:7:you,me\n")
		}, want{Fail, true, "permission denied", "# log out and in again"}},
		{"system, no such group", "libvirt", func(b *bench) {
			b.o.URI = "qemu:///system"
			b.o.Libvirt = noLibvirt("/run/libvirt/libvirt-sock: permission denied")
		}, want{Fail, true, "permission denied", "leave out host.uri"}},
		{"system, systemd", "libvirt", func(b *bench) {
			b.o.URI = "qemu:///system"
			b.file("/run/systemd/system/x", "")
			b.o.Libvirt = noLibvirt("no daemon")
		}, want{Fail, true, "", "sudo systemctl enable --now libvirtd.socket virtlogd.socket"}},
		{"system, systemd, modular, root", "libvirt", func(b *bench) {
			b.h.UID = 0
			b.remove("/usr/sbin/libvirtd")
			b.program("/usr/sbin/virtqemud")
			b.file("/run/systemd/system/x", "")
			b.o.Libvirt = noLibvirt("no daemon")
		}, want{Fail, true, "qemu:///system", "systemctl enable --now virtqemud.socket"}},
		{"system, no systemd, user", "libvirt", func(b *bench) {
			b.o.URI = "qemu:///system"
			b.o.Libvirt = noLibvirt("no daemon")
		}, want{Fail, true, "", "sudo libvirtd --daemon"}},
		{"system, no systemd, root", "libvirt", func(b *bench) {
			b.h.UID = 0
			b.o.Libvirt = noLibvirt("start /usr/sbin/libvirtd: exit status 6:\nerror")
		}, want{Fail, true, "exit status 6: error", "/usr/sbin/libvirtd --timeout=30 --verbose"}},

		{"no device, Intel", "KVM", func(b *bench) { b.remove("/dev/kvm") }, want{Warn, false, "/dev/kvm does not exist", "sudo modprobe kvm_intel"}},
		{"no device, AMD, root", "KVM", func(b *bench) {
			b.h.UID = 0
			b.remove("/dev/kvm")
			b.file("/proc/cpuinfo", "flags : svm\n")
		}, want{Warn, false, "/dev/kvm does not exist", "modprobe kvm_amd"}},
		{"no device, a VM", "KVM", func(b *bench) { b.remove("/dev/kvm"); b.file("/proc/cpuinfo", "flags : hypervisor\n") }, want{Warn, false, "no nested virtualisation", "# switch on nested"}},
		{"no device, no flags", "KVM", func(b *bench) { b.remove("/dev/kvm", "/proc/cpuinfo") }, want{Warn, false, "neither vmx nor svm", "firmware"}},
		{"no device, container", "KVM", func(b *bench) { b.remove("/dev/kvm"); b.file("/run/.containerenv", "") }, want{Warn, false, "container", "--device /dev/kvm"}},
		{"no permission", "KVM", func(b *bench) { b.open = &fs.PathError{Op: "open", Path: "/dev/kvm", Err: fs.ErrPermission} }, want{Warn, false, "me may not use /dev/kvm", "usermod -aG kvm me"}},
		{"no permission yet", "KVM", func(b *bench) {
			b.open = fs.ErrPermission
			b.file("/etc/group", fmt.Sprintf("root:x:0:\nvirt:x:%d:you,me\n", b.gid))
		}, want{Warn, false, "yet, though a member of the group virt", "newgrp virt"}},
		{"sockets where others can be first", "sockets", func(b *bench) {
			b.o.Unsafe = &ui.Error{Msg: "/tmp/s is no safe place", Hint: "remove it"}
		}, want{Fail, true, "/tmp/s is no safe place", "# remove it"}},
		{"no permission, not even for the group", "KVM", func(b *bench) {
			b.open = fs.ErrPermission
			b.remove("/dev/kvm")
			b.write("/dev/kvm", "", 0o600)
			if err := os.Chown(b.h.path("/dev/kvm"), -1, b.gid); err != nil {
				b.t.Skip(err)
			}
		}, want{Warn, false, "me may not use /dev/kvm", "sudo chmod g+rw /dev/kvm\nsudo usermod -aG kvm me"}},
		{"no permission, root's group", "KVM", func(b *bench) {
			b.open = fs.ErrPermission
			if err := os.Chown(b.h.path("/dev/kvm"), -1, 0); err != nil {
				b.t.Skip(err)
			}
		}, want{Warn, false, "me may not use /dev/kvm", "sudo groupadd -f -r kvm\nsudo usermod -aG kvm me\nsudo chown root:kvm /dev/kvm"}},
		{"no permission, no group", "KVM", func(b *bench) { b.open = fs.ErrPermission; b.file("/etc/group", "") }, want{Warn, false, "may not use", "sudo groupadd -f -r kvm"}},
		{"no permission, root", "KVM", func(b *bench) { b.h.UID = 0; b.open = fs.ErrPermission }, want{Warn, false, "not even for root", "#"}},
		{"device without driver", "KVM", func(b *bench) {
			b.open = &fs.PathError{Op: "open", Path: "/dev/kvm", Err: errors.New("no such device")}
		}, want{Warn, false, "does not open: no such device", "sudo modprobe kvm_intel"}},
		{"seen failing", "KVM", func(b *bench) {
			b.o.Accel = func(vm.Host) vm.Verdict {
				return vm.Verdict{Accel: vm.AccelTCG, Proven: true, Note: "KVM did not work here (KVM internal error): software emulation", Hint: "x"}
			}
		}, want{Warn, false, "KVM internal error", "x"}},
		{"not tried", "KVM", func(b *bench) { b.o.Accel = func(vm.Host) vm.Verdict { return vm.Verdict{Accel: vm.AccelKVM} } }, want{OK, false, "falls back", "-"}},
		{"no Landlock", "sandbox", func(b *bench) {
			b.unconfined("the kernel has no Landlock")
			b.file("/sys/kernel/security/lsm", "lockdown,yama,apparmor\n")
		}, want{Warn, false, "does not use Landlock", "lsm=landlock,lockdown,yama,apparmor"}},
		{"old kernel", "sandbox", func(b *bench) { b.unconfined("the kernel has no Landlock") }, want{Warn, false, "no Landlock", "# Landlock is in Linux 5.19"}},
		{"AppArmor", "sandbox", func(b *bench) {
			b.o.Program = "/home/me/bin/devvm"
			b.unconfined("libvirt cannot start it: Permission denied")
			b.file("/sys/kernel/security/lsm", "lockdown,landlock,apparmor\n")
			b.file("/etc/apparmor.d/usr.sbin.libvirtd", "")
		}, want{Warn, false, "libvirt cannot start it", "echo '/home/me/bin/devvm PUx,' | sudo tee -a /etc/apparmor.d/local/usr.sbin.libvirtd"}},
		{"QEMU's own user", "sandbox", func(b *bench) {
			b.o.Libvirt = func(context.Context) (vm.Host, error) { return vm.Host{QEMUUser: 64055}, nil }
		}, want{OK, false, "uid 64055", "-"}},
		{"libvirt away", "sandbox", func(b *bench) { b.o.Libvirt = noLibvirt("x") }, want{OK, false, "not known", "-"}},
		{"libvirt away", "KVM", func(b *bench) { b.o.Libvirt = noLibvirt("x") }, want{OK, false, "/dev/kvm opens", "-"}},

		{"tools missing", "image tools", func(b *bench) { b.remove("/usr/bin/mmdebstrap", keyring) }, want{Fail, true, "mmdebstrap, debian-archive-keyring", "sudo apt-get install -y --no-install-recommends mmdebstrap debian-archive-keyring"}},
		{"tools missing, fresh machine", "image tools", func(b *bench) {
			b.remove("/usr/bin/mmdebstrap", "/var/lib/apt/lists")
		}, want{Fail, true, "mmdebstrap", "sudo apt-get update\nsudo apt-get install -y --no-install-recommends mmdebstrap"}},
		{"tools missing, image there", "image tools", func(b *bench) {
			b.remove("/usr/bin/mmdebstrap")
			b.o.HaveImage = func(context.Context) bool { return true }
		}, want{Warn, false, "existing ones still work", "mmdebstrap"}},
		{"tools missing, Arch", "image tools", func(b *bench) { b.file("/etc/os-release", archNow); b.remove("/usr/bin/mmdebstrap") }, want{Fail, true, "mmdebstrap", "devvm image import"}},
		{"root needs no newuidmap", "image tools", func(b *bench) { b.h.UID = 0; b.remove("/usr/bin/newuidmap") }, want{OK, false, "", "-"}},

		{"root", "user namespaces", func(b *bench) { b.h.UID = 0 }, want{OK, false, "root", "-"}},
		{"no newuidmap", "user namespaces", func(b *bench) { b.refuse(); b.remove("/usr/bin/newuidmap") }, want{Fail, true, "newuidmap", "install -y --no-install-recommends uidmap"}},
		{"no subordinate ids", "user namespaces", func(b *bench) { b.refuse(); b.file("/etc/subuid", "other:100000:65536\n") }, want{Fail, true, "me has no subordinate ids", "sudo usermod --add-subuids 231072-296607 me"}},
		{"too few subordinate ids", "user namespaces", func(b *bench) { b.refuse(); b.file("/etc/subgid", "me:5000000:100\n") }, want{Fail, true, "no subordinate ids", "sudo usermod --add-subgids 5000100-5065635 me"}},
		{"subordinate ids by uid", "user namespaces", func(b *bench) {
			b.refuse()
			b.file("/etc/subuid", fmt.Sprintf("%d:100000:65536\nbad\nx:y:z\nx:-1:5\n", b.h.UID))
		}, want{Fail, true, "E: something", "mmdebstrap --unshare-helper true"}},
		{"no subordinate files", "user namespaces", func(b *bench) { b.refuse(); b.remove("/etc/subuid", "/etc/subgid") }, want{Fail, true, "", "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 me"}},
		{"forbidden by the kernel", "user namespaces", func(b *bench) { b.refuse(); b.file("/proc/sys/kernel/unprivileged_userns_clone", "0\n") }, want{Fail, true, "unprivileged_userns_clone = 0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"}},
		{"none allowed", "user namespaces", func(b *bench) { b.refuse(); b.file("/proc/sys/user/max_user_namespaces", "0\n") }, want{Fail, true, "max_user_namespaces = 0", "sudo tee -a /etc/sysctl.d/60-devvm.conf"}},
		{"AppArmor", "user namespaces", func(b *bench) {
			b.refuse()
			b.file("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")
		}, want{Fail, true, "AppArmor", "sudo apparmor_parser -r /etc/apparmor.d/devvm-mmdebstrap"}},
		{"AppArmor with a profile", "user namespaces", func(b *bench) { b.file("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n") }, want{OK, false, "work", "-"}},
		{"fails, image there", "user namespaces", func(b *bench) { b.refuse(); b.o.HaveImage = func(context.Context) bool { return true } }, want{Warn, false, "E: something", "mmdebstrap"}},
		{"not known yet", "user namespaces", func(b *bench) { b.remove("/usr/bin/mmdebstrap") }, want{OK, false, "shows when mmdebstrap is installed", "-"}},

		{"data full", "disk space", func(b *bench) { b.free["/home"] = 1 << 30; b.file("/home/me/x", "") }, want{Fail, true, "1 GiB free, 3 GiB are needed", "df -h /home/me/.local/share/devvm"}},
		{"work full", "disk space", func(b *bench) { b.free["/var"] = 1 << 30 }, want{Fail, true, "/var/tmp has 1 GiB free", "df -h /var/tmp"}},
		{"image there", "disk space", func(b *bench) {
			b.free["/"] = 2 << 30
			b.o.HaveImage = func(context.Context) bool { return true }
		}, want{OK, false, "2 GiB free in /home/me", "-"}},
		{"image there, full", "disk space", func(b *bench) {
			b.free["/"] = 1 << 20
			b.o.Data = "/home/me/it's full"
			b.o.HaveImage = func(context.Context) bool { return true }
		}, want{Warn, false, "may run out", `df -h '/home/me/it'\''s full'`}},
		{"space not known", "disk space", func(b *bench) {
			b.h.Free = func(p string) (int64, error) {
				return 0, &fs.PathError{Op: "statfs", Path: p, Err: errors.New("stale handle")}
			}
		}, want{Warn, false, "stale handle", "df -h"}},

		{"memory low", "memory", func(b *bench) { b.file("/proc/meminfo", "MemTotal: 4000000 kB\nMemAvailable: 1000000 kB\n") }, want{Warn, false, "976.6 MiB of 3.8 GiB available, and a VM may take 4 GiB", "#"}},
		{"memory not known", "memory", func(b *bench) { b.remove("/proc/meminfo") }, want{Warn, false, "not known", "cat /proc/meminfo"}},

		{"not set", "runtime directory", func(b *bench) { b.env["XDG_RUNTIME_DIR"] = "" }, want{OK, false, "sockets are kept in /run/me/devvm; there is no", "-"}},
		{"relative", "runtime directory", func(b *bench) { b.env["XDG_RUNTIME_DIR"] = "run" }, want{Warn, false, "not an absolute path", "unset XDG_RUNTIME_DIR"}},
		{"gone", "runtime directory", func(b *bench) { b.env["XDG_RUNTIME_DIR"] = "/run/gone" }, want{Warn, false, "does not exist", "unset XDG_RUNTIME_DIR"}},
		{"another's", "runtime directory", func(b *bench) { b.h.UID = 4711 }, want{Warn, false, "su or sudo", "unset XDG_RUNTIME_DIR"}},
		{"root's", "runtime directory", func(b *bench) { b.h.UID = 0 }, want{OK, false, "sockets are kept in /run/me/devvm", "-"}},

		{"path too long", "sockets", func(b *bench) { b.o.Socket = "/" + strings.Repeat("x", 107) }, want{Fail, true, "108 bytes", "#"}},
		{"path just right", "sockets", func(b *bench) { b.o.Socket = "/" + strings.Repeat("x", 106) }, want{OK, false, "107 of 107", "-"}},
		{"no path", "sockets", func(b *bench) { b.o.Socket = "" }, want{OK, false, "", "-"}},

		{"for the engine too", "proxy", func(b *bench) {
			b.env["https_proxy"] = "http://proxy.example.com:3128"
			b.o.EngineProxies = []string{"https-proxy"}
		}, want{OK, false, "the engine has one, too", "-"}},
		{"for http alone", "proxy", func(b *bench) { b.env["https_proxy"] = "http://p:1"; b.o.EngineProxies = []string{"http-proxy"} }, want{Warn, false, "the engine in the VM has none", `https-proxy = "http://p:1"`}},
		{"not for the engine", "proxy", func(b *bench) { b.env["HTTP_PROXY"] = "proxy.example.com:3128" }, want{Warn, false, "one is set here", "#   [docker.daemon.proxies]\n#   http-proxy = \"http://proxy.example.com:3128\""}},
		{"in small letters", "proxy", func(b *bench) { b.env["http_proxy"] = "http://p:1" }, want{Warn, false, "", `http-proxy = "http://p:1"`}},
		{"two, and without", "proxy", func(b *bench) {
			b.env["HTTP_PROXY"], b.env["https_proxy"], b.env["no_proxy"] = "http://p:1", "http://q:2", "intern.example.com"
		}, want{Warn, false, "", "#   http-proxy = \"http://p:1\"\n#   https-proxy = \"http://q:2\"\n#   no-proxy = \"intern.example.com\""}},
		{"with a password", "proxy", func(b *bench) { b.env["HTTPS_PROXY"] = "http://me:secret@proxy.example.com" }, want{Warn, false, "", `"http://USER:PASSWORD@proxy.example.com"`}},
		{"with a token", "proxy", func(b *bench) { b.env["HTTPS_PROXY"] = "http://token@proxy.example.com" }, want{Warn, false, "", `"http://USER:PASSWORD@proxy.example.com"`}},
		{"of this host", "proxy", func(b *bench) { b.env["HTTPS_PROXY"] = "http://127.0.0.1:3128/" }, want{Warn, false, "", "#   [network]\n#   host_ports = [3128]\n#   [docker.daemon.proxies]\n#   https-proxy = \"http://host.docker.internal:3128/\""}},
		{"of this host, no port", "proxy", func(b *bench) { b.env["HTTPS_PROXY"] = "http://Localhost" }, want{Warn, false, "", `host_ports = [80]`}},
		{"of this host, TLS", "proxy", func(b *bench) { b.env["HTTPS_PROXY"] = "https://[::1]" }, want{Warn, false, "", `host_ports = [443]`}},
		{"of this host, SOCKS", "proxy", func(b *bench) { b.env["HTTPS_PROXY"] = "socks5://0.0.0.0" }, want{Warn, false, "", `host_ports = [1080]`}},
		{"no URL", "proxy", func(b *bench) { b.env["HTTPS_PROXY"] = "://" }, want{Warn, false, "", `https-proxy = "http://PROXY:PORT"`}},

		{"context set", "Docker client", func(b *bench) { b.env["DOCKER_CONTEXT"] = "colima" }, want{Warn, false, `DOCKER_CONTEXT is set to "colima"`, "unset DOCKER_CONTEXT"}},
		{"TLS set", "Docker client", func(b *bench) { b.env["DOCKER_TLS_VERIFY"] = "1" }, want{Warn, false, "DOCKER_TLS_VERIFY", "unset DOCKER_TLS_VERIFY"}},
		{"no client", "Docker client", func(b *bench) { b.remove("/opt/x/docker") }, want{OK, false, "devvm docker runs the one in the VM", "-"}},
		{"podman", "Docker client", func(b *bench) {
			b.exec["docker"] = says("Emulate Docker CLI using podman. Create /etc/containers/nodocker to quiet msg.\npodman version 5.4.2\n")
		}, want{Warn, false, "Podman's", "devvm docker ps"}},
		{"client without compose", "Docker client", func(b *bench) {
			b.exec["docker"] = func(args []string) (string, error) {
				if args[0] == "compose" {
					return "", errors.New("exit status 1")
				}
				return "Docker version 28.2.2, build e6534b4\n", nil
			}
		}, want{Warn, false, "28.2.2, build e6534b4, without its plugin compose", "devvm docker compose"}},
		{"client broken", "Docker client", func(b *bench) { b.exec["docker"] = fails("boom") }, want{Warn, false, "boom", "--version"}},

		{"bridge", "Docker on the host", func(b *bench) { b.file("/sys/class/net/docker0/x", "") }, want{OK, false, "policy DROP", "-"}},
		{"socket", "Docker on the host", func(b *bench) { b.file("/run/docker.sock", "") }, want{OK, false, "Docker runs on this host too", "-"}},
		{"VirtualBox", "other hypervisors", func(b *bench) { b.file("/proc/modules", "vmmon 1\nvboxdrv 2\nvboxdrv_x 3\n") }, want{OK, false, "VMware and VirtualBox on this host too", "-"}},

		{"nothing shared", "shared files", func(b *bench) { b.files("/home/me/app/node_modules", manyFiles) }, want{OK, false, "no directory", "-"}},
		{"few files shared", "shared files", func(b *bench) {
			b.o.Shared = []string{"/home/me/app"}
			b.files("/home/me/app/node_modules/a", manyFiles-1)
			b.files("/home/me/app/src", manyFiles)
		}, want{OK, false, "nothing that is shared", "-"}},
		{"node_modules shared", "shared files", func(b *bench) {
			b.o.Shared = []string{"/home/me/my app"}
			b.files("/home/me/my app/web/node_modules/a/b", manyFiles)
			b.files("/home/me/my app/.git/node_modules", manyFiles)
		}, want{
			Warn, false, "/home/me/my app/web/node_modules (2000 files)",
			"#   volumes:\n#   - web-node_modules:/app/web/node_modules\n# or: docker run -v '/home/me/my app':/app -v web-node_modules:/app/web/node_modules",
		}},
		{"target by its sign", "shared files", func(b *bench) {
			b.o.Shared = []string{"/home/me/app", "/gone"}
			b.files("/home/me/app/target", manyFiles)
			b.files("/home/me/app/rust/target", manyFiles+1)
			b.files("/home/me/app/.venv/lib", manyFiles)
			b.file("/home/me/app/rust/Cargo.toml", "")
			b.file("/home/me/app/.venv/pyvenv.cfg", "")
		}, want{Warn, false, "shared with the VM: /home/me/app/.venv (2001 files), /home/me/app/rust/target (2001 files)\n", "-v venv:/app/.venv"}},
		{"git not shared", "shared repositories", func(b *bench) { b.file("/home/me/app/.git/index", gitIndex(manyFiles)) }, want{OK, false, "git does not", "-"}},
		{"git shared", "shared repositories", func(b *bench) {
			b.o.Shared = []string{"/home/me/my app", "/gone", "/home/me/small", "/home/me/told", "/home/me/odd", "/home/me/pipe"}
			b.file("/home/me/my app/.git/index", gitIndex(manyFiles))
			b.file("/home/me/my app/.git/config", "[core]\n\tcheckStat = default\n")
			b.file("/home/me/small/.git/index", gitIndex(manyFiles-1))
			b.file("/home/me/told/.git/index", gitIndex(manyFiles))
			b.file("/home/me/told/.git/config", "[core]\n\tcheckstat = Minimal\n")
			b.file("/home/me/odd/.git/index", "DIRC")
			b.file("/home/me/pipe/.git/HEAD", "")
			for _, name := range []string{"index", "config"} {
				if err := unix.Mkfifo(b.h.path("/home/me/pipe/.git/"+name), 0o600); err != nil {
					b.t.Fatal(err)
				}
			}
		}, want{Warn, false, "who owns the files of /home/me/my app (2000 files)\n", "git -C '/home/me/my app' config core.checkStat minimal"}},
		{"links out of what is shared", "shared repositories", func(b *bench) {
			b.o.Shared = []string{"/home/me/app", "/home/me/link"}
			b.file("/home/me/other/.git/index", gitIndex(manyFiles))
			b.file("/home/me/app/.git/HEAD", "")
			for link, to := range map[string]string{"/home/me/app/.git/index": b.h.path("/home/me/other/.git/index"), "/home/me/link": "other"} {
				if err := os.Symlink(to, b.h.path(link)); err != nil {
					b.t.Fatal(err)
				}
			}
		}, want{OK, false, "git does not", "-"}},
		{"git shared by root", "shared repositories", func(b *bench) {
			b.h.UID = 0
			b.o.Shared = []string{"/root/app"}
			b.file("/root/app/.git/index", gitIndex(manyFiles))
		}, want{OK, false, "git does not", "-"}},
		{"leftovers", "leftovers", func(b *bench) {
			b.o.Leftovers = func(context.Context) ([]Leftover, error) {
				return []Leftover{{"a broken image build", "devvm image prune"}, {"odd", ""}, {"the VM of /gone", "devvm rm --project gone-1"}}, nil
			}
		}, want{Warn, false, "a broken image build; odd; the VM of /gone", "devvm image prune\ndevvm rm --project gone-1"}},
		{"leftovers not known", "leftovers", func(b *bench) {
			b.o.Leftovers = func(context.Context) ([]Leftover, error) { return nil, errors.New("no\nlibvirt") }
		}, want{Warn, false, "no libvirt", "-"}},
		{"no leftovers", "leftovers", func(b *bench) { b.o.Leftovers = func(context.Context) ([]Leftover, error) { return nil, nil } }, want{OK, false, "nothing", "-"}},
	} {
		t.Run(c.check+"/"+c.name, func(t *testing.T) {
			t.Parallel()
			b := newHost(t, debian13)
			c.setup(b)
			r := b.find(c.check)
			if r.Status != c.want.status || r.Blocks != c.want.blocks || !strings.Contains(r.What+"\n"+r.Meaning, c.want.what) {
				t.Errorf("%+v", r)
			}
			if c.want.fix == "-" && r.Fix != "" || c.want.fix != "-" && !strings.Contains(r.Fix, c.want.fix) {
				t.Errorf("fix %q", r.Fix)
			}
			if b.h.UID == 0 && strings.Contains(r.Fix, "sudo") {
				t.Errorf("root needs no sudo: %q", r.Fix)
			}
			if strings.Contains(r.What+r.Meaning, "\n") {
				t.Errorf("more than a line: %+v", r)
			}
		})
	}
}

// unconfined gives the host no sandbox, for a reason.
func (b *bench) unconfined(why string) {
	b.o.Libvirt = func(context.Context) (vm.Host, error) {
		return vm.Host{URI: "qemu:///session", Libvirt: "11.3.0", QEMU: "10.0.2", QEMUUser: -1, NoSandbox: why}, nil
	}
}

func noLibvirt(why string) func(context.Context) (vm.Host, error) {
	return func(context.Context) (vm.Host, error) {
		return vm.Host{}, fmt.Errorf("%w: %s", vm.ErrNoLibvirt, why)
	}
}

// refuse makes mmdebstrap fail as it does without user namespaces.
func (b *bench) refuse() {
	b.exec["mmdebstrap"] = func(args []string) (string, error) {
		if strings.Join(args, " ") != "--unshare-helper true" {
			b.t.Errorf("mmdebstrap %q", args)
		}
		return "W: hm\nE: something\n", errors.New("exit status 25")
	}
}

// The runtime directory of a session ends with it.
func TestLinger(t *testing.T) {
	b := newHost(t, debian13)
	if os.Getuid() == 0 {
		if err := os.Chown(b.h.path("/run/me"), 1000, 1000); err != nil {
			t.Skip(err)
		}
	} else {
		b.own()
	}
	usual := fmt.Sprintf("/run/user/%d", b.h.UID)
	if err := os.MkdirAll(b.h.path("/run/user"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(b.h.path("/run/me"), b.h.path(usual)); err != nil {
		t.Fatal(err)
	}
	for _, env := range []string{"", usual} {
		b.env["XDG_RUNTIME_DIR"] = env
		if r := b.find("runtime directory"); r.Status != OK {
			t.Errorf("without systemd: %+v", r)
		}
	}
	b.file("/run/systemd/system/x", "")
	if r := b.find("runtime directory"); r.Status != Warn || r.Fix != "loginctl enable-linger" {
		t.Errorf("%+v", r)
	}
	b.file("/var/lib/systemd/linger/me", "")
	if r := b.find("runtime directory"); r.Status != OK {
		t.Errorf("%+v", r)
	}
	b.env["XDG_RUNTIME_DIR"] = "/run/gone"
	if r := b.find("runtime directory"); r.Fix != "export XDG_RUNTIME_DIR="+usual {
		t.Errorf("%+v", r)
	}
}

func TestRun(t *testing.T) {
	began := make(chan struct{}, 2)
	release := make(chan struct{})
	wait := func(context.Context) Result {
		began <- struct{}{}
		<-release
		return ok("x", "")
	}
	go func() { // both are under way at once
		<-began
		<-began
		close(release)
	}()
	got := Run(t.Context(), []Check{{"a", wait}, {"b", wait}})
	want := []Finding{{"a", ok("x", "")}, {"b", ok("x", "")}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got = Run(ctx, []Check{
		{"stubborn", func(context.Context) Result { select {} }},
		{"obedient", func(ctx context.Context) Result { <-ctx.Done(); return ok("knew", "") }},
	})
	if got[0].Status != Warn || !strings.Contains(got[0].What, "canceled") || got[1].What != "knew" {
		t.Errorf("%+v", got)
	}
	if r := runOne(t.Context(), Check{"slow", func(context.Context) Result { select {} }}, time.Millisecond); r.Status != Warn || r.Blocks {
		t.Errorf("%+v", r)
	}
}

// libvirt is asked once, however many checks want to know.
func TestLibvirtIsAskedOnce(t *testing.T) {
	b := newHost(t, debian13)
	asked := make(chan struct{}, 10)
	b.o.Libvirt = func(context.Context) (vm.Host, error) {
		asked <- struct{}{}
		return vm.Host{Libvirt: "11.3.0"}, nil
	}
	Run(t.Context(), Checks(b.h, b.o))
	if len(asked) != 1 {
		t.Errorf("asked %d times", len(asked))
	}
}

func TestJSON(t *testing.T) {
	got, err := json.Marshal(Finding{"KVM", warn("w", "m", "f")})
	if err != nil || string(got) != `{"name":"KVM","status":"warn","blocks":false,"what":"w","meaning":"m","fix":"f"}` {
		t.Errorf("%s, %v", got, err)
	}
}

func TestFamilies(t *testing.T) {
	for release, want := range map[string]family{
		debian12: debian, ubuntu24: debian, mint: debian, fedora42: fedora, archNow: arch,
		"ID=manjaro\nID_LIKE=arch\n": arch, leap16: suse, "ID=opensuse-tumbleweed\n": suse, rocky9: unknown,
		"ID=rhel\nID_LIKE=fedora\n": unknown, "ID=nobara\nID_LIKE=fedora\n": fedora, nixos: unknown, "": unknown,
	} {
		b := newHost(t, release)
		if got := ReadOS(b.h).family(); got != want {
			t.Errorf("%q: %q, want %q", release, got, want)
		}
	}
}

func TestPackages(t *testing.T) {
	names := func(release string, root bool) []string {
		var list []string
		for _, p := range Packages(ReadOS(newHost(t, release).h), root) {
			if p.Why == "" {
				t.Errorf("%s: no reason", p.Name)
			}
			list = append(list, p.Name)
		}
		return list
	}
	for _, c := range []struct {
		release string
		root    bool
		want    string
	}{
		{debian12, false, "qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-driver-qemu mmdebstrap e2fsprogs debian-archive-keyring uidmap"},
		{debian12, true, "qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system mmdebstrap e2fsprogs debian-archive-keyring"},
		{debian13, false, "qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-log mmdebstrap e2fsprogs debian-archive-keyring uidmap"},
		{debian13, true, "qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-log mmdebstrap e2fsprogs debian-archive-keyring"},
		{ubuntu24, false, "qemu-system-x86 qemu-utils libvirt-daemon libvirt-daemon-driver-qemu mmdebstrap e2fsprogs debian-archive-keyring uidmap"},
		{fedora42, false, "qemu-system-x86-core qemu-img libvirt-daemon-driver-qemu libvirt-daemon-log mmdebstrap e2fsprogs debian-keyring shadow-utils"},
		{archNow, false, "qemu-system-x86 qemu-img libvirt e2fsprogs debian-archive-keyring shadow"},
		{leap16, true, "qemu-x86 qemu-tools libvirt-daemon-qemu libvirt-daemon-driver-qemu libvirt-daemon-log e2fsprogs"},
		{nixos, false, ""},
	} {
		if got := strings.Join(names(c.release, c.root), " "); got != c.want {
			t.Errorf("%q, root %v:\n got %s\nwant %s", c.release, c.root, got, c.want)
		}
	}
}

// The script that sets hosts up before there is a devvm installs the same.
func TestHostSetupInstallsTheSame(t *testing.T) {
	script, err := os.ReadFile("../../.ci/host-setup")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(script), "wanted=\"")
	list, _, found2 := strings.Cut(rest, "\"")
	if !found || !found2 {
		t.Fatal("host-setup has no list of packages")
	}
	for _, release := range []string{debian12, debian13, ubuntu24} {
		have := map[string]bool{}
		for _, p := range Packages(ReadOS(newHost(t, release).h), false) {
			have[p.Name] = true
		}
		for line := range strings.Lines(list) {
			if name, _, _ := strings.Cut(line, "|"); !have[name] {
				t.Errorf("host-setup installs %s, Packages does not name it", name)
			}
		}
	}
}

// The real host, whatever it is: no check hangs, each says something.
func TestSystem(t *testing.T) {
	h := System()
	if h.User == "" || h.Arch == "" {
		t.Errorf("%+v", h)
	}
	for _, f := range Run(t.Context(), Checks(h, Options{Data: t.TempDir(), Work: t.TempDir()})) {
		if f.What == "" || f.Status == "" || f.Blocks && f.Status != Fail {
			t.Errorf("%+v", f)
		}
	}
	InstallPlan(t.Context(), h)
	if _, err := h.Exec(t.Context(), "sh", "-c", "exit 3"); err == nil {
		t.Error("exit 3 is no error")
	}
	if err := h.OpenRW("/dev/null"); err != nil {
		t.Error(err)
	}
	if err := h.OpenRW("/no/such"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if n, err := h.Free("/"); err != nil || n < 0 {
		t.Error(n, err)
	}
	if _, err := h.Free("/no/such"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
