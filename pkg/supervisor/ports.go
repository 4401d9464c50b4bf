package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/network"

	"github.com/devvm/devvm/pkg/dockerproxy"
	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/share"
)

// PortOptions are the options for published ports.
type PortOptions struct {
	ports.Options
	// Settings reads the settings for ports that the last up has applied. It is called at the
	// start and at each Resume; nil: none.
	Settings func() (ports.Settings, error)
}

// How long ports and files are kept for a container.
const (
	holdCall    = 2 * time.Minute  // a port, for as long as the engine takes to answer
	holdCreated = 5 * time.Second  // then, for a container that is to be started
	holdStarted = 2 * time.Second  // then, if no list has come by then (awaitPorts)
	holdListed  = 30 * time.Second // a file, until then: it costs less, and its loss is for good
	firstRelist = 100 * time.Millisecond
	lastRelist  = 5 * time.Second
)

// configurePorts reads the settings again. Bad ones change nothing.
func (s *supervisor) configurePorts() {
	if s.Ports.Settings == nil {
		return
	}
	settings, err := s.Ports.Settings()
	if err != nil {
		s.Log.Warn("settings of ports are not read", "err", err)
		return
	}
	s.ports.Configure(settings)
}

// followPorts keeps the host's sockets as the containers want them, over this link, until ctx ends.
func (s *supervisor) followPorts(ctx context.Context, link *guest.Client) {
	wait := firstRelist
	for {
		err := engine.Watch(ctx, func(ctx context.Context) (net.Conn, error) { return link.DialUnix(ctx, engineSocket) }, s.looks,
			func(running engine.Running) {
				wait = firstRelist
				s.setPorts(link, running)
				if s.files != nil {
					binds := make([]share.Bind, len(running.Binds))
					for i, b := range running.Binds {
						binds[i] = share.Bind(b)
					}
					s.files.Hold(binds)
				}
			})
		if ctx.Err() != nil {
			return
		}
		s.Log.Warn("published ports are not followed for now", "err", err)
		s.losePorts(link, err)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-s.looks.Asked(): // who waits is not to wait for this
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return
		}
		wait = min(2*wait, lastRelist)
	}
}

// setPorts applies a list that came over a link, unless the link has ended meanwhile.
func (s *supervisor) setPorts(link *guest.Client, running engine.Running) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link != link {
		return
	}
	published := make([]ports.Published, len(running.Ports))
	for i, p := range running.Ports {
		published[i] = ports.Published(p)
	}
	s.ports.Set(published, running.More)
	if !s.status.PortsKnown || s.status.PortsProblem != "" {
		s.status.PortsKnown, s.status.PortsProblem = true, ""
		s.tell()
	}
}

// awaitPorts returns when this host's sockets are those of the containers that run now, or when
// ctx ends or the engine does not answer. It asks the engine, which alone knows the ports that it
// has chosen.
func (s *supervisor) awaitPorts(ctx context.Context) {
	known := make(chan struct{})
	s.looks.Ask(func() { close(known) })
	select {
	case <-known:
	case <-ctx.Done():
	}
}

// losePorts notes that the published ports are unknown for now.
func (s *supervisor) losePorts(link *guest.Client, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == link && s.status.PortsProblem != err.Error() {
		s.status.PortsProblem = err.Error()
		s.tell()
	}
}

