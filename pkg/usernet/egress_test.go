package usernet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
	"github.com/devvm/devvm/pkg/vmnet"
)

func policyOf(t testing.TB, entries ...string) *egress.Policy {
	t.Helper()
	rules, err := egress.ParseRules(entries)
	if err != nil {
		t.Fatal(err)
	}
	return &egress.Policy{Rules: rules}
}

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// zone is what a nameserver knows: records in the form of a zone file.
type zone struct {
	mu      sync.Mutex
	records []dns.RR
}

func (z *zone) set(t *testing.T, records ...string) {
	t.Helper()
	var all []dns.RR
	for _, s := range records {
		rr, err := dns.NewRR(s)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rr)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.records = all
}

// answer answers as a resolver does, aliases with what they lead to; records of
// the name "extra.", which nobody asked for, come along.
func (z *zone) answer(_ string, query *dns.Msg) *dns.Msg {
	z.mu.Lock()
	defer z.mu.Unlock()
	m := new(dns.Msg).SetReply(query)
	q := query.Question[0]
	for name := q.Name; name != ""; {
		next := ""
		for _, rr := range z.records {
			h := rr.Header()
			if !strings.EqualFold(h.Name, name) {
				continue
			}
			if alias, ok := rr.(*dns.CNAME); ok {
				next = alias.Target
				m.Answer = append(m.Answer, rr)
			} else if h.Rrtype == q.Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		name = next
	}
	if len(m.Answer) == 0 {
		m.Rcode = dns.RcodeNameError
	}
	for _, rr := range z.records {
		if rr.Header().Name == "extra." {
			m.Answer = append(m.Answer, rr)
		}
	}
	return m
}

// outsideNet is a guest with a nameserver and a world outside, all of whose
// addresses lead to one server.
type outsideNet struct {
	client
	*zone
	*clock
	s *usernet.Stack
	u *upstream
	r *root // the same guest, by hand
}

func newOutside(t *testing.T, p *egress.Policy) outsideNet {
	t.Helper()
	dir := t.TempDir()
	n := outsideNet{zone: &zone{}, clock: newClock()}
	n.u = newUpstream(t, n.answer)
	world := localTCP(t, echo)
	packets := localUDP(t)
	n.s = newStack(t, usernet.Config{
		Policy: p, Now: n.Now,
		ResolvConf: writeFile(t, filepath.Join(dir, "resolv.conf"), "nameserver 203.0.113.1\n"),
		Hosts:      writeFile(t, filepath.Join(dir, "hosts"), "198.51.100.50 in-hosts.example\n"),
		DialDNS:    nameservers(map[string]*upstream{"203.0.113.1": n.u}),
		DialOut: func(ctx context.Context, network string, _ netip.AddrPort) (net.Conn, error) {
			to := world
			if network == "udp" {
				to = packets
			}
			var d net.Dialer
			return d.DialContext(ctx, network, to.String())
		},
	})
	n.s.SetHost(func(a netip.Addr) bool { return a == netip.MustParseAddr("198.51.100.99") })
	n.r = &root{frames: make(chan []byte, 1000)}
	n.client = client{t, plug(t, n.s, usernettest.Options{Frames: func(f []byte) {
		select {
		case n.r.frames <- f:
		default: // nobody looks
		}
	}})}
	n.r.Guest = n.g
	return n
}

// reach dials from the guest: "" if it works, else why not.
func (n outsideNet) reach(network, address string) string {
	n.t.Helper()
	conn, err := n.g.Dial(testContext(n.t), network, address)
	if err == nil {
		defer conn.Close()
		err = pingPong(network, conn)
	}
	switch {
	case err == nil:
		return ""
	case errors.Is(err, syscall.ECONNREFUSED) || network == "udp":
		return "refused"
	}
	return err.Error()
}

// pingPong sends something and wants it back. The guest's stack does not wake a
// reader of datagrams that are refused, which is why those have a time limit.
func pingPong(network string, conn net.Conn) error {
	patience := 20 * time.Second
	if network == "udp" {
		patience = time.Second
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 4))
	return err
}

