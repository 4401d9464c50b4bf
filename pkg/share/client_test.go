package share_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/buildbarn/go-xdr/pkg/protocols/rpcv2"

	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// client is a small client of NFS, as far as the tests need one: safe for use by
// several goroutines, one call after another.
type client struct {
	t    testing.TB
	mu   sync.Mutex
	conn net.Conn
	xid  uint32
	uid  uint32
	root []byte
}

// server is a server under test that can be started again.
type server struct {
	t      testing.TB
	socket string
	opts   share.Options
	share  *share.Server
	stop   func()
}

func startServer(t testing.TB, exports ...share.Export) *server {
	t.Helper()
	s := &server{t: t, socket: filepath.Join(t.TempDir(), "s"), opts: share.Options{Exports: exports}}
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *server) start() {
	s.t.Helper()
	x, err := share.New(s.opts)
	if err != nil {
		s.t.Fatal(err)
	}
	s.share = x
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- x.Serve(ctx, l) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("Serve: %v", err)
		}
		if err := x.Close(); err != nil {
			s.t.Errorf("Close: %v", err)
		}
	})
}

// restart replaces the server by one that remembers nothing.
func (s *server) restart() {
	s.t.Helper()
	s.stop()
	s.start()
}

func (s *server) dial() net.Conn {
	s.t.Helper()
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// client connects and mounts.
func (s *server) client(target string) *client {
	s.t.Helper()
	c := &client{t: s.t, conn: s.dial(), xid: rand.Uint32()}
	c.root = c.mount(target)
	return c
}

// reconnect goes on with another connection.
func (c *client) reconnect(s *server) {
	c.conn.Close()
	c.conn = s.dial()
}

func (c *client) mount(target string) []byte {
	c.t.Helper()
	var ok nfs3.Mountres3Ok
	if st := c.call(nfs3.MOUNT_PROGRAM, uint32(nfs3.MOUNT_MNT), &nfs3.Dirpath{Path: []byte(target)}, &ok); st != nfs3.OK {
		c.t.Fatalf("mount %s: %v", target, st)
	}
	return ok.Fhandle
}

// encode is a call as it goes over the wire, without the record mark.
func encode(xid, prog, proc, uid uint32, args io.WriterTo) []byte {
	var cred, b bytes.Buffer
	(&nfs3.AuthsysParms{Machinename: []byte("tést"), Uid: uid, Gid: uid}).WriteTo(&cred)
	(&rpcv2.RpcMsg{Xid: xid, Body: &rpcv2.RpcMsgBody_CALL{Cbody: rpcv2.CallBody{
		Rpcvers: 2, Prog: prog, Vers: 3, Proc: proc,
		Cred: rpcv2.OpaqueAuth{Flavor: rpcv2.AUTH_SYS, Body: cred.Bytes()},
	}}}).WriteTo(&b)
	if args != nil {
		args.WriteTo(&b)
	}
	return b.Bytes()
}

func sendRecord(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))|1<<31), b...))
	return err
}

func readRecord(r io.Reader) ([]byte, error) {
	var mark [4]byte
	if _, err := io.ReadFull(r, mark[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(mark[:])&^(1<<31))
	_, err := io.ReadFull(r, b)
	return b, err
}

// exchange sends a call and returns what follows the head of its answer.
func (c *client) exchange(record []byte) *bytes.Reader {
	c.t.Helper()
	if err := sendRecord(c.conn, record); err != nil {
		c.t.Fatalf("send: %v", err)
	}
	b, err := readRecord(c.conn)
	if err != nil {
		c.t.Fatalf("receive: %v", err)
	}
	r := bytes.NewReader(b)
	var head rpcv2.RpcMsg
	if _, err := head.ReadFrom(r); err != nil {
		c.t.Fatalf("receive: %v", err)
	}
	accepted, ok := head.Body.(*rpcv2.RpcMsgBody_REPLY).Rbody.(*rpcv2.ReplyBody_MSG_ACCEPTED)
	if !ok || accepted.Areply.ReplyData.GetStat() != rpcv2.SUCCESS {
		c.t.Fatalf("the call was refused: %+v", head.Body)
	}
	return r
}

// do makes one call and returns its status and what follows.
func (c *client) do(prog, proc uint32, args io.WriterTo) (nfs3.Nfsstat3, *bytes.Reader) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.xid++
	r := c.exchange(encode(c.xid, prog, proc, c.uid, args))
	var st nfs3.Nfsstat3
	if _, err := st.ReadFrom(r); err != nil {
		c.t.Fatalf("status: %v", err)
	}
	return st, r
}

// call makes one call; res is read if it succeeds.
func (c *client) call(prog, proc uint32, args io.WriterTo, res io.ReaderFrom) nfs3.Nfsstat3 {
	c.t.Helper()
	st, r := c.do(prog, proc, args)
	if st == nfs3.OK && res != nil {
		if _, err := res.ReadFrom(r); err != nil {
			c.t.Fatalf("result: %v", err)
		}
	}
	return st
}

