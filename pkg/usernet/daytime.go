package usernet

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
)

// daytimePort is RFC 867's.
const daytimePort = 13

// serveDaytime tells the guest the host's time: to each TCP connection to the
// gateway's port 13 (RFC 867, which leaves the form open) the seconds since 1970 with
// nine decimals, on a line. A VM that goes on from saved memory sets its clock by it
// before anything else happens, with nothing but a shell.
func (s *Stack) serveDaytime() error {
	l, err := socket.ListenTCP(s.net, netip.AddrPortFrom(Gateway, daytimePort))
	if err != nil {
		return fmt.Errorf("serve daytime: %w", err)
	}
	s.closeAtEnd(l)
	s.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			tellTime(conn, time.Now())
		}
	})
	return nil
}

// tellTime fits into the connection's buffer: it does not wait for the guest.
func tellTime(conn net.Conn, now time.Time) {
	fmt.Fprintf(conn, "%d.%09d\n", now.Unix(), now.Nanosecond())
	_ = conn.Close()
}
