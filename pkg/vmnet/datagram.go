package vmnet

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// Datagrams on the dial socket are those of RFC 9298, in capsules (RFC 9297):
// a type, a length and a value, the first two as QUIC's variable-length
// integers. A datagram's value is its context, always 0 here, and the payload.

// What the request for datagrams and its answer say.
const (
	UDPPath     = "/.well-known/masque/udp/"
	UDPProtocol = "connect-udp"
	UDPAnswer   = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n\r\n"

	capsuleDatagram = 0
	datagramUDP     = 0
	// MaxDatagram is the largest payload of a UDP packet over IPv4.
	MaxDatagram = 65535 - 20 - 8
)

var errCapsule = errors.New("malformed capsule")

// appendVarint appends v as a variable-length integer (RFC 9000, 16).
func appendVarint(b []byte, v uint64) []byte {
	switch {
	case v < 1<<6:
		return append(b, byte(v))
	case v < 1<<14:
		return binary.BigEndian.AppendUint16(b, uint16(v)|1<<14)
	case v < 1<<30:
		return binary.BigEndian.AppendUint32(b, uint32(v)|2<<30)
	}
	return binary.BigEndian.AppendUint64(b, v|3<<62)
}

// readVarint reads a variable-length integer. io.EOF means that there is none.
func readVarint(r io.ByteReader) (uint64, error) {
	first, err := r.ReadByte()
	if err != nil {
		return 0, err
	}
	v := uint64(first & 0x3f)
	for range 1<<(first>>6) - 1 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, noEOF(err)
		}
		v = v<<8 | uint64(b)
	}
	return v, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// appendDatagram appends the capsule of one datagram.
func appendDatagram(b, payload []byte) []byte {
	b = appendVarint(b, capsuleDatagram)
	b = appendVarint(b, uint64(1+len(payload)))
	b = appendVarint(b, datagramUDP)
	return append(b, payload...)
}

// readDatagram reads capsules up to the next datagram and puts its payload
// into buf, which holds maxDatagram bytes. Capsules and contexts that it does
// not know are skipped (RFC 9297, 3.2).
func readDatagram(r *bufio.Reader, buf []byte) (int, error) {
	for {
		kind, err := readVarint(r)
		if err != nil {
			return 0, err
		}
		length, err := readVarint(r)
		if err != nil {
			return 0, noEOF(err)
		}
		if length > 1+MaxDatagram {
			return 0, fmt.Errorf("%w: %d bytes long", errCapsule, length)
		}
		if kind != capsuleDatagram {
			if _, err := r.Discard(int(length)); err != nil {
				return 0, noEOF(err)
			}
			continue
		}
		if length == 0 {
			return 0, fmt.Errorf("%w: no context", errCapsule)
		}
		context, err := r.ReadByte()
		if err != nil {
			return 0, noEOF(err)
		}
		payload := int(length) - 1
		if context != datagramUDP {
			if _, err := r.Discard(payload); err != nil {
				return 0, noEOF(err)
			}
			continue
		}
		if _, err := io.ReadFull(r, buf[:payload]); err != nil {
			return 0, noEOF(err)
		}
		return payload, nil
	}
}

// DatagramConn carries datagrams over a stream, one a Read and one a Write.
type DatagramConn struct {
	net.Conn
	rmu sync.Mutex
	r   *bufio.Reader
	wmu sync.Mutex
	out []byte
}

// NewDatagramConn carries datagrams over c, of which r has read some bytes ahead.
func NewDatagramConn(c net.Conn, r *bufio.Reader) *DatagramConn {
	return &DatagramConn{Conn: c, r: r}
}

// Read reads one datagram; what b has no room for is lost.
func (c *DatagramConn) Read(b []byte) (n int, err error) {
	err = c.Next(func(datagram []byte) error {
		n = copy(b, datagram)
		return nil
	})
	return n, err
}

// WriteTo implements io.WriterTo: each datagram is one Write. It holds no buffer while it
// waits, so that many connections cost none.
func (c *DatagramConn) WriteTo(w io.Writer) (sum int64, err error) {
	for err == nil {
		err = c.Next(func(datagram []byte) error {
			n, err := w.Write(datagram)
			sum += int64(n)
			return err
		})
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return sum, err
}

// buffers each hold the largest datagram.
var buffers = sync.Pool{New: func() any { return new([65535]byte) }}

// Next waits for a datagram and lends it to use; io.EOF is the end. It holds no buffer while it
// waits.
func (c *DatagramConn) Next(use func([]byte) error) error {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	if _, err := c.r.Peek(1); err != nil {
		return err
	}
	buf := buffers.Get().(*[65535]byte)
	defer buffers.Put(buf)
	n, err := readDatagram(c.r, buf[:])
	if err != nil {
		return err
	}
	return use(buf[:n])
}

// Write writes one datagram.
func (c *DatagramConn) Write(b []byte) (int, error) {
	if len(b) > MaxDatagram {
		return 0, os.NewSyscallError("write", syscall.EMSGSIZE)
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.out = appendDatagram(c.out[:0], b)
	if _, err := c.Conn.Write(c.out); err != nil {
		return 0, err
	}
	return len(b), nil
}
