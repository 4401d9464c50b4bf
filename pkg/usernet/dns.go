package usernet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
)

const (
	dnsPort = 53
	// dnsQueries bounds the queries under way; each holds a socket. dnsWaiting bounds
	// them with those that wait for one, dnsConns the guest's connections over TCP.
	dnsQueries = 256
	dnsWaiting = 1024
	dnsConns   = 256
	// dnsTimeout bounds one query with all its attempts; a guest's resolver
	// gives up after 5 s by default and asks again.
	dnsTimeout = 9 * time.Second
	// dnsAttempt bounds the wait for one nameserver.
	dnsAttempt = 3 * time.Second
	// dnsIdle closes the guest's DNS connections over TCP.
	dnsIdle = 30 * time.Second
	// dnsUpstreamSize is the largest UDP answer that nameservers are asked for
	// (DNS flag day 2020).
	dnsUpstreamSize = 1232
	dnsInternalTTL  = 60 // seconds
)

// resolver answers the guest's DNS queries: names of this network and of the
// host's hosts file by itself, all others by passing the query to the host's
// nameservers as it is, so that VPNs and split DNS work as they do on the
// host. Only well-formed questions pass, only to port 53 of the nameservers
// that resolv.conf names: it is no way to other services of the host.
type resolver struct {
	s     *Stack
	conf  *resolvConf
	hosts *hostsFile
	dial  func(ctx context.Context, network, server string) (net.Conn, error)
	slots chan struct{} // of queries under way
	queue chan struct{} // of these and of those that wait
}

func newResolver(s *Stack) *resolver {
	r := &resolver{
		s:     s,
		conf:  &resolvConf{path: s.cfg.ResolvConf},
		hosts: &hostsFile{path: s.cfg.Hosts},
		dial:  s.cfg.DialDNS,
		slots: make(chan struct{}, dnsQueries),
		queue: make(chan struct{}, dnsWaiting),
	}
	if r.dial == nil {
		r.dial = func(ctx context.Context, network, server string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, net.JoinHostPort(server, fmt.Sprint(dnsPort)))
		}
	}
	return r
}

// serve starts the two servers on the gateway's port 53.
func (r *resolver) serve() error {
	at := netip.AddrPortFrom(Gateway, dnsPort)
	packets, err := socket.ListenUDP(r.s.net, at)
	if err != nil {
		return fmt.Errorf("serve DNS: %w", err)
	}
	listener, err := socket.ListenTCP(r.s.net, at)
	if err != nil {
		_ = packets.Close()
		return fmt.Errorf("serve DNS: %w", err)
	}
	for _, server := range []*dns.Server{
		{PacketConn: packets, Handler: r.handler("udp"), UDPSize: dns.MaxMsgSize},
		{Listener: netutil.LimitListener(listener, dnsConns), Handler: r.handler("tcp"), IdleTimeout: func() time.Duration { return dnsIdle }, MaxTCPQueries: -1},
	} {
		server.MsgAcceptFunc = acceptQuery
		context.AfterFunc(r.s.ctx, func() {
			_ = server.Shutdown() // says no if it has not begun
			_ = packets.Close()
			_ = listener.Close()
		})
		r.s.wg.Go(func() {
			if err := server.ActivateAndServe(); err != nil && r.s.ctx.Err() == nil {
				r.s.log.Error("DNS server ended", "error", err)
			}
		})
	}
	return nil
}

// acceptQuery lets only single questions pass, before anything is parsed.
func acceptQuery(h dns.Header) dns.MsgAcceptAction {
	if action := dns.DefaultMsgAcceptFunc(h); action != dns.MsgAccept {
		return action
	}
	if opcode := int(h.Bits>>11) & 0xf; opcode != dns.OpcodeQuery {
		return dns.MsgRejectNotImplemented
	}
	return dns.MsgAccept
}

func (r *resolver) handler(network string) dns.HandlerFunc {
	return func(w dns.ResponseWriter, query *dns.Msg) {
		answer := r.answer(r.s.ctx, network, query)
		answer.Compress = true // as nameservers do
		if network == "udp" {
			answer.Truncate(udpSize(query))
		} else {
			answer.Truncate(dns.MaxMsgSize)
		}
		if err := w.WriteMsg(answer); err != nil {
			r.s.log.Debug("DNS answer lost", "error", err)
		}
	}
}

// udpSize is the largest UDP answer that a query allows.
func udpSize(query *dns.Msg) int {
	if opt := query.IsEdns0(); opt != nil {
		return max(dns.MinMsgSize, int(opt.UDPSize()))
	}
	return dns.MinMsgSize
}

