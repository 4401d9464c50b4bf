package usernet

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
)

const (
	dnsPort = 53
	// dnsQueries bounds the queries under way; each holds a socket, and one over TCP up to
	// 64 KiB of answer. dnsWaiting bounds them with those that wait for one.
	dnsQueries    = 128
	dnsTCPQueries = 16
	dnsWaiting    = 256
	// dnsTimeout bounds one query with all its attempts; a guest's resolver
	// gives up after 5 s by default and asks again.
	dnsTimeout = 9 * time.Second
	// dnsAttempt bounds the wait for one nameserver.
	dnsAttempt = 3 * time.Second
	// dnsIdle closes the guest's DNS connections over TCP when they ask nothing,
	// dnsPatience when they do not take an answer. dnsBuffer is what the stack holds of one.
	dnsIdle     = 30 * time.Second
	dnsPatience = 10 * time.Second
	dnsBuffer   = 16 << 10
	// dnsUpstreamSize is the largest UDP answer that nameservers are asked for
	// (DNS flag day 2020).
	dnsUpstreamSize = 1232
	// dnsMaxQuery is more than any question with its options needs, in bytes, and
	// dnsMaxDatagram more than nameservers send that are asked for dnsUpstreamSize.
	dnsMaxQuery    = 4096
	dnsMaxDatagram = 4096
	dnsHeaderSize  = 12
	dnsInternalTTL = 60 // seconds
)

// resolver answers the guest's DNS queries: names of this network and of the
// host's hosts file by itself, all others by passing the query to the host's
// nameservers as it is, so that VPNs and split DNS work as they do on the
// host. Only well-formed questions pass, only to port 53 of the nameservers
// that resolv.conf names: it is no way to other services of the host.
type resolver struct {
	s        *Stack
	conf     *resolvConf
	hosts    *hostsFile
	dial     func(ctx context.Context, network, server string) (net.Conn, error)
	slots    chan struct{} // of queries under way
	tcpSlots chan struct{} // of those over TCP
	queue    chan struct{} // of all, and of those that wait
}

func newResolver(s *Stack) *resolver {
	r := &resolver{
		s:        s,
		conf:     &resolvConf{path: s.cfg.ResolvConf},
		hosts:    &hostsFile{path: s.cfg.Hosts},
		dial:     s.cfg.DialDNS,
		slots:    make(chan struct{}, dnsQueries),
		tcpSlots: make(chan struct{}, dnsTCPQueries),
		queue:    make(chan struct{}, dnsWaiting),
	}
	if r.dial == nil {
		r.dial = func(ctx context.Context, network, server string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, net.JoinHostPort(server, fmt.Sprint(dnsPort)))
		}
	}
	return r
}

// serveDatagram answers a query over UDP, on a goroutine of its own while there are not
// too many.
func (r *resolver) serveDatagram(id stack.TransportEndpointID, b []byte) {
	query, refused := parseQuery(b)
	if query == nil && refused == nil {
		return
	}
	answer := func() {
		if query != nil {
			refused = r.reply(r.s.ctx, "udp", query)
		}
		if err := r.s.answer(id, sourceIn(id), refused); err != nil {
			r.s.log.Debug("DNS answer lost", "error", err)
		}
	}
	if query == nil {
		answer()
		return
	}
	select {
	case r.queue <- struct{}{}:
		if !r.s.begin() {
			<-r.queue
			return
		}
		go func() {
			defer r.s.wg.Done()
			defer func() { <-r.queue }()
			answer()
		}()
	default: // the guest is told at once
		refused = pack(new(dns.Msg).SetRcode(query, dns.RcodeServerFailure), dns.MinMsgSize)
		query = nil
		answer()
	}
}

// serveStream answers queries over TCP, one after the other.
func (r *resolver) serveStream(_ context.Context, accept func() (*socket.TCP, error)) error {
	conn, err := accept()
	if err != nil {
		return err
	}
	defer context.AfterFunc(r.s.ctx, func() { abort(conn) })()
	for {
		if err := conn.SetDeadline(time.Now().Add(dnsIdle)); err != nil {
			return err
		}
		b, err := readMessage(conn, dnsMaxQuery)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		query, answer := parseQuery(b)
		if query != nil {
			answer = r.reply(r.s.ctx, "tcp", query)
		}
		if answer == nil {
			return errNotDNS
		}
		if err := conn.SetDeadline(time.Now().Add(dnsPatience)); err != nil {
			return err
		}
		length := binary.BigEndian.AppendUint16(nil, uint16(len(answer)))
		if _, err := (&net.Buffers{length, answer}).WriteTo(conn); err != nil {
			return err
		}
	}
}

// errNotDNS says that a message is none that gets an answer.
var errNotDNS = errors.New("not a DNS query")

