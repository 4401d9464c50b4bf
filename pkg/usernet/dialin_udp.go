package usernet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"

	"github.com/devvm/devvm/pkg/vmnet"
)

// tunnelUDP serves one upgrade to datagrams.
func (s *Stack) tunnelUDP(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), vmnet.UDPProtocol) {
		w.Header().Set("Upgrade", vmnet.UDPProtocol)
		w.WriteHeader(http.StatusUpgradeRequired)
		return
	}
	guest, err := s.Dial(r.Context(), "udp", net.JoinHostPort(r.PathValue("host"), r.PathValue("port")))
	if err != nil {
		vmnet.AnswerError(w, err)
		return
	}
	conn, ahead, err := hijack(w, vmnet.UDPAnswer)
	if err != nil {
		_ = guest.Close()
		return
	}
	s.dialIns.Add(1)
	defer s.dialIns.Add(-1)
	client := vmnet.NewDatagramConn(conn, bufio.NewReader(io.MultiReader(bytes.NewReader(ahead), conn)))
	end := func() { _ = guest.Close(); _ = client.Close() }
	defer end()
	defer context.AfterFunc(ctx, end)()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer end()
		copyDatagrams(client, sourceOf(guest))
	})
	copyDatagrams(guest, sourceOf(client))
	end()
	wg.Wait()
}

// copyDatagrams copies until either side is closed. What the guest refuses by
// ICMP or cannot take is lost, as datagrams are.
func copyDatagrams(dst net.Conn, src source) {
	for {
		written := true
		err := src.next(func(b []byte) error {
			_, err := dst.Write(b)
			written = !errors.Is(err, net.ErrClosed)
			return nil
		})
		if !written || err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
	}
}
