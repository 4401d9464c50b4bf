//go:build vmtest

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/devvm/devvm/pkg/ports"
)

// portCommands are the commands of scripts about published ports.
var portCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"server-context": cmdServerContext,
	"own-address":    cmdOwnAddress,
	"echo":           cmdEcho,
	"refused":        cmdRefused,
	"many":           cmdMany,
	"slow-reader":    cmdSlowReader,
}

// cmdServerContext: server-context DIR makes a build context of the port server.
func cmdServerContext(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	self, err := os.Executable()
	ts.Check(err)
	from, err := os.Open(self)
	ts.Check(err)
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(dir, "portserver"), os.O_CREATE|os.O_WRONLY, 0o755)
	ts.Check(err)
	_, err = io.Copy(to, from)
	ts.Check(errors.Join(err, to.Close()))
	ts.Check(os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY portserver /portserver\nENTRYPOINT [\"/portserver\"]\n"), 0o644))
}

// cmdOwnAddress: own-address VARIABLE DIR sets a variable to the own address of the
// project in DIR.
func cmdOwnAddress(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Exec("devvm", "-C", ts.MkAbs(args[1]), "ports", "--json"))
	var r ports.Report
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &r))
	ts.Setenv(args[0], r.Address.String())
}

// cmdEcho: echo tcp|udp ADDRESS… waits until each address echoes: over TCP 1 MB, of
// which the end comes only after the half-close.
func cmdEcho(ts *testscript.TestScript, _ bool, args []string) {
	for _, address := range args[1:] {
		wait(ts, func() error { return echoes(args[0], address) })
	}
}

func echoes(network, address string) error {
	c, err := net.DialTimeout(network, address, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if network == "udp" {
		want = want[:1400]
		_ = c.SetDeadline(time.Now().Add(time.Second))
	}
	go func() {
		_, _ = c.Write(want)
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
	}()
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	if err == nil && network == "tcp" {
		_, err = c.Read(make([]byte, 1))
		if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("%s %s: %d bytes of %d, %w", network, address, n, len(want), err)
	}
	return nil
}

// cmdRefused: refused ADDRESS… waits until nothing listens there.
func cmdRefused(ts *testscript.TestScript, _ bool, args []string) {
	for _, address := range args {
		wait(ts, func() error {
			c, err := net.DialTimeout("tcp", address, 10*time.Second)
			if err == nil {
				_ = c.Close()
			}
			if !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("%s: %w", address, err)
			}
			return nil
		})
	}
}

// cmdMany: many ADDRESS N opens so many connections at once, each of which echoes.
func cmdMany(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i], err = net.DialTimeout("tcp", args[0], 30*time.Second)
		ts.Check(err)
		defer conns[i].Close()
		_ = conns[i].SetDeadline(time.Now().Add(5 * time.Minute))
	}
	var all sync.WaitGroup
	failures := make(chan error, n)
	for i, c := range conns {
		all.Go(func() {
			want := bytes.Repeat([]byte{byte(i)}, 10000)
			got := make([]byte, len(want))
			_, err := c.Write(want)
			if err == nil {
				_, err = io.ReadFull(c, got)
			}
			if err == nil && !bytes.Equal(got, want) {
				err = errors.New("not what was sent")
			}
			if err != nil {
				failures <- err
			}
		})
	}
	all.Wait()
	if len(failures) > 0 {
		ts.Fatalf("%d of %d: %v", len(failures), n, <-failures)
	}
}

// cmdSlowReader: slow-reader ADDRESS BYTES reads so much, first nothing for a while and
// then as fast as it goes; the memory of the project's processes must stay flat.
func cmdSlowReader(ts *testscript.TestScript, _ bool, args []string) {
	size, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	var c net.Conn
	wait(ts, func() error { // until the container's program listens
		if c, err = net.DialTimeout("tcp", args[0], 30*time.Second); err != nil {
			return err
		}
		if _, err = c.Read(make([]byte, 1)); err != nil {
			_ = c.Close()
		}
		return err
	})
	defer c.Close()
	name := projectName(ts)
	resident := func() int64 {
		var sum int64
		for _, pid := range append(vmProcesses("devvm supervisor", name), vmProcesses("devvm net", name)...) {
			b, err := os.ReadFile("/proc/" + pid + "/statm")
			ts.Check(err)
			var total, pages int64
			_, err = fmt.Sscan(string(b), &total, &pages)
			ts.Check(err)
			sum += pages * int64(os.Getpagesize())
		}
		return sum
	}
	before := resident()
	time.Sleep(5 * time.Second) // nothing is read
	most := resident()
	for left := size; left > 0; {
		n, err := io.CopyN(io.Discard, c, min(left, 64<<20))
		ts.Check(err)
		left -= n
		most = max(most, resident())
	}
	ts.Logf("%d bytes read; the two processes had %d MB before and %d MB at most", size, before>>20, most>>20)
	if most > before+24<<20 {
		ts.Fatalf("memory grew from %d to %d bytes", before, most)
	}
}