// readMessage reads a message with its length in front (RFC 1035, 4.2.2).
func readMessage(r io.Reader, most int) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > most {
		return nil, fmt.Errorf("message of %d bytes, at most %d are taken", n, most)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, cutShort(err)
}

// parseQuery returns what the guest asks, or else the answer that refuses it. Both are
// nil for what gets no answer. Only single questions pass, before anything is parsed.
func parseQuery(b []byte) (*dns.Msg, []byte) {
	if len(b) < dnsHeaderSize || len(b) > dnsMaxQuery {
		return nil, nil
	}
	field := func(i int) uint16 { return binary.BigEndian.Uint16(b[2*i:]) }
	h := dns.Header{Id: field(0), Bits: field(1), Qdcount: field(2), Ancount: field(3), Nscount: field(4), Arcount: field(5)}
	refuse := new(dns.Msg)
	refuse.Id, refuse.Response, refuse.Opcode = h.Id, true, int(h.Bits>>11)&0xf
	switch dns.DefaultMsgAcceptFunc(h) {
	case dns.MsgIgnore:
		return nil, nil
	case dns.MsgRejectNotImplemented:
		refuse.Rcode = dns.RcodeNotImplemented
	case dns.MsgReject:
		refuse.Rcode = dns.RcodeFormatError
	case dns.MsgAccept:
		query := new(dns.Msg)
		switch {
		case refuse.Opcode != dns.OpcodeQuery:
			refuse.Rcode = dns.RcodeNotImplemented
		case query.Unpack(b) != nil || len(query.Question) != 1:
			refuse.Rcode = dns.RcodeFormatError
		default:
			return query, nil
		}
	}
	return nil, pack(refuse, dns.MinMsgSize)
}

// pack returns a message of at most size bytes, truncated if need be; nil if it is none.
func pack(m *dns.Msg, size int) []byte {
	m.Compress = true // as nameservers do
	m.Truncate(size)
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// reply is the answer to one query that came over network, or a failure.
func (r *resolver) reply(ctx context.Context, network string, query *dns.Msg) []byte {
	size := dns.MaxMsgSize
	if network == "udp" {
		size = udpSize(query)
	}
	if m := r.answer(query); m != nil {
		return pack(m, size)
	}
	raw := r.lookUp(ctx, network, query)
	if raw == nil {
		return pack(new(dns.Msg).SetRcode(query, dns.RcodeServerFailure), size)
	}
	r.s.policy.answers.note(query.Question[0].Name, addressRecords(raw)) // before the VM knows it
	if len(raw) > size {
		m := new(dns.Msg).SetReply(query)
		m.RecursionAvailable, m.Truncated = true, true
		return pack(m, size)
	}
	binary.BigEndian.PutUint16(raw, query.Id)
	return raw
}

// manyRecords bounds what is read of an answer.
const manyRecords = 1024

// addressRecords are the addresses and aliases that an answer of a nameserver's has. The
// rest of it stays as it came: names are compressed, and 64 KiB could become megabytes.
func addressRecords(raw []byte) *dns.Msg {
	m := new(dns.Msg)
	var p dnsmessage.Parser
	head, err := p.Start(raw)
	if err != nil || p.SkipAllQuestions() != nil {
		m.Rcode = dns.RcodeServerFailure
		return m
	}
	m.Rcode = int(head.RCode)
	for range manyRecords {
		h, err := p.AnswerHeader()
		if err != nil {
			break
		}
		header := dns.RR_Header{Rrtype: uint16(h.Type), Class: uint16(h.Class), Ttl: h.TTL}
		switch h.Type {
		case dnsmessage.TypeA:
			if a, err := p.AResource(); err == nil {
				header.Name = h.Name.String()
				m.Answer = append(m.Answer, &dns.A{Hdr: header, A: a.A[:]})
				continue
			}
		case dnsmessage.TypeAAAA:
			if a, err := p.AAAAResource(); err == nil {
				header.Name = h.Name.String()
				m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: a.AAAA[:]})
				continue
			}
		case dnsmessage.TypeCNAME:
			if c, err := p.CNAMEResource(); err == nil {
				header.Name = h.Name.String()
				m.Answer = append(m.Answer, &dns.CNAME{Hdr: header, Target: c.CNAME.String()})
				continue
			}
		default:
			if p.SkipAnswer() == nil {
				continue
			}
		}
		break // malformed
	}
	return m
}

// udpSize is the largest UDP answer that a query allows.
func udpSize(query *dns.Msg) int {
	if opt := query.IsEdns0(); opt != nil {
		return max(dns.MinMsgSize, int(opt.UDPSize()))
	}
	return dns.MinMsgSize
}

// answer finds the answer to a query that no nameserver is asked for; else it is nil.
func (r *resolver) answer(query *dns.Msg) *dns.Msg {
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
	m := r.hosts.answer(query)
	if m != nil {
		r.s.policy.answers.note(q.Name, m)
	}
	return m
}