// pingPongs is pingPong where an answer may be late.
func pingPongs(network string, conn net.Conn) error {
	err := pingPong(network, conn)
	for tries := 1; err != nil && network == "udp" && tries < 5; tries++ {
		err = pingPong(network, conn)
	}
	return err
}

func (n outsideNet) wantReach(want, network, address string) {
	n.t.Helper()
	got := n.reach(network, address)
	for tries := 1; got != want && want == "" && network == "udp" && tries < 20; tries++ {
		got = n.reach(network, address) // the answer may have been late
	}
	if got != want {
		n.t.Errorf("%s %s: %q, want %q", network, address, got, want)
	}
}

func TestEgressList(t *testing.T) {
	t.Parallel()
	n := newOutside(t, policyOf(t, "www.example.org:80", "*.example.net", "198.51.100.32/28:443", "in-hosts.example"))
	n.set(t,
		"www.example.org. 30 A 198.51.100.1", "www.example.org. 30 AAAA 2001:db8::1", "other.example.org. 30 A 198.51.100.2",
		"a.b.example.net. 30 A 198.51.100.3", "example.net. 30 A 198.51.100.4")

	// By address: only the range.
	for _, network := range []string{"tcp", "udp"} {
		n.wantReach("", network, "198.51.100.33:443")
		n.wantReach("refused", network, "198.51.100.33:80")
		n.wantReach("refused", network, "198.51.100.1:80")
		n.wantReach("refused", network, "203.0.113.53:53") // another nameserver
	}
	// By name: what the list has, with its port, once it was asked for.
	for name, want := range map[string]string{
		"www.example.org": "198.51.100.1", "WWW.Example.ORG": "198.51.100.1", "a.b.example.net": "198.51.100.3", "in-hosts.example": "198.51.100.50",
		"other.example.org": "NXDOMAIN", "example.net": "NXDOMAIN", "example.org": "NXDOMAIN", "x.www.example.org": "NXDOMAIN", "db": "NXDOMAIN",
		"secret.attacker.example": "NXDOMAIN", "host.docker.internal": "192.0.2.254",
	} {
		for _, network := range []string{"udp", "tcp"} {
			if got := n.ask(network, name, dns.TypeA); got != want {
				t.Errorf("%s by %s: %s, want %s", name, network, got, want)
			}
		}
	}
	for _, kind := range []uint16{dns.TypeTXT, dns.TypeNS, dns.TypeANY, dns.TypeHTTPS} {
		if got := n.ask("udp", "secret.attacker.example", kind); got != "NXDOMAIN" {
			t.Errorf("type %d: %s", kind, got)
		}
	}
	for _, q := range n.u.queries() {
		if !strings.Contains(strings.ToLower(q), "www.example.org.") && !strings.Contains(q, "a.b.example.net.") {
			t.Errorf("the nameserver was asked %s", q)
		}
	}
	n.wantReach("", "tcp", "198.51.100.1:80")
	n.wantReach("", "udp", "198.51.100.1:80")
	n.wantReach("refused", "tcp", "198.51.100.1:443")
	n.wantReach("", "tcp", "198.51.100.3:22")
	n.wantReach("refused", "tcp", "198.51.100.2:80")
	n.wantReach("refused", "tcp", "198.51.100.4:80")
	n.wantReach("", "tcp", "198.51.100.50:1")

	// Why, to those who can be told.
	query := new(dns.Msg).SetQuestion("secret.attacker.example.", dns.TypeA)
	query.SetEdns0(1232, false)
	why := ""
	for _, o := range n.exchange("udp", query).IsEdns0().Option {
		why = o.String()
	}
	if !strings.Contains(why, "egress") {
		t.Errorf("the reason is %q", why)
	}
}

