// Package usernet is the network of one VM, in user space: a TCP/IP stack
// (gVisor's netstack) at the other end of QEMU's "stream" network card.
//
// The VM sees a private network with a gateway that gives it its address by
// DHCP, answers DNS with what the host's resolver says, and carries its TCP
// and UDP connections out as ordinary sockets of the user who runs devvm, by
// IPv4 and, while the host has a way out by it, by IPv6 (router.go).
// Connections into the VM come through a unix socket ([Dialer]); no port of
// the host listens, and no bridge, route or firewall rule is made.
//
// Nothing that comes from the VM reaches the host itself, whatever root in the
// VM does: see hostrule.go. The guest is not trusted in anything: each frame
// is looked at before the stack is (ingress.go), only the VM's own addresses are
// taken as a source, and what is refused gets an answer (RST or ICMP) rather
// than silence.
//
// [Run] is the body of the process `devvm net`, one per VM; it ends with its
// QEMU. If that process dies, the VM's connections die and nothing else; a new
// one takes over the same sockets. [Stack] is the same network without sockets
// of its own, for tests.
//
// What devvm.toml allows beyond that, or does not, is an [egress.Policy]; it can
// be replaced while the VM runs, through the unix socket and so by the host's
// user alone ([Dialer.SetPolicy]). Names in it are matched by the answers that
// this network's DNS has given to the VM (answers.go), and what the VM asked for
// is kept in a journal of bounded size ([Egress]).
//
// This package is the only one that may import gVisor, and imports no other
// package of devvm but egress.
package usernet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/usernet/internal/link"
	"github.com/devvm/devvm/pkg/usernet/internal/socket"
	"github.com/devvm/devvm/pkg/vmnet"
)

const nic = socket.NIC

// Config describes a VM's network. The zero value is a good one, but for Log.
type Config struct {
	Policy *egress.Policy // what the VM may reach; nil: egress.Default
	MTU    int            // largest IP packet, 1280 to 65521; 0: DefaultMTU
	Log    *slog.Logger   // nil: nothing is logged

	// Services are more TCP ports of the gateway, and the unix sockets of the host
	// that serve them, to the VM's root and kernel: connections from ports below
	// 1024. Neither policy nor Offline is their matter.
	Services map[uint16]string

	// MaxFlows bounds the outbound TCP connections, and apart from them the
	// UDP flows, that exist at a time; 0: 768 and 256, or what the open-file limit
	// has room for.
	MaxFlows int

	// The seams of tests. Each replaces one contact with the host.

	// DialOut opens an outbound connection that policy has allowed; nil: a
	// socket to that address. Networks are "tcp", "udp" and "icmp" (echo
	// requests and their answers, as datagrams), and the connection is a socket of package
	// net in any case.
	DialOut func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
	// ResolvConf and Hosts are paths; empty: /etc/resolv.conf and /etc/hosts.
	ResolvConf, Hosts string
	// DialDNS reaches a nameserver that ResolvConf names; nil: port 53 there.
	DialDNS func(ctx context.Context, network, server string) (net.Conn, error)
	// UDPIdle is how long a UDP flow without answers lives, 0: 30 s; one with
	// answers lives four times as long.
	UDPIdle time.Duration
	// Now is the clock of DNS answers and of the journal; nil: time.Now.
	Now func() time.Time
}

// Stack is the network of one VM. Its methods are safe for concurrent use.
type Stack struct {
	cfg    Config
	log    *slog.Logger
	net    *stack.Stack
	cable  *link.Endpoint
	policy *policy
	out    *outbound
	relays relays
	dns    *resolver

	gateway  *gateway
	pressure pressure
	pings    bool // the host lets this process send some

	route6      atomic.Bool // the host has a way out by IPv6
	advertising sync.Mutex  // held from looking at route6 until the VM is told
	neighbours  []neighbour // the one that has been silent longest in front; the reading goroutine's

	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	closing sync.Once

	guestMAC atomic.Value // tcpip.LinkAddress that the guest sent from last
	dialIns  atomic.Int64

	mu    sync.Mutex
	since time.Time // of the present guest; zero: none
}

