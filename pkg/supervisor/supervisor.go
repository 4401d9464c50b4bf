// Package supervisor is the background process of one running project.
//
// It owns the SSH connection to the guest, with keepalive and redial, and the project's docker.sock
// and published ports. It refuses containers that bind paths that the VM does not have. It serves
// directories to the VM (pkg/share), and its own state on control.sock. A VM that is silent counts
// as slow: the connection is kept, with all that runs over it.
//
// The supervisor never holds the only copy of anything. After kill -9 the next devvm command starts
// another one, which finds all it needs by the project's name. It knows nothing about libvirt: when
// the VM's network process is gone, the VM is gone, and clients are told at once.
//
// It must not import vm, image or project.
package supervisor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/devvm/devvm/pkg/background"
	"github.com/devvm/devvm/pkg/dockerproxy"
	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/share"
)

// Times that shape the link.
const (
	keepaliveEvery   = 5 * time.Second
	keepaliveSlow    = 5 * time.Second  // without an answer; the VM is no less alive, see guest.SilenceLimit
	handshakeTimeout = 60 * time.Second // a cold guest under emulation is slow
	firstRedial      = 30 * time.Millisecond
	lastRedial       = 5 * time.Second
	waitReady        = 10 * time.Second // a client's patience while the link is down, or silent
	clockLook        = 2 * time.Second  // how often the host's clock is looked at
	clockSoon        = 5 * time.Second  // until the guest's is checked after being set; doubles each time
	clockEvery       = time.Minute      // up to this
	clockTolerance   = 50 * time.Millisecond
	clockTimeout     = 20 * time.Second // for one look at the guest's clock
	pingTimeout      = 5 * time.Minute  // for an engine that starts under emulation
)

// engineSocket is Docker's socket inside the guest.
const engineSocket = "/run/docker.sock"

// Options say what to supervise.
type Options struct {
	Name    string // of the project, for messages
	Lock    string // flock that makes the supervisor the only one
	Control string // path of control.sock
	Docker  string // path of docker.sock
	Target  guest.Target
	Gone    func(error) bool // tells whether an error of Target.Dial means that the VM is gone
	Version string           // of this program
	// Silence says when a silent VM counts as slow, and when as lost. The zero value: slow after
	// 5 s, lost after guest.SilenceLimit.
	Silence guest.Silence
	// WaitReady is how long a new client of docker.sock waits while the VM is slow or cannot be
	// reached; 0: 10 s.
	WaitReady time.Duration
	// Confine, if not nil, is called when the sockets are open and the shared directories are
	// known, before anything is read from the VM. Its error ends the supervisor.
	Confine func() error
	Ready   func() error // called once both sockets listen; its error ends the supervisor
	// Alone is closed when the aide has ended, which looks outside of the sandbox for this process:
	// who has a port, whether the VM is paused. nil: the process looks itself.
	Alone <-chan struct{}
	// Forked says that the VM is a fork. It sets its clock before it accepts the first link, and
	// mounts by itself what its credential says.
	Forked bool
	Log    *slog.Logger
	Ping   func(ctx context.Context) error // asks the engine through docker.sock, the path that users take
	// Used is called before a client of docker.sock does more than look.
	Used  func() error
	Ports PortOptions
	Share Share // directories for the VM
	Disk  Disk  // of the host
	Guard Guard // containers that want other ones
}

// ErrRunning says that the project has a supervisor already.
var ErrRunning = errors.New("a supervisor is already running")

// supervisor is the state of Run.
type supervisor struct {
	Options

	mu       sync.Mutex
	status   Status
	link     *guest.Client // nil while down
	links    int           // made so far
	room     room
	revivals int // of the engine since it last answered; keepLink's
	// silences counts how often the VM has become slow.
	silences int
	called   chan struct{} // somebody has called docker.sock
	boot     string        // of the VM (guest.Clock); empty: not known
	rest     bool          // no link until resumed
	changed  chan struct{} // closed and replaced at each change
	proxy    *dockerproxy.Proxy
	ports    *ports.Table
	looks    *engine.Looks // of those who wait for followPorts
	files    *share.Server // nil: the VM has nothing of the host's
	ended    chan struct{} // closed when nothing runs any more but the server of control.sock

	guardOff atomic.Bool // see Guard
}

