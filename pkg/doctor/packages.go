package doctor

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
)

// Package is a package of the distribution and why devvm wants it.
type Package struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// Plan is what is missing on a host and how to install it.
type Plan struct {
	Missing []Package `json:"missing"`
	// Update fetches the lists of packages, where the host has none yet; nil
	// if that is not needed. It goes before Command.
	Update []string `json:"update,omitempty"`
	// Command installs Missing; nil if nothing is missing or the
	// distribution is not known.
	Command []string `json:"command,omitempty"`
	// Unavailable is missing and not packaged by this distribution, or the
	// distribution is not known; the names are those of programs.
	Unavailable []Package `json:"unavailable,omitempty"`
}

// family is a group of distributions with one package manager.
type family string

const (
	debian  family = "debian"
	fedora  family = "fedora"
	arch    family = "arch"
	suse    family = "suse"
	unknown family = ""
)

func (o OS) family() family {
	names := append([]string{o.ID}, o.Like...)
	has := func(name string) bool { return slices.Contains(names, name) }
	switch {
	case has("debian"), has("ubuntu"):
		return debian
	case has("rhel"), has("centos"):
		return unknown // other names, and a QEMU of its own
	case has("fedora"):
		return fedora
	case has("arch"):
		return arch
	case has("suse"), strings.HasPrefix(o.ID, "opensuse"):
		return suse
	}
	return unknown
}

// install is the command that installs packages, without sudo. Recommended
// packages bring desktops and services that devvm has no use for.
func (f family) install(packages []string) []string {
	var cmd []string
	switch f {
	case debian:
		cmd = []string{"apt-get", "install", "-y", "--no-install-recommends"}
	case fedora:
		cmd = []string{"dnf", "install", "-y", "--setopt=install_weak_deps=False"}
	case arch:
		cmd = []string{"pacman", "-S", "--needed", "--noconfirm"}
	case suse:
		cmd = []string{"zypper", "--non-interactive", "install", "--no-recommends"}
	default:
		return nil
	}
	return append(cmd, packages...)
}

// need is one thing that devvm needs of the host.
type need struct {
	why      string
	program  string   // for people
	probe    []string // any of these programs, or files, fulfils it
	packages map[family]string
	image    bool // only to build a base image
	root     bool // only root, whose VMs run in the system's libvirt
	user     bool // only users
}

// qemuPrograms are the names of the QEMU system emulator.
var qemuPrograms = []string{"qemu-system-x86_64", "/usr/libexec/qemu-kvm"}

// libvirtPrograms are the daemons that run QEMU: the monolithic and the modular one.
var libvirtPrograms = []string{"libvirtd", "virtqemud"}

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// needs is the one list of what devvm needs.
var needs = []need{
	{
		why: "runs the VM", program: "qemu-system-x86_64", probe: qemuPrograms,
		packages: map[family]string{debian: "qemu-system-x86", fedora: "qemu-system-x86-core", arch: "qemu-system-x86", suse: "qemu-x86"},
	},
	{
		why: "makes the VM's disks", program: "qemu-img", probe: []string{"qemu-img"},
		packages: map[family]string{debian: "qemu-utils", fedora: "qemu-img", arch: "qemu-img", suse: "qemu-tools"},
	},
	{
		why: "defines and watches the VM", program: "libvirtd", probe: libvirtPrograms,
		packages: map[family]string{debian: "libvirt-daemon", fedora: "libvirt-daemon-driver-qemu", arch: "libvirt", suse: "libvirt-daemon-qemu"},
	},
	{
		why: "the part of libvirt that speaks to QEMU", program: "libvirt's QEMU driver",
		probe: []string{
			"/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",
			"/usr/lib64/libvirt/connection-driver/libvirt_driver_qemu.so",
			"/usr/lib/libvirt/connection-driver/libvirt_driver_qemu.so",
		},
		packages: map[family]string{debian: "libvirt-daemon-driver-qemu", fedora: "libvirt-daemon-driver-qemu", arch: "libvirt", suse: "libvirt-daemon-driver-qemu"},
	},
	{
		why: "keeps the VM's console log", program: "virtlogd", probe: []string{"virtlogd"},
		packages: map[family]string{debian: "libvirt-daemon-log", fedora: "libvirt-daemon-log", arch: "libvirt", suse: "libvirt-daemon-log"},
	},
	{
		why: "the user that root's VMs run as", program: "libvirt's system configuration", root: true, probe: []string{"/etc/libvirt/qemu.conf"},
		packages: map[family]string{debian: "libvirt-daemon-system", fedora: "libvirt-daemon-driver-qemu", arch: "libvirt", suse: "libvirt-daemon-driver-qemu"},
	},
	{
		why: "builds the base image from Debian's packages", program: "mmdebstrap", probe: []string{"mmdebstrap"}, image: true,
		packages: map[family]string{debian: "mmdebstrap", fedora: "mmdebstrap"},
	},
	{
		why: "makes the base image's file system", program: "mke2fs", probe: []string{"mke2fs"}, image: true,
		packages: map[family]string{debian: "e2fsprogs", fedora: "e2fsprogs", arch: "e2fsprogs", suse: "e2fsprogs"},
	},
	{
		why: "the keys that Debian's packages are checked with", program: keyring, probe: []string{keyring}, image: true,
		packages: map[family]string{debian: "debian-archive-keyring", fedora: "debian-keyring", arch: "debian-archive-keyring"},
	},
	{
		why: "builds the base image without root", program: "newuidmap", probe: []string{"newuidmap"}, image: true, user: true,
		packages: map[family]string{debian: "uidmap", fedora: "shadow-utils", arch: "shadow", suse: "shadow"},
	},
}

