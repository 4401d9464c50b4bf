package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const testMAC = tcpip.LinkAddress("\x52\x54\x00\x12\x34\x56")

func framed(frames ...[]byte) []byte {
	var b []byte
	for _, f := range frames {
		b = binary.BigEndian.AppendUint32(b, uint32(len(f)))
		b = append(b, f...)
	}
	return b
}

// serve runs an endpoint on a pipe; the frames that it takes come out of the
// channel, its end out of the other.
func serve(t *testing.T) (*Endpoint, net.Conn, <-chan []byte, <-chan error) {
	t.Helper()
	e := New(testMAC, 1500, QueueBytes)
	ours, theirs := net.Pipe()
	frames, end := make(chan []byte, 100), make(chan error, 1)
	plugged := make(chan struct{})
	go func() {
		end <- e.Serve(t.Context(), ours, func() { close(plugged) }, func(f []byte) bool {
			frames <- bytes.Clone(f)
			return false
		})
	}()
	<-plugged
	t.Cleanup(func() { theirs.Close() })
	return e, theirs, frames, end
}

func TestReceive(t *testing.T) {
	e, peer, frames, end := serve(t)
	first, second := bytes.Repeat([]byte{1}, MinFrame), bytes.Repeat([]byte{2}, MaxFrame)
	stream := framed(first, nil, []byte("short"), second)
	for _, chunk := range [][]byte{stream[:2], stream[2:10], stream[10:]} {
		if _, err := peer.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if got := <-frames; !bytes.Equal(got, first) {
		t.Errorf("first frame of %d bytes", len(got))
	}
	if got := <-frames; !bytes.Equal(got, second) {
		t.Errorf("second frame of %d bytes", len(got))
	}
	peer.Close()
	if err := <-end; err != nil {
		t.Errorf("end: %v", err)
	}
	if c := e.Counters(); c.FramesIn != 2 || c.BytesIn != MinFrame+MaxFrame {
		t.Errorf("counters: %+v", c)
	}
	if e.Plugged() {
		t.Error("still plugged")
	}
}

func TestReceiveTooLong(t *testing.T) {
	_, peer, _, end := serve(t)
	if _, err := peer.Write(binary.BigEndian.AppendUint32(nil, MaxFrame+1)); err != nil {
		t.Fatal(err)
	}
	var length FrameLengthError
	if err := <-end; !errors.As(err, &length) || length != MaxFrame+1 {
		t.Fatalf("got %v", err)
	}
}

func TestReceiveTorn(t *testing.T) {
	_, peer, _, end := serve(t)
	if _, err := peer.Write(framed(make([]byte, 100))[:50]); err != nil {
		t.Fatal(err)
	}
	peer.Close()
	if err := <-end; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("got %v", err)
	}
}

func TestSend(t *testing.T) {
	e, peer, _, _ := serve(t)
	frames := [][]byte{[]byte("first frame, long"), bytes.Repeat([]byte{7}, 60000)}
	for _, f := range frames {
		e.WriteFrame(f)
	}
	want := framed(frames...)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(peer, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("frames differ")
	}
}

// Over a socket frames go partly by their senders and partly by the goroutine;
// none is torn or overtaken.
func TestSendSocket(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	defer conns[1].Close()
	e := New(testMAC, 1500, QueueBytes)
	plugged := make(chan struct{})
	go e.Serve(t.Context(), conns[0], func() { close(plugged) }, nil)
	<-plugged

	const frames = 2000
	go func() {
		for i := range frames {
			frame := bytes.Repeat([]byte{byte(i)}, 60+i*37%60000)
			binary.BigEndian.PutUint32(frame, uint32(i))
			e.WriteFrame(frame)
		}
	}()
	got := make([]byte, MaxFrame)
	for i := range frames {
		n, err := readLength(conns[1])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conns[1], got[:n]); err != nil {
			t.Fatal(err)
		}
		if number := binary.BigEndian.Uint32(got); int(number) != i || n != 60+i*37%60000 {
			t.Fatalf("frame %d of %d bytes, want %d", number, n, i)
		}
		if rest := got[4:n]; bytes.Count(rest, []byte{byte(i)}) != len(rest) {
			t.Fatalf("frame %d is torn", i)
		}
		if i%500 == 0 {
			runtime.Gosched() // let the queue grow
		}
	}
	// A frame is counted after it was written.
	for end := time.Now().Add(10 * time.Second); e.Counters().FramesOut != frames; runtime.Gosched() {
		if time.Now().After(end) {
			break
		}
	}
	if c := e.Counters(); c.FramesOut != frames || c.Dropped != 0 {
		t.Errorf("counters: %+v", c)
	}
}