// New makes the network; it does nothing until Serve gives it a VM.
func New(cfg Config) (*Stack, error) {
	if cfg.MTU == 0 {
		cfg.MTU = vmnet.DefaultMTU
	}
	if cfg.MTU < 1280 || cfg.MTU > maxMTU {
		return nil, fmt.Errorf("MTU %d is out of range (1280 to %d)", cfg.MTU, maxMTU)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	if cfg.Hosts == "" {
		cfg.Hosts = "/etc/hosts"
	}
	if cfg.UDPIdle == 0 {
		cfg.UDPIdle = 30 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MaxFlows == 0 {
		cfg.MaxFlows = defaultMaxFlows()
	}
	s := &Stack{cfg: cfg, log: cfg.Log, pings: cfg.DialOut != nil || pingsAllowed()}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.cable = link.New(tcpip.LinkAddress(vmnet.GatewayMAC), uint32(cfg.MTU), link.QueueBytes)
	s.policy = newPolicy(s)
	if err := s.makeNet(); err != nil {
		s.cancel()
		return nil, fmt.Errorf("make network stack: %w", err)
	}
	s.dns = newResolver(s)
	s.policy.ask = s.dns.renew
	s.gateway = newGateway(s)
	s.out = newOutbound(s)
	return s, nil
}

// maxMTU keeps a frame within 65535 bytes, which is all that a virtio-net
// device can announce.
const maxMTU = 65535 - 14

func (s *Stack) makeNet() error {
	s.net = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
		NUDConfigs:         neighbourTimes(),
	})
	if err := s.net.CreateNIC(nic, ethernet.New(s.cable)); err != nil {
		return errors.New(err.String())
	}
	for _, a := range []netip.Prefix{
		netip.PrefixFrom(vmnet.Gateway, vmnet.Network.Bits()), netip.PrefixFrom(vmnet.HostAlias, vmnet.Network.Bits()), netip.PrefixFrom(vmnet.Gateway6, 64),
	} {
		address := tcpip.ProtocolAddress{
			Protocol:          socket.Protocol(a.Addr()),
			AddressWithPrefix: tcpip.AddressWithPrefix{Address: socket.Address(a.Addr()), PrefixLen: a.Bits()},
		}
		properties := stack.AddressProperties{}
		if a.Addr() == vmnet.HostAlias {
			properties.PEB = stack.NeverPrimaryEndpoint
		}
		if err := s.net.AddProtocolAddress(nic, address, properties); err != nil {
			return errors.New(err.String())
		}
	}
	s.net.SetRouteTable([]tcpip.Route{
		{Destination: subnet(netip.PrefixFrom(vmnet.GuestLoopback, 32)), Gateway: socket.Address(vmnet.Guest), NIC: nic}, // no neighbour of that name
		{Destination: subnet(vmnet.Network), NIC: nic},
		{Destination: subnet(vmnet.Network6), NIC: nic},
	})

	// Every address but the gateway's is somebody else's: the stack takes the
	// packets for all of them and answers in their names.
	if err := s.net.SetPromiscuousMode(nic, true); err != nil {
		return errors.New(err.String())
	}
	if err := s.net.SetSpoofing(nic, true); err != nil {
		return errors.New(err.String())
	}
	return tuneTCP(s.net)
}

// neighbourTimes makes the stack ask for the guest's link address five times a
// second, so that a connection waits for a booting VM no longer than it boots.
func neighbourTimes() stack.NUDConfigurations {
	c := stack.DefaultNUDConfigurations()
	c.RetransmitTimer = 200 * time.Millisecond
	c.MaxMulticastProbes = 15
	c.MaxUnicastProbes = 15
	return c
}

// How often at least a segment is sent again that a VM leaves unanswered, and for how long.
const (
	maxRetransmit = 4 * time.Second
	tcpPatience   = 10 * time.Minute
)

func tuneTCP(n *stack.Stack) error {
	sack := tcpip.TCPSACKEnabled(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 128 << 10, Max: maxBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 128 << 10, Max: maxBuffer}
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	// The forwarder's connections have no listener, so a SYN that meets one in
	// TIME-WAIT is lost, and a guest that uses a port again would wait for a
	// minute. No segment strays on this cable: TIME-WAIT has nothing to do.
	timeWait := tcpip.TCPTimeWaitTimeoutOption(50 * time.Millisecond)
	// A VM that stalls for a minute is not to wait for one more until it is asked again, and
	// one that has booted again resets what it does not know. So what is lost is sent again
	// every 4 s at least, for longer than anybody above waits (guest.SilenceLimit).
	again := tcpip.TCPMaxRTOOption(maxRetransmit)
	retries := tcpip.TCPMaxRetriesOption(tcpPatience / maxRetransmit)
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &receive, &send, &moderate, &timeWait, &again, &retries} {
		if err := n.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return errors.New(err.String())
		}
	}
	return nil
}

// Serve carries the frames of the VM behind conn, which speaks the framing of
// QEMU's "stream" netdev, until conn ends, ctx is done or the Stack is closed.
// It closes conn. One VM is served at a time: a second call meanwhile fails
// and leaves its conn open. The VM's connections outlive Serve.
func (s *Stack) Serve(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	if s.ctx.Err() != nil {
		conn.Close()
		return vmnet.ErrClosed
	}
	served := false
	err := s.cable.Serve(ctx, conn, func() {
		served = true
		s.lookRoute(ctx) // before the VM is heard and asks
		s.advertise()    // if it is known, it knows what held when it was last here
		wg.Go(func() { s.keepRoute(ctx) })
		s.setSince(time.Now())
		s.log.Info("VM connected")
	}, s.ingress)
	if served {
		s.setSince(time.Time{})
		s.log.Info("VM disconnected", "error", err)
	}
	if err != nil {
		return fmt.Errorf("serve VM: %w", err)
	}
	return nil
}

func (s *Stack) setSince(t time.Time) {
	s.mu.Lock()
	s.since = t
	s.mu.Unlock()
}

// begin has Close wait until s.wg.Done. It is false if the Stack is closed: what would begin
// must not.
func (s *Stack) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.wg.Add(1)
	return true
}

// Close ends all connections and waits for the goroutines of the Stack.
func (s *Stack) Close() error {
	s.closing.Do(func() {
		s.mu.Lock()
		s.cancel()
		s.mu.Unlock()
		s.net.Close() // ends handshakes that would wait for the guest
		s.wg.Wait()
		s.net.Wait()
	})
	return nil
}

// fromNet turns an address of gVisor's into Go's.
func fromNet(a tcpip.Address) netip.Addr {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return addr
}
