package usernet

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/vmnet"
)

// policy decides about each outbound connection and each name that is asked
// for, counts what it refuses and tells the log. The first rule comes first;
// what devvm.toml narrows comes after it and can only take away, but for the
// ports of the host that it opens at the address that means the host.
type policy struct {
	look    func(context.Context, netip.Addr) (hostView, error)
	ask     func(ctx context.Context, name string, kind uint16) // notes in answers what a name's records of a kind lead to
	log     *slog.Logger
	answers *answers
	journal *journal

	mu      sync.Mutex
	current egress.Policy
	flows   map[*flow]struct{} // all that were let out and have not ended
	refused map[refusal]uint64
	window  time.Time // start of the present period of logging
	lines   int       // logged in it
	muted   uint64    // not logged in it
}

// At most logLines refusals are logged in each logWindow: root in the VM
// decides how many there are.
const (
	logWindow = 10 * time.Second
	logLines  = 20
)

func newPolicy(s *Stack) *policy {
	p := &policy{
		look: s.hostLooker(), log: s.log, current: egress.Default(),
		answers: newAnswers(s.cfg.Now), journal: newJournal(s.cfg.Now),
		flows: map[*flow]struct{}{}, refused: map[refusal]uint64{},
	}
	if s.cfg.Policy != nil {
		p.current = *s.cfg.Policy
	}
	return p
}

// hostLooker runs lookHost on one goroutine for all: it needs 100 KB of stack,
// which each of thousands of connections would keep.
func (s *Stack) hostLooker() func(context.Context, netip.Addr) (hostView, error) {
	type answer struct {
		host hostView
		err  error
	}
	type question struct {
		addr  netip.Addr
		reply chan answer
	}
	questions := make(chan question)
	s.wg.Go(func() {
		kernel, err := openKernel()
		if err == nil {
			defer kernel.Close()
		}
		for {
			select {
			case <-s.ctx.Done():
				return
			case q := <-questions:
				got := answer{err: err}
				if err == nil {
					got.host, got.err = lookHost(kernel, q.addr)
				}
				q.reply <- got
			}
		}
	})
	return func(ctx context.Context, a netip.Addr) (hostView, error) {
		q := question{a, make(chan answer, 1)}
		select {
		case questions <- q:
			got := <-q.reply
			return got.host, got.err
		case <-ctx.Done():
			return hostView{}, context.Cause(ctx)
		}
	}
}

// A decision is what policy says of one destination.
type decision struct {
	to      netip.AddrPort
	refusal refusal  // allowed: none
	names   []string // by which the VM knows the address, the one answered last in front
	host    bool     // leads to a port of the host that devvm.toml opens
}

// under says whether a policy lets a decision stand that another has made. It
// knows nothing of the first rule.
func (d decision) under(p egress.Policy) bool {
	if d.host {
		return p.OpensHostPort(d.to.Port())
	}
	return p.Permits(d.to, d.names...)
}

// name is the name for which a destination is allowed, or else the last one.
func (d decision) name(p egress.Policy) string {
	for _, name := range d.names {
		if p.Permits(d.to, name) {
			return name
		}
	}
	if len(d.names) > 0 {
		return d.names[0]
	}
	return ""
}

// hostName is how the VM calls the host.
const hostName = "host.docker.internal"

// check decides about one destination. Services of the gateway are not its
// matter: the stack has sockets of its own for them.
func (p *policy) check(ctx context.Context, network string, to netip.AddrPort) decision {
	d := p.judge(ctx, network, to)
	p.note(network, d)
	return d
}

func (p *policy) judge(ctx context.Context, network string, to netip.AddrPort) decision {
	now := p.now()
	d := decision{to: to}
	if to.Addr() == vmnet.HostAlias {
		d.names, d.host = []string{hostName}, true
	} else {
		d.names = p.answers.names(to.Addr())
	}
	switch {
	case now.Offline:
		d.refusal = refuseOffline
	case d.host && (network != "tcp" || !d.under(now)):
		d.refusal = refuseHostPort
	case d.host:
	default:
		if d.refusal = p.firstRule(ctx, to.Addr()); d.refusal != allowed || d.under(now) {
			return d
		}
		d.refusal = refuseEgress
		if network == "tcp" && p.renew(ctx, now, to) {
			if d.names = p.answers.names(to.Addr()); d.under(now) {
				d.refusal = allowed
			}
		}
	}
	return d
}

// renew asks again for a name that led to a destination once and would allow it.
// It says whether it did. It waits for a nameserver, which only a connection's
// own goroutine may: a TCP connection's.
func (p *policy) renew(ctx context.Context, now egress.Policy, to netip.AddrPort) bool {
	name := p.answers.stale(to.Addr(), func(name string) bool { return now.Permits(to, name) })
	if name == "" {
		return false
	}
	kind := dns.TypeA
	if to.Addr().Is6() {
		kind = dns.TypeAAAA
	}
	p.ask(ctx, name, kind)
	return true
}

