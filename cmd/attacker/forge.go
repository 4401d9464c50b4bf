package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// forgery is a set of packets that claim to come from somebody else: for each source,
// destination and port a TCP SYN and a UDP datagram.
type forgery struct {
	dev      *net.Interface
	mac      net.HardwareAddr // of the victim
	src, dst []netip.Addr
	ports    []uint16
	sport    uint16 // source port
	proto    uint16 // what the kernel is told that the frames are
	say      string
}

func plan(dev, mac, src, dst, ports, say string) (forgery, error) {
	f := forgery{say: say, sport: 40123, proto: unix.ETH_P_IP}
	var err error
	if f.dev, err = net.InterfaceByName(dev); err != nil {
		return f, fmt.Errorf("interface %s: %w", dev, err)
	}
	if f.mac, err = net.ParseMAC(mac); err != nil {
		return f, err
	}
	for _, list := range []struct {
		text string
		to   *[]netip.Addr
	}{{src, &f.src}, {dst, &f.dst}} {
		for s := range strings.SplitSeq(list.text, ",") {
			a, err := netip.ParseAddr(s)
			if err != nil {
				return f, err
			}
			if !a.Is4() {
				return f, fmt.Errorf("%s is not an IPv4 address", a)
			}
			*list.to = append(*list.to, a)
		}
	}
	for s := range strings.SplitSeq(ports, ",") {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return f, err
		}
		f.ports = append(f.ports, uint16(n))
	}
	return f, nil
}

// forge sends the packets past the kernel's own checks (packet(7)) and prints each TCP
// or UDP packet that the victim sends on this link meanwhile from one of the ports.
func forge(ctx context.Context, f forgery, wait time.Duration, w *results) error {
	const proto = unix.ETH_P_IP>>8 | unix.ETH_P_IP<<8&0xff00 // in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Protocol: f.proto>>8 | f.proto<<8, Ifindex: f.dev.Index, Halen: 6}
	copy(to.Addr[:], f.mac)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: f.dev.Index}); err != nil {
		return fmt.Errorf("bind to %s: %w", f.dev.Name, err)
	}
	sent := 0
	for _, s := range f.src {
		for _, d := range f.dst {
			for _, p := range f.ports {
				from, at := netip.AddrPortFrom(s, f.sport), netip.AddrPortFrom(d, p)
				for _, packet := range [][]byte{udpPacket(from, at, f.say+" from "+s.String()), synPacket(from, at)} {
					frame := append(append(append([]byte{}, f.mac...), f.dev.HardwareAddr...), 0x08, 0x00)
					err := unix.Sendto(fd, append(frame, packet...), 0, to)
					if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EPERM) { // a firewall here has dropped it
						if err := w.add(f.dev.Name, gotDenied, err.Error()); err != nil {
							return err
						}
						continue
					}
					if err != nil {
						return fmt.Errorf("send: %w", err)
					}
					sent++
				}
			}
		}
	}
	if err := w.add(f.dev.Name, "sent", strconv.Itoa(sent)+" packets"); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		return err
	}
	buf := make([]byte, 2048)
	for deadline := time.Now().Add(wait); time.Now().Before(deadline) && ctx.Err() == nil; {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING || n < 14 {
			continue
		}
		if text := f.answer(buf[14:n]); text != "" {
			if err := w.add(f.dev.Name, gotAnswer, text); err != nil {
				return err
			}
		}
	}
	return nil
}

// answer describes an IPv4 packet if it comes from one of the ports and is more than a
// refusal.
func (f forgery) answer(p []byte) string {
	if len(p) < 20 || p[0]>>4 != 4 {
		return ""
	}
	head := int(p[0]&15) * 4
	src, dst := netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
	kind := p[9]
	if len(p) < head+8 {
		return ""
	}
	p = p[head:]
	port, to := binary.BigEndian.Uint16(p), netip.AddrPortFrom(dst, binary.BigEndian.Uint16(p[2:]))
	known := false
	for _, x := range f.ports {
		known = known || x == port
	}
	switch {
	case !known:
		return ""
	case kind == unix.IPPROTO_UDP:
		return fmt.Sprintf("udp %s:%d to %s", src, port, to)
	case kind == unix.IPPROTO_TCP && len(p) > 13 && p[13]&0x04 == 0: // no RST
		return fmt.Sprintf("tcp %s:%d to %s", src, port, to)
	}
	return ""
}

// udpPacket is an IPv4 packet (RFC 791) with a UDP datagram (RFC 768) without checksum.
func udpPacket(from, to netip.AddrPort, text string) []byte {
	u := binary.BigEndian.AppendUint16(nil, from.Port())
	u = binary.BigEndian.AppendUint16(u, to.Port())
	u = binary.BigEndian.AppendUint16(u, uint16(8+len(text)))
	u = binary.BigEndian.AppendUint16(u, 0)
	return ipPacket(unix.IPPROTO_UDP, from.Addr(), to.Addr(), append(u, text...))
}

// synPacket is an IPv4 packet that opens a TCP connection (RFC 9293).
func synPacket(from, to netip.AddrPort) []byte {
	s := binary.BigEndian.AppendUint16(nil, from.Port())
	s = binary.BigEndian.AppendUint16(s, to.Port())
	s = append(s, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, 0x02, 0xff, 0xff, 0, 0, 0, 0)
	src, dst := from.Addr().As4(), to.Addr().As4()
	pseudo := append(append(append([]byte{}, src[:]...), dst[:]...), 0, unix.IPPROTO_TCP, 0, byte(len(s)))
	binary.BigEndian.PutUint16(s[16:], checksum(append(pseudo, s...)))
	return ipPacket(unix.IPPROTO_TCP, from.Addr(), to.Addr(), s)
}

func ipPacket(proto byte, from, to netip.Addr, body []byte) []byte {
	h := []byte{0x45, 0}
	h = binary.BigEndian.AppendUint16(h, uint16(20+len(body)))
	h = append(h, 0, 0, 0, 0, 64, proto, 0, 0)
	src, dst := from.As4(), to.As4()
	h = append(append(h, src[:]...), dst[:]...)
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, body...)
}

// checksum is the internet checksum (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for len(b) > 1 {
		sum += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
