package engine

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
)

// Dial opens a connection to an engine.
type Dial func(ctx context.Context) (net.Conn, error)

// Port is a port that a running container publishes.
type Port struct {
	Container string // name
	ID        string // of the container
	Protocol  string // "tcp", "udp" or "sctp"
	Port      uint16 // the container's own
	IP        netip.Addr
	HostPort  uint16
}

// Bind is a path of the VM that a running container has.
type Bind struct {
	ID   string // of the container
	Path string
}

// Running is what running containers have of their host.
type Running struct {
	Ports []Port
	Binds []Bind
	More  int // published ports that are not among Ports: there are too many
}

// Bounds on what Watch keeps.
const (
	maxPorts = 10_000
	maxBinds = 2_000
	maxPath  = 4096 // bytes of a bind's: the kernel's PATH_MAX
	maxDead  = 4096
)

// Times of Watch.
const (
	// The engine's list can lag behind its events, and it drops events that a
	// listener does not take within 100 ms: so the list is asked for once more a
	// while after an event, and now and then without one.
	settle = time.Second
	relist = 30 * time.Second
	// patience is for one list: the connection has no deadlines of its own.
	patience = 30 * time.Second
	// A VM that makes events without end does not keep this process busy: lists take a
	// part of the time at most.
	restFactor = 4
)

// Watch calls f with what running containers have of the host, at once and after each
// change, until ctx ends or the connection breaks, and returns why. A container that dies
// is told without asking the engine again.
// Who asks by looks, which may be nil, need not wait for a change.
func Watch(ctx context.Context, dial Dial, looks *Looks, f func(Running)) error {
	return over(dial, "follow the engine", func(c *client.Client) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		w := watch{client: c, dead: map[string]time.Time{}, tell: f}
		// What happens between the first list and the subscription, settle brings.
		stream := c.Events(ctx, client.EventsListOptions{Filters: client.Filters{}.
			Add("type", string(events.ContainerEventType), string(events.NetworkEventType)).
			Add("event", string(events.ActionStart), string(events.ActionDie), string(events.ActionRename),
				string(events.ActionConnect), string(events.ActionDisconnect))})
		due := time.NewTimer(0) // for the next list
		defer due.Stop()
		late, rest := settle, time.Time{}
		told := looks.take() // by the next list, which is due now if there are any
		tell := func() {
			for _, f := range told {
				f()
			}
			told = nil
		}
		defer tell()
		for {
			select {
			case m := <-stream.Messages:
				w.event(m)
				if len(told) == 0 {
					due.Reset(max(0, time.Until(rest)))
				}
				late = settle
			case <-looks.Asked():
				told = append(told, looks.take()...)
				due.Reset(0)
			case <-due.C:
				begin := time.Now()
				if err := w.list(ctx); err != nil {
					return err
				}
				tell()
				rest = time.Now().Add(restFactor * time.Since(begin))
				due.Reset(late)
				late = relist
			case err := <-stream.Err:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
}

// watch is the state of Watch.
type watch struct {
	client *client.Client
	last   Running
	dead   map[string]time.Time // containers that died, which the list may not know yet
	tell   func(Running)
}

// event takes what an event says by itself.
func (w *watch) event(m events.Message) {
	if m.Type != events.ContainerEventType {
		return
	}
	id := clip(m.Actor.ID, maxName)
	switch m.Action {
	case events.ActionStart:
		delete(w.dead, id)
	case events.ActionDie:
		if len(w.dead) < maxDead {
			w.dead[id] = time.Now()
		}
		port, bind := func(p Port) bool { return p.ID == id }, func(b Bind) bool { return b.ID == id }
		if slices.ContainsFunc(w.last.Ports, port) || slices.ContainsFunc(w.last.Binds, bind) {
			w.last.Ports = slices.DeleteFunc(slices.Clone(w.last.Ports), port)
			w.last.Binds = slices.DeleteFunc(slices.Clone(w.last.Binds), bind)
			w.tell(w.last)
		}
	}
}

// list asks the engine and tells what is there.
func (w *watch) list(ctx context.Context) error {
	asking, done := context.WithTimeout(ctx, patience)
	defer done()
	all, err := w.client.ContainerList(asking, client.ContainerListOptions{})
	if err != nil {
		return err
	}
	for id, when := range w.dead {
		if time.Since(when) >= settle {
			delete(w.dead, id)
		}
	}
	var now Running
	for _, item := range all.Items {
		id := clip(item.ID, maxName)
		if _, dead := w.dead[id]; dead {
			continue
		}
		name := nameOf(item)
		for _, m := range item.Mounts {
			if m.Type == mount.TypeBind && len(m.Source) <= maxPath && len(now.Binds) < maxBinds {
				now.Binds = append(now.Binds, Bind{id, strings.Clone(m.Source)})
			}
		}
		for _, p := range item.Ports {
			switch {
			case p.PublicPort == 0:
			case len(now.Ports) == maxPorts:
				now.More++
			default:
				now.Ports = append(now.Ports, Port{
					Container: name, ID: id, Protocol: protocol(p.Type),
					Port: p.PrivatePort, IP: p.IP.WithZone(""), HostPort: p.PublicPort,
				})
			}
		}
	}
	w.last = now
	w.tell(now)
	return nil
}

// protocol is the name of a protocol, whose text is not the answer's.
func protocol(s string) string {
	for _, known := range []string{"tcp", "udp", "sctp"} {
		if strings.EqualFold(s, known) {
			return known
		}
	}
	return clip(strings.ToLower(s), 16)
}