// admitPorts reserves the ports that a container wants to publish, or refuses.
func (s *supervisor) admitPorts(ctx context.Context, name string, bindings network.PortMap, hold time.Duration) (done func(), err error) {
	wants, chosen := ports.Wants(bindings, s.Ports.VM)
	if hold == holdStarted { // it may run already, and be restarted
		chosen = 0
	}
	if len(wants)+chosen == 0 {
		return nil, nil
	}
	if ssh := s.Ports.VM.SSH; ssh != 0 && slices.Contains(wants, ports.Want{Protocol: ports.TCP, HostPort: ssh}) {
		return nil, s.refuseSSH(name, ssh)
	}
	release, err := s.ports.Reserve(ctx, wants, chosen, holdCall)
	if err == nil {
		return func() { release(hold) }, nil
	}
	if _, ok := errors.AsType[*ports.RefusedError](err); ok {
		s.Log.Warn("container refused", "container", name, "err", err)
		return nil, &dockerproxy.Refusal{Status: http.StatusForbidden, Message: "devvm: " + err.Error()}
	}
	taken, ok := errors.AsType[*ports.TakenError](err)
	if !ok {
		return nil, err
	}
	return nil, s.refusePort(name, taken, taken.Error())
}

// otherPort is a port that a container can publish instead of that of the VM's own sshd.
const otherPort = 10000

// refuseSSH refuses a container the port of the VM's own sshd, in a VM whose sshd has no address
// of its own.
func (s *supervisor) refuseSSH(name string, port uint16) error {
	s.Log.Warn("container refused", "container", name, "port", port, "err", "it is that of the VM's sshd")
	if name != "" {
		name = " on endpoint " + name
	}
	return &dockerproxy.Refusal{
		Status: http.StatusInternalServerError,
		Message: fmt.Sprintf("driver failed programming external connectivity%s: Bind for 0.0.0.0:%d failed: port is already allocated: "+
			"the sshd of this VM has port %[2]d; publish another one, such as %[3]d, "+
			"or, if the VM is of an older image of devvm's, make one whose sshd is out of the way: devvm image build, then devvm nuke", name, port, otherPort+port),
	}
}

// refusePort refuses a container in the engine's words (libnetwork's port mapper), and adds what
// the engine cannot know.
func (s *supervisor) refusePort(name string, taken *ports.TakenError, why string) error {
	s.Log.Warn("container refused", "container", name, "address", taken.Key.String(), "err", why)
	if name != "" {
		name = " on endpoint " + name
	}
	return &dockerproxy.Refusal{
		Status: http.StatusInternalServerError,
		Message: fmt.Sprintf("driver failed programming external connectivity%s: Bind for %s failed: %s: %s",
			name, taken.Key.Addr, taken.Reason(), why),
	}
}

// mostTried is how many ports of this host are tried for one call. At a start the number of ranges
// comes from the VM, and each port that is tried is opened for a moment.
const mostTried = 4 * ports.MaxMost

// admitRanges makes sure that the engine does not choose a port from a range that somebody else has
// on this host. It would publish the port in the VM, but on this host somebody else would answer. A
// container that is being created gets the free part of the range. A container that exists keeps
// its range, and is refused if one of the ports was taken since: the engine tries one port, and
// knows nothing about this host.
func (s *supervisor) admitRanges(ctx context.Context, kind dockerproxy.Kind, name string, bindings network.PortMap) (edits []dockerproxy.Edit, err error) {
	tried := 0
	for _, b := range ports.Ranges(bindings, s.Ports.VM, s.Ports.Own) {
		if b.Free && kind == dockerproxy.Start {
			continue // of 256 ports some are often in use for a moment, and the engine takes one
		}
		if tried += min(b.Len(), ports.MaxMost); tried > mostTried {
			s.Log.Warn("a container wants a port of too many: not all ranges are looked at", "container", name, "range", b.String())
			break
		}
		part, taken := s.ports.Narrow(b.Range)
		switch {
		case part == b.Range && !b.Free:
		case part == ports.Range{} && b.Free: // there may be others
		case part == ports.Range{}:
			s.ports.FindOwner(ctx, taken)
			return nil, s.refusePort(name, taken, fmt.Sprintf("none of %s is free: %s; publish other ports", b.Range, taken.Cause()))
		case kind == dockerproxy.Create:
			s.ports.Promise(part)
			bindings[b.Port][b.Index].HostPort = part.String()
			edits = append(edits, dockerproxy.Edit{
				Path: []string{"HostConfig", "PortBindings", b.Port.String(), strconv.Itoa(b.Index), "HostPort"}, To: part.String(), Optional: b.Free,
			})
			s.Log.Info("range of ports is narrowed to those that are free", "container", name, "range", b.String(), "to", part.String())
		case taken != nil:
			s.ports.FindOwner(ctx, taken)
			return nil, s.refusePort(name, taken, fmt.Sprintf(
				"the engine may choose any of %s, and %s; make the container again (docker rm and docker run, or docker compose up --force-recreate) and it gets one that is free", b.Range, taken.Cause()))
		}
	}
	return edits, nil
}

