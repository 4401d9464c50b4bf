package usernet_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/devvm/devvm/pkg/condition"
	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
)

// upstream is a nameserver of the host.
type upstream struct {
	addr string // of UDP and TCP
	mu   sync.Mutex
	seen []string // "udp name type"
}

// newUpstream answers with what zone says to a question; nil means silence.
func newUpstream(t *testing.T, zone func(network string, query *dns.Msg) *dns.Msg) *upstream {
	t.Helper()
	u := &upstream{}
	var packets net.PacketConn
	var listener net.Listener
	for range 10 { // the same port for both
		var err error
		if packets, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if listener, err = net.Listen("tcp", packets.LocalAddr().String()); err == nil {
			break
		}
		packets.Close()
	}
	if listener == nil {
		t.Fatal("no port is free for both TCP and UDP")
	}
	u.addr = packets.LocalAddr().String()
	for _, server := range []*dns.Server{{PacketConn: packets, Net: "udp"}, {Listener: listener, Net: "tcp"}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		server.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) {
			q := query.Question[0]
			u.mu.Lock()
			u.seen = append(u.seen, fmt.Sprintf("%s %s %s", server.Net, q.Name, dns.TypeToString[q.Qtype]))
			u.mu.Unlock()
			if m := zone(server.Net, query); m != nil {
				w.WriteMsg(m)
			}
		})
		go server.ActivateAndServe()
		<-started
		t.Cleanup(func() { server.Shutdown() })
	}
	return u
}

func (u *upstream) queries() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]string(nil), u.seen...)
}

// answerA is a zone in which each name has one address.
func answerA(address string) func(string, *dns.Msg) *dns.Msg {
	return func(_ string, query *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(query)
		if q := query.Question[0]; q.Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 30}, A: net.ParseIP(address)}}
		}
		return m
	}
}

// nameservers leads the addresses of resolv.conf to upstreams.
func nameservers(servers map[string]*upstream) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, server string) (net.Conn, error) {
		u, ok := servers[server]
		if !ok {
			return nil, fmt.Errorf("nobody is at %s", server)
		}
		var d net.Dialer
		return d.DialContext(ctx, network, u.addr)
	}
}

func writeFile(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// client asks the gateway from within the guest.
type client struct {
	t *testing.T
	g *usernettest.Guest
}

func (c client) exchange(network string, query *dns.Msg) *dns.Msg {
	c.t.Helper()
	conn, err := c.g.Dial(testContext(c.t), network, "192.0.2.1:53")
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	d := &dns.Conn{Conn: conn, UDPSize: 65535}
	if network == "udp" {
		d.Conn = packetConn{conn} // dns looks whether it is one
	}
	if err := d.WriteMsg(query); err != nil {
		c.t.Fatal(err)
	}
	answer, err := d.ReadMsg()
	if err != nil {
		c.t.Fatalf("%s: %v", query.Question[0].Name, err)
	}
	if answer.Id != query.Id || !answer.Response {
		c.t.Errorf("%s: header %v", query.Question[0].Name, answer.MsgHdr)
	}
	return answer
}

type packetConn struct{ net.Conn }

func (packetConn) ReadFrom([]byte) (int, net.Addr, error) { panic("not used") }
func (packetConn) WriteTo([]byte, net.Addr) (int, error)  { panic("not used") }

// ask returns the answer as words: the code, or the records' data.
func (c client) ask(network, name string, kind uint16) string {
	c.t.Helper()
	return words(c.exchange(network, new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)))
}

func words(m *dns.Msg) string {
	if m.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[m.Rcode]
	}
	var all []string
	for _, rr := range m.Answer {
		all = append(all, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, " ")
}

func dnsNetwork(t *testing.T, cfg usernet.Config) client {
	t.Helper()
	dir := t.TempDir()
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = writeFile(t, filepath.Join(dir, "resolv.conf"), "nameserver 203.0.113.1\n")
	}
	if cfg.Hosts == "" {
		cfg.Hosts = writeFile(t, filepath.Join(dir, "hosts"), "")
	}
	_, g := network(t, cfg)
	return client{t, g}
}