// answer finds the answer to one query that came over network.
func (r *resolver) answer(ctx context.Context, network string, query *dns.Msg) *dns.Msg {
	if len(query.Question) != 1 {
		return new(dns.Msg).SetRcode(query, dns.RcodeFormatError)
	}
	q := query.Question[0]
	switch q.Qtype {
	case dns.TypeAXFR, dns.TypeIXFR, dns.TypeMAILA, dns.TypeMAILB:
		return new(dns.Msg).SetRcode(query, dns.RcodeRefused)
	}
	if m := internalAnswer(query); m != nil {
		return m
	}
	if !r.s.policy.answersName(q.Name) {
		return blockedAnswer(query)
	}
	m := r.lookUp(ctx, network, query)
	r.s.policy.answers.note(q.Name, m) // before the VM knows it
	return m
}

// renew looks a name up on behalf of the policy.
func (r *resolver) renew(ctx context.Context, name string) {
	query := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)
	query.SetEdns0(dnsUpstreamSize, false)
	m := r.lookUp(ctx, "udp", query)
	if m.Truncated {
		m = r.lookUp(ctx, "tcp", query)
	}
	r.s.policy.answers.note(name, m)
}

// lookUp answers as the host would.
func (r *resolver) lookUp(ctx context.Context, network string, query *dns.Msg) *dns.Msg {
	if m := r.hosts.answer(query); m != nil {
		return m
	}
	select {
	case r.queue <- struct{}{}:
		defer func() { <-r.queue }()
	default:
		return new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
	}
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
	}
	m, err := r.forward(ctx, network, query)
	if err != nil {
		r.s.log.Debug("DNS query failed", "name", query.Question[0].Name, "error", err)
		return new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
	}
	return m
}

// forward asks the host's nameservers in turn.
func (r *resolver) forward(ctx context.Context, network string, query *dns.Msg) (*dns.Msg, error) {
	conf, err := r.conf.read()
	if err != nil {
		return nil, err
	}
	var last *dns.Msg
	err = errors.New("no nameserver is configured on the host")
	for range conf.attempts {
		for _, server := range conf.servers {
			if ctx.Err() != nil {
				return last, err
			}
			m, askErr := r.ask(ctx, network, server, query, conf.tcp)
			if askErr != nil {
				err = askErr
				continue
			}
			if m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError {
				return m, nil
			}
			last, err = m, nil // SERVFAIL, REFUSED: another may know better
		}
		if last != nil {
			return last, nil
		}
	}
	return last, err
}

// ask puts a query to one nameserver. The guest's header bits and options pass
// unchanged, but for the size of UDP answers and the query's number.
func (r *resolver) ask(ctx context.Context, network, server string, query *dns.Msg, onlyTCP bool) (*dns.Msg, error) {
	if onlyTCP {
		network = "tcp"
	}
	ctx, cancel := context.WithTimeout(ctx, dnsAttempt)
	defer cancel()
	up := query.Copy()
	up.Id = dns.Id()
	client := dns.Client{Net: network, UDPSize: dns.MaxMsgSize}
	if opt := up.IsEdns0(); opt != nil && network == "udp" {
		opt.SetUDPSize(min(max(opt.UDPSize(), dns.MinMsgSize), dnsUpstreamSize))
	}
	conn, err := r.dial(ctx, network, server)
	if err != nil {
		return nil, fmt.Errorf("ask nameserver %s: %w", server, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	answer, _, err := client.ExchangeWithConnContext(ctx, up, &dns.Conn{Conn: conn, UDPSize: dns.MaxMsgSize})
	if err != nil {
		return nil, fmt.Errorf("ask nameserver %s: %w", server, err)
	}
	if len(answer.Question) != 1 || !sameQuestion(answer.Question[0], query.Question[0]) {
		return nil, fmt.Errorf("ask nameserver %s: answer to another question", server)
	}
	answer.Id = query.Id
	answer.Question = query.Question // in the guest's spelling
	return answer, nil
}

func sameQuestion(a, b dns.Question) bool {
	return a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}

// internalNames are the names of this network. All mean the host, which
// answers only on what devvm.toml opens.
var internalNames = map[string]bool{
	"host.docker.internal.":     true,
	"gateway.docker.internal.":  true,
	"host.containers.internal.": true,
}

// internalZones are answered here alone: nobody else knows their names.
var internalZones = []string{"docker.internal.", "containers.internal.", "2.0.192.in-addr.arpa.", "localhost."}

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
		return addressAnswer(query, []netip.Addr{HostAlias})
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
