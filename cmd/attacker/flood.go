package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a flood: more connections than a service should carry, from as many dialers.
const (
	manyFlooded = 20000
	flooders    = 64
)

// flood opens connections to all targets for as long as wait, asks each for an answer,
// and neither reads nor closes any. It says how many were accepted and how many not.
func flood(ctx context.Context, targets []string, say string, wait time.Duration, w *results) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	type outcome struct {
		target   string
		accepted bool
	}
	outcomes := make(chan outcome)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var held []net.Conn
	for i := range flooders {
		wg.Go(func() {
			for n := i; ctx.Err() == nil; n += flooders {
				target := targets[n%len(targets)]
				_, address, err := split(target)
				if err != nil {
					return
				}
				// The smallest buffer, so that the window closes soon.
				d := net.Dialer{Timeout: wait, Control: func(_, _ string, c syscall.RawConn) error {
					return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1) })
				}}
				conn, err := d.DialContext(ctx, "tcp", address)
				if err == nil {
					_, _ = conn.Write([]byte(say))
					mu.Lock()
					held = append(held, conn)
					mu.Unlock()
				} else if ctx.Err() != nil {
					return
				}
				outcomes <- outcome{target, err == nil}
			}
		})
	}
	go func() {
		wg.Wait()
		close(outcomes)
	}()
	accepted, refused := map[string]int{}, map[string]int{}
	total := 0
	for o := range outcomes {
		if o.accepted {
			accepted[o.target]++
		} else {
			refused[o.target]++
		}
		if total++; total >= manyFlooded {
			cancel()
		}
	}
	<-ctx.Done()
	for _, conn := range held {
		_ = conn.Close()
	}
	for _, target := range targets {
		if err := w.add(target, gotOpen, fmt.Sprint(accepted[target])); err != nil {
			return err
		}
		if err := w.add(target, gotClosed, fmt.Sprint(refused[target])); err != nil {
			return err
		}
	}
	return nil
}
