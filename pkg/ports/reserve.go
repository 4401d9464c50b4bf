package ports

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Reserve opens the sockets that a container will need and holds them until its ports
// are Set or the time is over; release gives them less or more time from then on. If one
// is somebody else's, or this user may not have it, none is held and the error is a
// [*TakenError]. If the project may not have so many, or not one of them, it is a
// [*RefusedError]; chosen is how many there will be beside wants.
func (t *Table) Reserve(ctx context.Context, wants []Want, chosen int, hold time.Duration) (release func(after time.Duration), err error) {
	until := t.o.Now().Add(hold)
	held, failed, k, err := t.reserve(wants, chosen, until)
	for tries := 0; stateOf(err) == StateTaken && tries < takenTries; tries++ {
		select {
		case <-time.After(takenPause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		held, failed, k, err = t.reserve(wants, chosen, until)
	}
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return nil, refused
	}
	if err != nil {
		return nil, &TakenError{Key: k, Published: failed.HostPort, First: t.first, Own: t.o.Own, Owner: t.owner(ctx, k, err), Err: err}
	}
	return func(after time.Duration) {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, k := range held {
			if s := t.sockets[k]; s != nil && s.held() {
				s.until = t.o.Now().Add(after)
			}
		}
		t.prod()
	}, nil
}

// RefusedError says that a project may not have a port, whoever else has it or not.
type RefusedError struct{ why string }

// Error says what is wrong and the ways out, on one line.
func (e *RefusedError) Error() string { return e.why }

// allow finds out whether the project may have some more ports. The caller holds the lock.
func (t *Table) allow(wants []Want, chosen int) error {
	numbers := map[number]bool{}
	for k := range t.sockets {
		numbers[number{k.Protocol, k.Addr.Port()}] = true
	}
	for _, l := range t.lines {
		if l.Target.IsValid() {
			numbers[l.number()] = true
		}
	}
	had := len(numbers)
	for _, w := range wants {
		port := Mapped(w.HostPort, t.settings.Map)
		if slices.Contains(t.settings.Deny, port) {
			return &RefusedError{denied(port)}
		}
		numbers[number{w.Protocol, port}] = true
	}
	most := t.settings.Most
	if more := len(numbers) - had + chosen; more > 0 && had+more > most {
		return &RefusedError{fmt.Sprintf("%d more ports are too many: this project has %d of this host and may have %d; publish fewer, or allow more: %s", more, had, most, raise(max(most, (had+more+1)/2)))}
	}
	return nil
}

// reserve opens sockets and returns those that are held, or the one that failed and for what.
func (t *Table) reserve(wants []Want, chosen int, until time.Time) (held []Key, failed Want, at Key, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return nil, Want{}, Key{}, nil
	}
	if err := t.allow(wants, chosen); err != nil {
		return nil, Want{}, Key{}, err
	}
	fresh := map[Key]*socket{}
	for _, w := range wants {
		if w.Protocol != TCP && w.Protocol != UDP {
			continue
		}
		for _, k := range keys(w.Protocol, Mapped(w.HostPort, t.settings.Map), t.o.Own) {
			if s := t.sockets[k]; s != nil {
				// Ours already: which container gets it is the engine's matter.
				if s.held() {
					s.until = until
					held = append(held, k)
				}
				continue
			}
			s, err := t.open(k)
			switch {
			case err == nil:
				s.until = until
				fresh[k] = s
				held = append(held, k)
			case stateOf(err) == StateUnavailable:
			case t.blocks(k, err):
				for _, s := range fresh {
					s.close()
				}
				return nil, w, k, err
			default:
				t.log.Warn("published port stays without an address", "address", k.String(), "error", err)
			}
		}
	}
	maps.Copy(t.sockets, fresh)
	t.prod()
	return held, Want{}, Key{}, nil
}

// must tells whether a container may not start without the socket.
func (t *Table) must(k Key) bool {
	if t.settings.Prefer == PreferOwn {
		return !k.shared()
	}
	return k.shared()
}

// TakenError says that a port cannot be had, and why.
type TakenError struct {
	Key       Key
	Published uint16     // in the VM; 0: the same
	First     uint16     // that users may open on this host; 0: DefaultFirst
	Own       netip.Addr // the project's own address
	Owner     string     // in words; "" if nobody knows
	Err       error      // of bind(2)
}

// DefaultFirst is the first port that users may open, unless a host has another
// (net.ipv4.ip_unprivileged_port_start in ip(7)).
const DefaultFirst = 1024

// firstPort is what this host says of that. Where all ports are root's it is the last.
func firstPort() uint16 {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	n, aerr := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || aerr != nil {
		return DefaultFirst
	}
	return uint16(min(max(n, 1), math.MaxUint16))
}

// elsewhere is a port that users may open, for one that they may not.
func elsewhere(port, first uint16) uint16 {
	if n := int(port) + 8000; n >= int(first) && n <= math.MaxUint16 {
		return uint16(n)
	}
	return first + port%(math.MaxUint16-first+1)
}

// Error says what is wrong and the ways out, on one line.
func (e *TakenError) Error() string {
	port := e.Key.Addr.Port()
	var b strings.Builder
	b.WriteString(e.Cause())
	switch stateOf(e.Err) {
	case StateTaken:
		b.WriteString("; publish another port")
		if e.Own.IsValid() && e.Key.shared() {
			fmt.Fprintf(&b, `, or be content with this project's own address %s: [ports] prefer = "own" in devvm.toml, then devvm up`, e.Own)
		}
	case StateDenied:
		fmt.Fprintf(&b, ": publish another port, or map it ([ports] map = { %d = %d } in devvm.toml, then devvm up), or allow it: sudo sysctl net.ipv4.ip_unprivileged_port_start=%d",
			cmp.Or(e.Published, port), elsewhere(port, cmp.Or(e.First, DefaultFirst)), port)
	default:
		b.WriteString("; publish another port")
	}
	return b.String()
}

// Cause says what is wrong, without the ways out.
func (e *TakenError) Cause() string {
	port := e.Key.Addr.Port()
	switch stateOf(e.Err) {
	case StateTaken:
		return fmt.Sprintf("port %d is taken by %s", port, orUnknown(e.Owner))
	case StateDenied:
		return fmt.Sprintf("port %d is below the first one that users may open", port)
	}
	return fmt.Sprintf("port %d cannot be opened: %v", port, e.Err)
}

// Reason is what the engine itself would call it.
func (e *TakenError) Reason() string {
	switch stateOf(e.Err) {
	case StateTaken:
		return "port is already allocated"
	case StateDenied:
		return "permission denied"
	}
	return "port cannot be opened"
}

// Unwrap returns the cause.
func (e *TakenError) Unwrap() error { return e.Err }

func orUnknown(owner string) string {
	if owner == "" {
		return "something that devvm cannot name"
	}
	return owner
}

// stateOf is the state of a socket that could not be opened.
func stateOf(err error) string {
	is := func(list []error) bool {
		return slices.ContainsFunc(list, func(e error) bool { return errors.Is(err, e) })
	}
	switch {
	case is(errsTaken):
		return StateTaken
	case is(errsDenied):
		return StateDenied
	case is(errsUnavailable):
		return StateUnavailable
	}
	return StateFailed
}