func TestDNSInternal(t *testing.T) {
	for _, offline := range []bool{false, true} {
		u := newUpstream(t, answerA("203.0.113.9"))
		c := dnsNetwork(t, usernet.Config{Policy: &egress.Policy{Offline: offline, All: true}, DialDNS: nameservers(map[string]*upstream{"203.0.113.1": u})})
		for _, q := range []struct {
			name string
			kind uint16
			want string
		}{
			{"host.docker.internal", dns.TypeA, "192.0.2.254"},
			{"HOST.Docker.Internal", dns.TypeA, "192.0.2.254"},
			{"host.docker.internal", dns.TypeAAAA, "none"},
			{"gateway.docker.internal", dns.TypeA, "192.0.2.254"},
			{"host.containers.internal", dns.TypeA, "192.0.2.254"},
			{"other.docker.internal", dns.TypeA, "NXDOMAIN"},
			{"docker.internal", dns.TypeA, "none"},
			{"localhost", dns.TypeA, "127.0.0.1"},
			{"x.localhost", dns.TypeAAAA, "::1"},
			{"254.2.0.192.in-addr.arpa", dns.TypePTR, "host.docker.internal."},
			{"2.2.0.192.in-addr.arpa", dns.TypePTR, "NXDOMAIN"},
		} {
			for _, network := range []string{"udp", "tcp"} {
				if got := c.ask(network, q.name, q.kind); got != q.want {
					t.Errorf("offline %v, %s %s: %s, want %s", offline, q.name, dns.TypeToString[q.kind], got, q.want)
				}
			}
		}
		want := "203.0.113.9"
		if offline {
			want = "NXDOMAIN"
		}
		if got := c.ask("udp", "example.org", dns.TypeA); got != want {
			t.Errorf("offline %v, example.org: %s, want %s", offline, got, want)
		}
		if got := u.queries(); offline && len(got) != 0 || !offline && len(got) != 1 {
			t.Errorf("offline %v: the nameserver was asked %q", offline, got)
		}
	}
}

// Queries and answers pass as they are, whatever their type.
func TestDNSForward(t *testing.T) {
	u := newUpstream(t, func(_ string, query *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(query)
		switch q := query.Question[0]; q.Qtype {
		case dns.TypeSRV:
			m.Answer = []dns.RR{&dns.SRV{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeSRV, Class: dns.ClassINET, Ttl: 7}, Priority: 1, Weight: 2, Port: 3, Target: "target.example."}}
		case dns.TypeTXT:
			do := query.IsEdns0() != nil && query.IsEdns0().Do()
			m.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{fmt.Sprint("cd=", query.CheckingDisabled, " do=", do)}}}
			m.AuthenticatedData = true
		case dns.TypeA:
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: "example.", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60}, Ns: "ns.example.", Mbox: "x.example.", Minttl: 60}}
		}
		return m
	})
	c := dnsNetwork(t, usernet.Config{DialDNS: nameservers(map[string]*upstream{"203.0.113.1": u})})
	if got := c.ask("udp", "_http._tcp.example", dns.TypeSRV); got != "1 2 3 target.example." {
		t.Errorf("SRV: %s", got)
	}
	if got := c.ask("udp", "v6.example", dns.TypeAAAA); got != "none" {
		t.Errorf("AAAA: %s", got)
	}
	missing := c.exchange("udp", new(dns.Msg).SetQuestion("nothing.example.", dns.TypeA))
	if missing.Rcode != dns.RcodeNameError || len(missing.Ns) != 1 {
		t.Errorf("missing name: %v", missing)
	}
	query := new(dns.Msg).SetQuestion("Flags.Example.", dns.TypeTXT)
	query.CheckingDisabled = true
	query.SetEdns0(4096, true)
	answer := c.exchange("udp", query)
	if words(answer) != `"cd=true do=true"` || !answer.AuthenticatedData {
		t.Errorf("flags: %v", answer)
	}
	if answer.Question[0].Name != "Flags.Example." {
		t.Errorf("spelling: %s", answer.Question[0].Name)
	}
}