func (c *client) nfs(proc nfs3.Nfsproc3, args io.WriterTo, res io.ReaderFrom) nfs3.Nfsstat3 {
	c.t.Helper()
	return c.call(nfs3.PROGRAM, uint32(proc), args, res)
}

func at(dir []byte, name string) nfs3.Diropargs3 {
	return nfs3.Diropargs3{Dir: nfs3.NfsFh3{Data: dir}, Name: []byte(name)}
}

func fh(data []byte) nfs3.NfsFh3 { return nfs3.NfsFh3{Data: data} }

func (c *client) lookup(dir []byte, name string) ([]byte, *nfs3.Fattr3, nfs3.Nfsstat3) {
	c.t.Helper()
	var ok nfs3.Lookup3resok
	where := at(dir, name)
	st := c.nfs(nfs3.PROC_LOOKUP, &where, &ok)
	return ok.Object.Data, ok.ObjAttributes, st
}

// walk looks a path below the root up.
func (c *client) walk(path string) ([]byte, nfs3.Nfsstat3) {
	c.t.Helper()
	h := c.root
	for _, name := range strings.Split(path, "/") {
		if name == "" || name == "." {
			continue
		}
		next, _, st := c.lookup(h, name)
		if st != nfs3.OK {
			return nil, st
		}
		h = next
	}
	return h, nfs3.OK
}

// must walks to what is there.
func (c *client) must(path string) []byte {
	c.t.Helper()
	h, st := c.walk(path)
	if st != nfs3.OK {
		c.t.Fatalf("look up %q: %v", path, st)
	}
	return h
}

func (c *client) getattr(h []byte) (*nfs3.Fattr3, nfs3.Nfsstat3) {
	c.t.Helper()
	var a nfs3.Fattr3
	x := fh(h)
	st := c.nfs(nfs3.PROC_GETATTR, &x, &a)
	return &a, st
}

// attrs are a SETATTR's; mode -1 is not set.
func attrs(mode int) nfs3.Sattr3 {
	a := nfs3.Sattr3{Atime: &nfs3.SetTime_default{}, Mtime: &nfs3.SetTime_default{}}
	if mode >= 0 {
		m := uint32(mode)
		a.Mode = &m
	}
	return a
}

func (c *client) setattr(h []byte, a nfs3.Sattr3) nfs3.Nfsstat3 {
	c.t.Helper()
	return c.nfs(nfs3.PROC_SETATTR, &nfs3.Setattr3args{Object: fh(h), NewAttributes: a}, nil)
}

func (c *client) create(dir []byte, name string, how nfs3.Createhow3) ([]byte, nfs3.Nfsstat3) {
	c.t.Helper()
	var ok nfs3.Create3resok
	st := c.nfs(nfs3.PROC_CREATE, &nfs3.Create3args{Where: at(dir, name), How: how}, &ok)
	return made(ok), st
}

func made(ok nfs3.Create3resok) []byte {
	if ok.Obj == nil {
		return nil
	}
	return ok.Obj.Data
}

func guarded(mode int) nfs3.Createhow3 { return &nfs3.Createhow3_GUARDED{Guarded: attrs(mode)} }

func unchecked(mode int) nfs3.Createhow3 { return &nfs3.Createhow3_UNCHECKED{Unchecked: attrs(mode)} }

func (c *client) mkdir(dir []byte, name string, mode int) ([]byte, nfs3.Nfsstat3) {
	c.t.Helper()
	var ok nfs3.Create3resok
	st := c.nfs(nfs3.PROC_MKDIR, &nfs3.Mkdir3args{Where: at(dir, name), Attributes: attrs(mode)}, &ok)
	return made(ok), st
}

func (c *client) symlink(dir []byte, name, to string) ([]byte, nfs3.Nfsstat3) {
	c.t.Helper()
	var ok nfs3.Create3resok
	st := c.nfs(nfs3.PROC_SYMLINK, &nfs3.Symlink3args{Where: at(dir, name), Attributes: attrs(-1), Data: []byte(to)}, &ok)
	return made(ok), st
}

func (c *client) remove(dir []byte, name string) nfs3.Nfsstat3 {
	c.t.Helper()
	where := at(dir, name)
	return c.nfs(nfs3.PROC_REMOVE, &where, nil)
}

func (c *client) rmdir(dir []byte, name string) nfs3.Nfsstat3 {
	c.t.Helper()
	where := at(dir, name)
	return c.nfs(nfs3.PROC_RMDIR, &where, nil)
}

func (c *client) rename(from []byte, old string, to []byte, name string) nfs3.Nfsstat3 {
	c.t.Helper()
	return c.nfs(nfs3.PROC_RENAME, &nfs3.Rename3args{From: at(from, old), To: at(to, name)}, nil)
}

