package ports

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Settings are what of devvm.toml concerns ports.
type Settings struct {
	Prefer string            // PreferShared or PreferOwn; empty: PreferShared
	Map    map[uint16]uint16 // published port → port on the host
	Most   int               // ports of the host that the project may have; 0: DefaultMost; less: none
	Deny   []uint16          // ports of the host that no project gets
}

// Options of a [Table].
type Options struct {
	VM  VM
	Own netip.Addr // the project's own address; invalid: none
	// Dial opens a connection into the VM, "tcp" or "udp". A TCP connection has
	// CloseWrite; each Read and Write of a UDP one is a datagram, and if it has
	// WriteTo, as io.WriterTo, each datagram is one Write.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Project names the devvm project that a process works for, "" for none.
	Project func(ctx context.Context, pid int) string
	// Owner says who has a socket, for a process that may not look; nil: [Owner].
	Owner func(ctx context.Context, k Key) string
	// Exposures is the file that keeps them; empty: they are not kept.
	Exposures string
	Log       *slog.Logger // nil: nothing is logged

	// The seams of tests; zero values are the real ones.
	Now       func() time.Time
	HostAddrs func(to netip.Prefix) ([]netip.Addr, error)
	UDPIdle   time.Duration // of a UDP session without answers; 30 s
}

// Times of a Table.
const (
	retryEvery   = time.Second      // to open what could not be opened
	refreshEvery = 10 * time.Second // of the host's addresses, while something is exposed
	dialTimeout  = 10 * time.Second
	lookupTime   = 3 * time.Second // to find who has a port
	lookEvery    = 10 * time.Second

	// A port that is being given up is not taken. A child that is about to run another
	// program holds what its parent has closed, too.
	takenTries = 5
	takenPause = 50 * time.Millisecond
)

// States of a port and of its addresses.
const (
	StateOpen        = "open"
	StateTaken       = "taken"       // somebody else has it
	StateDenied      = "denied"      // this user may not open it
	StateUnavailable = "unavailable" // the host has no such address
	StateUnreachable = "unreachable" // the VM's network does not lead there
	StateFailed      = "failed"
)

// Table keeps the sockets of one project's published ports. Its methods are safe for
// concurrent use.
type Table struct {
	o     Options
	log   *slog.Logger
	first uint16          // port that users may open
	ctx   context.Context // the life of its connections
	end   context.CancelFunc
	run   sync.WaitGroup

	mu        sync.Mutex
	settings  Settings
	published []Published
	unlisted  int // published ports that are not in published
	lines     []Line
	more      int // lines that are not in lines
	counters  map[Line]*counters
	sockets   map[Key]*socket
	failures  map[Key]failure
	exposures []Exposure
	promises  []promise
	hostAddrs map[netip.Prefix][]netip.Addr
	wake      chan struct{} // holds one when the keeper has something to do
	changed   chan struct{} // closed and replaced at each change

	lookups chan struct{} // has room for one: the search for an owner, which is not cheap
}

// socket is an open socket of the host.
type socket struct {
	line  Line      // that it serves; the zero line: it is only held
	until time.Time // it is held, if no line wants it
	serve func(Line, *counters)
	close func() // at once, with its connections
}

// held tells whether no line has the socket yet.
func (s *socket) held() bool { return s.line == Line{} }

// failure is why a socket is not open.
type failure struct {
	err    error
	owner  string    // in words, once known
	looked time.Time // for the owner
	// looking says that the search for the owner is not over.
	looking bool
}

// New makes a table; Close ends it.
func New(o Options) (*Table, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.HostAddrs == nil {
		o.HostAddrs = hostAddrs
	}
	if o.UDPIdle == 0 {
		o.UDPIdle = 30 * time.Second
	}
	t := &Table{
		o: o, log: o.Log,
		counters: map[Line]*counters{}, sockets: map[Key]*socket{}, failures: map[Key]failure{},
		wake: make(chan struct{}, 1), changed: make(chan struct{}), lookups: make(chan struct{}, 1),
		settings: Settings{Most: DefaultMost}, first: firstPort(),
	}
	if o.Exposures != "" {
		all, err := ReadExposures(o.Exposures)
		if err != nil { // what cannot be read opens nothing to anybody
			t.log.Warn("no port is exposed", "err", err)
		}
		t.exposures = all
	}
	t.refresh()
	t.ctx, t.end = context.WithCancel(context.Background())
	t.run.Go(t.keep)
	return t, nil
}