// Answers that are too big for UDP come by TCP, whole.
func TestDNSBig(t *testing.T) {
	u := newUpstream(t, func(network string, query *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(query)
		for i := range 1000 {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: query.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(203, 0, byte(i>>8), byte(i))})
		}
		if network == "udp" {
			size := dns.MinMsgSize
			if opt := query.IsEdns0(); opt != nil {
				size = int(opt.UDPSize())
			}
			m.Truncate(size)
		}
		return m
	})
	c := dnsNetwork(t, usernet.Config{DialDNS: nameservers(map[string]*upstream{"203.0.113.1": u})})
	for _, edns := range []uint16{0, 512, 1232, 4096, 65535} {
		query := new(dns.Msg).SetQuestion("big.example.", dns.TypeA)
		limit := dns.MinMsgSize
		if edns > 0 {
			query.SetEdns0(edns, false)
			limit = int(edns)
		}
		answer := c.exchange("udp", query)
		answer.Compress = true // for its length on the wire
		if !answer.Truncated || answer.Len() > limit {
			t.Errorf("EDNS size %d: truncated %v, %d bytes", edns, answer.Truncated, answer.Len())
		}
		answer = c.exchange("tcp", query)
		if answer.Truncated || len(answer.Answer) != 1000 {
			t.Errorf("TCP, EDNS size %d: truncated %v, %d records", edns, answer.Truncated, len(answer.Answer))
		}
	}
}

