package usernet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Some kernels let only a privileged process filter what a TCP socket hears. There the
// kernel's list of sockets (sock_diag(7)) is asked, after the handshake and before a byte
// passes: a connection that ends in this host has a socket at its other end whose peer is
// ours. A rule that changes the source as well (masquerade) hides that.

const (
	diagReqSize = 56 // struct inet_diag_req_v2
	diagMsgSize = 72 // struct inet_diag_msg, without attributes

	inetDiagReqBytecode = 1 // linux/inet_diag.h
	diagBcDGE           = 4
	diagBcDLE           = 5

	// diagStates are all states but LISTEN; the last is that of a handshake.
	diagStates = 1<<13 - 1 - 1<<unix.BPF_TCP_LISTEN

	diagTime = 5 * time.Second
)

// endsHere tells whether a socket of this host has the address and port as its peer.
func endsHere(peer netip.AddrPort) (bool, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return false, os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	limit := unix.NsecToTimeval(diagTime.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return false, os.NewSyscallError("setsockopt", err)
	}
	families := []uint8{unix.AF_INET6} // those of IPv4 that listen for both are there, too
	if peer.Addr().Is4() {
		families = append(families, unix.AF_INET)
	}
	for _, family := range families {
		found, err := dumpPeers(fd, family, peer)
		if found || err != nil {
			return found, err
		}
	}
	return false, nil
}

// dumpPeers is endsHere for the sockets of one family.
func dumpPeers(fd int, family uint8, peer netip.AddrPort) (bool, error) {
	if err := unix.Sendto(fd, diagRequest(family, peer.Port()), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return false, os.NewSyscallError("sendto", err)
	}
	found := false
	buf := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, os.NewSyscallError("recvfrom", err)
		}
		here, done, err := parsePeers(buf[:n], peer)
		if err != nil {
			return false, err
		}
		if found = found || here; done {
			return found, nil
		}
	}
}

// diagRequest asks for the TCP sockets of a family whose peer has the port.
func diagRequest(family uint8, port uint16) []byte {
	b := make([]byte, unix.SizeofNlMsghdr+diagReqSize)
	h := b[unix.SizeofNlMsghdr:]
	h[0], h[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(h[4:], diagStates)
	// The socket's identity is left empty: all. The program passes "at least the port" and
	// "at most the port"; a jump is counted from the operation's own start, and one that
	// goes 4 bytes beyond the end refuses.
	program := make([]byte, 0, 16)
	op := func(code, yes uint8, no uint16) {
		program = append(program, code, yes)
		program = binary.NativeEndian.AppendUint16(program, no)
	}
	op(diagBcDGE, 8, 20)
	op(0, 0, port)
	op(diagBcDLE, 8, 12)
	op(0, 0, port)
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(program)))
	b = binary.NativeEndian.AppendUint16(b, inetDiagReqBytecode)
	b = append(b, program...)
	binary.NativeEndian.PutUint32(b[0:], uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	return b
}

// parsePeers looks for the peer in some messages of a dump; done says that it has ended.
func parsePeers(b []byte, peer netip.AddrPort) (found, done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return false, false, errors.New("sock_diag: a message of no known form")
		}
		body := b[unix.SizeofNlMsghdr:size]
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return found, true, nil
		case unix.NLMSG_ERROR:
			if len(body) >= 4 {
				return false, false, fmt.Errorf("sock_diag: %w", unix.Errno(-int32(binary.NativeEndian.Uint32(body)))) //nolint:gosec // an errno
			}
			return false, false, errors.New("sock_diag: an error of no known form")
		case unix.SOCK_DIAG_BY_FAMILY:
			if len(body) < diagMsgSize {
				return false, false, errors.New("sock_diag: a message of no known form")
			}
			// struct inet_diag_sockid begins at 4: two ports, source, destination.
			port := binary.BigEndian.Uint16(body[6:])
			var addr netip.Addr
			if body[0] == unix.AF_INET {
				addr = netip.AddrFrom4([4]byte(body[24:28]))
			} else {
				addr = netip.AddrFrom16([16]byte(body[24:40])).Unmap()
			}
			found = found || netip.AddrPortFrom(addr, port) == peer
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return found, false, nil
}
