package usernet_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/devvm/devvm/pkg/usernet/usernettest"
	"github.com/devvm/devvm/pkg/vmnet"
)

// mostResident is what the network process of a hostile guest may hold, in bytes.
const mostResident = 64 << 20

// TestHostileGuest: whatever a guest sends, for as long as it likes, its network process
// stays small and answers the host. DEVVM_TEST_TIME says how long, 20 s by default.
func TestHostileGuest(t *testing.T) {
	if raced {
		t.Skip("the race detector takes many times the memory that is measured here; make check runs this without it")
	}
	if testing.Short() && os.Getenv("DEVVM_TEST_TIME") == "" {
		t.Setenv("DEVVM_TEST_TIME", "8s")
	}
	runInNamespace(t, "TestHostileGuestInNamespace")
}

// TestHostileGuestInNamespace is the host.
func TestHostileGuestInNamespace(t *testing.T) {
	if os.Getenv("USERNET_TEST_NAMESPACE") != "host" {
		t.Skip("runs within TestHostileGuest")
	}
	duration := 20 * time.Second
	if v := os.Getenv("DEVVM_TEST_TIME"); v != "" {
		var err error
		if duration, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
	}
	startOutside(t)
	busyGuest(t)
	dir := t.TempDir()
	service, err := net.Listen("unix", filepath.Join(dir, "service")) // takes connections and reads nothing
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	cmd, ended := startProcess(t, dir)

	conn, err := net.Dial("unix", filepath.Join(dir, "net.sock"))
	if err != nil {
		t.Fatal(err)
	}
	h := &hostile{conn: conn, replies: make(chan []byte, 4096)}
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { h.run(ctx) })

	dialer := vmnet.NewDialer(filepath.Join(dir, "dial.sock"))
	slowest := time.Duration(0)
	for tick := time.NewTicker(200 * time.Millisecond); ctx.Err() == nil; {
		select {
		case err := <-ended:
			t.Fatalf("the network process has ended: %v", err)
		case <-tick.C:
		case <-ctx.Done():
			continue
		}
		start := time.Now()
		if _, err := dialer.Status(t.Context()); err != nil {
			t.Errorf("status: %v", err)
		}
		slowest = max(slowest, time.Since(start))
	}
	wg.Wait()
	status, err := dialer.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	most := resident(t, cmd.Process.Pid, "VmHWM")
	t.Logf("%v: %d frames, %d MB in; %d frames, %d MB out, %d dropped; %d TCP and %d UDP flows; refused: %v", duration,
		status.FramesIn, status.BytesIn>>20, status.FramesOut, status.BytesOut>>20, status.Dropped, status.TCPFlows, status.UDPFlows, status.Refused)
	t.Logf("handshakes completed: %d; peak resident memory: %.1f MB (%.1f MB of it files, at the end); slowest status: %v",
		h.accepted.Load(), float64(most)/(1<<20), float64(resident(t, cmd.Process.Pid, "RssFile"))/(1<<20), slowest)
	if most > mostResident {
		t.Errorf("the network process has held %.1f MB, at most %d are allowed", float64(most)/(1<<20), mostResident>>20)
	}
	if h.accepted.Load() == 0 {
		t.Error("no connection of the guest's was ever accepted: this has shown nothing")
	}
	conn.Close()
	if err := <-ended; err != nil {
		t.Errorf("the network process: %v", err)
	}
}

// startProcess starts a network process, and returns a channel for its end.
func startProcess(t *testing.T, dir string) (*exec.Cmd, <-chan error) {
	t.Helper()
	writeFile(t, filepath.Join(dir, "resolv.conf"), "nameserver "+outsideAddr+"\n")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "USERNET_TEST_NAMESPACE=", "USERNET_TEST_RUN="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	return cmd, ended
}