// Run supervises until ctx ends or a client of control.sock calls Stop.
func Run(ctx context.Context, o Options) error {
	place, err := background.Take(ctx, o.Lock)
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, background.ErrTaken):
		return ErrRunning
	case err != nil:
		return err
	}
	defer place.Close()

	o.Silence.Every = cmp.Or(o.Silence.Every, keepaliveEvery)
	o.Silence.Slow = cmp.Or(o.Silence.Slow, keepaliveSlow)
	o.WaitReady = cmp.Or(o.WaitReady, waitReady)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := &supervisor{
		Options: o,
		status:  Status{State: StateConnecting, Since: time.Now(), PID: os.Getpid(), Version: o.Version},
		changed: make(chan struct{}),
		ended:   make(chan struct{}),
		room:    room{turn: make(chan struct{}, 1), wanted: make(chan struct{}, 1)},
		called:  make(chan struct{}, 1),
		looks:   engine.NewLooks(),
	}
	for _, e := range o.Share.Exports {
		s.status.Files = append(s.status.Files, Files{Path: e.Target, Writable: e.Writable, Transport: "nfs", Why: whyNFS})
	}
	o.Ports.Log = o.Log
	dialVM := o.Ports.Dial
	o.Ports.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		s.catchUpFiles(ctx)
		return dialVM(ctx, network, address)
	}
	s.ports, err = ports.New(o.Ports.Options)
	if err != nil {
		return err
	}
	defer s.ports.Close()
	s.configurePorts()
	s.configureGuard()
	s.proxy = dockerproxy.New(dockerproxy.Options{
		Dial: func(ctx context.Context) (net.Conn, error) {
			s.catchUpFiles(ctx)
			return s.dialEngine(ctx)
		},
		Log:       o.Log,
		WaitReady: o.WaitReady,
		Admit:     s.admit,
		Changing: func() error {
			s.catchUpFiles(ctx)
			if o.Used == nil {
				return nil
			}
			return o.Used()
		},
		Explain:     s.explain,
		Failed:      s.failed,
		Unavailable: s.unavailable,
	})

	if err := background.PrivateDir(filepath.Dir(o.Docker)); err != nil {
		return fmt.Errorf("docker.sock: %w", err)
	}
	docker, err := background.Listen(o.Docker, nil)
	if err != nil {
		return fmt.Errorf("docker.sock: %w", err)
	}
	defer docker.Close() // which removes the socket, if it is still ours
	control, err := background.Listen(o.Control, nil)
	if err != nil {
		docker.Close()
		return fmt.Errorf("control.sock: %w", err)
	}
	defer control.Close()

	var clients sync.WaitGroup // of control.sock: who asked for the end learns of it
	defer clients.Wait()
	defer close(s.ended)
	var owned sync.WaitGroup
	defer owned.Wait()
	err = s.serveShare(ctx, &owned, stop)
	if err == nil && o.Confine != nil {
		err = o.Confine()
	}
	if err != nil {
		stop()
		docker.Close()
		control.Close()
		return err
	}
	owned.Go(func() { s.keepLink(ctx) })
	owned.Go(func() { s.watchDisk(ctx) })
	owned.Go(func() { s.awaitAlone(ctx) })
	owned.Go(func() {
		if !place.Held(ctx) {
			o.Log.Warn("the supervisor's files have been removed: another takes its place", "lock", o.Lock)
			stop()
		}
	})
	owned.Go(func() {
		if err := s.proxy.Serve(ctx, docker); err != nil && ctx.Err() == nil {
			o.Log.Error("docker.sock ended", "err", err)
			stop()
		}
	})
	server := &http.Server{
		Handler:           s.handler(stop),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	clients.Go(func() {
		<-ctx.Done()
		_ = control.Close()
		<-s.ended
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = server.Shutdown(grace)
	})
	if o.Ready != nil {
		if err := o.Ready(); err != nil {
			stop()
			control.Close()
			return err
		}
	}
	o.Log.Info("supervisor started", "project", o.Name, "version", o.Version)
	if err := server.Serve(control); ctx.Err() == nil {
		stop()
		return fmt.Errorf("control.sock: %w", err)
	}
	o.Log.Info("supervisor stopped", "project", o.Name)
	return nil
}

