package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
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

// Times of Watch.
const (
	// The engine's list can lag behind its events, and it drops events that a
	// listener does not take within 100 ms: so the list is asked for once more a
	// while after an event, and now and then without one.
	settle = time.Second
	relist = 30 * time.Second
)

// Watch calls f with the ports that running containers publish and the paths that they
// bind, at once and after each change, until ctx ends or the connection breaks, and returns
// why. A container that dies is told without asking the engine again.
func Watch(ctx context.Context, dial Dial, f func(published []Port, bound []Bind)) error {
	return over(dial, "follow the engine", func(c *client.Client) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		w := watch{client: c, dead: map[string]time.Time{}, tell: f}
		// What happens between the first list and the subscription, settle brings.
		stream := c.Events(ctx, client.EventsListOptions{Filters: client.Filters{}.
			Add("type", string(events.ContainerEventType), string(events.NetworkEventType)).
			Add("event", string(events.ActionStart), string(events.ActionDie), string(events.ActionRename),
				string(events.ActionConnect), string(events.ActionDisconnect))})
		if err := w.list(ctx); err != nil {
			return err
		}
		late := time.NewTimer(settle)
		defer late.Stop()
		for {
			select {
			case m := <-stream.Messages:
				w.event(m)
				for more := true; more; { // a burst is one change
					select {
					case m := <-stream.Messages:
						w.event(m)
					default:
						more = false
					}
				}
				late.Reset(settle)
			case <-late.C:
				late.Reset(relist)
			case err := <-stream.Err:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := w.list(ctx); err != nil {
				return err
			}
		}
	})
}

// watch is the state of Watch.
type watch struct {
	client *client.Client
	last   []Port
	bound  []Bind
	dead   map[string]time.Time // containers that died, which the list may not know yet
	tell   func([]Port, []Bind)
}

// event takes what an event says by itself.
func (w *watch) event(m events.Message) {
	if m.Type != events.ContainerEventType {
		return
	}
	switch m.Action {
	case events.ActionStart:
		delete(w.dead, m.Actor.ID)
	case events.ActionDie:
		w.dead[m.Actor.ID] = time.Now()
		left := slices.DeleteFunc(slices.Clone(w.last), func(p Port) bool { return p.ID == m.Actor.ID })
		bound := slices.DeleteFunc(slices.Clone(w.bound), func(b Bind) bool { return b.ID == m.Actor.ID })
		if len(left) < len(w.last) || len(bound) < len(w.bound) {
			w.last, w.bound = left, bound
			w.tell(slices.Clone(left), slices.Clone(bound))
		}
	}
}

// list asks the engine and tells what is there.
func (w *watch) list(ctx context.Context) error {
	all, err := w.client.ContainerList(ctx, client.ContainerListOptions{})
	if err != nil {
		return err
	}
	for id, when := range w.dead {
		if time.Since(when) >= settle {
			delete(w.dead, id)
		}
	}
	var list []Port
	var bound []Bind
	for _, item := range all.Items {
		if _, dead := w.dead[item.ID]; dead {
			continue
		}
		name := shortID(item.ID)
		if len(item.Names) > 0 {
			name = strings.TrimPrefix(item.Names[0], "/")
		}
		for _, m := range item.Mounts {
			if m.Type == mount.TypeBind {
				bound = append(bound, Bind{item.ID, m.Source})
			}
		}
		for _, p := range item.Ports {
			if p.PublicPort != 0 {
				list = append(list, Port{
					Container: name, ID: item.ID, Protocol: strings.ToLower(p.Type),
					Port: p.PrivatePort, IP: p.IP, HostPort: p.PublicPort,
				})
			}
		}
	}
	w.last, w.bound = list, bound
	w.tell(slices.Clone(list), slices.Clone(bound))
	return nil
}

// over is with, over connections of the caller's.
func over(dial Dial, act string, ask func(*client.Client) error) error {
	c, err := client.New(client.WithHost("unix:///dial"), client.WithDialContext(
		func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dial(ctx)
			if err != nil {
				return nil, err
			}
			return &bounded{Conn: conn}, nil
		}))
	if err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	defer func() { _ = c.Close() }()
	if err := ask(c); err != nil {
		return fmt.Errorf("%s: %w", act, explain(err))
	}
	return nil
}

// maxAnswer is how much an engine may say after a question, in bytes: more than the list
// of 1,000 containers, or of 20,000 ports; decoded, the worst that fits is some 100 times as
// large. Whoever follows its events must ask anew after so many.
const maxAnswer = 2 << 20

var errLong = errors.New("the engine has said more than is read at once")

// bounded is a connection to an engine that root in the VM may have put there, with an
// answer without end to fill the memory of whoever reads it.
type bounded struct {
	net.Conn
	heard atomic.Int64 // bytes since the last question
}

// Read implements net.Conn.
func (c *bounded) Read(b []byte) (int, error) {
	if c.heard.Load() > maxAnswer {
		return 0, errLong
	}
	n, err := c.Conn.Read(b)
	c.heard.Add(int64(n))
	return n, err
}

// Write implements net.Conn.
func (c *bounded) Write(b []byte) (int, error) {
	c.heard.Store(0)
	return c.Conn.Write(b)
}
