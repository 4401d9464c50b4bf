package usernet_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"

	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/vmnet"
)

// The test below runs in network namespaces: this test binary, started again,
// is a host of its own, and once more the world outside, joined by a veth:
//
//	guest ── usernet ── host 10.77.0.1 ──── 10.77.0.2 outside
//	                         fd77::1        fd77::2
const (
	hostAddr     = "10.77.0.1"
	outsideAddr  = "10.77.0.2"
	hostAddr6    = "fd77::1"
	outsideAddr6 = "fd77::2"
	echoPort     = ":7"
)

// guest6 is an address that the guest can have.
var guest6 = netip.MustParseAddr("fd64:6576:766d::2")

// inNamespace prepares a start of this test binary in a new network namespace;
// where we are not root, in a user namespace too, in which we are.
func inNamespace(role string, args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "USERNET_TEST_NAMESPACE="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	return cmd
}

// runInNamespace runs another test of this package, which is the host, in a namespace.
func runInNamespace(t *testing.T, test string) {
	t.Helper()
	out, err := inNamespace("host", "-test.run=^"+test+"$", "-test.v").CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Skipf("network namespaces need root or unprivileged user namespaces: %v", err)
	}
	switch {
	case strings.Contains(string(out), "--- SKIP: "+test):
		t.Skipf("%s", out)
	case err != nil || !strings.Contains(string(out), "--- PASS: "+test):
		t.Errorf("in the namespace: %v\n%s", err, out)
	default:
		t.Logf("%s", out)
	}
}

// startBeside starts somebody else whom this test's host meets, in a namespace of its own, until
// the test ends.
func startBeside(t *testing.T, role string, files ...*os.File) (cmd *exec.Cmd, in io.Writer, out io.Reader) {
	t.Helper()
	cmd = inNamespace(role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET} // we are root here in any case
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		input.Close()
		cmd.Wait()
	})
	return cmd, input, output
}

func TestNamespaces(t *testing.T) {
	t.Parallel()
	runInNamespace(t, "TestHostInNamespace")
}

// beOutside is the world outside: an interface that it is given, and servers
// that echo, until its standard input ends.
func beOutside() int {
	if err := serveOutside(); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		return 1
	}
	return 0
}

func serveOutside() error {
	if err := up("lo", ""); err != nil {
		return err
	}
	os.Stdout.WriteString("ready\n")
	if _, err := io.ReadFull(os.Stdin, make([]byte, 1)); err != nil { // the veth is here
		return err
	}
	if err := up("veth1", outsideAddr+"/24"); err != nil {
		return err
	}
	if err := up("veth1", outsideAddr6+"/64"); err != nil && hasIPv6() {
		return err
	}
	if err := serveEcho(); err != nil {
		return err
	}
	if err := serveHostile(); err != nil {
		return err
	}
	os.Stdout.WriteString("ready\n")
	io.Copy(io.Discard, os.Stdin)
	return nil
}

// serveEcho serves the echo port on all addresses, of both versions.
func serveEcho() error {
	l, err := net.Listen("tcp", echoPort)
	if err != nil {
		return err
	}
	go echoServer(l)
	for _, a := range []string{outsideAddr, "[" + outsideAddr6 + "]"} { // answers come from the address asked
		if p, err := net.ListenPacket("udp", a+echoPort); err == nil {
			go echoPackets(p)
		} else if a == outsideAddr || hasIPv6() {
			return err
		}
	}
	return nil
}

func hasIPv6() bool { return exists("/proc/net/if_inet6") }

func echoServer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

func echoPackets(p net.PacketConn) {
	for buf := make([]byte, 65535); ; {
		n, from, err := p.ReadFrom(buf)
		if err != nil {
			return
		}
		p.WriteTo(buf[:n], from)
	}
}

