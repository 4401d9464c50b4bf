package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// serve answers on all targets, until in ends (nil: until ctx does): a page over TCP, an
// echo over UDP. It prints "ready", and each datagram that it gets with its sender.
func serve(ctx context.Context, targets []string, say string, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex // of out
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, target := range targets {
		network, address, err := split(target)
		if err != nil {
			return err
		}
		var config net.ListenConfig
		if network == "udp" {
			conn, err := config.ListenPacket(ctx, network, address)
			if err != nil {
				return err
			}
			context.AfterFunc(ctx, func() { _ = conn.Close() })
			wg.Go(func() {
				echo(conn, say, func(from net.Addr, text string) {
					mu.Lock()
					defer mu.Unlock()
					fmt.Fprintf(out, "datagram from %s: %q\n", from, text)
				})
			})
			continue
		}
		l, err := config.Listen(ctx, network, address)
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { _ = l.Close() })
		if network == "unix" { // for whoever finds it
			if err := os.Chmod(address, 0o666); err != nil {
				return err
			}
		}
		wg.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { page(conn, say) })
			}
		})
	}
	mu.Lock()
	_, err := fmt.Fprintln(out, "ready")
	mu.Unlock()
	if err != nil {
		return err
	}
	if in == nil {
		<-ctx.Done()
		return nil
	}
	_, err = io.Copy(io.Discard, in)
	return err
}

// page answers one request, whatever it is.
func page(conn net.Conn, say string) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 512)); err != nil {
		return
	}
	fmt.Fprintf(conn, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(say), say)
}

// echo answers each datagram.
func echo(conn net.PacketConn, say string, tell func(from net.Addr, text string)) {
	buf := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an answer of ours was not wanted
		}
		tell(from, string(buf[:n]))
		_, _ = conn.WriteTo([]byte(say), from)
	}
}
