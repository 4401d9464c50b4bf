package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// What came of an attempt.
const (
	gotAnswer = "answer" // bytes of somebody
	gotOpen   = "open"   // a connection, but no bytes
	gotClosed = "closed" // refused
	gotSilent = "silent" // nothing within the time
	gotDenied = "denied" // this host's own kernel does not let it out
)

// split takes "udp:10.0.0.1:53" apart.
func split(target string) (network, address string, err error) {
	network, address, found := strings.Cut(target, ":")
	if !found || network != "tcp" && network != "udp" && network != "unix" {
		return "", "", fmt.Errorf("%q is neither tcp:ADDRESS:PORT nor udp:ADDRESS:PORT nor unix:PATH", target)
	}
	return network, address, nil
}

// classify says what an error of a dial or a read means to an attacker.
func classify(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return gotClosed
	case errors.As(err, &timeout) && timeout.Timeout():
		return gotSilent
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return gotSilent
	}
	return gotDenied
}

// get asks all targets at once for an answer.
func get(ctx context.Context, targets []string, from, say string, wait time.Duration, w *results) error {
	out := make([]result, len(targets))
	var wg sync.WaitGroup
	for i, target := range targets {
		wg.Go(func() { out[i] = ask(ctx, target, from, say, wait) })
	}
	wg.Wait()
	for _, r := range out {
		if err := w.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// ask asks one target.
func ask(ctx context.Context, target, from, say string, wait time.Duration) result {
	network, address, err := split(target)
	if err != nil {
		return result{target, gotDenied, err.Error()}
	}
	d := net.Dialer{Timeout: wait}
	if from != "" {
		ip := net.ParseIP(from)
		d.LocalAddr = &net.TCPAddr{IP: ip}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: ip}
		}
	}
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return result{target, classify(err), err.Error()}
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(wait))
	text := say
	if network != "udp" {
		text = "GET / HTTP/1.0\r\n\r\n"
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return result{target, classify(err), err.Error()}
	}
	buf := make([]byte, 512)
	n, err := conn.Read(buf)
	switch {
	case n > 0:
		return result{target, gotAnswer, strings.ToValidUTF8(string(buf[:n]), "?")}
	case network != "udp":
		return result{target, gotOpen, fmt.Sprint(err)}
	}
	return result{target, classify(err), err.Error()}
}

// scanners is how many connections a scan tries at a time.
const scanners = 200

// scan finds the open TCP ports of addresses. It prints those that are open, and at the
// end how many of each address were closed and how many were silent.
func scan(ctx context.Context, addresses []string, low, high int, wait time.Duration, w *results) error {
	for _, a := range addresses {
		addr, err := netip.ParseAddr(a)
		if err != nil {
			return err
		}
		var mu sync.Mutex
		count := map[string]int{}
		other := ""
		ports := make(chan int)
		var wg sync.WaitGroup
		for range scanners {
			wg.Go(func() {
				d := net.Dialer{Timeout: wait}
				d.SetMultipathTCP(false)
				for port := range ports {
					conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(addr, uint16(port)).String())
					got := gotOpen
					if err != nil {
						got = classify(err)
					} else {
						_ = conn.(*net.TCPConn).SetLinger(0) // no port stays in TIME-WAIT
						_ = conn.Close()
					}
					mu.Lock()
					count[got]++
					switch got {
					case gotOpen:
						_ = w.add("tcp:"+netip.AddrPortFrom(addr, uint16(port)).String(), gotOpen, "")
					case gotDenied:
						other = err.Error()
					}
					mu.Unlock()
				}
			})
		}
		for port := low; port <= high && ctx.Err() == nil; port++ {
			ports <- port
		}
		close(ports)
		wg.Wait()
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, got := range []string{gotClosed, gotSilent, gotDenied} {
			if count[got] > 0 {
				if err := w.add(a, got, strings.TrimSpace(strconv.Itoa(count[got])+" ports "+map[bool]string{true: other}[got == gotDenied])); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// lookup asks a DNS server for the addresses of names.
func lookup(ctx context.Context, server string, tcp bool, names []string, wait time.Duration, w *results) error {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		if tcp {
			network = "tcp"
		}
		return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(server, "53"))
	}}
	for _, name := range names {
		asking, cancel := context.WithTimeout(ctx, wait)
		addrs, err := r.LookupHost(asking, name)
		cancel()
		got, text := gotAnswer, strings.Join(addrs, " ")
		if err != nil {
			got, text = gotSilent, err.Error()
		}
		if err := w.add(name, got, text); err != nil {
			return err
		}
	}
	return nil
}

// snoop tries what other users must not: to read files, to list directories and to
// connect to sockets.
func snoop(ctx context.Context, paths interface {
	Scan() bool
	Text() string
	Err() error
}, w *results,
) error {
	for paths.Scan() {
		path := paths.Text()
		got, text := gotDenied, ""
		if err := open(ctx, path); err == nil {
			got = gotOpen
		} else {
			text = err.Error()
		}
		if err := w.add(path, got, text); err != nil {
			return err
		}
	}
	return paths.Err()
}

// open reads a bit of a file or directory, or connects to a socket.
func open(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if err == nil && info.Mode()&os.ModeSocket != 0 {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return f.Close()
}