// resolv.conf is followed as it changes, by replacement too.
func TestDNSFollowsResolvConf(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	hosts := filepath.Join(dir, "hosts")
	writeFile(t, path, "nameserver 203.0.113.1\n")
	writeFile(t, hosts, "")
	c := dnsNetwork(t, usernet.Config{ResolvConf: path, Hosts: hosts, DialDNS: nameservers(map[string]*upstream{
		"203.0.113.1": newUpstream(t, answerA("198.51.100.1")),
		"127.0.0.53":  newUpstream(t, answerA("198.51.100.2")), // the stub of systemd-resolved
		"127.0.0.1":   newUpstream(t, answerA("198.51.100.3")),
	})})
	expect := func(what, want string) {
		t.Helper()
		if got := c.ask("udp", "example.org", dns.TypeA); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	expect("at first", "198.51.100.1")
	writeFile(t, filepath.Join(dir, "stub"), "# made by systemd-resolved\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.net\n")
	if err := os.Symlink("stub", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "link"), path); err != nil {
		t.Fatal(err)
	}
	expect("after it became a symbolic link", "198.51.100.2")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	expect("without the file", "198.51.100.3")
	writeFile(t, path, "nameserver 203.0.113.1\n")
	expect("in the end", "198.51.100.1")

	writeFile(t, hosts, "198.51.100.77 example.org www # ours\n2001:db8::7 example.org\n127.0.1.1 me\n127.0.0.1 example.com\n198.51.100.78 Example.ORG\n")
	expect("with a hosts file", "198.51.100.77 198.51.100.78")
	for name, want := range map[string]string{"www": "198.51.100.77", "me": "198.51.100.1", "example.com": "198.51.100.1"} {
		if got := c.ask("tcp", name, dns.TypeA); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if got := c.ask("udp", "example.org", dns.TypeAAAA); got != "2001:db8::7" {
		t.Errorf("AAAA: %s", got)
	}
	if got := c.ask("udp", "www", dns.TypeAAAA); got != "none" {
		t.Errorf("AAAA of a name without: %s", got)
	}
}

// A nameserver that fails does not hide one that works.
func TestDNSFailover(t *testing.T) {
	t.Parallel()
	failing := newUpstream(t, func(_ string, query *dns.Msg) *dns.Msg {
		return new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
	})
	liar := newUpstream(t, func(_ string, query *dns.Msg) *dns.Msg {
		return new(dns.Msg).SetReply(new(dns.Msg).SetQuestion("another.example.", dns.TypeA))
	})
	working := newUpstream(t, answerA("198.51.100.1"))
	path := filepath.Join(t.TempDir(), "resolv.conf")
	writeFile(t, path, "nameserver 203.0.113.1\nnameserver 203.0.113.2\nnameserver 203.0.113.3\n")
	servers := map[string]*upstream{"203.0.113.2": failing, "203.0.113.3": working, "203.0.113.4": liar}
	c := dnsNetwork(t, usernet.Config{ResolvConf: path, DialDNS: nameservers(servers)})
	if got := c.ask("udp", "example.org", dns.TypeA); got != "198.51.100.1" {
		t.Errorf("got %s", got)
	}
	writeFile(t, path, "nameserver 203.0.113.1\nnameserver 203.0.113.2\noptions attempts:1\n")
	if got := c.ask("udp", "example.org", dns.TypeA); got != "SERVFAIL" {
		t.Errorf("with a failing one alone: %s", got)
	}
	writeFile(t, path, "nameserver 203.0.113.1\noptions attempts:2 use-vc\n")
	if got := c.ask("udp", "example.org", dns.TypeA); got != "SERVFAIL" {
		t.Errorf("with none: %s", got)
	}
	writeFile(t, path, "nameserver 203.0.113.4\noptions attempts:1 use-vc\n")
	if got := c.ask("udp", "example.org", dns.TypeA); got != "SERVFAIL" {
		t.Errorf("an answer to another question passed: %s", got)
	}
	if got := liar.queries(); len(got) != 1 || !strings.HasPrefix(got[0], "tcp ") {
		t.Errorf("use-vc: %q", got)
	}
}

// A guest that asks more than the host's nameservers can answer is told so at once; its
// questions do not pile up here.
func TestDNSFlood(t *testing.T) {
	release := make(chan struct{})
	up := newUpstream(t, answerA("203.0.113.80"))
	c := dnsNetwork(t, usernet.Config{DialDNS: func(ctx context.Context, network, server string) (net.Conn, error) {
		<-release
		return nameservers(map[string]*upstream{"203.0.113.1": up})(ctx, network, server)
	}})
	answerAll := sync.OnceFunc(func() { close(release) })
	defer answerAll()
	conn, err := c.g.Dial(testContext(t), "udp", "192.0.2.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	query, err := new(dns.Msg).SetQuestion("example.com.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	began := time.Now()
	for n := 0; ; n++ {
		if _, err := conn.Write(query); err != nil {
			t.Fatal(err)
		}
		if n%64 > 0 {
			continue
		}
		conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		if size, err := conn.Read(buf); err == nil {
			var m dns.Msg
			if err := m.Unpack(buf[:size]); err != nil || m.Rcode != dns.RcodeServerFailure {
				t.Errorf("%v, %v", &m, err)
			}
			break
		}
		if time.Since(began) > 8*time.Second { // later each would fail by itself
			t.Fatalf("%d questions wait for an answer", n)
		}
	}
	answerAll()
	condition.Wait(t, "an answer", func() bool { return c.ask("udp", "example.com", dns.TypeA) == "203.0.113.80" })
}

// Only plain questions reach the host's nameservers.
func TestDNSOnlyQuestions(t *testing.T) {
	u := newUpstream(t, answerA("198.51.100.1"))
	c := dnsNetwork(t, usernet.Config{DialDNS: nameservers(map[string]*upstream{"203.0.113.1": u})})
	update := new(dns.Msg).SetUpdate("example.")
	if got := words(c.exchange("udp", update)); got != "NOTIMP" {
		t.Errorf("update: %s", got)
	}
	notify := new(dns.Msg).SetNotify("example.")
	if got := words(c.exchange("udp", notify)); got != "NOTIMP" {
		t.Errorf("notify: %s", got)
	}
	for _, kind := range []uint16{dns.TypeAXFR, dns.TypeIXFR} {
		if got := c.ask("tcp", "example", kind); got != "REFUSED" {
			t.Errorf("%s: %s", dns.TypeToString[kind], got)
		}
	}
	two := new(dns.Msg).SetQuestion("example.", dns.TypeA)
	two.Question = append(two.Question, dns.Question{Name: "example.", Qtype: dns.TypeAAAA, Qclass: dns.ClassINET})
	if got := words(c.exchange("udp", two)); got != "FORMERR" {
		t.Errorf("two questions: %s", got)
	}
	if got := u.queries(); len(got) != 0 {
		t.Errorf("the nameserver was asked %q", got)
	}
	// Bytes that are no DNS at all, then a question: the server lives.
	conn, err := c.g.Dial(testContext(t), "udp", "192.0.2.1:53")
	if err != nil {
		t.Fatal(err)
	}
	conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	conn.Write(nil)
	conn.Close()
	if got := c.ask("udp", "example.org", dns.TypeA); got != "198.51.100.1" {
		t.Errorf("after nonsense: %s", got)
	}
}

func TestParseHosts(t *testing.T) {
	got, err := usernet.ParseHosts(strings.NewReader(
		"127.0.0.1 localhost\n::1 localhost\n\n# 10.0.0.1 no\n10.0.0.2\tA.example b.example. # c\nbad.address x\n10.0.0.3\nfe80::1%eth0 z\n0.0.0.0 blocked\n::ffff:10.0.0.4 a.example\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]netip.Addr{
		"a.example.": {netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.4")},
		"b.example.": {netip.MustParseAddr("10.0.0.2")},
	}
	if diff := cmp.Diff(want, map[string][]netip.Addr(got), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}
