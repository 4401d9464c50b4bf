// Package egress is the language in which devvm.toml says what a VM may reach
// outside of itself: "all", "none", or a list of names, addresses and ports,
// and the ports of the host that are opened to it.
//
// It parses, matches and compares; it opens and resolves nothing. Who enforces
// a [Policy] is pkg/usernet, who reads it pkg/config, who asks before it grows
// pkg/project. It imports no other package of devvm. Parsing fails with a
// [*SyntaxError]; whatever a policy does not say is not allowed, so that the
// zero Policy lets nothing out.
package egress

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Policy says what a VM may reach. That the host itself is out of reach, but
// for HostPorts, needs no policy: see pkg/usernet.
type Policy struct {
	Offline bool   // nothing leaves the VM, whatever the rest says
	All     bool   // every destination but the host; Rules has no meaning then
	Rules   []Rule // these destinations alone; none: no connection leaves

	// HostPorts are the TCP ports of the host's loopback address that the VM
	// reaches as host.docker.internal.
	HostPorts []uint16
}

// Default is the policy of a project that says nothing: out to everywhere,
// never to the host.
func Default() Policy { return Policy{All: true} }

// Words for what is not a list.
const (
	All  = "all"
	None = "none"
)

// AnswersName says whether the VM may ask for a name: every name of a policy
// that lets all out, else those that a rule names, whatever the port. Others
// would carry data out in the question itself.
func (p Policy) AnswersName(name string) bool {
	if p.Offline || p.All {
		return p.All && !p.Offline
	}
	name, ok := Name(name)
	return ok && slices.ContainsFunc(p.Rules, func(r Rule) bool { return r.matchName(name) })
}

// Permits says whether a connection may leave. The names are those by which
// the VM knows the address from answers that it was given; those that are no
// names match nothing.
func (p Policy) Permits(to netip.AddrPort, names ...string) bool {
	if p.Offline || p.All {
		return p.All && !p.Offline
	}
	known := make([]string, 0, len(names))
	for _, name := range names {
		if name, ok := Name(name); ok {
			known = append(known, name)
		}
	}
	return slices.ContainsFunc(p.Rules, func(r Rule) bool {
		return r.matchAddr(to) || r.matchPort(to.Port()) && slices.ContainsFunc(known, r.matchName)
	})
}

// OpensHostPort says whether the VM may connect to a port of the host.
func (p Policy) OpensHostPort(port uint16) bool {
	return !p.Offline && slices.Contains(p.HostPorts, port)
}

// Equal says whether two policies are written alike.
func (p Policy) Equal(o Policy) bool {
	return p.Offline == o.Offline && p.All == o.All && slices.Equal(p.Rules, o.Rules) && slices.Equal(p.HostPorts, o.HostPorts)
}

// Widening lists what a policy allows that the one before it did not, a line
// each; it is empty only if all that next allows was allowed. Where that cannot
// be seen rule by rule, it counts as wider.
func Widening(before, next Policy) []string {
	var lines []string
	if next.Offline {
		return nil
	}
	if before.Offline {
		before = Policy{}
	}
	switch {
	case before.All:
	case next.All:
		lines = append(lines, "egress = "+strconv.Quote(All)+" (was: "+before.Egress()+")")
	default:
		for _, r := range next.Rules {
			if !slices.ContainsFunc(before.Rules, func(old Rule) bool { return old.covers(r) }) {
				lines = append(lines, "egress + "+r.String())
			}
		}
	}
	for _, port := range next.HostPorts {
		if !slices.Contains(before.HostPorts, port) {
			lines = append(lines, "host_ports + "+strconv.Itoa(int(port)))
		}
	}
	return lines
}

// Common is what both of two policies allow, as far as it can be seen rule by rule.
func Common(a, b Policy) Policy {
	out := Policy{Offline: a.Offline || b.Offline, All: a.All && b.All}
	switch {
	case out.All:
	case a.All:
		out.Rules = slices.Clone(b.Rules)
	case b.All:
		out.Rules = slices.Clone(a.Rules)
	default:
		out.Rules = append(covered(a.Rules, b.Rules), covered(b.Rules, a.Rules)...)
		slices.SortFunc(out.Rules, func(r, o Rule) int { return strings.Compare(r.String(), o.String()) })
		out.Rules = slices.Compact(out.Rules)
	}
	for _, port := range a.HostPorts {
		if slices.Contains(b.HostPorts, port) {
			out.HostPorts = append(out.HostPorts, port)
		}
	}
	return out
}

