package ports_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/condition"
	"github.com/devvm/devvm/pkg/ports"
)

// Roles in which this test binary starts itself.
const (
	roleVariable = "PORTS_TEST_ROLE"
	roleListen   = "listen"    // on the address that follows, until its input ends
	roleHost     = "namespace" // a host of its own
)

func TestMain(m *testing.M) {
	if address, ok := strings.CutPrefix(os.Getenv(roleVariable), roleListen+" "); ok {
		l, err := net.Listen("tcp", address)
		fmt.Println(err)
		if err == nil {
			_, _ = io.Copy(io.Discard, os.Stdin)
			_ = l.Close()
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var (
	vm  = ports.VM{Addr: netip.MustParseAddr("192.0.2.2"), Loopback: netip.MustParseAddr("192.0.2.3")}
	own = netip.MustParseAddr("127.99.98.97")
)

// guest is a VM whose ports are sockets of this host, one for each.
type guest struct {
	mu   sync.Mutex
	tcp  map[string]string // address in the VM → address here
	udp  map[string]string
	cut  atomic.Bool // nothing can be dialled
	live atomic.Int64
}

func newGuest() *guest { return &guest{tcp: map[string]string{}, udp: map[string]string{}} }

func (g *guest) dial(ctx context.Context, network, address string) (net.Conn, error) {
	g.mu.Lock()
	to := map[string]map[string]string{"tcp": g.tcp, "udp": g.udp}[network][address]
	g.mu.Unlock()
	if to == "" || g.cut.Load() {
		return nil, syscall.ECONNREFUSED
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, network, to)
	if err != nil {
		return nil, err
	}
	g.live.Add(1)
	if tcp, ok := c.(*net.TCPConn); ok {
		return &counted{TCPConn: tcp, live: &g.live}, nil
	}
	return &countedConn{Conn: c, live: &g.live}, nil
}

type counted struct {
	*net.TCPConn
	live *atomic.Int64
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { c.live.Add(-1) })
	return c.TCPConn.Close()
}

type countedConn struct {
	net.Conn
	live *atomic.Int64
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.live.Add(-1) })
	return c.Conn.Close()
}

// serve makes a TCP port of the VM.
func (g *guest) serve(t testing.TB, address string, f func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	g.mu.Lock()
	g.tcp[address] = l.Addr().String()
	g.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

// echoUDP makes a UDP port of the VM, which also counts its peers.
func (g *guest) echoUDP(t testing.TB, address string) *atomic.Int64 {
	t.Helper()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	g.mu.Lock()
	g.udp[address] = p.LocalAddr().String()
	g.mu.Unlock()
	var peers atomic.Int64
	go func() {
		seen := map[string]bool{}
		for b := make([]byte, 65535); ; {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			if !seen[from.String()] {
				seen[from.String()] = true
				peers.Add(1)
			}
			_, _ = p.WriteTo(b[:n], from)
		}
	}()
	return &peers
}

func newTable(t testing.TB, o ports.Options) *ports.Table {
	t.Helper()
	if o.Own == (netip.Addr{}) {
		o.Own = own
	}
	o.VM = vm
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	table, err := ports.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(table.Close)
	return table
}

// nextPort is below the ports that the kernel gives to others' connections.
var nextPort atomic.Uint32

// freePort is a TCP and UDP port that nobody has now, another one at each call. No test here
// is parallel: a child of one that has not run its program yet would hold another one's ports.
func freePort(t testing.TB) uint16 {
	t.Helper()
	nextPort.CompareAndSwap(0, uint32(23000+os.Getpid()*101%8000))
	for range 1000 {
		port := uint16(nextPort.Add(1))
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue
		}
		_ = l.Close()
		p, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue
		}
		_ = p.Close()
		return port
	}
	t.Fatal("no free port")
	return 0
}

func published(port uint16, protocol string) ports.Published {
	return ports.Published{Container: "web", ID: "id", Protocol: protocol, Port: 80, HostPort: port}
}

func inVM(port uint16) string { return netip.AddrPortFrom(vm.Addr, port).String() }

func at(host string, port uint16) string { return net.JoinHostPort(host, fmt.Sprint(port)) }