// renew looks a name up on behalf of the policy.
func (r *resolver) renew(ctx context.Context, name string, kind uint16) {
	query := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	query.SetEdns0(dnsUpstreamSize, false)
	m := r.hosts.answer(query)
	if m == nil {
		raw := r.lookUp(ctx, "udp", query)
		if truncated(raw) {
			raw = r.lookUp(ctx, "tcp", query)
		}
		m = addressRecords(raw)
	}
	r.s.policy.answers.note(name, m)
}

// lookUp asks the nameservers, when it is this query's turn. It returns their answer as
// it came, or nil.
func (r *resolver) lookUp(ctx context.Context, network string, query *dns.Msg) []byte {
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return nil
	}
	raw, err := r.forward(ctx, network, query)
	if err != nil {
		r.s.log.Debug("DNS query failed", "name", query.Question[0].Name, "error", err)
	}
	return raw
}

// forward asks the host's nameservers in turn.
func (r *resolver) forward(ctx context.Context, network string, query *dns.Msg) ([]byte, error) {
	conf, err := r.conf.read()
	if err != nil {
		return nil, err
	}
	var last []byte
	err = errors.New("no nameserver is configured on the host")
	for range conf.attempts {
		for _, server := range conf.servers {
			if ctx.Err() != nil {
				return last, err
			}
			raw, askErr := r.ask(ctx, network, server, query, conf.tcp)
			if askErr != nil {
				err = askErr
				continue
			}
			if code := rcode(raw); code == dns.RcodeSuccess || code == dns.RcodeNameError {
				return raw, nil
			}
			last, err = raw, nil // SERVFAIL, REFUSED: another may know better
		}
		if last != nil {
			return last, nil
		}
	}
	return last, err
}

// ask puts a query to one nameserver. The guest's header bits and options pass
// unchanged, but for the size of UDP answers and the query's number.
func (r *resolver) ask(ctx context.Context, network, server string, query *dns.Msg, onlyTCP bool) ([]byte, error) {
	if onlyTCP {
		network = "tcp"
	}
	if network == "tcp" {
		select {
		case r.tcpSlots <- struct{}{}:
			defer func() { <-r.tcpSlots }()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, dnsAttempt)
	defer cancel()
	up := query.Copy()
	up.Id = dns.Id()
	if opt := up.IsEdns0(); opt != nil && network == "udp" {
		opt.SetUDPSize(min(max(opt.UDPSize(), dns.MinMsgSize), dnsUpstreamSize))
	}
	question, err := up.Pack()
	if err != nil {
		return nil, fmt.Errorf("ask nameserver %s: %w", server, err)
	}
	conn, err := r.dial(ctx, network, server)
	if err != nil {
		return nil, fmt.Errorf("ask nameserver %s: %w", server, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	answer, err := exchange(conn, network, question)
	if err == nil && !isAnswer(answer, query.Question[0]) {
		err = errors.New("answer to another question")
	}
	if err != nil {
		return nil, fmt.Errorf("ask nameserver %s: %w", server, err)
	}
	return answer, nil
}

// exchange puts a question and waits for the answer that has its number. The
// connection's deadline bounds it.
func exchange(conn net.Conn, network string, question []byte) ([]byte, error) {
	message := question
	if network == "tcp" {
		message = append(binary.BigEndian.AppendUint16(nil, uint16(len(question))), question...)
	}
	if _, err := conn.Write(message); err != nil {
		return nil, err
	}
	for {
		var answer []byte
		var err error
		if network == "tcp" {
			answer, err = readMessage(conn, dns.MaxMsgSize)
		} else {
			buf := make([]byte, dnsMaxDatagram)
			var n int
			n, err = conn.Read(buf)
			answer = buf[:n]
		}
		if err != nil {
			return nil, cutShort(err)
		}
		if len(answer) >= dnsHeaderSize && bytes.Equal(answer[:2], question[:2]) {
			return answer, nil
		}
	}
}

// isAnswer tells whether a message is one, to that question.
func isAnswer(raw []byte, q dns.Question) bool {
	if raw[2]&0x80 == 0 || binary.BigEndian.Uint16(raw[4:]) != 1 {
		return false
	}
	name, end, err := dns.UnpackDomainName(raw, dnsHeaderSize)
	if err != nil || len(raw) < end+4 {
		return false
	}
	return strings.EqualFold(name, q.Name) && binary.BigEndian.Uint16(raw[end:]) == q.Qtype && binary.BigEndian.Uint16(raw[end+2:]) == q.Qclass
}

// rcode and truncated read the header of an answer.
func rcode(raw []byte) int      { return int(raw[3] & 0xf) }
func truncated(raw []byte) bool { return raw != nil && raw[2]&2 != 0 }

// cutShort is the error of a message of which a part is missing.
func cutShort(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