// covered are the rules that one of others covers.
func covered(rules, others []Rule) []Rule {
	var out []Rule
	for _, r := range rules {
		if slices.ContainsFunc(others, func(o Rule) bool { return o.covers(r) }) {
			out = append(out, r)
		}
	}
	return out
}

// Entries are the rules as devvm.toml has them.
func (p Policy) Entries() []string {
	entries := make([]string, len(p.Rules))
	for i, r := range p.Rules {
		entries[i] = r.String()
	}
	return entries
}

// Egress is the value of the key egress as TOML.
func (p Policy) Egress() string {
	switch {
	case p.All:
		return strconv.Quote(All)
	case len(p.Rules) == 0:
		return strconv.Quote(None)
	}
	list := p.Entries()
	for i := range list {
		list[i] = strconv.Quote(list[i])
	}
	return "[" + strings.Join(list, ", ") + "]"
}

// String is the policy for people, in one line.
func (p Policy) String() string {
	if p.Offline {
		return "offline"
	}
	s := None
	switch {
	case p.All:
		s = All
	case len(p.Rules) > 0:
		s = strings.Join(p.Entries(), ", ")
	}
	for i, port := range p.HostPorts {
		if i == 0 {
			s += "; host ports "
		} else {
			s += ", "
		}
		s += strconv.Itoa(int(port))
	}
	return s
}

// Allowing is the line below [network] in devvm.toml with which a rule would
// be allowed, too.
func (p Policy) Allowing(r Rule) string {
	switch {
	case p.Offline:
		return `mode = "user"`
	case p.All:
		return "egress = " + p.Egress()
	}
	return "egress = " + Policy{Rules: append(slices.Clone(p.Rules), r)}.Egress()
}

// AllowingHostPort is the line below [network] in devvm.toml with which a port
// of the host would be open, too.
func (p Policy) AllowingHostPort(port uint16) string {
	if p.Offline {
		return `mode = "user"`
	}
	ports := SortPorts(append(slices.Clone(p.HostPorts), port))
	list := make([]string, len(ports))
	for i := range ports {
		list[i] = strconv.Itoa(int(ports[i]))
	}
	return "host_ports = [" + strings.Join(list, ", ") + "]"
}

// SortPorts returns ports in order, each once.
func SortPorts(ports []uint16) []uint16 {
	slices.Sort(ports)
	return slices.Compact(ports)
}

// wire is a Policy as JSON. Fields that are missing allow nothing.
type wire struct {
	Offline   bool     `json:"offline,omitempty"`
	Egress    any      `json:"egress"` // "all", "none" or a list
	HostPorts []uint16 `json:"host_ports"`
}

// MarshalJSON writes the policy in the words of devvm.toml.
func (p Policy) MarshalJSON() ([]byte, error) {
	w := wire{Offline: p.Offline, HostPorts: append([]uint16{}, p.HostPorts...)}
	switch {
	case p.All:
		w.Egress = All
	case len(p.Rules) == 0:
		w.Egress = None
	default:
		w.Egress = p.Entries()
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (p *Policy) UnmarshalJSON(b []byte) error {
	var w wire
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	got := Policy{Offline: w.Offline, HostPorts: SortPorts(w.HostPorts)}
	switch v := w.Egress.(type) {
	case nil:
	case string:
		switch v {
		case All:
			got.All = true
		case None:
		default:
			return fmt.Errorf("egress %q is neither %q nor %q", v, All, None)
		}
	case []any:
		entries := make([]string, len(v))
		for i := range v {
			s, ok := v[i].(string)
			if !ok {
				return fmt.Errorf("egress holds a %T", v[i])
			}
			entries[i] = s
		}
		rules, err := ParseRules(entries)
		if err != nil {
			return err
		}
		got.Rules = rules
	default:
		return fmt.Errorf("egress is a %T", v)
	}
	if slices.Contains(got.HostPorts, 0) {
		return fmt.Errorf("host_ports holds port 0")
	}
	*p = got
	return nil
}