// handler serves control.sock.
func (s *supervisor) handler(stop func()) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("look") {
			s.awaitLook(r.Context()) // or what was known
		}
		status, _ := s.current()
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status)
	})
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-ndjson")
		flush := http.NewResponseController(w)
		for {
			status, changed := s.current()
			if json.NewEncoder(w).Encode(status) != nil || flush.Flush() != nil {
				return
			}
			select {
			case <-changed:
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("POST /suspend", func(w http.ResponseWriter, _ *http.Request) {
		s.suspend(true)
		w.WriteHeader(http.StatusOK)
	})
	mux.HandleFunc("POST /resume", func(w http.ResponseWriter, _ *http.Request) {
		s.suspend(false)
		s.configurePorts()
		s.configureGuard()
		w.WriteHeader(http.StatusOK)
	})
	s.handlePorts(mux)
	mux.HandleFunc("POST /sync", func(w http.ResponseWriter, r *http.Request) { // answers why it failed, if it has
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		if err := s.sync(r.Context()); err != nil {
			_, _ = io.WriteString(w, err.Error())
		}
	})
	mux.HandleFunc("POST /catch-up", func(w http.ResponseWriter, r *http.Request) {
		s.catchUpFiles(r.Context())
		w.WriteHeader(http.StatusOK)
	})
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		stop()
		<-s.ended
	})
	return mux
}

// current returns the status, and a channel that is closed when it changes.
func (s *supervisor) current() (Status, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := s.status
	status.Connections = s.proxy.Active()
	if s.files != nil {
		unwatched := s.files.Unwatched()
		status.Files = slices.Clone(status.Files)
		for i, f := range status.Files {
			status.Files[i].Unwatched = slices.Contains(unwatched, f.Path)
		}
	}
	report := s.ports.Report()
	status.Ports, status.PortsNotOpen, status.Exposures = report.Open(), report.NotOpen(), report.Exposures
	status.PortsPublished = len(report.Ports) + report.More
	return status, s.changed
}

// set changes the state. why is nil when all is well.
func (s *supervisor) set(state State, link *guest.Client, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rest && state != StateSuspended {
		return
	}
	reason := ""
	if why != nil {
		reason = why.Error()
	}
	s.link = link
	if state == StateStopped { // what starts next was asked for
		s.boot, s.status.Rebooted = "", time.Time{}
	}
	if state == StateStopped || state == StateSuspended {
		// The VM's network process ends with the VM, and so do connections. A port that stayed
		// open would be of no use. Resume opens the ports again.
		s.ports.Set(nil, 0)
	}
	if link == nil {
		s.status.SlowSince = time.Time{}
	}
	if state == StateStopped || state == StateSuspended {
		s.status.Room, s.status.ShortAt = nil, time.Time{}
	}
	if s.status.State == state && s.status.Error == reason {
		return
	}
	if failed, ok := errors.AsType[*engineError](why); ok {
		s.status.EngineFailed = failed.words
	} else if state != StateSSH { // in which the engine is asked again
		s.status.EngineFailed = ""
	}
	s.Log.Info("state", "state", state, "reason", reason)
	if s.status.State != state {
		s.status.Since, s.status.PortsKnown, s.status.PortsProblem = time.Now(), false, ""
	}
	s.status.State, s.status.Error = state, reason
	s.tell()
}

// tell wakes all that wait for a change. The caller holds the lock.
func (s *supervisor) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// use gives clients the link, once the VM has all that they expect.
func (s *supervisor) use(link *guest.Client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rest {
		return
	}
	s.link = link
	s.tell()
}

// setSlow notes that the VM has been silent since a time, or, with the zero time, that it answers
// again. The link stays, with all that runs over it.
func (s *supervisor) setSlow(since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.SlowSince.Equal(since) {
		return
	}
	if s.status.SlowSince = since; since.IsZero() {
		s.Log.Info("the VM is heard again")
	} else {
		s.silences++
		s.Log.Warn("the VM is silent", "since", since)
	}
	s.tell()
}

// suspend ends the link and keeps it down, or lets it come up again.
func (s *supervisor) suspend(rest bool) {
	s.mu.Lock()
	link := s.link
	changed := s.rest != rest
	s.rest = rest
	s.mu.Unlock()
	switch {
	case rest:
		s.set(StateSuspended, nil, nil)
		if link != nil {
			_ = link.Close()
		}
	case changed:
		s.set(StateConnecting, nil, nil)
	}
}

// sync makes the guest write its caches.
func (s *supervisor) sync(ctx context.Context) error {
	s.mu.Lock()
	link := s.link
	s.mu.Unlock()
	if link == nil {
		return errors.New("the VM does not answer")
	}
	code, err := link.Run(ctx, guest.Command{Argv: []string{"sync"}})
	if err == nil && code != 0 {
		err = fmt.Errorf("sync: exit code %d", code)
	}
	return err
}

// resting reports whether no link may be made now.
func (s *supervisor) resting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rest
}

// awaitResume blocks while the VM rests.
func (s *supervisor) awaitResume(ctx context.Context) {
	for {
		_, changed := s.current()
		if !s.resting() {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
