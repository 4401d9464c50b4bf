package mounts

import (
	"fmt"
	"unicode"

	"github.com/devvm/devvm/pkg/vmnet"
)

// Kind is what it means that the VM has something at a path, for a container that binds it.
type Kind int

// The kinds.
const (
	// Users: what is there came from the user, or is only the way to a mount.
	Users Kind = iota
	// System: the VM's own is meant, unless the VM has an empty directory there. Docker makes
	// one of what is missing.
	System
	// Kernel: the VM's own is meant, even an empty directory.
	Kernel
	// Temporary: the directory itself is the VM's own where the host's is meant. What is below
	// it is the user's, and does not last.
	Temporary
)

// place is what may be mounted at a path.
type place int

const (
	below place = iota // below it; a mount on it or above it would hide it
	never              // not even below it
)

// ownPaths are the VM's own, in order. A path is of the kind of the nearest row on it or above it
// that names one.
var ownPaths = []struct {
	path   string
	mounts place
	binds  Kind // Users: as the row above it
}{
	{"/bin", never, System},
	{"/boot", never, System},
	{"/dev", never, Kernel},
	{"/etc", never, System},
	{"/lib", never, System},
	{"/lib32", never, System},
	{"/lib64", never, System},
	{"/libx32", never, System},
	{"/proc", never, Kernel},
	{"/root", below, Users},
	{"/run", below, Kernel},
	{"/run/containerd", never, Users},
	{"/run/devvm", never, Users},
	{"/run/docker", never, Users},
	{"/run/systemd", never, Users},
	{"/sbin", never, System},
	{"/sys", never, Kernel},
	{"/tmp", below, Temporary},
	{"/usr", below, System},
	{"/usr/bin", never, Users},
	{"/usr/lib", never, Users},
	{"/usr/sbin", never, Users},
	{"/var", below, System},
	{"/var/lib/containerd", never, Users},
	{"/var/lib/devvm", never, Users},
	{"/var/lib/docker", never, Users},
	{"/var/log", below, Users},
	{"/var/run", never, Kernel}, // a link to /run
	{"/var/tmp", below, Temporary},
}

// Own is what a path of the VM means to a container that binds it, and the path that says so:
// itself or one above it; "" for [Users].
func Own(guest string) (kind Kind, by string) {
	for _, o := range ownPaths { // the nearest is the last
		if o.binds != Users && Within(o.path, guest) {
			kind, by = o.binds, o.path
		}
	}
	return kind, by
}

// longestSource is how long Linux lets the source of a mount be, in bytes (fsconfig(2)).
const longestSource = 255

// unfitTarget tells why nothing can be mounted at a path of the VM; "" if it can.
func unfitTarget(target string) string {
	for _, r := range target {
		if unicode.IsControl(r) {
			return "its path contains a control character"
		}
	}
	if most := longestSource - len(vmnet.Gateway.String()+":"); len(target) > most {
		return fmt.Sprintf("its path is %d bytes long; the VM's kernel mounts %d at most", len(target), most)
	}
	for _, o := range ownPaths {
		if Within(target, o.path) || o.mounts == never && Within(o.path, target) {
			return fmt.Sprintf("%s would hide the VM's own %s", target, o.path)
		}
	}
	return ""
}

// unfitSource tells why a directory of the host cannot be shared, by the directories that hold
// the keys of VMs; "" if it can. All are given without symbolic links.
func unfitSource(source string, private []string) string {
	for _, dir := range private {
		if Within(source, dir) || Within(dir, source) {
			return fmt.Sprintf("%s contains devvm's own files (%s), among them the keys of other VMs", source, dir)
		}
	}
	return ""
}
