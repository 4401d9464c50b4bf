package usernet

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/devvm/devvm/pkg/egress"
)

// Root in the VM decides how much there is to remember, but not how much is
// remembered.
func TestAnswersAreBounded(t *testing.T) {
	now := time.Unix(0, 0)
	a := newAnswers(func() time.Time { return now })
	a.limit = 100
	one := netip.MustParseAddr("203.0.113.1")
	for i := range 1000 {
		a.add(fmt.Sprintf("n%d.example", i), one, now.Add(time.Hour))
	}
	if got := a.names(one); len(got) != namesEach || got[0] != "n999.example" || a.order.Len() != namesEach {
		t.Errorf("%d names, first %q", len(got), got)
	}
	for i := range 1000 {
		a.add("many.example", netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), now.Add(time.Hour))
	}
	if a.order.Len() != 100 || len(a.byAddr) != 100 || len(a.names(one)) != 0 {
		t.Errorf("%d leases of %d addresses", a.order.Len(), len(a.byAddr))
	}
	last := netip.AddrFrom4([4]byte{10, 0, 3, 0xe7})
	a.add("many.example", last, now.Add(time.Minute)) // a shorter life takes nothing away
	now = now.Add(30 * time.Minute)
	if len(a.names(last)) != 1 || a.stale(last, func(string) bool { return true }) != "" {
		t.Error("a lease has ended early")
	}
	now = now.Add(time.Hour)
	if len(a.names(last)) != 0 || a.stale(last, func(string) bool { return false }) != "" || a.stale(last, func(string) bool { return true }) != "many.example" {
		t.Error("a lease has not ended")
	}
	if a.stale(last, func(string) bool { return true }) != "" {
		t.Error("the name is asked for again at once")
	}
}

func TestLeases(t *testing.T) {
	now := time.Unix(0, 0)
	a := newAnswers(func() time.Time { return now })
	for ttl, want := range map[uint32]time.Duration{0: minLease, 60: minLease, 3600: time.Hour, 1 << 31: maxLease} {
		m := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
		addr := netip.AddrFrom4([4]byte{10, 0, 0, byte(want / time.Minute)})
		m.Answer = []dns.RR{
			&dns.CNAME{Hdr: dns.RR_Header{Name: "A.example.", Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: ttl}, Target: "B.example."},
			&dns.A{Hdr: dns.RR_Header{Name: "b.EXAMPLE.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1 << 31}, A: addr.AsSlice()},
		}
		a.note("a.Example.", m)
		if l := a.byAddr[addr]; len(l) != 1 || l[0].name != "a.example" || l[0].until.Sub(now) != want {
			t.Errorf("TTL %d: %+v", ttl, l)
		}
		m.Rcode = dns.RcodeNameError
		a.note("c.example.", m)
		if len(a.byAddr[addr]) != 1 {
			t.Error("a name that does not exist has an address")
		}
	}
}

func TestJournalIsBounded(t *testing.T) {
	now := time.Unix(0, 0)
	j := newJournal(func() time.Time { return now })
	j.limit = 10
	addr := netip.MustParseAddr("203.0.113.1")
	j.note("tcp", "good.example", addr, 443, allowed)
	for i := range 1000 {
		j.note("dns", fmt.Sprintf("x%d.example", i), netip.Addr{}, 0, refuseEgress)
	}
	rows, seq, forgotten := j.since(0)
	if len(rows) != 11 || len(j.rows) != 11 || rows[0].name != "good.example" || rows[10].name != "x999.example" || forgotten != 990 || seq != 1001 {
		t.Errorf("%d rows, %d forgotten, %d", len(rows), forgotten, seq)
	}
	j.note("tcp", "good.example", addr, 443, allowed)
	if rows, _, _ = j.since(seq); len(rows) != 1 || rows[0].count != 2 {
		t.Errorf("%+v", rows)
	}
}

// A connection that was decided about under a policy does not begin under one
// that does not allow it.
func TestPolicyChangesMeanwhile(t *testing.T) {
	p := &policy{log: slog.New(slog.DiscardHandler), current: egress.Default(), flows: map[*flow]struct{}{}, refused: map[refusal]uint64{}}
	p.answers, p.journal = newAnswers(time.Now), newJournal(time.Now)
	cut := 0
	one := &flow{decision{to: netip.MustParseAddrPort("203.0.113.1:80")}, func() { cut++ }}
	two := &flow{decision{to: netip.MustParseAddrPort("203.0.113.2:80")}, func() { cut++ }}
	if p.enter("tcp", one) != allowed || p.set(egress.Policy{}) != 1 || cut != 1 {
		t.Errorf("cut %d", cut)
	}
	p.leave(one)
	if p.enter("tcp", two) != refuseEgress || p.set(egress.Policy{}) != 0 || len(p.flows) != 0 {
		t.Error("a connection began that is not allowed any more")
	}
}
