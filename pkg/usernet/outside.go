package usernet

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The host's own rules can lead an address of somebody else to one of its services: a
// DNAT or REDIRECT of its firewall (kube-proxy, transparent proxies), or a BPF program.
// No look at the address shows that, so the sockets that go out are deaf to this host:
// what one process of a host sends to another always crosses the loopback device,
// whatever rules have made of its addresses, and a filter on the socket drops what comes
// from there. The handshake of a TCP connection to the host never completes, so no byte
// reaches a service; from UDP no answer comes back.
//
// The kernel's list of sockets (sock_diag(7)) would answer later and miss some: when two
// translated connections would be alike on the host's side, the kernel gives the second
// another source port, and nothing in the list ties it to us.

// errTranslated says that the host itself answers at an address that is not its own.
var errTranslated = errors.New("answered by this host")

// deafToHost drops what the loopback device delivers and passes the rest.
var deafToHost = assemble(
	bpf.LoadExtension{Num: bpf.ExtLinkLayerType},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ARPHRD_LOOPBACK, SkipFalse: 1},
	bpf.RetConstant{Val: 0},
	bpf.RetConstant{Val: math.MaxUint32},
)

func assemble(program ...bpf.Instruction) []unix.SockFilter {
	raw, err := bpf.Assemble(program)
	if err != nil {
		panic(err)
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	return filter
}

// deafen puts the filter on a socket.
func deafen(c syscall.RawConn) error {
	var err error
	wait := c.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(deafToHost)), Filter: &deafToHost[0]})
	})
	if err = errors.Join(wait, err); err != nil {
		return fmt.Errorf("filter what the socket hears: %w", err)
	}
	return nil
}

// heardHost tells whether a socket that has received nothing has dropped something, so
// something of this host's. It also says so of a packet from elsewhere that the kernel
// cannot use, which is not worth a connection.
func heardHost(c syscall.RawConn, tcp bool) bool {
	const ( // of SO_MEMINFO, see linux/sock_diag.h
		fields   = 9
		received = 0 // and not read yet
		drops    = 8
	)
	var info [fields]uint32
	size := uint32(unsafe.Sizeof(info))
	heard := false
	_ = c.Control(func(fd uintptr) {
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		heard = errno == 0 && info[drops] > 0 && info[received] == 0
		if heard && tcp { // a connection that exists by now drops what its buffer has no room for
			state, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			heard = err == nil && state.State == unix.BPF_TCP_SYN_SENT
		}
	})
	return heard
}

// Between two looks at whether the host has answered.
const (
	firstLook = time.Millisecond
	lastLook  = time.Second
)

// dialOutside opens a socket that is deaf to this host. If the host answers a TCP
// connection, the error is errTranslated. Of UDP, only the first answer could tell.
func dialOutside(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if network == pingNetwork {
		return dialPing(to.Addr())
	}
	return dialDeaf(ctx, network, to, deafen)
}

func dialDeaf(ctx context.Context, network string, to netip.AddrPort, deafen func(syscall.RawConn) error) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d := newDialer()
	d.SetMultipathTCP(false) // its subflows would be sockets of their own
	hears := false
	d.Control = func(_, _ string, c syscall.RawConn) error {
		err := deafen(c)
		switch {
		case network != "tcp":
		case errors.Is(err, unix.EPERM): // see samehost.go
			hears, err = true, nil
		case err == nil:
			watchHandshake(ctx, c, cancel)
		}
		return err
	}
	conn, err := d.DialContext(ctx, network, to.String())
	if err != nil && errors.Is(context.Cause(ctx), errTranslated) {
		return nil, fmt.Errorf("dial %s: %w", to, errTranslated)
	}
	if err == nil && hears {
		err = checkElsewhere(conn)
	}
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// checkElsewhere cuts a connection that ends in this host.
func checkElsewhere(conn net.Conn) error {
	here, err := endsHere(netip.MustParseAddrPort(conn.LocalAddr().String()))
	switch {
	case err != nil:
		err = fmt.Errorf("tell whether %s is this host: %w", conn.RemoteAddr(), err)
	case here:
		err = fmt.Errorf("dial %s: %w", conn.RemoteAddr(), errTranslated)
	default:
		return nil
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // a reset
	}
	_ = conn.Close()
	return err
}

// watchHandshake cancels a dial when the host has answered it.
func watchHandshake(ctx context.Context, c syscall.RawConn, cancel context.CancelCauseFunc) {
	pause := firstLook
	var timer *time.Timer
	timer = time.AfterFunc(math.MaxInt64, func() {
		switch {
		case ctx.Err() != nil:
		case heardHost(c, true):
			cancel(errTranslated)
		default:
			pause = min(2*pause, lastLook)
			timer.Reset(pause)
		}
	})
	context.AfterFunc(ctx, func() { timer.Stop() })
	timer.Reset(pause)
}

// newDialer makes ordinary sockets.
func newDialer() net.Dialer {
	return net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: 15 * time.Second, Count: 9}}
}