// firstRule says whether an address is the host's, now.
func (p *policy) firstRule(ctx context.Context, a netip.Addr) refusal {
	r, err := checkHost(ctx, a, p.look)
	if err != nil {
		p.log.Error("host's addresses are unknown, connection refused", "error", err)
	}
	return r
}

// answersName decides about a name that the VM asks for.
func (p *policy) answersName(name string) bool {
	now := p.now()
	if now.AnswersName(name) {
		return true
	}
	d := decision{refusal: refuseEgress, names: []string{strings.ToLower(strings.TrimSuffix(name, "."))}}
	if now.Offline {
		d.refusal = refuseOffline
	}
	p.note("dns", d)
	return false
}

// now is the policy in force.
func (p *policy) now() egress.Policy {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current
}

// A flow is a connection, or a flow of datagrams, that was let out.
type flow struct {
	decision
	cut func() // ends it; does not wait
}

// enter notes a flow that begins, unless the policy has changed against it
// since it was decided about. Whoever enters leaves.
func (p *policy) enter(network string, f *flow) refusal {
	p.mu.Lock()
	if f.under(p.current) {
		p.flows[f] = struct{}{}
		p.mu.Unlock()
		return allowed
	}
	p.mu.Unlock()
	p.count(refuseEgress, network, f.to)
	return refuseEgress
}

func (p *policy) leave(f *flow) {
	p.mu.Lock()
	delete(p.flows, f)
	p.mu.Unlock()
}

// set puts another policy in force and cuts what it does not allow. It returns
// how many connections that were.
func (p *policy) set(next egress.Policy) int {
	p.mu.Lock()
	p.current = next
	var cut []*flow
	for f := range p.flows {
		if !f.under(next) {
			cut = append(cut, f)
		}
	}
	p.mu.Unlock()
	for _, f := range cut {
		f.cut()
	}
	p.log.Info("policy changed", "egress", next.String(), "cut", len(cut))
	return len(cut)
}

// count notes a refusal that needed no decision.
func (p *policy) count(r refusal, network string, to netip.AddrPort) {
	d := decision{to: to, refusal: r}
	d.names = p.answers.names(to.Addr())
	p.note(network, d)
}

// note tells the journal of a decision, and the log of a refusal.
func (p *policy) note(network string, d decision) {
	name := d.name(p.now())
	p.journal.note(network, name, d.to.Addr(), d.to.Port(), d.refusal)
	if d.refusal == allowed {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused[d.refusal]++
	now := time.Now()
	if now.Sub(p.window) >= logWindow {
		if p.muted > 0 {
			p.log.Warn("more connections refused", "count", p.muted)
		}
		p.window, p.lines, p.muted = now, 0, 0
	}
	if p.lines >= logLines {
		p.muted++
		return
	}
	p.lines++
	p.log.Warn("connection refused", "network", network, "to", d.to.String(), "name", name, "reason", string(d.refusal))
}

// refusals returns how many there were, by reason.
func (p *policy) refusals() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	counts := make(map[string]uint64, len(p.refused))
	for r, n := range maps.All(p.refused) {
		counts[string(r)] = n
	}
	return counts
}

// SetPolicy puts another policy in force: at once for all that begins from now
// on, and what exists and is not allowed any more is cut. It returns how many
// connections that were.
func (s *Stack) SetPolicy(p egress.Policy) int { return s.policy.set(p) }

// Egress returns what the VM has asked for.
func (s *Stack) Egress() vmnet.Egress {
	now := s.policy.now()
	rows, _, forgotten := s.policy.journal.since(0)
	e := vmnet.Egress{Policy: now, Attempts: make([]vmnet.Attempt, len(rows)), Forgotten: forgotten}
	for i, r := range rows {
		e.Attempts[i] = r.attempt(now)
	}
	return e
}

// followPause is between two deliveries of FollowEgress: what happens again and
// again meanwhile is delivered once.
const followPause = 200 * time.Millisecond

// FollowEgress calls use with each attempt so far, and then with each that is
// new or has happened again, until ctx ends or use fails.
func (s *Stack) FollowEgress(ctx context.Context, use func(vmnet.Attempt) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(vmnet.ErrClosed) })()
	pause := time.NewTicker(followPause)
	defer pause.Stop()
	for seq := uint64(0); ; {
		var rows []row
		rows, seq, _ = s.policy.journal.since(seq)
		now := s.policy.now()
		for _, r := range rows {
			if err := use(r.attempt(now)); err != nil {
				return err
			}
		}
		if err := s.policy.journal.wait(ctx, seq); err != nil {
			return err
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