// up gives an interface an address, if any, and switches it on.
func up(name, address string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if address != "" {
		addr, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD // at once
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// TestHostInNamespace is the host. Its network can be changed at will.
func TestHostInNamespace(t *testing.T) {
	if os.Getenv("USERNET_TEST_NAMESPACE") != "host" {
		t.Skip("runs within TestNamespaces")
	}
	startOutside(t)
	// Services of the host on all its addresses, whatever they are.
	l, err := net.Listen("tcp4", "0.0.0.0"+echoPort)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go echoServer(l)
	p, err := net.ListenPacket("udp4", "0.0.0.0"+echoPort)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	go echoPackets(p)

	s := newStack(t, usernet.Config{}) // nothing of the host replaced
	r := newRoot(t, s)
	g := r.Guest
	ctx := testContext(t)

	// Where it should lead.
	for _, network := range []string{"tcp", "udp"} {
		c, err := g.Dial(ctx, network, outsideAddr+echoPort)
		if err != nil {
			t.Fatalf("%s outside: %v", network, err)
		}
		echoes(t, c)
		c.Close()
	}
	if _, err := g.Dial(ctx, "tcp", outsideAddr+":9"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("closed port outside: %v", err)
	}
	if _, err := g.Dial(ctx, "tcp", "203.0.113.1:7"); !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("no route: %v", err)
	}
	if n := total(s); n != 0 {
		t.Errorf("refused: %v", s.Status().Refused)
	}

	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		name    string
		address string
		change  func() error // of the host's network, before
	}{
		{"the interface's address", hostAddr, nil},
		{"an address that came later", "10.88.0.1", func() error {
			return netlink.AddrAdd(lo, &netlink.Addr{IPNet: prefix("10.88.0.1/32")})
		}},
		{"an interface that came later", "10.87.0.1", func() error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "veth8"
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "veth9"}); err != nil {
				return err
			}
			return up("veth8", "10.87.0.1/16")
		}},
		{"AnyIP", "10.99.3.4", func() error {
			return netlink.RouteAdd(&netlink.Route{
				Dst: prefix("10.99.0.0/16"), LinkIndex: lo.Attrs().Index,
				Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
			})
		}},
	}
	for _, step := range steps {
		if step.change != nil {
			if err := step.change(); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
		}
		// The control: the address is the host's, and its services answer.
		for _, network := range []string{"tcp", "udp"} {
			c, err := net.Dial(network, step.address+echoPort)
			if err != nil {
				t.Fatalf("%s: the host itself cannot reach it: %v", step.name, err)
			}
			echoes(t, c)
			c.Close()
		}
		before := s.Status().Refused["address of the host"]
		start := time.Now()
		if c, err := g.Dial(ctx, "tcp", step.address+echoPort); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: TCP from the guest: %v, %v", step.name, c, err)
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("%s: refused after %v", step.name, d)
		}
		r.wants(t, step.name, udpProto, step.address+echoPort, "unreachable 3")
		r.wants(t, step.name, tcpProto, step.address+echoPort, "rst")
		if n := s.Status().Refused["address of the host"] - before; n != 3 {
			t.Errorf("%s: counted %d times", step.name, n)
		}
	}

	for _, address := range []string{"10.99.255.254", "10.99.0.0"} {
		r.wants(t, "AnyIP", tcpProto, address+echoPort, "rst")
		r.wants(t, "AnyIP", udpProto, address+echoPort, "unreachable 3")
	}
	for _, address := range []string{"10.77.0.255", "10.77.0.0", "10.87.255.255"} {
		r.wants(t, "directed broadcast", udpProto, address+echoPort, "unreachable 3")
	}
	r.wants(t, "loopback", tcpProto, "127.0.0.2"+echoPort, "unreachable 13")

	// With a list: what it names, but not the host, and not from other sources;
	// of the host the one port, at the one address.
	p7 := policyOf(t, outsideAddr+echoPort, hostAddr, "10.99.0.0/16", "10.88.0.1")
	p7.HostPorts = []uint16{7}
	s.SetPolicy(*p7)
	for _, to := range []string{"tcp " + outsideAddr, "udp " + outsideAddr, "tcp " + vmnet.HostAlias.String()} {
		network, address, _ := strings.Cut(to, " ")
		c, err := g.Dial(ctx, network, address+echoPort)
		if err != nil {
			t.Fatalf("listed: %s: %v", to, err)
		}
		echoes(t, c)
		c.Close()
	}
	for _, address := range []string{outsideAddr + ":9", hostAddr + echoPort, "10.99.3.4" + echoPort, "10.88.0.1" + echoPort, vmnet.HostAlias.String() + ":22", "203.0.113.1:7"} {
		r.wants(t, "not listed, or the host's", tcpProto, address, "rst")
		r.wants(t, "not listed, or the host's", udpProto, address, "unreachable 3")
	}
	r.wants(t, "a port of the host by UDP", udpProto, vmnet.HostAlias.String()+echoPort, "unreachable 3")
	for _, source := range []string{outsideAddr, hostAddr, "192.0.2.254", "192.0.2.1", "10.1.2.3"} {
		for _, to := range []string{outsideAddr + echoPort, vmnet.HostAlias.String() + echoPort} {
			r.wantsFrom(t, "forged", netip.MustParseAddr(source), tcpProto, to, "unreachable 13")
		}
	}
	s.SetPolicy(egress.Policy{})
	r.wants(t, "nothing is listed", tcpProto, outsideAddr+echoPort, "rst")
	r.wants(t, "nothing is listed", tcpProto, vmnet.HostAlias.String()+echoPort, "rst")
}

// wants sends a packet from the guest by hand and wants a certain answer.
func (r *root) wants(t *testing.T, what string, proto tcpip.TransportProtocolNumber, to, want string) {
	t.Helper()
	from := vmnet.Guest
	if netip.MustParseAddrPort(to).Addr().Is6() {
		from = guest6
	}
	r.wantsFrom(t, what, from, proto, to, want)
}

// wantsFrom sends the packet again where no answer comes, as a kernel does: after a flood the
// packet, or its answer, may find a full queue.
func (r *root) wantsFrom(t *testing.T, what string, from netip.Addr, proto tcpip.TransportProtocolNumber, to, want string) {
	t.Helper()
	r.port++
	frame := r.packet(proto, netip.AddrPortFrom(from, 20000+r.port), netip.MustParseAddrPort(to))
	got := "nothing"
	for tries := 0; got == "nothing" && tries < 5; tries++ {
		r.WriteFrame(frame)
		got = r.answer(frame, 2*time.Second)
	}
	if got != want {
		t.Errorf("%s, %s from %s to %s: %s, want %s", what, protoNames[proto], from, to, got, want)
	}
}

// startOutside starts the world outside and joins it to this namespace.
func startOutside(t *testing.T) {
	t.Helper()
	cmd, in, out := startBeside(t, "outside")
	ready := func() {
		t.Helper()
		if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
	}
	ready()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "veth0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "veth1", PeerNamespace: netlink.NsPid(cmd.Process.Pid)}); err != nil {
		t.Fatal(err)
	}
	for name, address := range map[string]string{"lo": "", "veth0": hostAddr + "/24"} {
		if err := up(name, address); err != nil {
			t.Fatal(err)
		}
	}
	if err := up("veth0", hostAddr6+"/64"); err != nil && hasIPv6() {
		t.Fatal(err)
	}
	in.Write([]byte("x"))
	ready()
}

func prefix(s string) *net.IPNet {
	_, p, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return p
}

// echoes wants a few bytes back.
func echoes(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	got := make([]byte, 5)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

func total(s *usernet.Stack) (n uint64) {
	for _, count := range s.Status().Refused {
		n += count
	}
	return n
}
