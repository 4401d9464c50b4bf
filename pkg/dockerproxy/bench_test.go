package dockerproxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/dockerproxy"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/guest/guesttest"
)

// The benchmarks compare docker.sock with the engine's own socket and with
// OpenSSH's forwarding, all on this machine: what they show is the cost of the
// roads, not of a VM.

// road is a way to the engine; open gives the socket at its near end.
type road struct {
	name string
	open func(*testing.B) string
}

func roads(b *testing.B) []road {
	keys, err := guest.GenerateKeys(filepath.Join(b.TempDir(), "keys"))
	if err != nil {
		b.Fatal(err)
	}
	engine, err := guesttest.NewEngine(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = engine.Close() })
	docker := filepath.Join(b.TempDir(), "docker.sock")
	l, err := net.Listen("unix", docker)
	if err != nil {
		b.Fatal(err)
	}
	go func() { _ = engine.Serve(l) }()

	proxy := func(emulated bool) func(b *testing.B) string {
		return func(b *testing.B) string {
			address, user := guesttest.OpenSSH(b, keys.HostKeyPEM(), []byte(keys.AuthorizedKey()))
			c, err := guest.Connect(b.Context(), guest.Target{
				Keys: keys, User: user, Emulated: emulated,
				Dial: func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", address) },
			})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = c.Close() })
			_, sock := serve(b, dockerproxy.Options{Dial: func(ctx context.Context) (net.Conn, error) { return c.DialUnix(ctx, docker) }})
			return sock
		}
	}
	forward := func(options ...string) func(b *testing.B) string {
		return func(b *testing.B) string {
			address, user := guesttest.OpenSSH(b, keys.HostKeyPEM(), []byte(keys.AuthorizedKey()))
			return sshForward(b, keys, address, user, docker, options)
		}
	}
	return []road{
		{"engine itself", func(*testing.B) string { return docker }},
		{"devvm, in memory", func(b *testing.B) string {
			_, sock := servePipe(b, dockerproxy.Options{Dial: newVM(b).dial})
			return sock
		}},
		{"devvm, in memory, looking", func(b *testing.B) string {
			_, sock := serve(b, dockerproxy.Options{Dial: newVM(b).dial})
			return sock
		}},
		{"devvm, no SSH", func(b *testing.B) string {
			_, sock := servePipe(b, dockerproxy.Options{Dial: dialer(docker)})
			return sock
		}},
		{"devvm, no SSH, looking", func(b *testing.B) string {
			_, sock := serve(b, dockerproxy.Options{Dial: dialer(docker)})
			return sock
		}},
		{"devvm, sshd, KVM", proxy(false)},
		{"devvm, sshd, emulated", proxy(true)},
		{"ssh -L, sshd", forward()},
		{"ssh -L, sshd, aes128-gcm", forward("-oCiphers=aes128-gcm@openssh.com")},
	}
}

func dialer(sock string) dockerproxy.DialFunc {
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", sock) }
}

// sshForward runs ssh -L.
func sshForward(b *testing.B, keys guest.Keys, address, user, docker string, options []string) string {
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		b.Skip("no ssh on this machine (package openssh-client)")
	}
	host, port, _ := net.SplitHostPort(address)
	sock := filepath.Join(b.TempDir(), "forward.sock")
	args := []string{
		"-F", "none", "-N", "-L", sock + ":" + docker, "-p", port, "-i", keys.IdentityFile(),
		"-oIdentitiesOnly=yes", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oHostKeyAlias=" + guest.HostAlias,
		"-oUserKnownHostsFile=" + keys.KnownHostsFile(), "-oExitOnForwardFailure=yes",
	}
	cmd := exec.Command(ssh, append(append(args, options...), user+"@"+host)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 500 {
		if c, err := net.Dial("unix", sock); err == nil {
			_ = c.Close()
			return sock
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.Fatal("ssh -L does not listen")
	return ""
}

func eachRoad(b *testing.B, f func(b *testing.B, sock string)) {
	for _, r := range roads(b) {
		b.Run(r.name, func(b *testing.B) { f(b, r.open(b)) })
	}
}

// BenchmarkLatency is a connection, one small request on it and its answer.
func BenchmarkLatency(b *testing.B) {
	eachRoad(b, func(b *testing.B, sock string) {
		var times []time.Duration
		for b.Loop() {
			start := time.Now()
			c, err := net.Dial("unix", sock)
			if err != nil {
				b.Fatal(err)
			}
			_, _ = io.WriteString(c, "GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || resp.StatusCode != http.StatusOK {
				b.Fatal(resp, err)
			}
			_ = c.Close()
			times = append(times, time.Since(start))
		}
		slices.Sort(times)
		b.ReportMetric(float64(times[len(times)/2].Microseconds()), "median-µs")
		b.ReportMetric(0, "ns/op")
	})
}

const bulk = 64 << 20

// BenchmarkUpload is a request with a body of 64 MB.
func BenchmarkUpload(b *testing.B) {
	eachRoad(b, func(b *testing.B, sock string) {
		client := httpClient(b, sock)
		b.SetBytes(bulk)
		for b.Loop() {
			resp, err := client.Post("http://docker/test/upload", "", io.LimitReader(zeros{}, bulk))
			if err != nil {
				b.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if string(body) != fmt.Sprintln(bulk) {
				b.Fatal(string(body))
			}
		}
	})
}

// BenchmarkDownload is an answer with a body of 64 MB.
func BenchmarkDownload(b *testing.B) {
	eachRoad(b, func(b *testing.B, sock string) {
		client := httpClient(b, sock)
		b.SetBytes(bulk)
		for b.Loop() {
			resp, err := client.Get(fmt.Sprint("http://docker/test/download?bytes=", bulk))
			if err != nil {
				b.Fatal(err)
			}
			n, err := io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if n != bulk || err != nil {
				b.Fatal(n, err)
			}
		}
	})
}