// pkg is the name of the need's package on a distribution, "" if it has none.
func (n need) pkg(o OS) string {
	name := n.packages[o.family()]
	// Before Debian 13 the daemon's package held virtlogd; from then on, the
	// QEMU driver's has the user and the configuration for root.
	if o.family() == debian {
		split := o.ID == "debian" && atLeast(o.Version, 13) || o.ID == "ubuntu" && atLeast(o.Version, 25)
		switch {
		case name == "libvirt-daemon-log" && !split:
			return "libvirt-daemon"
		case name == "libvirt-daemon-system" && split:
			return "libvirt-daemon-driver-qemu"
		}
	}
	return name
}

// met reports whether the host has what is needed.
func (n need) met(h Host) bool {
	if n.root && h.UID != 0 || n.user && h.UID == 0 {
		return true
	}
	for _, p := range n.probe {
		if h.look(p) != "" || strings.HasPrefix(p, "/") && h.exists(p) {
			return true
		}
	}
	return false
}

// Packages lists the packages that devvm needs on a distribution, for root or
// for a user, in the order of their importance; nil if the distribution is not
// known.
func Packages(o OS, root bool) []Package {
	var list []Package
	for _, n := range needs {
		if n.root && !root || n.user && root {
			continue
		}
		list = add(list, n.pkg(o), n.why)
	}
	return list
}

// add appends a package, or the reason to one that is on the list.
func add(list []Package, name, why string) []Package {
	if name == "" {
		return list
	}
	for i := range list {
		if list[i].Name == name {
			if !strings.Contains(list[i].Why, why) {
				list[i].Why += "; " + why
			}
			return list
		}
	}
	return append(list, Package{name, why})
}

// InstallPlan says which packages are missing and how to install them. It
// looks for the programs and not for the packages: a QEMU that was built here
// serves as well.
func InstallPlan(_ context.Context, h Host) Plan {
	return plan(h, ReadOS(h), func(need) bool { return true })
}

func plan(h Host, o OS, wanted func(need) bool) Plan {
	p := Plan{Missing: []Package{}}
	for _, n := range needs {
		if !wanted(n) || n.met(h) {
			continue
		}
		if name := n.pkg(o); name != "" {
			p.Missing = add(p.Missing, name, n.why)
		} else {
			p.Unavailable = add(p.Unavailable, n.program, n.why)
		}
	}
	if len(p.Missing) == 0 {
		return p
	}
	var names []string
	for _, m := range p.Missing {
		names = append(names, m.Name)
	}
	p.Command = h.asRoot(o.family().install(names))
	if o.family() == debian && !h.aptLists() {
		p.Update = h.asRoot([]string{"apt-get", "update"})
	}
	return p
}

// asRoot puts sudo before a command where it is needed.
func (h Host) asRoot(cmd []string) []string {
	if h.UID != 0 && cmd != nil {
		return append([]string{"sudo"}, cmd...)
	}
	return cmd
}

// aptLists reports whether apt has ever fetched its lists of packages. Fresh
// machines and containers have not.
func (h Host) aptLists() bool {
	lists, err := filepath.Glob(filepath.Join(h.path("/var/lib/apt/lists"), "*_Packages*"))
	return err == nil && len(lists) > 0
}

// fix renders the plan for a shell.
func (p Plan) fix() string {
	var lines []string
	if p.Update != nil {
		lines = append(lines, strings.Join(p.Update, " "))
	}
	if p.Command != nil {
		lines = append(lines, strings.Join(p.Command, " "))
	}
	for _, u := range p.Unavailable {
		lines = append(lines, "# install "+u.Name+" by hand ("+u.Why+"): this distribution has no package that devvm knows of")
	}
	return strings.Join(lines, "\n")
}