// A name's address counts for as long as its answer lives, and a while at
// least; a connection that exists stays; one more asks for the name again.
func TestEgressAnswerGrowsOld(t *testing.T) {
	n := newOutside(t, policyOf(t, "www.example.org", "long.example.org"))
	n.set(t, "www.example.org. 1 A 198.51.100.1", "long.example.org. 3600 A 198.51.100.2")
	n.ask("udp", "www.example.org", dns.TypeA)
	n.ask("udp", "long.example.org", dns.TypeA)
	stays, err := n.g.Dial(testContext(t), "tcp", "198.51.100.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	n.forward(4 * time.Minute)
	n.wantReach("", "tcp", "198.51.100.1:80")

	// It is the name's no more: the name is asked again, and leads elsewhere.
	n.set(t, "www.example.org. 1 A 198.51.100.3")
	n.forward(2 * time.Minute)
	before := len(n.u.queries())
	n.wantReach("refused", "tcp", "198.51.100.1:80")
	if got := n.u.queries()[before:]; len(got) != 1 || got[0] != "udp www.example.org. A" {
		t.Errorf("the nameserver was asked %q", got)
	}
	n.wantReach("refused", "tcp", "198.51.100.1:80") // and is not asked at each try
	if got := n.u.queries()[before:]; len(got) != 1 {
		t.Errorf("the nameserver was asked %q", got)
	}
	roundTrip(t, stays, []byte("still here"))
	n.wantReach("", "tcp", "198.51.100.3:80")
	n.wantReach("refused", "udp", "198.51.100.1:80")
	n.wantReach("", "tcp", "198.51.100.2:80")

	// It still is the name's: a program that looked it up once can go on.
	n.set(t, "www.example.org. 1 A 198.51.100.1", "long.example.org. 3600 A 198.51.100.2")
	n.forward(30 * time.Minute)
	n.wantReach("", "tcp", "198.51.100.1:80")
	n.forward(20 * time.Minute)
	before = len(n.u.queries())
	n.wantReach("", "tcp", "198.51.100.2:80")
	if got := n.u.queries()[before:]; len(got) != 0 {
		t.Errorf("the nameserver was asked %q", got)
	}
}

// A name's addresses of IPv6 count like those of IPv4, and are asked for again.
func TestEgressIPv6(t *testing.T) {
	n := newOutside(t, policyOf(t, "www.example.org", "[2001:db8:2::]/48:7"))
	n.set(t, "www.example.org. 1 AAAA 2001:db8::1", "other.example.org. 1 AAAA 2001:db8::3")
	n.r.wants(t, "not asked for yet", tcpProto, at("2001:db8::1"), "rst")
	n.ask("udp", "www.example.org", dns.TypeAAAA)
	n.ask("udp", "other.example.org", dns.TypeAAAA)
	n.r.wants(t, "a name", tcpProto, at("2001:db8::1"), "syn-ack")
	n.r.wants(t, "a range", tcpProto, at("2001:db8:2::9"), "syn-ack")
	n.r.wants(t, "another name", tcpProto, at("2001:db8::3"), "rst")
	n.r.wants(t, "beside the range", udpProto, at("2001:db8:3::9"), "unreachable 4")

	n.forward(6 * time.Minute)
	before := len(n.u.queries())
	n.r.wants(t, "a name's, still", tcpProto, at("2001:db8::1"), "syn-ack")
	if got := n.u.queries()[before:]; len(got) != 1 || got[0] != "udp www.example.org. AAAA" {
		t.Errorf("the nameserver was asked %q", got)
	}
	n.set(t, "www.example.org. 1 AAAA 2001:db8::4")
	n.forward(30 * time.Minute)
	n.r.wants(t, "a name's no more", tcpProto, at("2001:db8::1"), "rst")

	// What was refused comes with the line that would allow it.
	found := false
	for _, a := range n.s.Egress().Attempts {
		found = found || a.Address == "2001:db8:3::9" && a.Allow != nil && a.Allow.Entry == `"[2001:db8:3::9]:7"`
	}
	if !found {
		t.Errorf("%+v", n.s.Egress().Attempts)
	}
}

// The name that was asked for counts, with what it is an alias of; nothing else
// that an answer holds.
func TestEgressAliases(t *testing.T) {
	n := newOutside(t, policyOf(t, "www.example.org:80", "cdn.example.net:443"))
	n.set(t,
		"www.example.org. 600 CNAME shard.cdn.example.net.", "shard.cdn.example.net. 30 A 198.51.100.1", "shard.cdn.example.net. 30 A 198.51.100.2",
		"cdn.example.net. 30 A 198.51.100.1", "evil.example. 30 CNAME cdn.example.net.",
		"extra. 30 A 198.51.100.3", "loop.example.org. 30 CNAME loop.example.org.")
	if got := n.ask("udp", "www.example.org", dns.TypeA); !strings.Contains(got, "198.51.100.2") || !strings.Contains(got, "198.51.100.3") {
		t.Fatal(got)
	}
	n.wantReach("", "tcp", "198.51.100.1:80")
	n.wantReach("", "tcp", "198.51.100.2:80")
	n.wantReach("refused", "tcp", "198.51.100.3:80")
	n.wantReach("refused", "tcp", "198.51.100.1:443") // the alias's own name was not asked for
	if got := n.ask("udp", "shard.cdn.example.net", dns.TypeA); got != "NXDOMAIN" {
		t.Errorf("the alias: %s", got)
	}
	if got := n.ask("udp", "evil.example", dns.TypeA); got != "NXDOMAIN" {
		t.Errorf("an alias of what the list has: %s", got)
	}
	n.ask("udp", "cdn.example.net", dns.TypeA)
	n.wantReach("", "tcp", "198.51.100.1:443")
}

// A name on the list that leads to the host leads nowhere.
func TestEgressRebinding(t *testing.T) {
	t.Parallel()
	p := policyOf(t, "*.example.org", "0.0.0.0/0")
	p.HostPorts = []uint16{1}
	n := newOutside(t, p)
	for i, addr := range []string{"127.0.0.1", "198.51.100.99", "169.254.169.254", "192.0.2.254", "192.0.2.1", "0.0.0.0"} {
		name := fmt.Sprintf("x%d.example.org.", i)
		n.set(t, name+" 30 A "+addr)
		if got := n.ask("udp", name, dns.TypeA); got != addr {
			t.Errorf("%s: %s", name, got)
		}
		conn, err := n.g.Dial(testContext(t), "tcp", addr+":80")
		if err == nil {
			conn.Close()
			t.Errorf("%s was reached", addr)
		}
		n.wantReach("", "tcp", "198.51.100.1:80")
	}
	refused := n.s.Status().Refused
	for _, reason := range []string{"address of the host", "cloud metadata address", "not in host_ports of devvm.toml"} {
		if refused[reason] == 0 {
			t.Errorf("nothing was refused as %q: %v", reason, refused)
		}
	}
}

func TestHostPorts(t *testing.T) {
	v4, other := localTCP(t, echo), localTCP(t, echo)
	packets := localUDP(t)
	port := func(a net.Addr) int {
		_, p, _ := net.SplitHostPort(a.String())
		n, _ := strconv.Atoi(p)
		return n
	}
	p := egress.Policy{HostPorts: []uint16{uint16(port(v4)), uint16(port(packets))}}
	v6, err := net.Listen("tcp", "[::1]:0")
	if err == nil {
		serveTCP(t, v6, echo)
		p.HostPorts = append(p.HostPorts, uint16(port(v6.Addr())))
	}
	s, g := network(t, usernet.Config{Policy: &p})
	n := outsideNet{client: client{t, g}, s: s}
	alias := func(a net.Addr) string { return usernettest.Address(vmnet.HostAlias, port(a)) }
	n.wantReach("", "tcp", alias(v4))
	if err == nil {
		n.wantReach("", "tcp", alias(v6.Addr()))
	}
	start := time.Now()
	n.wantReach("refused", "tcp", alias(other))
	n.wantReach("refused", "tcp", alias(packets)) // open, and nobody listens by TCP
	n.wantReach("refused", "udp", alias(packets)) // TCP alone
	n.wantReach("refused", "tcp", usernettest.Address(vmnet.Gateway, port(v4)))
	n.wantReach("refused", "tcp", "198.51.100.1:80")
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("refusals took %s", took)
	}
	if n := s.Status().Refused["not in host_ports of devvm.toml"]; n < 2 { // by TCP, and by UDP, some of them sent again
		t.Errorf("%d were refused for host_ports", n)
	}

	// A port that is closed again cuts what uses it; another one is opened.
	conn, err := g.Dial(testContext(t), "tcp", alias(v4))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if cut := s.SetPolicy(egress.Policy{HostPorts: []uint16{uint16(port(other))}}); cut != 1 {
		t.Errorf("cut %d", cut)
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("the connection was not cut: %v", err)
	}
	n.wantReach("refused", "tcp", alias(v4))
	n.wantReach("", "tcp", alias(other))
	s.SetPolicy(egress.Policy{Offline: true, All: true, HostPorts: []uint16{uint16(port(other))}})
	n.wantReach("refused", "tcp", alias(other))
}

