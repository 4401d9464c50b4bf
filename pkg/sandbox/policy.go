// Package sandbox takes from a process what it does not need, for good: files by Landlock
// (https://docs.kernel.org/userspace-api/landlock.html), system calls by seccomp. Neither
// needs a privilege or a helper.
//
// A [Policy] is pure data, and says what a process may use; [Enter] gives up all else, and
// [Deny] gives up system calls. [RunQEMU] is the program that libvirt starts in QEMU's
// place: it enters the sandbox of one VM and becomes QEMU.
//
// The package must not import any other of devvm's packages. A kernel without Landlock is
// [ErrUnsupported], and what to do then is the caller's choice.
package sandbox

import (
	"slices"
	"strings"
)

// Policy is what a process may use. All else is denied: files, signals to other processes,
// abstract unix sockets, tracing, as far as the kernel knows how to. A directory stands
// for all below it, and a path that is not there for nothing.
type Policy struct {
	// Read are files and directories to read.
	Read []string
	// Files are directories whose files can be read by name; they cannot be listed.
	Files []string
	// Run are files and directories to read and to run programs from.
	Run []string
	// Write are files to read and write, and directories to do anything in but to make
	// devices.
	Write []string
	// Remove are directories in which files can be removed.
	Remove []string
	// Devices are devices to read, write and control.
	Devices []string
	// Connect are unix sockets and directories of them. Before Landlock's ABI 9 the
	// kernel lets a process connect to each that its user may.
	Connect []string
	// TCP lets the process connect and listen by TCP.
	TCP bool
}

// And returns a policy that allows what both do.
func (p Policy) And(o Policy) Policy {
	return Policy{
		Read:    slices.Concat(p.Read, o.Read),
		Files:   slices.Concat(p.Files, o.Files),
		Run:     slices.Concat(p.Run, o.Run),
		Write:   slices.Concat(p.Write, o.Write),
		Remove:  slices.Concat(p.Remove, o.Remove),
		Devices: slices.Concat(p.Devices, o.Devices),
		Connect: slices.Concat(p.Connect, o.Connect),
		TCP:     p.TCP || o.TCP,
	}
}

// String lists what the policy allows, a line for each path.
func (p Policy) String() string {
	var b strings.Builder
	for _, part := range []struct {
		verb  string
		paths []string
	}{
		{"read", p.Read},
		{"files", p.Files},
		{"run", p.Run},
		{"write", p.Write},
		{"remove", p.Remove},
		{"device", p.Devices},
		{"connect", p.Connect},
	} {
		for _, path := range part.paths {
			b.WriteString(part.verb + " " + path + "\n")
		}
	}
	if p.TCP {
		b.WriteString("tcp\n")
	}
	return b.String()
}