// Close closes all sockets and connections and waits until they are.
func (t *Table) Close() {
	t.mu.Lock()
	t.end()
	for k, s := range t.sockets {
		s.close()
		delete(t.sockets, k)
	}
	t.mu.Unlock()
	t.run.Wait()
}

// Configure takes new settings.
func (t *Table) Configure(s Settings) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.Most == 0 {
		s.Most = DefaultMost
	}
	s.Most = min(max(s.Most, 0), MaxMost)
	t.settings = s
	t.reconcile()
}

// Set says what the running containers publish now: all of it, but for more ports that
// are not listed.
func (t *Table) Set(published []Published, more int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.redeem(published)
	t.published, t.unlisted = slices.Clone(published), more
	t.reconcile()
}

// Changed returns a channel that is closed at the next change of what Report says, but
// for its counters.
func (t *Table) Changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

// reconcile makes the sockets what they should be. The caller holds the lock.
func (t *Table) reconcile() {
	if t.ctx.Err() != nil {
		return
	}
	now := t.o.Now()
	have, numbers := map[Key]Line{}, map[number]bool{}
	for k, s := range t.sockets {
		have[k] = s.line
		numbers[number{k.Protocol, k.Addr.Port()}] = true
	}
	t.plan(numbers)
	want := assign(t.lines, t.o.Own, t.exposedOn, have)
	for k := range t.failures {
		if _, ok := want[k]; !ok {
			delete(t.failures, k)
		}
	}
	shut, open := diff(have, want)
	before, dirty := len(t.failures), false
	for _, k := range shut {
		s := t.sockets[k]
		if _, wanted := want[k]; s.held() && (wanted || now.Before(s.until)) {
			continue
		}
		s.close()
		delete(t.sockets, k)
		dirty = true
	}
	for _, k := range open {
		s := t.sockets[k]
		if s == nil {
			var err error
			if s, err = t.open(k); err != nil {
				t.failed(k, want[k], err)
				continue
			}
			t.sockets[k] = s
		}
		if _, ok := t.failures[k]; ok {
			delete(t.failures, k)
			t.log.Info("published port is open now", "address", k.String())
		}
		s.line = want[k]
		s.serve(s.line, t.counter(s.line))
		dirty = true
	}
	for k, s := range t.sockets {
		if w, ok := want[k]; ok {
			s.line.Container = w.Container
		}
	}
	routes := make(map[Line]bool, len(t.lines))
	for _, l := range t.lines {
		routes[l.route()] = true
	}
	for l := range t.counters {
		if !routes[l] {
			delete(t.counters, l)
		}
	}
	if dirty || before != len(t.failures) {
		t.announce()
	}
	t.prod()
}

// plan says which lines there are, given the ports that are open. The caller holds the
// lock.
func (t *Table) plan(open map[number]bool) {
	lines := Plan(t.published, t.o.VM, t.settings.Map)
	for i, l := range lines {
		if l.Target.IsValid() && slices.Contains(t.settings.Deny, l.HostPort) {
			lines[i].Target, lines[i].Why = netip.AddrPort{}, denied(l.HostPort)
		}
	}
	before := t.more
	t.lines, t.more = limit(lines, t.settings.Most, open)
	if t.more += t.unlisted; t.more != before {
		t.announce()
	}
}

// denied says why a project does not get a port.
func denied(port uint16) string {
	return fmt.Sprintf("port %d of this host is for no project ([ports] deny); publish another port, or map it", port)
}

// failed notes why a socket could not be opened, and has its owner found.
func (t *Table) failed(k Key, l Line, err error) {
	known, ok := t.failures[k]
	again := ok && known.err.Error() == err.Error()
	now := t.o.Now()
	if again && (known.looking || now.Sub(known.looked) < lookEvery) {
		return
	}
	t.failures[k] = failure{err, known.owner, now, true}
	if !again {
		t.announce()
	}
	t.run.Go(func() {
		owner := t.owner(t.ctx, k, err)
		t.mu.Lock()
		if f, ok := t.failures[k]; ok {
			if f.owner != owner {
				t.announce()
			}
			f.owner, f.looking = owner, false
			t.failures[k] = f
		}
		t.mu.Unlock()
		if again && owner == known.owner {
			return
		}
		level := slog.LevelWarn
		if stateOf(err) == StateUnavailable {
			level = slog.LevelDebug
		}
		t.log.Log(t.ctx, level, "published port is not open", "container", l.Container, "address", k.String(), "owner", owner, "error", err)
	})
}

