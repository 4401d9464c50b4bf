package usernet

import (
	"container/list"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/devvm/devvm/pkg/egress"
)

const (
	// minLease is how long an address counts as a name's at least, whatever
	// short life its answer had: programs keep addresses for a while.
	minLease = 5 * time.Minute
	maxLease = 24 * time.Hour
	// manyAnswers and namesEach bound what the VM makes us remember: pairs of
	// an address and a name, and of them names of one address.
	manyAnswers = 4096
	namesEach   = 8
	// askAgain is how long it takes at least until a name whose answer is too
	// old is asked for once more.
	askAgain = 10 * time.Second
	// chainLength bounds the aliases that are followed, as resolvers do.
	chainLength = 16
)

// answers remembers which names the VM has asked for led to which addresses.
// A name is the one that was asked for, not one that it is an alias of: whoever
// allows a name trusts its owner to say where it leads, and nobody else.
//
// A program may keep an address for longer than the answer lives: a proxy that
// looks names up when it starts. When it connects, the name is asked for again.
type answers struct {
	now func() time.Time

	mu     sync.Mutex
	limit  int
	byAddr map[netip.Addr][]*lease // the one answered last in front
	order  *list.List              // of all, the one answered last in front
}

// lease is one address of one name.
type lease struct {
	name  string
	addr  netip.Addr
	until time.Time
	asked time.Time // when it was asked for again, last
	place *list.Element
}

func newAnswers(now func() time.Time) *answers {
	return &answers{now: now, limit: manyAnswers, byAddr: map[netip.Addr][]*lease{}, order: list.New()}
}

// note remembers the addresses of an answer that the VM is about to be given.
func (a *answers) note(asked string, m *dns.Msg) {
	name, ok := egress.Name(asked)
	if !ok || m.Rcode != dns.RcodeSuccess {
		return
	}
	for _, found := range addressesOf(asked, m) {
		a.add(name, found.addr, a.now().Add(min(max(found.ttl, minLease), maxLease)))
	}
}

// found is an address in an answer, with the shortest life on the way to it.
type found struct {
	addr netip.Addr
	ttl  time.Duration
}

// addressesOf follows the aliases from the name asked for. Other records that
// an answer holds do not count.
func addressesOf(asked string, m *dns.Msg) []found {
	var all []found
	name, ttl := dns.CanonicalName(asked), uint32(1<<31-1)
	for range chainLength {
		next := ""
		nextTTL := ttl
		for _, rr := range m.Answer {
			h := rr.Header()
			if h.Class != dns.ClassINET || dns.CanonicalName(h.Name) != name {
				continue
			}
			life := time.Duration(min(ttl, h.Ttl)) * time.Second
			switch rr := rr.(type) {
			case *dns.A:
				if addr, ok := netip.AddrFromSlice(rr.A); ok {
					all = append(all, found{addr.Unmap(), life})
				}
			case *dns.AAAA:
				if addr, ok := netip.AddrFromSlice(rr.AAAA); ok {
					all = append(all, found{addr.Unmap(), life})
				}
			case *dns.CNAME:
				next, nextTTL = dns.CanonicalName(rr.Target), min(ttl, h.Ttl)
			}
		}
		if next == "" {
			break
		}
		name, ttl = next, nextTTL
	}
	return all
}

func (a *answers) add(name string, addr netip.Addr, until time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	same := a.byAddr[addr]
	var l *lease
	if i := slices.IndexFunc(same, func(l *lease) bool { return l.name == name }); i >= 0 {
		l = same[i]
		same = slices.Delete(same, i, i+1)
		a.order.MoveToFront(l.place)
		if until.After(l.until) {
			l.until = until
		}
	} else {
		l = &lease{name: name, addr: addr, until: until}
		l.place = a.order.PushFront(l)
	}
	a.byAddr[addr] = slices.Insert(same, 0, l)
	if all := a.byAddr[addr]; len(all) > namesEach {
		a.forget(all[len(all)-1])
	}
	for a.order.Len() > a.limit {
		a.forget(a.order.Back().Value.(*lease))
	}
}

// forget drops a lease. The caller has the lock.
func (a *answers) forget(l *lease) {
	a.order.Remove(l.place)
	rest := slices.DeleteFunc(a.byAddr[l.addr], func(o *lease) bool { return o == l })
	if len(rest) == 0 {
		delete(a.byAddr, l.addr)
		return
	}
	a.byAddr[l.addr] = rest
}

// names returns the names that lead to an address now, the one answered last in
// front.
func (a *answers) names(addr netip.Addr) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var names []string
	for _, l := range a.byAddr[addr.Unmap()] {
		if a.now().Before(l.until) {
			names = append(names, l.name)
		}
	}
	return names
}

// stale returns a name that led to an address once, for which it is time to ask
// again; want says which ones are wanted. It is empty if there is none.
func (a *answers) stale(addr netip.Addr, want func(name string) bool) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	for _, l := range a.byAddr[addr.Unmap()] {
		if !now.Before(l.until) && now.Sub(l.asked) >= askAgain && want(l.name) {
			l.asked = now
			return l.name
		}
	}
	return ""
}