// running reports whether the VM runs, as far as the supervisor knows.
func (s *supervisor) running() bool {
	status, _ := s.current()
	return status.State != StateStopped && status.State != StateSuspended
}

// handlePorts serves the requests about ports on control.sock.
func (s *supervisor) handlePorts(mux *http.ServeMux) {
	mux.HandleFunc("GET /ports", func(w http.ResponseWriter, r *http.Request) {
		if !s.running() {
			w.WriteHeader(http.StatusGone)
			return
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		if r.URL.Query().Get("watch") == "" {
			_ = json.NewEncoder(w).Encode(s.ports.Report())
			return
		}
		s.streamPorts(r.Context(), w)
	})
	mux.HandleFunc("POST /exposures", func(w http.ResponseWriter, r *http.Request) {
		if !s.running() {
			w.WriteHeader(http.StatusGone)
			return
		}
		var e ports.Exposure
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&e)
		if err == nil {
			err = s.ports.Expose(e)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	mux.HandleFunc("DELETE /exposures", func(w http.ResponseWriter, r *http.Request) {
		port, err := strconv.ParseUint(r.URL.Query().Get("port"), 10, 16)
		n := 0
		if err == nil {
			n, err = s.ports.Conceal(uint16(port))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(n)
	})
}

// countEvery is how often a stream of reports shows changes of counters only.
const countEvery = time.Second

// streamPorts writes a report at once and whenever it changes.
func (s *supervisor) streamPorts(ctx context.Context, w http.ResponseWriter) {
	flush := http.NewResponseController(w)
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	var last string
	for {
		changed := s.ports.Changed()
		b, err := json.Marshal(s.ports.Report())
		if err != nil {
			return
		}
		if string(b) != last {
			last = string(b)
			if _, err := w.Write(append(b, '\n')); err != nil || flush.Flush() != nil {
				return
			}
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Ports asks for the published ports. Like the methods below, it fails with ErrNone if no
// supervisor listens or the VM does not run.
func (c *Client) Ports(ctx context.Context) (ports.Report, error) {
	var last ports.Report
	err := c.reports(ctx, "/ports", func(r ports.Report) bool { last = r; return false })
	return last, err
}

// WatchPorts calls f with the published ports and then with each change, until f
// returns false, the supervisor ends (ErrNone) or ctx does.
func (c *Client) WatchPorts(ctx context.Context, f func(ports.Report) bool) error {
	return c.reports(ctx, "/ports?watch=1", f)
}

func (c *Client) reports(ctx context.Context, path string, f func(ports.Report) bool) error {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	for {
		var r ports.Report
		if err := d.Decode(&r); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return ErrNone
		}
		if !f(r) {
			return nil
		}
	}
}

// Expose opens a published port to others until the exposure's end.
func (c *Client) Expose(ctx context.Context, e ports.Exposure) error {
	resp, err := c.do(ctx, http.MethodPost, "/exposures", e)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Conceal ends the exposure of a port, or of all if port is 0, and returns how many it ended.
func (c *Client) Conceal(ctx context.Context, port uint16) (int, error) {
	resp, err := c.do(ctx, http.MethodDelete, fmt.Sprintf("/exposures?port=%d", port), nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var n int
	if err := json.NewDecoder(resp.Body).Decode(&n); err != nil {
		return 0, fmt.Errorf("ask supervisor: %w", err)
	}
	return n, nil
}