// hosts are the addresses of a published port on a host with IPv6.
func hosts(t testing.TB) []string {
	list := []string{"127.0.0.1", own.String()}
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		_ = l.Close()
		list = append(list, "::1")
	} else {
		t.Log("no IPv6 on this host")
	}
	return list
}

func dialTCP(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*net.TCPConn)
}

func roundTrip(t testing.TB, c net.Conn, text string) {
	t.Helper()
	_, _ = io.WriteString(c, text)
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		t.Fatalf("%q, %v, want %q", b, err, text)
	}
}

func TestTCP(t *testing.T) {
	g := newGuest()
	table := newTable(t, ports.Options{Dial: g.dial})
	port := freePort(t)
	g.serve(t, inVM(port), echo)
	changed := table.Changed()
	table.Set([]ports.Published{published(port, "tcp")}, 0)
	<-changed
	for _, host := range hosts(t) {
		c := dialTCP(t, at(host, port))
		roundTrip(t, c, "hello")
		// Half-close: the answer comes after the end of the question.
		_, _ = io.WriteString(c, "the rest")
		_ = c.CloseWrite()
		if b, err := io.ReadAll(c); string(b) != "the rest" || err != nil {
			t.Errorf("%s: %q, %v", host, b, err)
		}
	}
	n := int64(len(hosts(t)))
	condition.Wait(t, "connections end", func() bool { return g.live.Load() == 0 && table.Report().Ports[0].Connections == 0 })
	p := table.Report().Ports[0]
	if p.State != ports.StateOpen || p.Total != n || p.Sent != 13*n || p.Received != 13*n || len(p.Addresses) != 3 {
		t.Errorf("%+v", p)
	}

	// The end of the container is the end of its connections, at once and as a break.
	c := dialTCP(t, at("127.0.0.1", port))
	roundTrip(t, c, "hello")
	table.Set(nil, 0)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection of a container that has ended: %v", err)
	}
	for _, host := range hosts(t) {
		if c, err := net.Dial("tcp", at(host, port)); err == nil {
			_ = c.Close()
			t.Errorf("%s is open", host)
		}
	}
	condition.Wait(t, "connections end", func() bool { return g.live.Load() == 0 })
	if r := table.Report(); len(r.Ports) != 0 {
		t.Errorf("%+v", r)
	}
}

