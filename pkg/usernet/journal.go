package usernet

import (
	"container/list"
	"context"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/vmnet"
)

// manyAttempts bounds the journal, for what was allowed and for what was
// refused each: root in the VM decides how many attempts there are.
const manyAttempts = 500

// journal keeps the attempts.
type journal struct {
	now func() time.Time

	mu        sync.Mutex
	limit     int
	rows      map[attemptKey]*list.Element
	order     [2]*list.List // refused, allowed: of *row, the last one in front
	seq       uint64
	forgotten uint64
	changed   chan struct{} // closed at the next change; nil: nobody waits
}

// attemptKey is what makes two attempts the same.
type attemptKey struct {
	protocol, destination string
	port                  uint16
	refused               refusal
}

type row struct {
	key         attemptKey
	name        string
	addr        netip.Addr
	count, seq  uint64
	first, last time.Time
}

func newJournal(now func() time.Time) *journal {
	return &journal{now: now, limit: manyAttempts, rows: map[attemptKey]*list.Element{}, order: [2]*list.List{list.New(), list.New()}}
}

// note counts an attempt; addr is invalid for look-ups, name may be empty.
func (j *journal) note(protocol, name string, addr netip.Addr, port uint16, refused refusal) {
	key := attemptKey{protocol, name, port, refused}
	if name == "" {
		key.destination = addr.String()
	}
	class := 0
	if refused == allowed {
		class = 1
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	now := j.now()
	j.seq++
	place, ok := j.rows[key]
	if !ok {
		place = j.order[class].PushFront(&row{key: key, name: name, first: now})
		j.rows[key] = place
		if j.order[class].Len() > j.limit {
			oldest := j.order[class].Remove(j.order[class].Back()).(*row)
			delete(j.rows, oldest.key)
			j.forgotten += oldest.count
		}
	}
	j.order[class].MoveToFront(place)
	r := place.Value.(*row)
	r.addr, r.last, r.seq = addr, now, j.seq
	r.count++
	if j.changed != nil {
		close(j.changed)
		j.changed = nil
	}
}

// since returns the rows that have changed after a point, the last one at the
// end, and the point that is now.
func (j *journal) since(seq uint64) ([]row, uint64, uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var rows []row
	refused, allowed := j.order[0].Front(), j.order[1].Front()
	for {
		var next *row
		switch {
		case refused == nil && allowed == nil:
		case allowed == nil || refused != nil && refused.Value.(*row).seq > allowed.Value.(*row).seq:
			next, refused = refused.Value.(*row), refused.Next()
		default:
			next, allowed = allowed.Value.(*row), allowed.Next()
		}
		if next == nil || next.seq <= seq {
			break
		}
		rows = append(rows, *next)
	}
	for i := range len(rows) / 2 {
		rows[i], rows[len(rows)-1-i] = rows[len(rows)-1-i], rows[i]
	}
	return rows, j.seq, j.forgotten
}

// wait returns when there is something after a point.
func (j *journal) wait(ctx context.Context, seq uint64) error {
	j.mu.Lock()
	if j.seq > seq {
		j.mu.Unlock()
		return nil
	}
	if j.changed == nil {
		j.changed = make(chan struct{})
	}
	changed := j.changed
	j.mu.Unlock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// attempt describes a row under the policy of now.
func (r row) attempt(now egress.Policy) vmnet.Attempt {
	a := vmnet.Attempt{
		Protocol: r.key.protocol, Name: r.name, Port: r.key.port,
		Allowed: r.key.refused == allowed, Reason: string(r.key.refused),
		Count: r.count, First: r.first, Last: r.last,
	}
	if r.addr.IsValid() {
		a.Address = r.addr.String()
	}
	a.Allow = r.allow(now)
	return a
}

// allow says how devvm.toml would allow what was refused; nil if it cannot, or
// does meanwhile.
func (r row) allow(now egress.Policy) *vmnet.Allow {
	to := netip.AddrPortFrom(r.addr, r.key.port)
	switch r.key.refused {
	case refuseOffline:
		if now.Offline {
			return &vmnet.Allow{Key: "mode", Entry: `"user"`, Line: `mode = "user"`}
		}
	case refuseHostPort:
		if r.key.protocol == "tcp" && !now.OpensHostPort(to.Port()) {
			return &vmnet.Allow{Key: "host_ports", Entry: strconv.Itoa(int(to.Port())), Line: now.AllowingHostPort(to.Port())}
		}
	case refuseEgress:
		rule := egress.Destination(r.name, r.addr, to.Port())
		if r.key.protocol == "dns" {
			if strings.HasSuffix(r.name, ".arpa") || now.AnswersName(r.name) {
				return nil
			}
		} else if now.Permits(to, r.name) {
			return nil
		}
		if rule.String() != "" {
			return &vmnet.Allow{Key: "egress", Entry: strconv.Quote(rule.String()), Line: now.Allowing(rule)}
		}
	}
	return nil
}
