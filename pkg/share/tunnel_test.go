package share_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
	"github.com/devvm/devvm/pkg/vmnet"
)

// tunnel makes the VM's network, whose gateway leads to the server, with a guest.
func tunnel(t testing.TB, s *server) *usernettest.Guest {
	t.Helper()
	stack, err := usernet.New(usernet.Config{Services: map[uint16]string{2049: s.socket}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stack.Close() })
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "net"))
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ours, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go stack.Serve(context.Background(), ours)
	g, err := usernettest.NewGuest(theirs, usernettest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func (s *server) through(g *usernettest.Guest, port uint16) *client {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := g.DialFrom(ctx, "tcp", netip.AddrPortFrom(vmnet.Guest, port), netip.AddrPortFrom(vmnet.Gateway, 2049).String())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	c := &client{t: s.t, conn: conn}
	c.root = c.mount(target)
	return c
}

// A guest reaches the server through its own network, and again after it was gone.
func TestTunnel(t *testing.T) {
	dir, s, _ := shared(t)
	put(t, filepath.Join(dir, "f"), "F")
	g := tunnel(t, s)
	c := s.through(g, 700)
	data := make([]byte, 4<<20)
	rand.Read(data)
	h, st := c.create(c.root, "big", guarded(0o644))
	want(t, "create", st, nfs3.OK)
	for off := 0; off < len(data); off += 1 << 20 {
		_, st = c.write(h, uint64(off), data[off:off+1<<20], nfs3.UNSTABLE)
		want(t, "write", st, nfs3.OK)
	}
	s.restart()
	c = s.through(g, 701)
	if !bytes.Equal([]byte(c.content(h)), data) {
		t.Error("other data")
	}
}

// BenchmarkCalls times single calls; run with -bench, over the unix socket and through
// the VM's network.
func BenchmarkCalls(b *testing.B) {
	dir, s, direct := shared(b)
	put(b, filepath.Join(dir, "a/b/c/f"), "F")
	for name, c := range map[string]*client{"socket": direct, "network": s.through(tunnel(b, s), 700)} {
		f := c.must("a/b/c/f")
		d := c.must("a/b/c")
		c.content(f)
		b.Run(name+"/getattr", func(b *testing.B) {
			for b.Loop() {
				c.getattr(f)
			}
		})
		b.Run(name+"/getattr-dir", func(b *testing.B) {
			for b.Loop() {
				c.getattr(d)
			}
		})
		b.Run(name+"/lookup", func(b *testing.B) {
			for b.Loop() {
				c.lookup(d, "f")
			}
		})
		b.Run(name+"/small-file", func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				n := fmt.Sprintf("%s-%d", name, i)
				c.lookup(d, n)
				h, _ := c.create(d, n, guarded(0o644))
				c.write(h, 0, []byte("hello"), nfs3.FILE_SYNC)
				c.remove(d, n)
			}
		})
		mib := make([]byte, 1<<20)
		h, _ := c.create(c.root, "big-"+name, unchecked(0o644))
		b.Run(name+"/write-1M", func(b *testing.B) {
			b.SetBytes(1 << 20)
			for i := 0; b.Loop(); i++ {
				c.write(h, uint64(i%64)<<20, mib, nfs3.UNSTABLE)
			}
		})
		b.Run(name+"/read-1M", func(b *testing.B) {
			b.SetBytes(1 << 20)
			for i := 0; b.Loop(); i++ {
				c.read(h, uint64(i%16)<<20, 1<<20)
			}
		})
	}
}