func TestSecondConnection(t *testing.T) {
	e, _, _, _ := serve(t)
	ours, theirs := net.Pipe()
	if err := e.Serve(t.Context(), ours, func() {}, nil); !errors.Is(err, ErrBusy) {
		t.Fatalf("got %v", err)
	}
	go ours.Write([]byte("x"))
	if _, err := theirs.Read(make([]byte, 1)); err != nil {
		t.Errorf("the second connection was closed: %v", err)
	}
	ours.Close()
	theirs.Close()
}

func TestServeEndsWithContext(t *testing.T) {
	e := New(testMAC, 1500, QueueBytes)
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithCancel(t.Context())
	err := e.Serve(ctx, ours, cancel, nil)
	if err != nil {
		t.Fatalf("got %v", err)
	}
}

// A peer that does not read costs frames, not the sender; senders are held up
// only for StallTimeout, and only until the first of them has waited so long.
func TestStalledPeer(t *testing.T) {
	e, peer, _, _ := serve(t)
	start := time.Now()
	frame := make([]byte, 60000)
	const sent = 100
	for range sent {
		e.WriteFrame(frame)
	}
	if d := time.Since(start); d > 3*StallTimeout {
		t.Errorf("senders waited %v", d)
	}
	dropped := e.Counters().Dropped
	if dropped == 0 || dropped == sent {
		t.Fatalf("%d of %d frames dropped", dropped, sent)
	}
	// It wakes up: what was kept arrives whole.
	got := make([]byte, 4+len(frame))
	for range sent - int(dropped) {
		if _, err := io.ReadFull(peer, got); err != nil {
			t.Fatal(err)
		}
		if n := binary.BigEndian.Uint32(got); int(n) != len(frame) {
			t.Fatalf("frame of %d bytes", n)
		}
	}
}

func TestUnplugged(t *testing.T) {
	e := New(testMAC, 1500, QueueBytes)
	e.WriteFrame(make([]byte, 100))
	if n, err := e.WritePackets(stack.PacketBufferList{}); n != 0 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if c := e.Counters(); c.Dropped != 1 {
		t.Errorf("counters: %+v", c)
	}
}

// FuzzReceive: no bytes on the wire break the reader, and what it takes are
// the frames that a plain reading of the format finds.
func FuzzReceive(f *testing.F) {
	f.Add(framed(make([]byte, 14), make([]byte, 1514)))
	f.Add(framed([]byte("short"), make([]byte, 20)))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0})
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, wire []byte) {
		var want [][]byte
		for b := wire; len(b) >= 4; {
			n := binary.BigEndian.Uint32(b)
			if n > MaxFrame || int(n) > len(b)-4 {
				break
			}
			if n >= MinFrame {
				want = append(want, b[4:4+n])
			}
			b = b[4+n:]
		}
		e := New(testMAC, 1500, QueueBytes)
		var got [][]byte
		_ = e.readLoop(readConn{Reader: bytes.NewReader(wire)}, func(frame []byte) bool {
			got = append(got, bytes.Clone(frame))
			return false
		})
		if len(got) != len(want) {
			t.Fatalf("%d frames, want %d", len(got), len(want))
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("frame %d differs", i)
			}
		}
	})
}

type readConn struct {
	net.Conn
	io.Reader
}

func (c readConn) Read(b []byte) (int, error) { return c.Reader.Read(b) }

