// Package audit shows that devvm keeps its promise to the host: it changes nothing of the
// host's network, nothing of devvm's can be reached from outside, and everything of devvm's
// belongs to its user.
//
// It asks the kernel, not devvm's own lists: listeners are the sockets that devvm's processes
// hold, and processes are those in /proc. [Take] reads the host's [Fingerprint] (firewall rules
// of both backends, links, addresses, routes, rules, sysctls, listening sockets). [Compare]
// finds the differences between two, and who else may have caused them. [Run] combines
// everything into a [Report].
//
// The package does not change the host, and does not talk to libvirt or a VM. It reports what
// cannot be read, and never takes it for unchanged. It must not import any other package of
// devvm, so that a mistake elsewhere cannot hide from it; what it needs to know about projects
// comes in [Options].
package audit

import (
	"context"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Status of a finding.
type Status string

// The possible states.
const (
	OK      Status = "ok"
	Note    Status = "note"    // worth knowing, but not devvm's doing
	Unknown Status = "unknown" // could not be read, so nothing is known
	Fail    Status = "fail"    // a promise is broken
)

// Finding answers one question. Fields are only ever added.
type Finding struct {
	Name    string   `json:"name"`
	Status  Status   `json:"status"`
	What    string   `json:"what"`              // what was seen
	Meaning string   `json:"meaning,omitempty"` // what follows from it
	Fix     string   `json:"fix,omitempty"`     // lines for a shell; advice follows "# "
	Details []string `json:"details,omitempty"` // one line each
}

// Report is the result of an audit. Fields are only ever added.
type Report struct {
	Pass      bool        `json:"pass"` // no finding is a Fail
	Taken     time.Time   `json:"taken"`
	Version   string      `json:"version,omitempty"` // of devvm
	User      string      `json:"user"`
	Findings  []Finding   `json:"findings"`
	Processes []Process   `json:"processes"`
	Listeners []Listener  `json:"listeners"`
	Host      *Comparison `json:"host,omitempty"` // nil: nothing to compare with
}

// Exposure is a port that the user has opened to other hosts for a time.
type Exposure struct {
	Project string
	Proto   string // "tcp" or "udp"; empty: both
	Port    uint16 // of this host
	To      string // the peers that are let in, as text
	Until   time.Time
}

// Options are what only the caller knows.
type Options struct {
	Version string // of this program
	Program string // its path, for messages: sudo may search other directories

	// Before is the fingerprint to compare with. If it is nil, NoBefore says why. Otherwise
	// When says when it was taken, e.g. "before devvm's first VM of this boot".
	Before   *Fingerprint
	NoBefore string
	When     string

	// Dirs are the directories to check for modes and owners.
	Dirs Dirs
	// Dir returns a project's directory, "" if unknown.
	Dir func(project string) string
	// Exposures lists the ports that are open on purpose. If it is nil, there can be none.
	Exposures func(ctx context.Context) ([]Exposure, error)
}

// Run performs the audit. It fails only if /proc cannot be read.
func Run(ctx context.Context, h Host, o Options) (Report, error) {
	r := Report{Taken: time.Now(), Version: o.Version, User: userName(h.UID)}
	processes, err := findProcesses(h)
	if err != nil {
		return r, err
	}
	r.Processes = append([]Process{}, processes...)
	sockets := processSockets(h, processes)
	now := take(ctx, h, processes, sockets)
	r.add(hostFindings(h, &r, now, o)...)
	r.add(privileges(h, processes))
	r.add(sandboxes(processes)...)
	r.add(listeners(ctx, &r, h, sockets, o))
	r.add(unixSockets(h, sockets, o.Dirs))
	r.add(files(h, o.Dirs))
	r.add(foreign(now)...)
	r.Pass = !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Status == Fail })
	return r, nil
}

func (r *Report) add(f ...Finding) { r.Findings = append(r.Findings, f...) }

// Unread names everything that the report cannot judge because it could not be read.
func (r Report) Unread() []string {
	var out []string
	for _, f := range r.Findings {
		switch {
		case f.Status == Unknown && f.Name == notCompared:
			out = append(out, f.What)
		case f.Status == Unknown:
			out = append(out, f.Name)
		}
	}
	return out
}

// notCompared is the name of findings about what could not be read.
const notCompared = "not compared"