func (c *client) link(file, dir []byte, name string) nfs3.Nfsstat3 {
	c.t.Helper()
	return c.nfs(nfs3.PROC_LINK, &nfs3.Link3args{File: fh(file), Link: at(dir, name)}, nil)
}

// raw is bytes that are part of a call.
type raw []byte

func (b raw) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(b)
	return int64(n), err
}

type values []io.WriterTo

func (v values) WriteTo(w io.Writer) (int64, error) {
	for _, x := range v {
		x.WriteTo(w)
	}
	return 0, nil
}

func writeArgs(h []byte, offset uint64, data []byte, stable nfs3.StableHow) io.WriterTo {
	n := uint32(len(data))
	return values{
		&nfs3.Write3args{File: fh(h), Offset: offset, Count: n, Stable: stable, Length: n},
		raw(data), raw(make([]byte, -len(data)&3)),
	}
}

func (c *client) write(h []byte, offset uint64, data []byte, stable nfs3.StableHow) (nfs3.Write3resok, nfs3.Nfsstat3) {
	c.t.Helper()
	var ok nfs3.Write3resok
	st := c.nfs(nfs3.PROC_WRITE, writeArgs(h, offset, data, stable), &ok)
	return ok, st
}

func (c *client) commit(h []byte) ([8]byte, nfs3.Nfsstat3) {
	c.t.Helper()
	var ok nfs3.Commit3resok
	st := c.nfs(nfs3.PROC_COMMIT, &nfs3.Commit3args{File: fh(h)}, &ok)
	return ok.Verf, st
}

func (c *client) read(h []byte, offset uint64, count uint32) ([]byte, bool, nfs3.Nfsstat3) {
	c.t.Helper()
	st, r := c.do(nfs3.PROGRAM, uint32(nfs3.PROC_READ), &nfs3.Read3args{File: fh(h), Offset: offset, Count: count})
	if st != nfs3.OK {
		return nil, false, st
	}
	var ok nfs3.Read3resok
	if _, err := ok.ReadFrom(r); err != nil {
		c.t.Fatal(err)
	}
	data := make([]byte, ok.Length)
	if _, err := io.ReadFull(r, data); err != nil {
		c.t.Fatal(err)
	}
	if pad := -len(data) & 3; r.Len() != pad {
		c.t.Fatalf("%d bytes after the data, want %d", r.Len(), pad)
	}
	return data, ok.Eof, st
}

// content reads a whole file.
func (c *client) content(h []byte) string {
	c.t.Helper()
	var all []byte
	for {
		data, eof, st := c.read(h, uint64(len(all)), 1<<20)
		if st != nfs3.OK {
			c.t.Fatalf("read: %v", st)
		}
		all = append(all, data...)
		if eof {
			return string(all)
		}
	}
}

// listed is one entry of a directory.
type listed struct {
	nfs3.Entryplus3
}

// list reads a whole directory, with attributes or without, limit bytes at a time.
func (c *client) list(dir []byte, plus bool, limit uint32, between func(n int)) ([]listed, nfs3.Nfsstat3) {
	c.t.Helper()
	var all []listed
	cookie := uint64(0)
	for {
		var args io.WriterTo = &nfs3.Readdirplus3args{Dir: fh(dir), Cookie: cookie, Dircount: limit, Maxcount: limit}
		proc := nfs3.PROC_READDIRPLUS
		if !plus {
			args, proc = &nfs3.Readdir3args{Dir: fh(dir), Cookie: cookie, Count: limit}, nfs3.PROC_READDIR
		}
		st, r := c.do(nfs3.PROGRAM, uint32(proc), args)
		if st != nfs3.OK {
			return all, st
		}
		if r.Len() > int(limit) {
			c.t.Fatalf("an answer of %d bytes, want %d at most", r.Len(), limit)
		}
		var head nfs3.Readdir3resok
		if _, err := head.ReadFrom(r); err != nil {
			c.t.Fatal(err)
		}
		number := func() (n uint32) {
			if err := binary.Read(r, binary.BigEndian, &n); err != nil {
				c.t.Fatal(err)
			}
			return n
		}
		got := 0
		for number() == 1 {
			var e listed
			var err error
			if plus {
				_, err = e.ReadFrom(r)
			} else {
				var short nfs3.Entry3
				_, err = short.ReadFrom(r)
				e.Fileid, e.Name, e.Cookie = short.Fileid, short.Name, short.Cookie
			}
			if err != nil {
				c.t.Fatal(err)
			}
			cookie = e.Cookie
			got++
			if n := string(e.Name); n != "." && n != ".." {
				all = append(all, e)
			}
		}
		if number() == 1 {
			return all, nfs3.OK
		}
		if got == 0 {
			c.t.Fatal("an answer without entries that is not the last")
		}
		if between != nil {
			between(len(all))
		}
	}
}
