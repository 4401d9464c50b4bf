package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Kinds of a [Process].
const (
	KindNet        = "network"    // devvm net
	KindSupervisor = "supervisor" // devvm supervisor
	KindOwner      = "owner"      // devvm owner
	KindCommand    = "command"    // any other devvm
	KindQEMU       = "qemu"       // a VM of devvm's
	KindLibvirt    = "libvirt"    // the daemon that runs the VM
	KindChild      = "child"      // a descendant of one of these
)

// Process is a process that devvm has started, or that serves it.
type Process struct {
	PID     int    `json:"pid"`
	Kind    string `json:"kind"`
	Project string `json:"project,omitempty"` // the project's name
	UID     int    `json:"uid"`
	// Privileged says that the kernel would let the process change the host.
	Privileged   bool   `json:"privileged"`
	Capabilities string `json:"capabilities,omitempty"` // effective set, from proc_pid_status(5)
	Filters      int    `json:"filters"`                // number of system call filters, from proc_pid_status(5)
}

// name names the process for people.
func (p Process) name() string {
	s := fmt.Sprintf("%s (pid %d)", p.Kind, p.PID)
	if p.Project != "" {
		s += " of " + p.Project
	}
	return s
}

// findProcesses finds devvm's processes: this user's, or everybody's for root. It leaves out
// the examining process.
func findProcesses(h Host) ([]Process, error) {
	entries, err := os.ReadDir(h.path("proc"))
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	found := map[int]Process{}
	parents := map[int]int{}
	var rest []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == h.PID {
			continue
		}
		argv, err := h.read("proc", e.Name(), "cmdline")
		if err != nil || len(argv) == 0 { // ended, or a kernel thread
			continue
		}
		if p, ours := classify(h, pid, strings.Split(strings.TrimRight(string(argv), "\x00"), "\x00")); ours {
			found[pid] = p
			continue
		}
		if ppid := parent(h, pid); ppid > 1 {
			parents[pid] = ppid
			rest = append(rest, pid)
		}
	}
	for _, pid := range rest {
		for up := parents[pid]; up > 1; up = parents[up] {
			if p, ours := found[up]; ours {
				found[pid] = Process{PID: pid, Kind: KindChild, Project: p.Project}
				break
			}
		}
	}
	var out []Process
	for _, p := range found {
		if credentials(h, &p) && (h.UID == 0 || p.UID == h.UID) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b Process) int { return a.PID - b.PID })
	return out, nil
}

// domainPrefix starts the names of devvm's libvirt domains.
const domainPrefix = "devvm-"

// classify recognizes a process of devvm's by its command line.
func classify(h Host, pid int, argv []string) (p Process, ours bool) {
	p = Process{PID: pid}
	program := filepath.Base(argv[0])
	switch {
	case program == "libvirtd", program == "virtqemud", program == "virtlogd":
		p.Kind = KindLibvirt
		return p, true
	case strings.Contains(program, "qemu"):
		// libvirt: -name guest=NAME,debug-threads=on
		for i := range argv[:len(argv)-1] {
			guest, _, _ := strings.Cut(argv[i+1], ",")
			if name, ok := strings.CutPrefix(guest, "guest="+domainPrefix); ok && argv[i] == "-name" {
				p.Kind, p.Project = KindQEMU, name
				return p, true
			}
		}
		return p, false
	case program != "devvm":
		exe, err := os.Readlink(h.path("proc", strconv.Itoa(pid), "exe"))
		if err != nil || exe != h.Exe && filepath.Base(strings.TrimSuffix(exe, " (deleted)")) != "devvm" {
			return p, false
		}
	}
	p.Kind = KindCommand
	if len(argv) > 1 {
		switch argv[1] {
		case "net":
			p.Kind = KindNet
		case "supervisor":
			p.Kind = KindSupervisor
		case "owner":
			p.Kind = KindOwner
		}
	}
	for i, a := range argv {
		if a == "--project-name" && i+1 < len(argv) {
			p.Project = argv[i+1]
		}
	}
	return p, true
}

// parent returns the pid of the process's parent, 0 if the process has ended.
func parent(h Host, pid int) int {
	// "PID (NAME) STATE PPID …"; the name may contain anything.
	_, rest, _ := strings.Cut(h.text("proc", strconv.Itoa(pid), "stat"), ") ")
	if i := strings.LastIndex(rest, ") "); i >= 0 {
		rest = rest[i+2:]
	}
	f := strings.Fields(rest)
	if len(f) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(f[1])
	return ppid
}

// credentials reads whom a process belongs to and what it may do. It returns false if the
// process has ended.
func credentials(h Host, p *Process) bool {
	pid := strconv.Itoa(p.PID)
	status, err := h.read("proc", pid, "status")
	if err != nil {
		return false
	}
	uid, effective := -1, -1
	for line := range bytes.Lines(status) {
		f := strings.Fields(string(line))
		switch {
		case len(f) >= 3 && f[0] == "Uid:":
			uid, _ = strconv.Atoi(f[1])
			effective, _ = strconv.Atoi(f[2])
		case len(f) == 2 && f[0] == "Seccomp_filters:":
			p.Filters, _ = strconv.Atoi(f[1])
		case len(f) == 2 && f[0] == "CapEff:" && strings.Trim(f[1], "0") != "":
			p.Capabilities = f[1]
		case len(f) >= 2 && f[0] == "State:" && (f[1] == "Z" || f[1] == "X"):
			return false
		}
	}
	p.UID = uid
	// Capabilities apply to the user namespace that the process is in. Only in ours do they
	// affect this host.
	ours, _ := os.Readlink(h.path("proc/self/ns/user"))
	theirs, err := os.Readlink(h.path("proc", pid, "ns/user"))
	if err == nil && theirs != ours {
		p.Capabilities = ""
		return true
	}
	p.Privileged = p.Capabilities != "" || effective == 0
	return uid >= 0
}

// sockets are the sockets of devvm's processes.
type sockets struct {
	owner map[uint64]Process // by inode
	// netns holds one process for each network namespace that devvm's processes are in.
	netns map[string]int
	// unread are the processes whose sockets could not be read.
	unread []Process
}

// processSockets finds the sockets that the processes hold.
func processSockets(h Host, processes []Process) sockets {
	s := sockets{owner: map[uint64]Process{}, netns: map[string]int{}}
	for _, p := range processes {
		pid := strconv.Itoa(p.PID)
		entries, err := os.ReadDir(h.path("proc", pid, "fd"))
		if err != nil {
			if !gone(h, p) {
				s.unread = append(s.unread, p)
			}
			continue
		}
		for _, e := range entries {
			target, err := os.Readlink(h.path("proc", pid, "fd", e.Name()))
			if err != nil {
				continue // closed meanwhile
			}
			inode, ok := strings.CutPrefix(target, "socket:[")
			if !ok {
				continue
			}
			n, err := strconv.ParseUint(strings.TrimSuffix(inode, "]"), 10, 64)
			if _, known := s.owner[n]; err == nil && !known {
				s.owner[n] = p
			}
		}
		if ns, err := os.Readlink(h.path("proc", pid, "ns/net")); err == nil {
			if _, known := s.netns[ns]; !known {
				s.netns[ns] = p.PID
			}
		} else if !gone(h, p) && !errors.Is(err, os.ErrNotExist) {
			s.unread = append(s.unread, p)
		}
	}
	return s
}

// gone reports whether a process has ended.
func gone(h Host, p Process) bool {
	_, err := os.Stat(h.path("proc", strconv.Itoa(p.PID)))
	return errors.Is(err, os.ErrNotExist)
}
