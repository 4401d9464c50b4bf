// Package link is the cable between QEMU and a netstack: it speaks the framing
// of QEMU's "stream" netdev on a connection and presents it to gVisor as a
// link endpoint that carries whole Ethernet frames.
//
// It knows nothing of addresses or policy; whoever owns the endpoint looks at
// each received frame first ([Endpoint.Serve]). A peer that breaks the framing
// is disconnected, one that stops reading for longer than [StallTimeout] loses
// frames, as on a real cable. Only pkg/usernet and below may import it.
package link

import (
	"encoding/binary"
	"fmt"
	"io"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

const (
	// lengthSize is the size of the big-endian length before each frame.
	lengthSize = 4
	// MaxFrame is the largest frame that QEMU sends or takes, in bytes: its
	// NET_BUFSIZE. A larger length is not from QEMU, or no longer in step.
	MaxFrame = 4096 + 65536
	// MinFrame is the shortest frame that has a whole Ethernet header. A
	// guest's driver can send less; such frames are skipped.
	MinFrame = header.EthernetMinimumSize
)

// FrameLengthError says that a peer announced a frame of impossible length.
type FrameLengthError uint32

func (e FrameLengthError) Error() string {
	return fmt.Sprintf("frame of %d bytes announced, at most %d are possible", uint32(e), MaxFrame)
}

// readLength reads the length of the next frame. io.EOF is returned only at
// the boundary between two frames.
func readLength(r io.Reader) (int, error) {
	var b [lengthSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(b[:])
	if n > MaxFrame {
		return 0, FrameLengthError(n)
	}
	return int(n), nil
}