// segment is a frame of TCP's from a port.
func segment(port uint16, ack uint32, flags header.TCPFlags, data string) *stack.PacketBuffer {
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: header.IPv4MinimumSize + header.TCPMinimumSize,
		Payload:            buffer.MakeWithData([]byte(data)),
	})
	header.TCP(p.TransportHeader().Push(header.TCPMinimumSize)).Encode(&header.TCPFields{
		SrcPort: port, DstPort: 800, AckNum: ack, DataOffset: header.TCPMinimumSize, Flags: flags,
	})
	p.TransportProtocolNumber = header.TCPProtocolNumber
	header.IPv4(p.NetworkHeader().Push(header.IPv4MinimumSize)).Encode(&header.IPv4Fields{
		TotalLength: uint16(p.Size()), TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
		SrcAddr: tcpip.AddrFrom4([4]byte{192, 0, 2, 1}), DstAddr: tcpip.AddrFrom4([4]byte{192, 0, 2, 2}),
	})
	p.NetworkProtocolNumber = header.IPv4ProtocolNumber
	return p
}

// An acknowledgement goes with what follows it, and does not wait for long.
func TestLoneAck(t *testing.T) {
	const ack, push = header.TCPFlagAck, header.TCPFlagAck | header.TCPFlagPsh
	type sent struct {
		port  uint16
		ack   uint32
		flags header.TCPFlags
		data  string
	}
	for name, c := range map[string]struct{ send, want []sent }{
		"alone":           {[]sent{{1, 5, ack, ""}}, []sent{{1, 5, ack, ""}}},
		"with the answer": {[]sent{{1, 5, ack, ""}, {1, 5, push, "answer"}}, []sent{{1, 5, push, "answer"}}},
		"the second":      {[]sent{{1, 5, ack, ""}, {1, 9, ack, ""}, {1, 12, ack, ""}}, []sent{{1, 9, ack, ""}, {1, 12, ack, ""}}},
		"wrapped":         {[]sent{{1, 1<<32 - 1, ack, ""}, {1, 4, push, "x"}}, []sent{{1, 4, push, "x"}}},
		"another's":       {[]sent{{1, 5, ack, ""}, {2, 5, push, "x"}}, []sent{{1, 5, ack, ""}, {2, 5, push, "x"}}},
		"twice the same":  {[]sent{{1, 5, ack, ""}, {1, 5, ack, ""}}, []sent{{1, 5, ack, ""}, {1, 5, ack, ""}}},
		"older":           {[]sent{{1, 5, ack, ""}, {1, 4, push, "x"}}, []sent{{1, 5, ack, ""}, {1, 4, push, "x"}}},
		"the end":         {[]sent{{1, 5, ack, ""}, {1, 6, ack | header.TCPFlagFin, ""}}, []sent{{1, 6, ack | header.TCPFlagFin, ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			e, peer, _, _ := serve(t)
			if name != "alone" { // the goroutine below may rest for longer than the real delay
				e.out.ackDelay = time.Hour
			}
			go func() {
				for _, s := range c.send {
					p := segment(s.port, s.ack, s.flags, s.data)
					e.out.send(p)
					p.DecRef()
				}
				if name != "alone" {
					e.out.mu.Lock()
					e.out.ackDelay = 0
					e.out.mu.Unlock()
					e.out.ackLate()
				}
			}()
			var got []sent
			for range c.want {
				n, err := readLength(peer)
				if err != nil {
					t.Fatal(err)
				}
				b := make([]byte, n)
				if _, err := io.ReadFull(peer, b); err != nil {
					t.Fatal(err)
				}
				h := header.TCP(b[header.IPv4MinimumSize:])
				got = append(got, sent{h.SourcePort(), h.AckNumber(), h.Flags(), string(h.Payload())})
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("got %v, want %v", got, c.want)
			}
			if peer.SetReadDeadline(time.Now().Add(5*ackDelay)) == nil {
				if n, err := readLength(peer); err == nil {
					t.Errorf("%d bytes more", n)
				}
			}
		})
	}
}
