package engine_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/engine"
)

// FuzzEngine has an engine answer anything: as the body of a good answer or of an error,
// or from the first byte on. Whoever asks gets an answer or an error, soon, and nothing
// that is long.
func FuzzEngine(f *testing.F) {
	for _, body := range []string{
		`[]`, `{}`, `null`, ``, `[{}`, `[[[[`, `{"message":"no"}`, "\x00", `[{"Id":"a","Names":["/web"],"Ports":[{"IP":"::","PrivatePort":80,"PublicPort":80,"Type":"tcp"}],"Mounts":[{"Type":"bind","Source":"/a"}]}]`,
		`{"Type":"container","Action":"die","Actor":{"ID":"a"}}` + "\n" + `{"Type":"container","Action":"start","Actor":{"ID":"a"}}`,
		`{"Name":"/web","HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"::1","HostPort":"1-2"}]},"Binds":["/a:/b"],"Mounts":[{"Type":"bind","Source":"/c"}]}}`,
		`{"Volumes":[{"Name":"v","UsageData":{"Size":-1}}],"Version":"1"}`, `{"ApiVersion":"9999999.1","Version":1}`,
	} {
		for how := range byte(3) {
			f.Add(how, []byte(body))
		}
	}
	f.Add(byte(2), []byte("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"))
	f.Add(byte(2), []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nApi-Version: x\r\nServer: Docker/\r\n\r\nffffffff\r\n[]\r\n"))
	f.Add(byte(2), []byte("HTTP/1.1 302 Found\r\nLocation: http://example.com/\r\n\r\n"))

	answer := make(chan func(net.Conn), 1)
	l, err := net.Listen("unix", filepath.Join(f.TempDir(), "s"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			do := <-answer
			answer <- do
			go func() {
				defer conn.Close()
				do(conn)
			}()
		}
	}()
	dial := dialer(l.Addr().String())
	short := func(t *testing.T, texts ...string) {
		for _, s := range texts {
			if len(s) > 8<<10 {
				t.Errorf("%d bytes of %q", len(s), s[:20])
			}
		}
	}
	f.Fuzz(func(t *testing.T, how byte, said []byte) {
		answer <- func(conn net.Conn) {
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
				return
			}
			head := []string{"HTTP/1.1 200 OK\r\nApi-Version: 1.45\r\nContent-Type: application/json\r\n\r\n", "HTTP/1.1 500 no\r\n\r\n", ""}[how%3]
			_, _ = io.WriteString(conn, head)
			_, _ = conn.Write(said)
		}
		defer func() { <-answer }()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		check := func(err error) {
			if ctx.Err() != nil {
				t.Fatal("no end")
			}
			if err != nil {
				short(t, err.Error())
			}
		}
		check(engine.Ping(ctx, l.Addr().String()))
		version, err := engine.GetVersion(ctx, l.Addr().String())
		check(err)
		short(t, version)
		u, err := engine.GetUsage(ctx, l.Addr().String())
		check(err)
		for _, c := range u.Containers {
			short(t, c.Name)
		}
		for _, i := range u.Images {
			short(t, i.Name)
		}
		for _, v := range u.Volumes {
			short(t, v.Name)
		}
		_, err = engine.GetWishes(ctx, dial, "a")
		check(err)
		check(engine.Watch(ctx, dial, nil, func(r engine.Running) {
			for _, p := range r.Ports {
				short(t, p.Container, p.ID, p.Protocol, p.IP.String())
			}
			for _, b := range r.Binds {
				short(t, b.ID, b.Path)
			}
		}))
	})
}