// owner says who has a socket that is taken.
func (t *Table) owner(ctx context.Context, k Key, err error) string {
	if stateOf(err) != StateTaken {
		return ""
	}
	select {
	case t.lookups <- struct{}{}:
		defer func() { <-t.lookups }()
	case <-ctx.Done():
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	if t.o.Owner != nil {
		return t.o.Owner(ctx, k)
	}
	return Owner(ctx, k, t.o.Project)
}

func (t *Table) counter(l Line) *counters {
	l = l.route()
	if t.counters[l] == nil {
		t.counters[l] = new(counters)
	}
	return t.counters[l]
}

// announce says that something changed. The caller holds the lock.
func (t *Table) announce() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// prod wakes the keeper.
func (t *Table) prod() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// keep does what time brings, until the table is closed: holds and exposures end, what
// is taken may have become free.
func (t *Table) keep() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(t.pause())
		select {
		case <-t.ctx.Done():
			return
		case <-t.wake: // a new pause
		case <-timer.C:
			t.mu.Lock()
			t.expire()
			t.refresh()
			t.reconcile()
			t.mu.Unlock()
			select { // that was for this round
			case <-t.wake:
			default:
			}
		}
	}
}

// pause is how long the keeper has nothing to do.
func (t *Table) pause() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, d := t.o.Now(), time.Hour
	for _, s := range t.sockets {
		if s.held() {
			d = min(d, s.until.Sub(now))
		}
	}
	for _, f := range t.failures {
		if stateOf(f.err) != StateUnavailable {
			d = min(d, retryEvery)
		}
	}
	for _, e := range t.exposures {
		// The host's sleep counts against the clock and not against a timer.
		d = min(d, refreshEvery, e.Until.Sub(now))
	}
	return max(d, time.Millisecond)
}

// expire ends the exposures whose time is over. The caller holds the lock.
func (t *Table) expire() {
	kept := live(t.exposures, t.o.Now())
	if len(kept) == len(t.exposures) {
		return
	}
	for _, e := range t.exposures {
		if e.ended(t.o.Now()) {
			t.log.Warn("exposure ended: its time is over", "port", e.Port, "to", e.To.String())
		}
	}
	t.exposures = kept
	if err := t.save(kept); err != nil {
		t.log.Error("exposures are not kept", "error", err) // they hold their time in themselves
	}
	t.announce()
}

func (t *Table) save(all []Exposure) error {
	if t.o.Exposures == "" {
		return nil
	}
	return writeExposures(t.o.Exposures, all)
}

// refresh asks anew for the host's addresses. The caller holds the lock.
func (t *Table) refresh() {
	t.hostAddrs = map[netip.Prefix][]netip.Addr{}
	for _, e := range t.exposures {
		addrs, err := t.o.HostAddrs(e.To)
		if err != nil {
			t.log.Error("exposure has no address", "port", e.Port, "to", e.To.String(), "error", err)
		}
		t.hostAddrs[e.To] = addrs
	}
}

// exposedOn are the further addresses of a line.
func (t *Table) exposedOn(l Line) []netip.Addr {
	var list []netip.Addr
	for _, e := range live(t.exposures, t.o.Now()) {
		if e.Port == l.HostPort {
			list = append(list, t.hostAddrs[e.To]...)
		}
	}
	return list
}

// Expose opens a port to others until the exposure's end; one of the same port is
// replaced.
func (t *Table) Expose(e Exposure) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.Until = e.Until.Round(0) // without a monotonic clock: the host may sleep
	if err := e.Check(t.o.Now()); err != nil {
		return err
	}
	all := append(without(live(t.exposures, t.o.Now()), e.Port), e)
	slices.SortFunc(all, func(a, b Exposure) int { return int(a.Port) - int(b.Port) })
	if err := t.save(all); err != nil {
		return err
	}
	t.log.Warn("port exposed", "port", e.Port, "to", e.To.String(), "until", e.Until)
	t.exposures = all
	t.refresh()
	t.reconcile()
	t.announce()
	return nil
}

// Conceal ends the exposure of a port, 0: all of them, and their connections. It
// returns how many there were.
func (t *Table) Conceal(port uint16) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := without(t.exposures, port)
	n := len(t.exposures) - len(all)
	if n == 0 {
		return 0, nil
	}
	if err := t.save(all); err != nil {
		return 0, err
	}
	t.log.Warn("exposure ended", "port", port, "count", n)
	t.exposures = all
	t.reconcile()
	t.announce()
	return n, nil
}

// admit tells whether a peer may use a socket.
func (t *Table) admit(k Key, peer netip.Addr) bool {
	if k.Addr.Addr().IsLoopback() {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return admits(t.exposures, k.Addr.Port(), peer, t.o.Now())
}
