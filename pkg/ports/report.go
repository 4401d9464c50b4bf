package ports

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/devvm/devvm/pkg/relay"
)

// Report is what a Table does, for people and as JSON; fields are only ever added.
type Report struct {
	Address   netip.Addr `json:"address"` // the project's own
	Prefer    string     `json:"prefer"`
	Ports     []Port     `json:"ports"`
	Exposures []Exposed  `json:"exposures"`
	Most      int        `json:"most"`           // ports of the host that the project may have
	More      int        `json:"more,omitempty"` // published ports that are neither open nor listed
}

// Port is one published port.
type Port struct {
	Container   string  `json:"container"`
	ID          string  `json:"id"`
	Port        uint16  `json:"port"` // the container's own
	Protocol    string  `json:"protocol"`
	HostPort    uint16  `json:"host_port"`
	State       string  `json:"state"` // the worst of its addresses' that matters
	Problem     string  `json:"problem,omitempty"`
	Addresses   []Bound `json:"addresses"`
	Connections int64   `json:"connections"`       // now; of UDP: sessions
	Total       int64   `json:"connections_total"` // since the container started
	Received    int64   `json:"received"`          // bytes from the container
	Sent        int64   `json:"sent"`              // bytes to the container
}

// Bound is one address of a port on the host.
type Bound struct {
	Address netip.AddrPort `json:"address"`
	State   string         `json:"state"`
	Problem string         `json:"problem,omitempty"`
	Exposed bool           `json:"exposed,omitempty"` // others than this host reach it
}

// Exposed is an exposure and what became of it.
type Exposed struct {
	Exposure
	Addresses []netip.AddrPort `json:"addresses"` // that are open for it now
}

// counters of one line.
type counters struct {
	relay.Count
	now, total atomic.Int64
}

// Report says how the ports are now.
func (t *Table) Report() Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := Report{Address: t.o.Own, Prefer: t.settings.Prefer, Ports: []Port{}, Exposures: []Exposed{}, Most: t.settings.Most, More: t.more}
	if r.Prefer == "" {
		r.Prefer = PreferShared
	}
	for _, l := range t.lines {
		r.Ports = append(r.Ports, t.port(l))
	}
	for _, e := range live(t.exposures, t.o.Now()) {
		x := Exposed{Exposure: e, Addresses: []netip.AddrPort{}}
		for _, a := range t.hostAddrs[e.To] {
			at := netip.AddrPortFrom(a, e.Port)
			if t.sockets[Key{TCP, at}] != nil || t.sockets[Key{UDP, at}] != nil {
				x.Addresses = append(x.Addresses, at)
			}
		}
		r.Exposures = append(r.Exposures, x)
	}
	return r
}

func (t *Table) port(l Line) Port {
	p := Port{
		Container: l.Container, ID: l.ID, Port: l.Port, Protocol: l.Protocol, HostPort: l.HostPort,
		State: StateOpen, Addresses: []Bound{},
	}
	if !l.Target.IsValid() {
		p.State, p.Problem = StateUnreachable, l.Why
		return p
	}
	if c := t.counters[l.route()]; c != nil {
		p.Connections, p.Total, p.Received, p.Sent = c.now.Load(), c.total.Load(), c.Received.Load(), c.Sent.Load()
	}
	list := keys(l.Protocol, l.HostPort, t.o.Own)
	for _, a := range t.exposedOn(l) {
		k := Key{l.Protocol, netip.AddrPortFrom(a, l.HostPort)}
		if !slices.Contains(list, k) {
			list = append(list, k)
		}
	}
	for _, k := range list {
		b := Bound{Address: k.Addr, State: StateOpen, Exposed: !k.Addr.Addr().IsLoopback()}
		f, failed := t.failures[k]
		switch s := t.sockets[k]; {
		case failed:
			b.State = stateOf(f.err)
			b.Problem = f.err.Error()
			if b.State == StateTaken || b.State == StateDenied {
				b.Problem = (&TakenError{Key: k, Published: l.Target.Port(), First: t.first, Owner: f.owner, Err: f.err}).Error()
			}
		case s == nil: // the table is closed
			b.State = StateFailed
		case s.line.route() != l.route():
			b.State, b.Problem = StateTaken, "container "+s.line.Container+" of this project has it"
		}
		p.Addresses = append(p.Addresses, b)
		if b.State != StateOpen && b.State != StateUnavailable && p.State == StateOpen {
			p.State, p.Problem = b.State, b.Problem
		}
	}
	return p
}

// NotOpen is the number of published ports that are not open as they should be.
func (r Report) NotOpen() int {
	n := r.More
	for _, p := range r.Ports {
		if p.State != StateOpen {
			n++
		}
	}
	return n
}

// Open is the number of published ports that are open on at least one address.
func (r Report) Open() int {
	n := 0
	for _, p := range r.Ports {
		if slices.ContainsFunc(p.Addresses, func(b Bound) bool { return b.State == StateOpen }) {
			n++
		}
	}
	return n
}