// hostFindings compares the host with its earlier fingerprint.
func hostFindings(h Host, r *Report, now Fingerprint, o Options) []Finding {
	const name = "host"
	if o.Before == nil {
		return []Finding{{Name: name, Status: Unknown, What: o.NoBefore, Meaning: "devvm cannot tell whether the host is as it was before"}}
	}
	c := Compare(*o.Before, now)
	r.Host = &c
	var out []Finding
	taken := fmt.Sprintf("%s (taken %s)", o.When, c.Taken.Local().Format("2006-01-02 15:04:05"))
	if o.Before.Running > 0 {
		taken += fmt.Sprintf(", when %s of devvm's VMs ran already", count(o.Before.Running, "process", "processes"))
	}
	main := Finding{Name: name, Status: OK, What: "identical to the host " + taken, Meaning: "compared: " + strings.Join(c.Same, ", ")}
	if len(c.Changes) > 0 {
		main = Finding{Name: name, What: fmt.Sprintf("%s against the host %s", count(len(c.Changes), "difference"), taken)}
		main.Status, main.Meaning = blame(c, r.Processes)
		if len(c.Same) > 0 {
			main.Meaning += "; identical: " + strings.Join(c.Same, ", ")
		}
		for _, ch := range c.Changes {
			main.Details = append(main.Details, ch.String())
		}
	}
	if len(c.Same) > 0 || len(c.Changes) > 0 {
		out = append(out, main)
	}
	for i, u := range c.Unread {
		if slices.ContainsFunc(c.Unread[:i], func(o Unread) bool { return o.Why == u.Why }) {
			continue // reported with that one
		}
		var parts []string
		for _, other := range c.Unread[i:] {
			if other.Why == u.Why {
				parts = append(parts, other.Part)
			}
		}
		f := Finding{Name: notCompared, Status: Unknown, What: strings.Join(parts, ", "), Meaning: u.Why, Fix: asRoot(h, o.Program)}
		if c.Unprivileged && !slices.ContainsFunc(r.Processes, func(p Process) bool { return p.Privileged }) {
			f.Meaning += "; nor may devvm, which runs as this user, change them"
		}
		out = append(out, f)
	}
	return out
}

// asRoot says how root can compare what this user cannot read.
func asRoot(h Host, program string) string {
	if h.UID == 0 {
		return ""
	}
	return fmt.Sprintf("# to compare it too, as root, before devvm's VMs run and while they do:\nsudo %s audit --save before.json\nsudo %[1]s audit --since before.json", program)
}

// blame decides whether devvm can have caused the differences that nothing else explains.
func blame(c Comparison, processes []Process) (status Status, meaning string) {
	unexplained := 0
	for _, ch := range c.Changes {
		if ch.By == "" {
			unexplained++
		}
	}
	switch {
	case unexplained == 0:
		return Note, "each of them has another explanation"
	case !slices.ContainsFunc(processes, func(p Process) bool { return p.Privileged }) && c.Unprivileged:
		return Note, "devvm cannot have made them: it has run as an ordinary user, without a privilege to change any of this"
	}
	return Fail, fmt.Sprintf("nothing else on this host explains %d of them", unexplained)
}

// privileges checks that devvm's processes could not change the host even if they tried.
func privileges(h Host, processes []Process) Finding {
	f := Finding{Name: "privileges", Status: OK}
	byRoot := 0
	for _, p := range processes {
		switch {
		case !p.Privileged:
		case p.UID == 0:
			byRoot++
		default:
			f.Status = Fail
			f.Details = append(f.Details, fmt.Sprintf("%s has capabilities: %s", p.name(), p.Capabilities))
		}
	}
	switch {
	case len(processes) == 0:
		f.What = "nothing of devvm's runs"
	case f.Status == Fail:
		f.What = "a process of devvm's has privileges that no user should have"
		f.Meaning = "it could change the host's network"
	case byRoot > 0:
		f.What = fmt.Sprintf("%s, %d of them as root, as they were started", count(len(processes), "process", "processes"), byRoot)
	case h.UID == 0:
		f.What = fmt.Sprintf("%s, none with a capability", count(len(processes), "process", "processes"))
		f.Meaning = "the kernel would not let them change rules, links, routes or sysctls"
	default:
		f.What = fmt.Sprintf("%s of %s, none with a capability", count(len(processes), "process", "processes"), userName(h.UID))
		f.Meaning = "the kernel would not let them change rules, links, routes or sysctls"
	}
	return f
}

// sandboxes finds processes that can use all of their user's files. The kernel does not show
// whether a process is in a Landlock domain. But a process that enters one of devvm's also gets
// a system call filter, and QEMU has a filter of its own as well. The supervisor's "devvm
// owner" has only the filter, because it looks at files outside for the supervisor.
func sandboxes(processes []Process) []Finding {
	least := map[string]int{KindNet: 1, KindSupervisor: 1, KindOwner: 1, KindQEMU: 2}
	f := Finding{Name: "sandbox", Status: OK}
	confined := 0
	for _, p := range processes {
		switch want, asked := least[p.Kind]; {
		case !asked, p.Kind == KindQEMU && p.UID == 0:
		case p.Filters < want:
			f.Details = append(f.Details, p.name()+" is in none")
		case p.Kind != KindOwner: // an owner has the filter only
			confined++
		}
	}
	switch {
	case confined == 0 && len(f.Details) == 0:
		return nil
	case len(f.Details) == 0:
		f.What = fmt.Sprintf("%s, each in a sandbox", count(confined, "process of VMs", "processes of VMs"))
		return []Finding{f}
	}
	f.Status = Note
	f.What = fmt.Sprintf("%s without a sandbox", count(len(f.Details), "process of VMs", "processes of VMs"))
	f.Meaning = "a guest that breaks out of one has all that its user has"
	f.Fix = "# why this host gives none: devvm doctor; a VM that was started or suspended before this version of devvm: devvm down && devvm up"
	return []Finding{f}
}

// count renders a number with its noun.
func count(n int, noun string, plural ...string) string {
	if n == 1 {
		return "1 " + noun
	}
	if len(plural) == 0 {
		return fmt.Sprintf("%d %ss", n, noun)
	}
	return fmt.Sprintf("%d %s", n, plural[0])
}

// userName is the login name of a uid, or its number.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return "uid " + strconv.Itoa(uid)
}