// busyGuest is the control of a hostile one: one that is only busy, with a load test
// through a published port and hundreds of downloads, loses no connection.
func busyGuest(t *testing.T) {
	const in, out = 1000, 100
	dir := t.TempDir()
	cmd, ended := startProcess(t, dir)
	g := connect(t, filepath.Join(dir, "net.sock"))
	guestTCP(t, g, 80, echo)
	d := vmnet.NewDialer(filepath.Join(dir, "dial.sock"))
	dialGuest(t, d, "tcp", "192.0.2.2:80").Close()
	ctx := testContext(t)
	var wg sync.WaitGroup
	var all sync.WaitGroup // exist at the same time
	all.Add(in + out)
	data := randomBytes(20000)
	slots := make(chan struct{}, 100) // a backlog is no part of this
	for i := range in + out {
		wg.Go(func() {
			slots <- struct{}{}
			var c net.Conn
			var err error
			if i < in {
				c, err = d.Dial(ctx, "tcp", "192.0.2.2:80")
			} else {
				c, err = g.Dial(ctx, "tcp", outsideAddr+echoPort)
			}
			<-slots
			all.Done()
			if err != nil {
				t.Errorf("busy guest: %v", err)
				return
			}
			defer c.Close()
			all.Wait()
			got := make([]byte, len(data))
			for range 5 {
				go c.Write(data)
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, data) {
					t.Errorf("busy guest: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("a busy guest: %d connections in, %d out, each with 100 kB: peak resident memory %.1f MB",
		in, out, float64(resident(t, cmd.Process.Pid, "VmHWM"))/(1<<20))
	g.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// resident is a figure of a process's memory, in bytes: VmHWM is the most that it has had
// resident (proc(5)).
func resident(t *testing.T, pid int, figure string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, figure+":"); ok {
			kB, err := strconv.Atoi(strings.Fields(v)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kB << 10
		}
	}
	t.Fatalf("no %s in\n%s", figure, status)
	return 0
}

// hostile is a guest that has no stack: it makes what packets it likes.
type hostile struct {
	conn     net.Conn
	replies  chan []byte  // to what has come
	accepted atomic.Int64 // handshakes completed
	mu       sync.Mutex
	deaf     bool // reads nothing and answers nothing
}

// Ports of the world outside, see serveOutside.
const (
	floodPort = 19 // sends without end
	sinkPort  = 20 // reads nothing
)

func (h *hostile) run(ctx context.Context) {
	go h.read()
	w := bufio.NewWriterSize(h.conn, 256<<10)
	send := func(frame []byte) {
		w.Write(binary.BigEndian.AppendUint32(nil, uint32(len(frame))))
		w.Write(frame)
	}
	outside := netip.MustParseAddr(outsideAddr)
	at := netip.AddrPortFrom
	random := func() uint16 { return uint16(rand.IntN(65536)) }
	own := func() netip.AddrPort { return at(vmnet.Guest, random()) }
	big := randomBytes(60000)
	gatewayPorts := []uint16{13, 53, 2049, 67, 80}
	attacks := map[string]func(){
		"SYN flood": func() {
			send(tcpFrame(own(), at(vmnet.Gateway, gatewayPorts[rand.IntN(len(gatewayPorts))]), rand.Uint32(), 0, header.TCPFlagSyn, 65535, nil))
			send(tcpFrame(own(), at(netip.AddrFrom4([4]byte{198, 51, 100, byte(random())}), random()), rand.Uint32(), 0, header.TCPFlagSyn, 65535, nil))
			send(tcpFrame(at(vmnet.Guest, uint16(rand.IntN(1024))), at(vmnet.Gateway, 2049), rand.Uint32(), 0, header.TCPFlagSyn, 65535, nil))
		},
		"zero windows": func() { // the answers complete the handshakes
			for _, port := range gatewayPorts {
				send(tcpFrame(own(), at(vmnet.Gateway, port), rand.Uint32(), 0, header.TCPFlagSyn, 0, nil))
			}
		},
		"65,000 flows": func() {
			send(tcpFrame(own(), at(outside, []uint16{floodPort, sinkPort, 7}[rand.IntN(3)]), rand.Uint32(), 0, header.TCPFlagSyn, 0, nil))
		},
		"DNS flood": func() {
			m := new(dns.Msg).SetQuestion(fmt.Sprintf("%x.example.", rand.Uint64()), dns.TypeNS)
			m.SetEdns0(65535, true)
			b, err := m.Pack()
			if err != nil {
				panic(err)
			}
			send(udpFrame(own(), at(vmnet.Gateway, 53), b))
		},
		"DHCP and nothing": func() {
			send(udpFrame(own(), at(vmnet.Gateway, 67), big[:300]))
			send(udpFrame(own(), at(vmnet.Gateway, 67), nil))
			send(udpFrame(own(), at(vmnet.Gateway, 53), nil))
		},
		"UDP flows": func() {
			send(udpFrame(own(), at(outside, 7), big[:rand.IntN(2000)]))
			send(udpFrame(own(), at(outside, random()), nil))
		},
		"large UDP": func() { send(udpFrame(at(vmnet.Guest, 5000), at(outside, 7), big)) },
		"fragments": func() {
			f := udpFrame(own(), at(vmnet.Gateway, random()), big[:1400])
			ip := header.IPv4(f[header.EthernetMinimumSize:])
			ip.SetID(random())
			ip.SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, uint16(rand.IntN(1000)*8))
			ip.SetChecksum(0)
			ip.SetChecksum(^ip.CalculateChecksum())
			send(f)
		},
		"tiny fragments": func() {
			f := udpFrame(own(), at(outside, random()), nil)
			ip := header.IPv4(f[header.EthernetMinimumSize:])
			ip.SetID(random())
			ip.SetFlagsFragmentOffset(header.IPv4FlagMoreFragments, uint16(rand.IntN(8000)*8))
			ip.SetChecksum(0)
			ip.SetChecksum(^ip.CalculateChecksum())
			send(f)
		},
		"large echo requests": func() {
			b := make([]byte, header.ICMPv4MinimumSize, len(big))
			b = append(b, big[:50000]...)
			icmp := header.ICMPv4(b)
			icmp.SetType(header.ICMPv4Echo)
			icmp.SetChecksum(^checksum.Checksum(icmp, 0))
			send(ipFrame(header.ICMPv4ProtocolNumber, vmnet.Guest, vmnet.Gateway, b))
		},
		"nonsense": func() {
			f := append([]byte(nil), big[:14+rand.IntN(200)]...)
			if rand.IntN(2) == 0 {
				copy(f[12:], []byte{8, 0, 0x45})
			}
			send(f)
		},
	}
	var names []string
	for name := range attacks {
		names = append(names, name)
	}
	some := []func(){attacks["zero windows"], attacks["65,000 flows"]}
	for first := true; ctx.Err() == nil; first = false {
		// For a second or so, a few attacks at once, and now and then without reading.
		if !first {
			some = make([]func(), 1+rand.IntN(4))
			for i := range some {
				some[i] = attacks[names[rand.IntN(len(names))]]
			}
		}
		h.setDeaf(!first && rand.IntN(4) == 0)
		end := time.Now().Add(time.Duration(500+rand.IntN(1500)) * time.Millisecond)
		for n := 0; time.Now().Before(end) && ctx.Err() == nil; n++ {
			for range 16 {
				some[rand.IntN(len(some))]()
			}
			for range 64 {
				select {
				case f := <-h.replies:
					send(f)
					continue
				default:
				}
				break
			}
			h.conn.SetWriteDeadline(time.Now().Add(20 * time.Second))
			if w.Flush() != nil {
				return
			}
		}
	}
}

func (h *hostile) setDeaf(deaf bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.deaf = deaf
}

func (h *hostile) isDeaf() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.deaf
}

// read answers what comes: ARP, so that there are connections, and handshakes, with a
// window of nothing and as much data as the other side takes.
func (h *hostile) read() {
	r := bufio.NewReaderSize(h.conn, 256<<10)
	buf := make([]byte, 70000)
	query, err := new(dns.Msg).SetQuestion("big.example.", dns.TypeNS).Pack()
	if err != nil {
		panic(err)
	}
	query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	data := randomBytes(30000)
	for {
		for h.isDeaf() {
			time.Sleep(10 * time.Millisecond)
		}
		frame, err := readFrame(r, buf)
		if err != nil {
			return
		}
		frame = frame[4:]
		switch header.Ethernet(frame).Type() {
		case header.ARPProtocolNumber:
			h.reply(arpReply(frame))
		case header.IPv4ProtocolNumber:
			ip := header.IPv4(frame[header.EthernetMinimumSize:])
			if ip.TransportProtocol() != header.TCPProtocolNumber {
				continue
			}
			tcp := header.TCP(ip.Payload())
			if tcp.Flags() != header.TCPFlagSyn|header.TCPFlagAck {
				continue
			}
			h.accepted.Add(1)
			peer := netip.AddrPortFrom(netip.AddrFrom4(ip.SourceAddress().As4()), tcp.SourcePort())
			self := netip.AddrPortFrom(netip.AddrFrom4(ip.DestinationAddress().As4()), tcp.DestinationPort())
			seq, ack := tcp.AckNumber(), tcp.SequenceNumber()+1
			segment := func(at uint32, b []byte) {
				h.reply(tcpFrame(self, peer, at, ack, header.TCPFlagAck|header.TCPFlagPsh, 0, b))
			}
			h.reply(tcpFrame(self, peer, seq, ack, header.TCPFlagAck, 0, nil))
			switch {
			case peer.Port() == 53:
				for i := range uint32(4) {
					segment(seq+i*uint32(len(query)), query)
				}
			case h.accepted.Load()%4 == 0: // out of order, and large for what is new in it
				segment(seq+5000, data[:20])
				segment(seq+3000, data[:1000])
				segment(seq, data[:1])
				for i := range uint32(8) {
					segment(seq-20000+i+2, data[:20000])
				}
			case h.accepted.Load()%4 == 1:
				segment(seq, data)
			}
		}
	}
}

func (h *hostile) reply(frame []byte) {
	select {
	case h.replies <- frame:
	default:
	}
}

// ethernetFrame is a frame to the gateway.
func ethernetFrame(kind tcpip.NetworkProtocolNumber, payload []byte) []byte {
	frame := make([]byte, header.EthernetMinimumSize, header.EthernetMinimumSize+len(payload))
	header.Ethernet(frame).Encode(&header.EthernetFields{
		SrcAddr: tcpip.LinkAddress(usernettest.MAC), DstAddr: tcpip.LinkAddress(vmnet.GatewayMAC), Type: kind,
	})
	return append(frame, payload...)
}

func ipFrame(proto tcpip.TransportProtocolNumber, src, dst netip.Addr, payload []byte) []byte {
	if src.Is6() {
		ip := header.IPv6(make([]byte, header.IPv6MinimumSize, header.IPv6MinimumSize+len(payload)))
		ip.Encode(&header.IPv6Fields{
			PayloadLength: uint16(len(payload)), TransportProtocol: proto, HopLimit: 64,
			SrcAddr: tcpip.AddrFrom16(src.As16()), DstAddr: tcpip.AddrFrom16(dst.As16()),
		})
		return ethernetFrame(header.IPv6ProtocolNumber, append(ip, payload...))
	}
	ip := header.IPv4(make([]byte, header.IPv4MinimumSize, header.IPv4MinimumSize+len(payload)))
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(header.IPv4MinimumSize + len(payload)), TTL: 64, Protocol: uint8(proto),
		SrcAddr: tcpip.AddrFrom4(src.As4()), DstAddr: tcpip.AddrFrom4(dst.As4()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	return ethernetFrame(header.IPv4ProtocolNumber, append(ip, payload...))
}

func tcpFrame(src, dst netip.AddrPort, seq, ack uint32, flags header.TCPFlags, window uint16, payload []byte) []byte {
	tcp := header.TCP(make([]byte, header.TCPMinimumSize, header.TCPMinimumSize+len(payload)))
	tcp.Encode(&header.TCPFields{
		SrcPort: src.Port(), DstPort: dst.Port(), SeqNum: seq, AckNum: ack,
		DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: window,
	})
	return ipFrame(header.TCPProtocolNumber, src.Addr(), dst.Addr(), append(tcp, payload...))
}

func udpFrame(src, dst netip.AddrPort, payload []byte) []byte {
	udp := header.UDP(make([]byte, header.UDPMinimumSize, header.UDPMinimumSize+len(payload)))
	udp.Encode(&header.UDPFields{SrcPort: src.Port(), DstPort: dst.Port(), Length: uint16(header.UDPMinimumSize + len(payload))})
	return ipFrame(header.UDPProtocolNumber, src.Addr(), dst.Addr(), append(udp, payload...))
}

// arpReply answers an ARP request for the guest's address.
func arpReply(frame []byte) []byte {
	ask := header.ARP(frame[header.EthernetMinimumSize:])
	if !ask.IsValid() || ask.Op() != header.ARPRequest {
		return nil
	}
	arp := header.ARP(make([]byte, header.ARPSize))
	arp.SetIPv4OverEthernet()
	arp.SetOp(header.ARPReply)
	copy(arp.HardwareAddressSender(), usernettest.MAC)
	copy(arp.ProtocolAddressSender(), ask.ProtocolAddressTarget())
	copy(arp.HardwareAddressTarget(), ask.HardwareAddressSender())
	copy(arp.ProtocolAddressTarget(), ask.ProtocolAddressSender())
	return ethernetFrame(header.ARPProtocolNumber, arp)
}

// Servers of the world outside for a hostile guest: one that sends without end, one that
// reads nothing, and a nameserver whose answers are as large as they can be.
func serveHostile() error {
	flood, err := net.Listen("tcp4", fmt.Sprintf("%s:%d", outsideAddr, floodPort))
	if err != nil {
		return err
	}
	go serveEach(flood, func(c net.Conn) {
		for buf := make([]byte, 64<<10); ; {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	sink, err := net.Listen("tcp4", fmt.Sprintf("%s:%d", outsideAddr, sinkPort))
	if err != nil {
		return err
	}
	go serveEach(sink, func(c net.Conn) { time.Sleep(time.Hour) })
	names, err := net.Listen("tcp4", outsideAddr+":53")
	if err != nil {
		return err
	}
	go serveEach(names, func(c net.Conn) {
		for buf := make([]byte, 65536); ; {
			if _, err := io.ReadFull(c, buf[:2]); err != nil {
				return
			}
			n := binary.BigEndian.Uint16(buf)
			if _, err := io.ReadFull(c, buf[:n]); err != nil {
				return
			}
			b := bomb(buf[:n])
			c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
		}
	})
	p, err := net.ListenPacket("udp4", outsideAddr+":53")
	if err != nil {
		return err
	}
	go func() {
		for buf := make([]byte, 65536); ; {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			if n > 20 && buf[13]%4 == 0 { // the others wait in vain
				buf[2] |= 0x80
				p.WriteTo(buf[:n], from)
			}
		}
	}()
	return nil
}

func serveEach(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

// bomb answers a question with as many names as fit, each of which is compressed and
// 255 bytes long.
func bomb(query []byte) []byte {
	var m dns.Msg
	if m.Unpack(query) != nil {
		return nil
	}
	head := new(dns.Msg).SetReply(&m)
	head.Extra = nil
	b, err := head.Pack()
	if err != nil {
		return nil
	}
	label := byte(0xc0)
	long := len(b)
	record := func(name []byte) {
		b = append(b, name...)
		b = append(b, 0, 2, 0, 1, 0, 0, 0, 60, 0, 2, label|byte(long>>8), byte(long))
	}
	var name []byte
	for _, n := range []int{63, 63, 63, 61} {
		name = append(append(name, byte(n)), strings.Repeat("\x01", n)...)
	}
	records := 0
	for record(append(name, 0)); len(b) < 65535-14; records++ {
		record([]byte{label | byte(long>>8), byte(long)})
	}
	binary.BigEndian.PutUint16(b[6:], uint16(records+1))
	return b
}
