package main

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// nullCall is a record of ONC RPC (RFC 5531) that calls the procedure of NFSv3 (RFC 1813)
// that does nothing.
var nullCall = []byte{
	0x80, 0, 0, 40, // the only fragment, its length
	'd', 'v', 'v', 'm', // transaction
	0, 0, 0, 0, // a call
	0, 0, 0, 2, // of RPC version 2
	0, 1, 0x86, 0xa3, // to program 100003
	0, 0, 0, 3, // version 3
	0, 0, 0, 0, // NULL
	0, 0, 0, 0, 0, 0, 0, 0, // no credentials
	0, 0, 0, 0, 0, 0, 0, 0, // no verifier
}

// nfs calls servers as the kernel's client does, from a reserved port.
func nfs(ctx context.Context, targets []string, wait time.Duration, w *results) error {
	for _, target := range targets {
		got, text := callNFS(ctx, target, wait)
		if err := w.add(target, got, text); err != nil {
			return err
		}
	}
	return nil
}

func callNFS(ctx context.Context, target string, wait time.Duration) (got, text string) {
	const lowest, highest = 665, 1023 // sunrpc's
	for port := highest; port >= lowest; port-- {
		d := net.Dialer{Timeout: wait, LocalAddr: &net.TCPAddr{Port: port}}
		conn, err := d.DialContext(ctx, "tcp", target)
		switch {
		case errors.Is(err, unix.EADDRINUSE):
			continue
		case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
			return "denied", err.Error()
		case err != nil:
			return "silent", err.Error()
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(wait)); err != nil {
			return "failed", err.Error()
		}
		reply := make([]byte, 28)
		_, err = conn.Write(nullCall)
		n := 0
		if err == nil {
			n, err = conn.Read(reply)
		}
		if n > 8 && string(reply[4:8]) == "dvvm" {
			return gotAnswer, "NFS"
		}
		return "open", err.Error()
	}
	return "failed", "no reserved port is free"
}
