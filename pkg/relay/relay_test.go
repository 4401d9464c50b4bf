package relay_test

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"

	"github.com/devvm/devvm/pkg/relay"
)

// pair returns the two ends of a connection.
func pair(t testing.TB, network, address string) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	near, err = net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far = <-accepted
	t.Cleanup(func() { _ = near.Close(); _ = far.Close() })
	return near, far
}

// BenchmarkJoin compares the relay of a TCP connection and a unix socket, which is what
// a published port is, with the kernel's splice(2), which io.Copy uses.
func BenchmarkJoin(b *testing.B) {
	ways := map[string]func(ctx context.Context, client, server net.Conn){
		"relay": func(ctx context.Context, client, server net.Conn) { _ = relay.Join(ctx, client, server, nil) },
		"splice": func(_ context.Context, client, server net.Conn) {
			go func() { _, _ = io.Copy(server, client) }()
			_, _ = io.Copy(client, server)
			_ = client.Close()
		},
	}
	const size = 256 << 20
	for name, join := range ways {
		b.Run(name+"/down", func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				client, ours := pair(b, "tcp", "127.0.0.1:0")
				server, theirs := pair(b, "unix", filepath.Join(b.TempDir(), "s"))
				go join(b.Context(), ours, server)
				go func() {
					_, _ = io.Copy(struct{ io.Writer }{theirs}, io.LimitReader(zeros{}, size))
					_ = theirs.Close()
				}()
				if n, err := io.Copy(io.Discard, struct{ io.Reader }{client}); n != size || err != nil {
					b.Fatal(n, err)
				}
				_ = client.Close()
			}
		})
		b.Run(name+"/up", func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				client, ours := pair(b, "tcp", "127.0.0.1:0")
				server, theirs := pair(b, "unix", filepath.Join(b.TempDir(), "s"))
				go join(b.Context(), ours, server)
				go func() { _, _ = io.Copy(struct{ io.Writer }{client}, io.LimitReader(zeros{}, size)) }()
				if n, err := io.CopyN(io.Discard, theirs, size); n != size || err != nil {
					b.Fatal(n, err)
				}
				_ = client.Close()
				_ = theirs.Close()
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
