package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

// portServer is what the containers of the VM tests run: this test binary, which is
// static. It serves, until it is killed,
//
//	7/tcp, 7/udp  an echo (RFC 862)
//	9/tcp         what throws away, and says at the end how much that was
//	19/tcp        zeroes without end
func portServer() int {
	serve := map[string]func(net.Conn){
		":7": func(c net.Conn) { _, _ = io.Copy(c, c) },
		":9": func(c net.Conn) {
			n, _ := io.Copy(io.Discard, c)
			fmt.Fprintln(c, n)
		},
		":19": func(c net.Conn) {
			b := make([]byte, 256<<10)
			for {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		},
	}
	failed := make(chan error)
	for address, f := range serve {
		l, err := net.Listen("tcp", address)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					failed <- err
					return
				}
				go func() {
					defer c.Close()
					f(c)
				}()
			}
		}()
	}
	p, err := net.ListenPacket("udp", ":7")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	go func() {
		for b := make([]byte, 65535); ; {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				failed <- err
				return
			}
			_, _ = p.WriteTo(b[:n], from)
		}
	}()
	fmt.Fprintln(os.Stderr, <-failed)
	return 1
}
