//go:build vmtest

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	"churn":          cmdChurn,
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
			back := 0
			sent, err := c.Write(want)
			if err == nil {
				back, err = io.ReadFull(c, got)
			}
			if !bytes.Equal(got[:back], want[:back]) {
				err = errors.Join(errors.New("not what was sent"), err)
			}
			if err != nil {
				failures <- fmt.Errorf("connection %d: %d of %d bytes sent, %d came back: %w", i, sent, len(want), back, err)
			}
		})
	}
	all.Wait()
	failed := len(failures)
	for range min(failed, 20) {
		ts.Logf("%v", <-failures)
	}
	if failed > 0 {
		// Each connection is still open, so these show where its bytes are: which sockets
		// of the VM, and of the container, have not got all of them.
		const short = `ss -HOtnoi | grep -v bytes_received:10000 | head -n 100`
		for _, command := range [][]string{
			{"ports", "--json"},
			{"status"},
			{"exec", "--", "sh", "-c", short},
			{"exec", "--", "sh", "-c", `nsenter -t "$(pgrep -o portserver)" -n sh -c '` + short + `'`},
		} {
			_ = ts.Exec("devvm", command...)
		}
		ts.Fatalf("%d of %d connections failed", failed, n)
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

// cmdChurn: churn N starts and stops N containers of the image "server" in random
// order, a few at a time. Every so often it cuts the SSH link, and meanwhile a container ends. Each
// port must echo when its container runs and refuse when it does not, and in the end
// nothing listens.
func cmdChurn(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	const first, together = 23000, 8
	cutEach := max(n/8, 5)
	socket := strings.TrimPrefix(ts.Getenv("DOCKER_HOST"), "unix://")
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	// ask asks until an answer comes: what a cut link made of a request is the engine's to
	// say, and each of these may be asked twice.
	ask := func(method, path, body string, good ...int) {
		wait(ts, func() error {
			req, err := http.NewRequestWithContext(context.Background(), method, "http://docker/v1.45"+path, strings.NewReader(body))
			if err != nil {
				return err
			}
			req.Header.Set("Content-Type", "application/json")
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err == nil && !slices.Contains(good, resp.StatusCode) {
				err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
			}
			return err
		})
	}
	name := func(i int) string { return fmt.Sprintf("churn%d", i) }
	at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", first+i) }
	refuses := func(i int) error {
		c, err := net.DialTimeout("tcp", at(i), 10*time.Second)
		if err == nil {
			_ = c.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("%s: no refusal: %w", at(i), err)
		}
		return nil
	}
	var opened, closed []float64
	var running []int
	random := rand.New(rand.NewPCG(uint64(n), 1))
	order, cuts := random.Perm(n), 0
	for step := 0; len(order)+len(running) > 0; step++ {
		cut := step%cutEach == cutEach-1
		if cut && len(running) > 0 {
			cuts++
			i := running[0]
			running = running[1:]
			// The session that this runs in ends with the others; its child does not.
			cmd := exec.Command(os.Getenv("DEVVM_TEST_BINARY"), "-C", ts.MkAbs("."), "exec", "--", "sh", "-c",
				"docker kill "+name(i)+" >/dev/null 2>&1 </dev/null & pkill sshd-session")
			_ = cmd.Run()
			wait(ts, func() error { return refuses(i) })
		}
		if len(order) > 0 && (len(running) == 0 || len(running) < together && random.IntN(2) == 0) {
			i := order[0]
			order = order[1:]
			body := fmt.Sprintf(`{"Image":"server","ExposedPorts":{"7/tcp":{}},"HostConfig":{"PortBindings":{"7/tcp":[{"HostPort":"%d"}]}}}`, first+i)
			ask(http.MethodPost, "/containers/create?name="+name(i), body, http.StatusCreated, http.StatusConflict)
			ask(http.MethodPost, "/containers/"+name(i)+"/start", "", http.StatusNoContent, http.StatusNotModified)
			start := time.Now()
			wait(ts, func() error { return echoes("tcp", at(i)) })
			if !cut {
				opened = append(opened, ms(time.Since(start)))
			}
			running = append(running, i)
		} else if len(running) > 0 {
			k := random.IntN(len(running))
			i := running[k]
			running = slices.Delete(running, k, k+1)
			ask(http.MethodPost, "/containers/"+name(i)+"/stop?t=0", "", http.StatusNoContent, http.StatusNotModified)
			start := time.Now()
			wait(ts, func() error { return refuses(i) })
			if !cut {
				closed = append(closed, ms(time.Since(start)))
			}
		}
	}
	for i := range n {
		ask(http.MethodDelete, "/containers/"+name(i)+"?force=1", "", http.StatusNoContent, http.StatusNotFound)
	}
	for i := range n {
		if l, err := net.Listen("tcp", at(i)); err != nil {
			ts.Fatalf("something is left: %v", err)
		} else {
			_ = l.Close()
		}
	}
	ts.Logf("%d containers, %d cuts of the link; median ms from the engine's answer to 1 MB echoed: %.0f, to a refusal: %.0f", n, cuts, median(opened), median(closed))
}