// A port that nobody serves in the VM, or a VM that does not answer, breaks connections.
func TestTCPRefused(t *testing.T) {
	g := newGuest()
	table := newTable(t, ports.Options{Dial: g.dial})
	port := freePort(t)
	table.Set([]ports.Published{published(port, "tcp")}, 0)
	c, err := net.Dial("tcp", at("127.0.0.1", port))
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

// What breaks in the VM breaks on the host: an end is never taken for a good one.
func TestTCPBroken(t *testing.T) {
	g := newGuest()
	table := newTable(t, ports.Options{Dial: g.dial})
	port := freePort(t)
	g.serve(t, inVM(port), func(c net.Conn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.(*net.TCPConn).SetLinger(0)
	})
	table.Set([]ports.Published{published(port, "tcp")}, 0)
	c := dialTCP(t, at("127.0.0.1", port))
	_, _ = io.WriteString(c, "x")
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

func TestUDP(t *testing.T) {
	g := newGuest()
	table := newTable(t, ports.Options{Dial: g.dial, UDPIdle: 2 * time.Second})
	port := freePort(t)
	peers := g.echoUDP(t, inVM(port))
	table.Set([]ports.Published{published(port, "udp")}, 0)
	// Another test that looks for a free port may have it for a moment.
	condition.Wait(t, "the port opens", func() bool { return table.Report().Ports[0].State == ports.StateOpen })
	clients := int64(0)
	for _, host := range hosts(t) {
		for range 5 {
			c, err := net.Dial("udp", at(host, port))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			clients++
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			for _, size := range []int{0, 1, 1400, 9000, 60000} {
				want := bytes.Repeat([]byte{byte(size)}, size)
				if _, err := c.Write(want); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 65535)
				if n, err := c.Read(b); err != nil || !bytes.Equal(b[:n], want) {
					t.Fatalf("%s: %d bytes, %v, want %d", host, n, err, size)
				}
			}
		}
	}
	condition.Wait(t, "all is counted", func() bool { // after it was passed on
		p := table.Report().Ports[0]
		return peers.Load() == clients && p.Total == clients && p.Sent == 70401*clients && p.Received == p.Sent
	})
	// Silent sessions end.
	condition.Wait(t, "sessions end", func() bool { return g.live.Load() == 0 && table.Report().Ports[0].Connections == 0 })
}

// A session that nobody answers ends soon, and many peers cannot hold more than a fixed
// number of sessions.
func TestUDPSessionsAreBounded(t *testing.T) {
	g := newGuest()
	table := newTable(t, ports.Options{Dial: g.dial, UDPIdle: time.Minute})
	port := freePort(t)
	g.echoUDP(t, inVM(port))
	table.Set([]ports.Published{published(port, "udp")}, 0)
	const clients, most = 1200, 1024
	b := make([]byte, 10)
	for range clients {
		c, err := net.Dial("udp", at("127.0.0.1", port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = c.Write([]byte("x"))
		if _, err := c.Read(b); err != nil {
			t.Fatal(err)
		}
	}
	condition.Wait(t, "old sessions end", func() bool { return table.Report().Ports[0].Connections <= most })
	table.Set(nil, 0)
	condition.Wait(t, "all sessions end", func() bool { return g.live.Load() == 0 })
}

// A range of a hundred ports, TCP and UDP.
func TestRange(t *testing.T) {
	g := newGuest()
	table := newTable(t, ports.Options{Dial: g.dial})
	var list []ports.Published
	for range 100 {
		port := freePort(t)
		g.serve(t, inVM(port), echo)
		list = append(list, published(port, "tcp"), published(port, "udp"))
	}
	table.Set(list, 0)
	for _, p := range list {
		if p.Protocol == "tcp" {
			c := dialTCP(t, at("127.0.0.1", p.HostPort))
			roundTrip(t, c, fmt.Sprint(p.HostPort))
			_ = c.Close()
		}
	}
	if r := table.Report(); r.Open() != len(list) {
		t.Errorf("%d open of %d", r.Open(), len(list))
	}
}

func TestManyConnections(t *testing.T) {
	g := newGuest()
	table := newTable(t, ports.Options{Dial: g.dial})
	port := freePort(t)
	g.serve(t, inVM(port), echo)
	table.Set([]ports.Published{published(port, "tcp")}, 0)
	const n = 1000
	conns := make([]*net.TCPConn, n)
	for i := range conns {
		conns[i] = dialTCP(t, at("127.0.0.1", port))
	}
	var all sync.WaitGroup
	for i, c := range conns {
		all.Go(func() {
			want := bytes.Repeat([]byte{byte(i)}, 20000)
			go func() { _, _ = c.Write(want); _ = c.CloseWrite() }()
			if b, err := io.ReadAll(c); err != nil || !bytes.Equal(b, want) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	all.Wait()
	if p := table.Report().Ports[0]; p.Total != n {
		t.Errorf("%+v", p)
	}
}

// A reader that does not read stops the writer; what is in between is bounded.
func TestSlowReader(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	g := newGuest()
	table := newTable(t, ports.Options{Dial: g.dial})
	port := freePort(t)
	var written atomic.Int64
	g.serve(t, inVM(port), func(c net.Conn) {
		b := make([]byte, 64<<10)
		for written.Load() < size {
			n, err := c.Write(b)
			written.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	table.Set([]ports.Published{published(port, "tcp")}, 0)
	c := dialTCP(t, at("127.0.0.1", port))
	stalled := func() int64 {
		for last := int64(-1); ; {
			now := written.Load()
			if now == last {
				return now
			}
			last = now
			time.Sleep(200 * time.Millisecond)
		}
	}
	if n := stalled(); n > 32<<20 {
		t.Errorf("%d bytes are on their way to a reader that does not read", n)
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, most := heap(), uint64(0)
	var got int64
	_ = c.SetDeadline(time.Now().Add(5 * time.Minute))
	for b := make([]byte, 64<<10); ; {
		n, err := c.Read(b)
		got += int64(n)
		if got%(64<<20) < int64(n) {
			most = max(most, heap())
		}
		if err != nil {
			break
		}
	}
	if got != written.Load() || got < size {
		t.Errorf("%d bytes of %d", got, written.Load())
	}
	if most > before+4<<20 {
		t.Errorf("the heap grew from %d to %d bytes", before, most)
	}
}

// occupy has another process listen on an address until the function that it returns.
func occupy(t *testing.T, address string) (pid int, release func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+roleListen+" "+address)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(release)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "<nil>\n" || err != nil {
		t.Fatal(line, err)
	}
	return cmd.Process.Pid, release
}

func TestTaken(t *testing.T) {
	port := freePort(t)
	want := []ports.Want{{Protocol: "tcp", HostPort: port}}
	for name, address := range map[string]string{
		"the same address": at("127.0.0.1", port), "all addresses": at("0.0.0.0", port), "all of both": at("", port), "IPv6": at("::1", port),
	} {
		t.Run(name, func(t *testing.T) { // one after the other: it is one port
			if strings.Contains(address, "::1") && len(hosts(t)) < 3 {
				t.Skip("no IPv6")
			}
			pid, release := occupy(t, address)
			g := newGuest()
			table := newTable(t, ports.Options{Dial: g.dial})
			_, err := table.Reserve(t.Context(), want, 0, time.Minute)
			taken, ok := errors.AsType[*ports.TakenError](err)
			if !ok {
				t.Fatalf("reserved: %v", err)
			}
			if text := fmt.Sprintf("port %d is taken by process ports.test (pid %d)", port, pid); !strings.HasPrefix(err.Error(), text) || !strings.Contains(err.Error(), `prefer = "own"`) || taken.Reason() != "port is already allocated" {
				t.Errorf("%q, want %q", err, text)
			}
			// Nothing is held of a container that is refused.
			if l, err := net.Listen("tcp", at(own.String(), port)); err == nil {
				_ = l.Close()
			} else if name == "the same address" || name == "IPv6" {
				t.Error(err)
			}

			// A container that runs all the same: what can be open is, the rest says why,
			// and is opened when it becomes free.
			g.serve(t, inVM(port), echo)
			table.Set([]ports.Published{published(port, "tcp")}, 0)
			condition.Wait(t, "the owner is named", func() bool {
				p := table.Report().Ports[0]
				return p.State == ports.StateTaken && strings.Contains(p.Problem, fmt.Sprintf("(pid %d)", pid))
			})
			release()
			condition.Wait(t, "the port opens", func() bool { return table.Report().Ports[0].State == ports.StateOpen })
			for _, host := range hosts(t) {
				roundTrip(t, dialTCP(t, at(host, port)), "hello")
			}
		})
	}
}

// Who lets go of a port in a moment does not keep a container from it.
func TestTakenForAMoment(t *testing.T) {
	port := freePort(t)
	l, err := net.Listen("tcp", at("127.0.0.1", port))
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { _ = l.Close() })
	table := newTable(t, ports.Options{Dial: newGuest().dial})
	if _, err = table.Reserve(t.Context(), []ports.Want{{Protocol: "tcp", HostPort: port}}, 0, time.Minute); err != nil {
		t.Error(err)
	}
}

func TestTakenByProject(t *testing.T) {
	port := freePort(t)
	pid, _ := occupy(t, at("127.0.0.1", port))
	project := func(_ context.Context, p int) string {
		if p == pid {
			return `devvm project "shop" (/home/u/shop)`
		}
		return ""
	}
	want := []ports.Want{{Protocol: "udp", HostPort: port}, {Protocol: "tcp", HostPort: port}}
	table := newTable(t, ports.Options{Dial: newGuest().dial, Project: project})
	_, err := table.Reserve(t.Context(), want, 0, time.Minute)
	if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf(`port %d is taken by devvm project "shop" (/home/u/shop); `, port)) {
		t.Error(err)
	}
	// Whose own address is enough may start.
	table.Configure(ports.Settings{Prefer: ports.PreferOwn})
	if _, err := table.Reserve(t.Context(), want, 0, time.Minute); err != nil {
		t.Error(err)
	}
	// Another number on the host is another port.
	other := freePort(t)
	table.Configure(ports.Settings{Map: map[uint16]uint16{port: other}})
	if _, err := table.Reserve(t.Context(), want, 0, time.Minute); err != nil {
		t.Error(err)
	}
	if _, err := net.Listen("tcp", at("127.0.0.1", other)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("the mapped port is not held: %v", err)
	}
}

// The text for a port that only root may open cannot be had by root's tests.
func TestDenied(t *testing.T) {
	err := &ports.TakenError{Key: ports.Key{Protocol: "tcp", Addr: netip.MustParseAddrPort("127.0.0.1:80")}, Own: own, Err: os.NewSyscallError("bind", syscall.EACCES)}
	const want = "port 80 is below the first one that users may open: publish another port, or map it ([ports] map = { 80 = 8080 } in devvm.toml, then devvm up), or allow it: sudo sysctl net.ipv4.ip_unprivileged_port_start=80"
	if err.Error() != want || err.Reason() != "permission denied" {
		t.Errorf("%s\n%s", err, err.Reason())
	}
}

// Whatever port a container publishes, the way that the message names leads to it: the port of
// this host is one that users may open, and the map is of the port in the VM, which another map
// may have led here.
func TestEveryPortHasAWay(t *testing.T) {
	advice := regexp.MustCompile(`\[ports\] map = \{ (\d+) = (\d+) \}`)
	for _, first := range []uint16{1, 80, 1024, 60000, 65535} {
		for n := 1; n < int(first); n += 1 + int(first)/2000*31 {
			for _, published := range []uint16{uint16(n), 50022} {
				err := &ports.TakenError{
					Key:       ports.Key{Protocol: "tcp", Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(n))},
					Published: published, First: first, Err: os.NewSyscallError("bind", syscall.EACCES),
				}
				m := advice.FindStringSubmatch(err.Error())
				if m == nil {
					t.Fatalf("port %d: %v", n, err)
				}
				from, _ := strconv.ParseUint(m[1], 10, 16)
				to, _ := strconv.ParseUint(m[2], 10, 16)
				lines := ports.Plan([]ports.Published{{ID: "a", Protocol: "tcp", Port: 80, HostPort: published}}, vm, map[uint16]uint16{uint16(from): uint16(to)})
				want := netip.AddrPortFrom(vm.Addr, published)
				if len(lines) != 1 || lines[0].Target != want || lines[0].HostPort < first {
					t.Fatalf("port %d, users' from %d: %+v by %v", published, first, lines, err)
				}
			}
		}
	}
	// What users may open needs no advice.
	for n := 1; n <= math.MaxUint16; n++ {
		bindings := network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: strconv.Itoa(n)}}}
		wants, chosen := ports.Wants(bindings, vm)
		lines := ports.Plan([]ports.Published{{ID: "a", Protocol: "tcp", Port: 80, HostPort: uint16(n)}}, vm, nil)
		if len(wants) != 1 || wants[0].HostPort != uint16(n) || chosen != 0 || len(lines) != 1 || lines[0].Target != netip.AddrPortFrom(vm.Addr, uint16(n)) {
			t.Fatalf("port %d: %+v, %d, %+v", n, wants, chosen, lines)
		}
	}
}

// A port that is held is this project's until its container runs or the time is over.
func TestReserve(t *testing.T) {
	g := newGuest()
	table := newTable(t, ports.Options{Dial: g.dial})
	port := freePort(t)
	g.serve(t, inVM(port), echo)
	want := []ports.Want{{Protocol: "tcp", HostPort: port}}
	if _, err := table.Reserve(t.Context(), want, 0, time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, err := net.Listen("tcp", at("127.0.0.1", port)); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("a held port was had: %v", err)
	}
	if _, err := table.Reserve(t.Context(), want, 0, time.Minute); err != nil {
		t.Fatalf("our own hold is in our way: %v", err)
	}
	// Who comes early is served when the container runs.
	early := dialTCP(t, at("127.0.0.1", port))
	table.Set(nil, 0) // other containers' doings
	table.Set([]ports.Published{published(port, "tcp")}, 0)
	roundTrip(t, early, "hello")
	if _, err := table.Reserve(t.Context(), want, 0, time.Minute); err != nil {
		t.Fatalf("our own port is in our way: %v", err)
	}
	table.Set(nil, 0)
	for _, host := range hosts(t) {
		l, err := net.Listen("tcp", at(host, port))
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
	}

	release, err := table.Reserve(t.Context(), want, 0, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	release(50 * time.Millisecond)
	condition.Wait(t, "the hold ends", func() bool {
		l, err := net.Listen("tcp", at("127.0.0.1", port))
		if err == nil {
			_ = l.Close()
		}
		return err == nil
	})
}

// A container that takes another's port over gets new connections, and the former's end.
func TestHandOver(t *testing.T) {
	g := newGuest()
	table := newTable(t, ports.Options{Dial: g.dial})
	port := freePort(t)
	g.serve(t, inVM(port), echo)
	a, b := published(port, "tcp"), published(port, "tcp")
	b.ID = "other"
	table.Set([]ports.Published{a}, 0)
	c := dialTCP(t, at("127.0.0.1", port))
	roundTrip(t, c, "hello")
	renamed := a
	renamed.Container = "renamed"
	table.Set([]ports.Published{renamed}, 0)
	roundTrip(t, c, "still here")
	table.Set([]ports.Published{b}, 0)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	roundTrip(t, dialTCP(t, at("127.0.0.1", port)), "hello")
}

func TestClose(t *testing.T) {
	g := newGuest()
	before := runtime.NumGoroutine()
	table, err := ports.New(ports.Options{VM: vm, Own: own, Dial: g.dial})
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	g.serve(t, inVM(port), echo)
	g.echoUDP(t, inVM(port))
	table.Set([]ports.Published{published(port, "tcp"), published(port, "udp")}, 0)
	if _, err := table.Reserve(t.Context(), []ports.Want{{Protocol: "tcp", HostPort: freePort(t)}}, 0, time.Hour); err != nil {
		t.Fatal(err)
	}
	c := dialTCP(t, at("127.0.0.1", port))
	roundTrip(t, c, "hello")
	table.Close()
	table.Set([]ports.Published{published(port, "tcp")}, 0)
	if c, err := net.Dial("tcp", at("127.0.0.1", port)); err == nil {
		_ = c.Close()
		t.Error("open after Close")
	}
	// The guest's own goroutines stay.
	condition.Wait(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before+2 })
}

// TestNamespace runs what needs a host of its own.
func TestNamespace(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestExposeInNamespace$", "-test.v")
	cmd.Env = append(os.Environ(), roleVariable+"="+roleHost)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Skipf("network namespaces need root or unprivileged user namespaces: %v", err)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: TestExposeInNamespace") {
		t.Errorf("in the namespace: %v\n%s", err, out)
	}
}

func bringUp(t *testing.T, name string, addresses ...string) {
	t.Helper()
	if name != "lo" {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "-far"}); err != nil {
			t.Fatal(err)
		}
		far, err := netlink.LinkByName(name + "-far")
		if err == nil {
			err = netlink.LinkSetUp(far)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}

func TestExposeInNamespace(t *testing.T) {
	if os.Getenv(roleVariable) != roleHost {
		t.Skip("TestNamespace runs this")
	}
	bringUp(t, "lo")
	bringUp(t, "lan", "192.168.7.5/24", "fd00:7::5/64")
	bringUp(t, "other", "10.9.9.1/24")
	file := filepath.Join(t.TempDir(), "exposures.json")
	g := newGuest()
	const port = 8080
	g.serve(t, inVM(port), echo)
	g.echoUDP(t, inVM(port))
	var clock atomic.Int64
	clock.Store(time.Now().UnixNano())
	now := func() time.Time { return time.Unix(0, clock.Load()) }
	options := ports.Options{Dial: g.dial, Exposures: file, Now: now}
	table := newTable(t, options)
	table.Set([]ports.Published{published(port, "tcp"), published(port, "udp")}, 0)

	// from tells whether somebody at an address gets an answer at another. To get none
	// takes a tenth of a second, one that is expected may take longer.
	from := func(network, source, target string, expected bool) bool {
		d := net.Dialer{Timeout: 5 * time.Second}
		ip := netip.MustParseAddr(source)
		if network == "tcp" {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0))
		} else {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 0))
		}
		c, err := d.Dial(network, at(target, port))
		if err != nil {
			return false
		}
		defer c.Close()
		patience := 100 * time.Millisecond
		if expected {
			patience = 10 * time.Second
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(c, "x")
		n, _ := c.Read(make([]byte, 1))
		return n == 1
	}
	check := func(when string, open bool) {
		t.Helper()
		for _, network := range []string{"tcp", "udp"} {
			if from(network, "192.168.7.5", "192.168.7.5", open) != open {
				t.Errorf("%s: %s from the range: open is not %v", when, network, open)
			}
			if from(network, "10.9.9.1", "192.168.7.5", false) || from(network, "192.168.7.5", "10.9.9.1", false) || from(network, "fd00:7::5", "fd00:7::5", false) {
				t.Errorf("%s: %s is open to or at what is not exposed", when, network)
			}
			if !from(network, "127.0.0.1", "127.0.0.1", true) || !from(network, "127.0.0.1", own.String(), true) || !from(network, "::1", "::1", true) {
				t.Errorf("%s: %s is closed to the host", when, network)
			}
		}
	}
	check("before", false)
	e := ports.Exposure{Port: port, To: netip.MustParsePrefix("192.168.7.0/24"), Until: now().Add(time.Hour)}
	if err := table.Expose(e); err != nil {
		t.Fatal(err)
	}
	check("exposed", true)
	r := table.Report()
	want := []netip.AddrPort{netip.MustParseAddrPort("192.168.7.5:8080")}
	if len(r.Exposures) != 1 || !slices.Equal(r.Exposures[0].Addresses, want) || len(r.Ports[0].Addresses) != 4 {
		t.Errorf("%+v", r)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	// The container ends, another comes.
	table.Set(nil, 0)
	if from("tcp", "192.168.7.5", "192.168.7.5", false) {
		t.Error("exposed without a container")
	}
	table.Set([]ports.Published{published(port, "tcp"), published(port, "udp")}, 0)
	check("again", true)

	// Another supervisor keeps the time limit.
	table.Close()
	if from("tcp", "192.168.7.5", "192.168.7.5", false) {
		t.Error("open after Close")
	}
	table = newTable(t, options)
	table.Set([]ports.Published{published(port, "tcp"), published(port, "udp")}, 0)
	check("after a restart", true)
	held := dialTCP(t, at("192.168.7.5", port))
	roundTrip(t, held, "hello")
	if n, err := table.Conceal(1); n != 0 || err != nil {
		t.Error(n, err)
	}
	if n, err := table.Conceal(port); n != 1 || err != nil {
		t.Error(n, err)
	}
	if _, err := held.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection outlives its exposure: %v", err)
	}
	check("concealed", false)
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file stays: %v", err)
	}

	// The end of the time counts whoever notices it.
	if err := table.Expose(e); err != nil {
		t.Fatal(err)
	}
	check("exposed again", true)
	clock.Add(int64(time.Hour))
	check("over", false)
	if r := table.Report(); len(r.Exposures) != 0 {
		t.Errorf("%+v", r)
	}
	condition.Wait(t, "the socket is closed", func() bool {
		l, err := net.Listen("tcp", at("192.168.7.5", port))
		if err == nil {
			_ = l.Close()
		}
		return err == nil
	})
	if err := table.Expose(e); err == nil {
		t.Error("exposed in the past")
	}

	// A range that is behind a router is reached from the address that leads there.
	lan, err := netlink.LinkByName("lan")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lan.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(172, 30, 0, 0), Mask: net.CIDRMask(16, 32)}, Gw: net.IPv4(192, 168, 7, 1)}); err != nil {
		t.Fatal(err)
	}
	e = ports.Exposure{Port: port, To: netip.MustParsePrefix("172.30.0.0/16"), Until: now().Add(time.Hour)}
	if err := table.Expose(e); err != nil {
		t.Fatal(err)
	}
	if r := table.Report(); !slices.Equal(r.Exposures[0].Addresses, want) {
		t.Errorf("%+v", r.Exposures)
	}
	if from("tcp", "192.168.7.5", "192.168.7.5", false) {
		t.Error("open to who is not in the range")
	}

	// Without IPv6, ::1 is left out and nothing is wrong.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0); err == nil {
		table.Set(nil, 0)
		table.Set([]ports.Published{published(port, "tcp")}, 0)
		p := table.Report().Ports[0]
		if p.State != ports.StateOpen || p.Addresses[1].State != ports.StateUnavailable {
			t.Errorf("%+v", p)
		}
	}
}

