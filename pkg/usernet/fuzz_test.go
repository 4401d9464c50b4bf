package usernet

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/miekg/dns"

	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/vmnet"
)

// FuzzDHCP: no datagram breaks the DHCP server, and an answer gives nobody anything but
// the one address.
func FuzzDHCP(f *testing.F) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}
	discover, err := dhcpv4.NewDiscovery(mac)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(discover.ToBytes(), false)
	for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform, dhcpv4.MessageTypeRelease} {
		m, err := dhcpv4.New(dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(mac), dhcpv4.WithClientIP(vmnet.Guest.AsSlice()))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.ToBytes(), true)
	}
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, hasAddress bool) {
		from := netip.AddrPortFrom(netip.IPv4Unspecified(), dhcpClientPort)
		if hasAddress {
			from = netip.AddrPortFrom(vmnet.Guest, dhcpClientPort)
		}
		answer, to, err := dhcpAnswer(b, from, vmnet.DefaultMTU)
		if err != nil {
			return
		}
		if to != from && to.Addr() != broadcast4 {
			t.Errorf("an answer goes to %s", to)
		}
		m, err := dhcpv4.FromBytes(answer)
		if err != nil {
			t.Fatalf("the answer is none: %v", err)
		}
		if m.OpCode != dhcpv4.OpcodeBootReply || !m.ServerIdentifier().Equal(vmnet.Gateway.AsSlice()) {
			t.Errorf("answer: %s", m.Summary())
		}
		if !m.YourIPAddr.IsUnspecified() && !m.YourIPAddr.Equal(vmnet.Guest.AsSlice()) {
			t.Errorf("the answer gives away %s", m.YourIPAddr)
		}
	})
}

// fuzzDNS is a resolver whose nameserver says what it is told to.
type fuzzDNS struct {
	*resolver
	mu     sync.Mutex
	answer []byte
	asked  bool
}

func newFuzzDNS(f *testing.F, p *egress.Policy) *fuzzDNS {
	dir := f.TempDir()
	conf, hosts := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "hosts")
	for path, text := range map[string]string{conf: "nameserver 192.0.2.53\noptions attempts:1\n", hosts: ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			f.Fatal(err)
		}
	}
	d := &fuzzDNS{}
	s, err := New(Config{Policy: p, ResolvConf: conf, Hosts: hosts, DialDNS: d.dial})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	d.resolver = s.dns
	return d
}

// dial leads to a nameserver that answers once, with the question's number.
func (d *fuzzDNS) dial(_ context.Context, network, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		buf := make([]byte, 65536)
		n, err := theirs.Read(buf)
		if err != nil {
			return
		}
		question := buf[:n]
		d.mu.Lock()
		answer := bytes.Clone(d.answer)
		d.asked = true
		d.mu.Unlock()
		if network == "tcp" {
			question = question[2:]
		}
		if len(answer) >= 2 {
			copy(answer, question[:2])
		}
		if network == "tcp" {
			answer = append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)
		}
		theirs.SetWriteDeadline(time.Now().Add(time.Second))
		theirs.Write(answer)
	}()
	return ours, nil
}

// FuzzDNS: no question of the guest's and no answer of a nameserver's breaks the resolver;
// what the guest gets answers its question, and fits; a question that the policy does not
// let out reaches no nameserver.
func FuzzDNS(f *testing.F) {
	question := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
	question.SetEdns0(1232, true)
	reply := new(dns.Msg).SetReply(question)
	for _, text := range []string{"www.example.com. 60 IN CNAME a.example.com.", "a.example.com. 60 IN A 203.0.113.1", "a.example.com. 60 IN AAAA 2001:db8::1", "a.example.com. 60 IN TXT x"} {
		rr, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		reply.Answer = append(reply.Answer, rr)
	}
	bytesOf := func(m *dns.Msg) []byte {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	reply.Compress = true
	f.Add(bytesOf(question), bytesOf(reply), false)
	f.Add(bytesOf(question), bytesOf(reply), true)
	f.Add(bytesOf(new(dns.Msg).SetQuestion("host.docker.internal.", dns.TypeANY)), []byte{}, false)
	f.Add(bytesOf(new(dns.Msg).SetUpdate("example.")), []byte("no"), true)
	rule, err := egress.ParseRule("*.example.com")
	if err != nil {
		f.Fatal(err)
	}
	d := newFuzzDNS(f, &egress.Policy{Rules: []egress.Rule{rule}})
	f.Fuzz(func(t *testing.T, question, answer []byte, tcp bool) {
		d.mu.Lock()
		d.answer, d.asked = answer, false
		d.mu.Unlock()
		query, refused := parseQuery(question)
		got, size := refused, dns.MinMsgSize
		if query != nil {
			network := "udp"
			if size = udpSize(query); tcp {
				network, size = "tcp", dns.MaxMsgSize
			}
			got = d.reply(t.Context(), network, query)
		}
		if got == nil {
			if query != nil {
				t.Error("no answer")
			}
			return
		}
		if len(got) < dnsHeaderSize || len(got) > size || !bytes.Equal(got[:2], question[:2]) || got[2]&0x80 == 0 {
			t.Errorf("%x is no answer to %x within %d bytes", got, question, size)
		}
		d.mu.Lock()
		asked := d.asked
		d.mu.Unlock()
		if asked && !d.s.policy.now().AnswersName(query.Question[0].Name) {
			t.Errorf("the nameserver was asked for %q", query.Question[0].Name)
		}
	})
}