// A narrower policy is in force at once, for what exists too; a wider one cuts
// nothing.
func TestSetPolicy(t *testing.T) {
	t.Parallel()
	n := newOutside(t, nil)
	n.set(t, "www.example.org. 30 A 198.51.100.1", "www.example.com. 30 A 198.51.100.2")
	n.ask("udp", "www.example.org", dns.TypeA)
	n.ask("udp", "www.example.com", dns.TypeA)
	conns := map[string]net.Conn{}
	for _, to := range []string{"tcp 198.51.100.1:80", "tcp 198.51.100.2:80", "tcp 198.51.100.3:80", "udp 198.51.100.1:80", "udp 198.51.100.2:80"} {
		network, address, _ := strings.Cut(to, " ")
		conn, err := n.g.Dial(testContext(t), network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := pingPongs(network, conn); err != nil {
			t.Fatal(err)
		}
		conns[to] = conn
	}
	if cut := n.s.SetPolicy(*policyOf(t, "www.example.org", "198.51.100.3:80")); cut != 2 {
		t.Errorf("cut %d", cut)
	}
	for to, conn := range conns {
		network, _, _ := strings.Cut(to, " ")
		err := pingPongs(network, conn)
		if strings.Contains(to, "100.2:") { // what is on its way may still arrive
			for deadline := time.Now().Add(10 * time.Second); err == nil && time.Now().Before(deadline); {
				err = pingPong(network, conn)
			}
		}
		if (err == nil) == strings.Contains(to, "100.2:") {
			t.Errorf("%s: %v", to, err)
		}
	}
	n.wantReach("refused", "tcp", "198.51.100.2:80")
	n.wantReach("refused", "udp", "198.51.100.2:80")
	n.wantReach("", "tcp", "198.51.100.1:80")
	if cut := n.s.SetPolicy(egress.Default()); cut != 0 {
		t.Errorf("cut %d", cut)
	}
	n.wantReach("", "tcp", "198.51.100.2:80")
	if st := n.s.Status(); st.Policy == nil || !st.Policy.Equal(egress.Default()) {
		t.Errorf("status: %v", st.Policy)
	}
}

func TestEgressJournal(t *testing.T) {
	n := newOutside(t, policyOf(t, "www.example.org:80"))
	n.set(t, "www.example.org. 30 A 198.51.100.1")
	n.ask("udp", "www.example.org", dns.TypeA)
	n.wantReach("", "tcp", "198.51.100.1:80")
	n.forward(time.Second)
	n.wantReach("", "tcp", "198.51.100.1:80")
	n.wantReach("refused", "tcp", "198.51.100.1:443")
	n.wantReach("refused", "tcp", "198.51.100.2:80")
	n.ask("udp", "Blocked.Example", dns.TypeA)
	n.ask("tcp", "blocked.example", dns.TypeAAAA)
	n.ask("udp", "1.0.0.10.in-addr.arpa", dns.TypePTR)
	n.wantReach("refused", "tcp", "192.0.2.254:5432")
	n.wantReach("refused", "udp", "192.0.2.254:5432")
	n.wantReach("refused", "tcp", "198.51.100.99:80")
	want := []string{
		"2 tcp www.example.org:80 ",
		`1 tcp www.example.org:443 not in egress of devvm.toml: egress = ["www.example.org:80", "www.example.org:443"]`,
		`1 tcp 198.51.100.2:80 not in egress of devvm.toml: egress = ["www.example.org:80", "198.51.100.2:80"]`,
		`2 dns blocked.example:0 not in egress of devvm.toml: egress = ["www.example.org:80", "blocked.example"]`,
		`1 dns 1.0.0.10.in-addr.arpa:0 not in egress of devvm.toml`,
		`1 tcp host.docker.internal:5432 not in host_ports of devvm.toml: host_ports = [5432]`,
		`1 udp host.docker.internal:5432 not in host_ports of devvm.toml`,
		`1 tcp 198.51.100.99:80 address of the host`,
	}
	e := n.s.Egress()
	if diff := cmp.Diff(want, lines(e.Attempts)); diff != "" {
		t.Error(diff)
	}
	if first := e.Attempts[0]; !first.Allowed || first.Address != "198.51.100.1" || first.Last.Sub(first.First) != time.Second {
		t.Errorf("%+v", first)
	}
	// What is allowed by now needs no line.
	n.s.SetPolicy(egress.Policy{All: true, HostPorts: []uint16{5432}})
	for _, a := range n.s.Egress().Attempts {
		if a.Allow != nil {
			t.Errorf("%+v: %+v", a, a.Allow)
		}
	}
	n.s.SetPolicy(egress.Policy{Offline: true})
	n.wantReach("refused", "tcp", "198.51.100.1:80")
	all := lines(n.s.Egress().Attempts)
	if got := all[len(all)-1]; got != `1 tcp www.example.org:80 the VM is offline: mode = "user"` {
		t.Error(got)
	}
}

// lines describes attempts.
func lines(all []vmnet.Attempt) []string {
	var out []string
	for _, a := range all {
		name := a.Name
		if name == "" {
			name = a.Address
		}
		line := fmt.Sprintf("%d %s %s:%d %s", a.Count, a.Protocol, name, a.Port, a.Reason)
		if a.Allow != nil {
			line += ": " + a.Allow.Line
		}
		out = append(out, line)
	}
	return out
}

// The same by the socket of the network process.
func TestEgressBySocket(t *testing.T) {
	dir := t.TempDir()
	o := optionsIn(dir)
	o.Policy = policyOf(t, "www.example.org")
	r := start(t, o)
	g := connect(t, o.NetSocket)
	d := vmnet.NewDialer(o.DialSocket)
	ctx := testContext(t)

	followed := make(chan vmnet.Attempt)
	ended := make(chan error, 1)
	following, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		ended <- d.FollowEgress(following, func(a vmnet.Attempt) error {
			followed <- a
			return nil
		})
	}()
	dial := func(address string) {
		t.Helper()
		if _, err := g.Dial(ctx, "tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v", address, err)
		}
	}
	for i := range 3 {
		dial(outside + ":80")
		if a := <-followed; a.Address != outside || a.Count != uint64(i+1) || a.Allow == nil {
			t.Errorf("%+v", a)
		}
	}
	if _, err := d.SetPolicy(ctx, egress.Policy{HostPorts: []uint16{9}}); err != nil {
		t.Fatal(err)
	}
	dial(outside + ":81")
	if a := <-followed; a.Allow == nil || a.Allow.Line != `egress = ["198.51.100.7:81"]` {
		t.Errorf("%+v", a)
	}
	e, err := d.Egress(ctx)
	if err != nil || e.Policy.String() != "none; host ports 9" || len(e.Attempts) != 2 {
		t.Errorf("%+v, %v", e, err)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("follow: %v", err)
	}
	// One that follows does not keep the process.
	go func() { ended <- d.FollowEgress(ctx, func(vmnet.Attempt) error { return nil }) }()
	g.Close()
	r.stop()
	if err := r.end(t); err != nil {
		t.Error(err)
	}
	<-ended
	if _, err := d.SetPolicy(ctx, egress.Policy{}); !errors.Is(err, vmnet.ErrNoNetwork) {
		t.Errorf("%v", err)
	}
}