// A project has so many ports and no others, whatever its containers publish and in which
// way: who asks first is refused, and what comes by itself is not opened.
func TestMost(t *testing.T) {
	table := newTable(t, ports.Options{Dial: newGuest().dial})
	base := freePort(t)
	kept := freePort(t)
	table.Configure(ports.Settings{Most: 3, Deny: []uint16{kept}})
	var list []ports.Published
	for i := range 20_000 {
		p := published(base+uint16(i%2000), "tcp")
		p.Port = uint16(i)
		list = append(list, p)
	}
	table.Set(list, 1000)
	r := table.Report()
	if r.Most != 3 || r.More == 0 || len(r.Ports)+r.More != 21_000 || r.NotOpen() < 20_000 {
		t.Errorf("%d ports, %d more, %d not open", len(r.Ports), r.More, r.NotOpen())
	}
	numbers := map[uint16]bool{}
	for _, p := range r.Ports {
		for _, b := range p.Addresses {
			if b.State == ports.StateOpen {
				numbers[b.Address.Port()] = true
			}
		}
	}
	if len(numbers) == 0 || len(numbers) > 3 {
		t.Errorf("open: %v", numbers)
	}
	table.Set(list[:1], 0)
	reserve := func(chosen int, list ...uint16) error {
		var wants []ports.Want
		for _, port := range list {
			wants = append(wants, ports.Want{Protocol: "tcp", HostPort: port})
		}
		release, err := table.Reserve(t.Context(), wants, chosen, time.Minute)
		if err == nil {
			release(0)
		}
		return err
	}
	refused := func(err error, text string) bool {
		_, ok := errors.AsType[*ports.RefusedError](err)
		return ok && strings.Contains(err.Error(), text)
	}
	if err := reserve(0, base, base); err != nil {
		t.Errorf("what is open already: %v", err)
	}
	if err := reserve(3); !refused(err, "[ports] most = 6") {
		t.Errorf("three that the engine chooses: %v", err)
	}
	if err := reserve(1, freePort(t), freePort(t)); !refused(err, "3 more ports are too many: this project has 1 of this host and may have 3") {
		t.Errorf("three more: %v", err)
	}
	if err := reserve(0, kept); !refused(err, "[ports] deny") {
		t.Errorf("one that is denied: %v", err)
	}
	table.Set([]ports.Published{published(kept, "tcp")}, 0)
	if p := table.Report().Ports[0]; p.State != ports.StateUnreachable || !strings.Contains(p.Problem, "[ports] deny") {
		t.Errorf("%+v", p)
	}
	table.Configure(ports.Settings{Most: -1})
	if p := table.Report().Ports[0]; p.State != ports.StateUnreachable {
		t.Errorf("none: %+v", p)
	}
	table.Configure(ports.Settings{})
	if p := table.Report().Ports[0]; p.State != ports.StateOpen {
		t.Errorf("%+v", p)
	}
}

// A VM of root's does not get what the VM of a user would not, unless a mapping says so.
func TestPrivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root could")
	}
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil || strings.TrimSpace(string(b)) != "1024" {
		t.Skipf("ports below 1024 are everybody's here: %s", b)
	}
	table := newTable(t, ports.Options{Dial: newGuest().dial})
	const port = 1021
	_, err = table.Reserve(t.Context(), []ports.Want{{Protocol: "tcp", HostPort: port}}, 0, time.Minute)
	if taken, ok := errors.AsType[*ports.TakenError](err); !ok || taken.Reason() != "permission denied" {
		t.Errorf("%v", err)
	}
	table.Configure(ports.Settings{Map: map[uint16]uint16{port: port}})
	release, err := table.Reserve(t.Context(), []ports.Want{{Protocol: "tcp", HostPort: port}}, 0, time.Minute)
	if err != nil {
		t.Errorf("with a mapping: %v", err)
	} else {
		release(0)
	}
}
