package usernet

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"

	"github.com/devvm/devvm/pkg/vmnet"
)

// internalNames are the names of this network. All mean the host, which
// answers only on what devvm.toml opens.
var internalNames = map[string]bool{
	"host.docker.internal.":     true,
	"gateway.docker.internal.":  true,
	"host.containers.internal.": true,
}

// internalZones are answered here alone: nobody else knows their names.
var internalZones = []string{
	"docker.internal.", "containers.internal.", "localhost.",
	"2.0.192.in-addr.arpa.", "0.0.0.0.d.6.6.7.6.7.5.6.4.6.d.f.ip6.arpa.",
}

// internalAnswer answers for this network, and is nil for other names.
func internalAnswer(query *dns.Msg) *dns.Msg {
	q := query.Question[0]
	name := strings.ToLower(q.Name)
	inside := false
	for _, zone := range internalZones {
		inside = inside || dns.IsSubDomain(zone, name)
	}
	if !inside || q.Qclass != dns.ClassINET {
		return nil
	}
	switch {
	case internalNames[name]:
		return addressAnswer(query, []netip.Addr{vmnet.HostAlias})
	case dns.IsSubDomain("localhost.", name): // RFC 6761, 6.3
		return addressAnswer(query, []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()})
	case name == "254.2.0.192.in-addr.arpa." && q.Qtype == dns.TypePTR:
		m := newAnswer(query)
		m.Answer = []dns.RR{&dns.PTR{Hdr: answerHeader(q, dns.TypePTR), Ptr: "host.docker.internal."}}
		return m
	case internalZonesApex(name):
		return newAnswer(query) // exists, has no such record
	}
	m := newAnswer(query)
	m.Rcode = dns.RcodeNameError
	return m
}

func internalZonesApex(name string) bool {
	for _, zone := range internalZones {
		if zone == name {
			return true
		}
	}
	return false
}

// blockedAnswer says that a name does not exist which the VM may not ask for,
// and why (RFC 8914, 4.16). "Refused" would be truer, and makes C libraries ask
// again or wait for their time-out.
func blockedAnswer(query *dns.Msg) *dns.Msg {
	m := newAnswer(query)
	m.Rcode = dns.RcodeNameError
	if opt := m.IsEdns0(); opt != nil {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeBlocked, ExtraText: string(refuseEgress)})
	}
	return m
}

// newAnswer starts an answer of our own.
func newAnswer(query *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(query)
	m.RecursionAvailable = true
	if opt := query.IsEdns0(); opt != nil {
		m.SetEdns0(dnsUpstreamSize, opt.Do())
	}
	return m
}

func answerHeader(q dns.Question, t uint16) dns.RR_Header {
	return dns.RR_Header{Name: q.Name, Rrtype: t, Class: dns.ClassINET, Ttl: dnsInternalTTL}
}

// addressAnswer answers with those addresses that the question asks for, or
// with none.
func addressAnswer(query *dns.Msg, addrs []netip.Addr) *dns.Msg {
	m, q := newAnswer(query), query.Question[0]
	for _, a := range addrs {
		switch {
		case a.Is4() && (q.Qtype == dns.TypeA || q.Qtype == dns.TypeANY):
			m.Answer = append(m.Answer, &dns.A{Hdr: answerHeader(q, dns.TypeA), A: a.AsSlice()})
		case a.Is6() && (q.Qtype == dns.TypeAAAA || q.Qtype == dns.TypeANY):
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: answerHeader(q, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	return m
}
