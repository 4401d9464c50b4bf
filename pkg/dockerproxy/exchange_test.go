package dockerproxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"reflect"
	"testing"
	"time"
)

// scriptConn reads from a script in pieces of one size and records what is written.
type scriptConn struct {
	net.Conn
	in    *bytes.Reader
	piece int
	out   bytes.Buffer
}

func (c *scriptConn) Read(b []byte) (int, error)      { return c.in.Read(b[:min(len(b), c.piece)]) }
func (c *scriptConn) Write(b []byte) (int, error)     { return c.out.Write(b) }
func (c *scriptConn) SetReadDeadline(time.Time) error { return nil }

// FuzzUp: whatever a client sends, the engine gets it byte for byte, but for the calls
// that are refused, each of which the client gets an answer to.
func FuzzUp(f *testing.F) {
	f.Add([]byte("GET /_ping HTTP/1.1\r\nHost: x\r\n\r\nPOST /containers/create HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"), byte(0), true)
	f.Add([]byte("POST /containers/x/start HTTP/1.1\r\n\r\n"), byte(1), false)
	f.Add([]byte("POST /containers/create HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\n{}\r\n0\r\nA: b\r\n\r\nrest"), byte(3), true)
	f.Add([]byte("POST /containers/create HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}x"), byte(9), false)
	f.Fuzz(func(t *testing.T, sent []byte, piece byte, admit bool) {
		client := &scriptConn{in: bytes.NewReader(sent), piece: 1 + int(piece)*16}
		engine := &scriptConn{}
		calls, done, changing := 0, 0, 0
		x := newExchange(func(context.Context, Call) (Verdict, error) {
			calls++
			if admit {
				return Verdict{Done: func() { done++ }}, nil
			}
			return Verdict{}, errors.New("no")
		}, func() error { changing++; return nil }, client, engine)
		ctx, cancel := context.WithCancel(t.Context())
		answered := make(chan struct{})
		go func() { // an engine that answers at once
			defer close(answered)
			for {
				select {
				case <-x.asked:
					x.signal(false)
				case <-ctx.Done():
					return
				}
			}
		}()
		err := x.up(ctx)
		cancel()
		<-answered
		got := engine.out.Bytes()
		if changing == 0 && !onlyReads(got) {
			t.Fatalf("nobody was told of %q", got)
		}
		if calls == 0 || admit {
			if err != nil || !bytes.Equal(got, sent) || done != calls {
				t.Fatalf("%v\nsent %q\ngot  %q", err, sent, got)
			}
			return
		}
		if len(got) >= len(sent) {
			t.Fatalf("%d calls refused, but all passed: %q", calls, got)
		}
		if n := bytes.Count(client.out.Bytes(), []byte("HTTP/1.1 500 ")); n != calls {
			t.Fatalf("%d calls refused, %d answers: %q", calls, n, client.out.Bytes())
		}
	})
}

// onlyReads tells whether all of it are requests that change nothing.
func onlyReads(sent []byte) bool {
	r := bufio.NewReader(bytes.NewReader(sent))
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return errors.Is(err, io.EOF)
		}
		if req.Method != http.MethodGet && req.Method != http.MethodHead || req.Header.Get("Upgrade") != "" {
			return false
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return errors.Is(err, io.ErrUnexpectedEOF)
		}
	}
}

// FuzzDown: whatever an engine answers, the client gets it byte for byte.
func FuzzDown(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"), byte(0))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 101 X\r\n\r\nraw"), byte(1))
	f.Add([]byte("nonsense"), byte(2))
	f.Fuzz(func(t *testing.T, sent []byte, piece byte) {
		client := &scriptConn{}
		engine := &scriptConn{in: bytes.NewReader(sent), piece: 1 + int(piece)*16}
		x := newExchange(nil, nil, client, engine)
		x.explain = func(_ context.Context, message string) string { return message }
		x.expect(func(context.Context) {})
		x.asked <- &http.Request{Method: http.MethodGet}
		go func() { // keep asking
			for {
				select {
				case x.asked <- &http.Request{Method: http.MethodHead}:
				case <-t.Context().Done():
					return
				}
			}
		}()
		if err := x.down(t.Context()); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if got := client.out.Bytes(); !bytes.Equal(got, sent) {
			t.Fatalf("sent %q\ngot  %q", sent, got)
		}
	})
}

// FuzzEdit: what is changed is what the engine reads, and all that it reads besides is as it
// was; or nothing is changed.
func FuzzEdit(f *testing.F) {
	f.Add([]byte(`{"HostConfig":{"Binds":["/a:/b"],"Memory":1}}`), "/c:/d")
	f.Add([]byte(`{"hostConfig":{"Binds":["a"]},"HostConfig":{"binds":["b"]}}`), "\xff<")
	f.Add([]byte(`{"HostConfig":{"Binds":[[1e999,{"Binds":["x"]}],"\ud800"]} }`), "")
	f.Fuzz(func(t *testing.T, text []byte, to string) {
		before, after := Call{Kind: Create}, Call{Kind: Create}
		err := before.readConfig(text)
		if err != nil || len(before.HostConfig.Binds) == 0 {
			return
		}
		changed, err := edit(text, []Edit{{Path: []string{"HostConfig", "Binds", "0"}, To: to}})
		if err != nil {
			return
		}
		err = after.readConfig(changed)
		before.HostConfig.Binds[0] = string([]rune(to)) // JSON has no other bytes either
		if err != nil || !reflect.DeepEqual(before, after) {
			t.Fatalf("%q → %q: %v", text, changed, err)
		}
	})
}
