package usernet

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"
)

// policy decides about each outbound connection, counts what it refuses and
// tells the log. The first rule comes first; what devvm.toml narrows comes
// after it and can only take away.
type policy struct {
	offline bool
	look    func(context.Context, netip.Addr) (hostView, error)
	log     *slog.Logger

	mu      sync.Mutex
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
	return &policy{offline: s.cfg.Offline, look: s.hostLooker(), log: s.log, refused: map[refusal]uint64{}}
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

// check decides about one destination. Services of the gateway are not its
// matter: the stack has sockets of its own for them.
func (p *policy) check(ctx context.Context, network string, to netip.AddrPort) refusal {
	r := p.judge(ctx, to)
	if r != allowed {
		p.count(r, network, to)
	}
	return r
}

func (p *policy) judge(ctx context.Context, to netip.AddrPort) refusal {
	if p.offline {
		return refuseOffline
	}
	r, err := checkHost(ctx, to.Addr(), p.look)
	if err != nil {
		p.log.Error("host's addresses are unknown, connection refused", "error", err)
	}
	return r
}

// count notes a refusal.
func (p *policy) count(r refusal, network string, to netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused[r]++
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
	p.log.Warn("connection refused", "network", network, "to", to.String(), "reason", string(r))
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
