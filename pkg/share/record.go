package share

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/buildbarn/go-xdr/pkg/protocols/rpcv2"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// lastFragment marks the last fragment of a record (RFC 5531, section 11).
const lastFragment = 1 << 31

// errRecord says that a peer does not speak the protocol.
var errRecord = errors.New("malformed RPC record")

// call is one request.
type call struct {
	prog, vers, proc uint32
	uid, gid         uint32 // of the caller, as the VM says
	args             *bytes.Reader
	body             []byte // all that args reads
}

// rest returns the arguments that have not been read yet.
func (c *call) rest() []byte { return c.body[len(c.body)-c.args.Len():] }

// reply is the answer to a call: what is written to it, then the tail.
type reply struct {
	bytes.Buffer
	tail []byte // bulk data, sent without a copy
	done func() // called when the tail is no longer needed
}

// put encodes values.
func (w *reply) put(values ...io.WriterTo) {
	for _, v := range values {
		_, _ = v.WriteTo(w) // a bytes.Buffer does not fail
	}
}

// uint32 encodes a number or a boolean.
func (w *reply) uint32(n uint32) { w.Write(binary.BigEndian.AppendUint32(nil, n)) }

// serveConn answers the calls of one connection, many at a time, in any order.
func (s *Server) serveConn(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	var owned sync.WaitGroup
	defer owned.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slots := make(chan struct{}, maxCalls)
	var writing sync.Mutex
	from := bufio.NewReaderSize(conn, 32<<10)
	for {
		r, err := s.readRecord(ctx, conn, from)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		slots <- struct{}{}
		owned.Go(func() {
			defer func() { <-slots }()
			defer r.release()
			err := s.serveCall(ctx, r.data, func(w *reply) error {
				writing.Lock()
				defer writing.Unlock()
				return writeReply(conn, w)
			})
			if err != nil {
				_ = conn.Close() // ends the reader, too
			}
		})
	}
}

// record is one message as it was received.
type record struct {
	data    []byte
	release func() // called when it is no longer needed
}

// readRecord reads one record and counts its bytes as pending.
func (s *Server) readRecord(ctx context.Context, conn net.Conn, from *bufio.Reader) (r record, err error) {
	pending := int64(0)
	free := func() {}
	r.release = func() {
		free()
		s.pending.Release(pending)
	}
	defer func() {
		if err != nil {
			r.release()
		}
	}()
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return r, err
	}
	for first, last := true, false; !last; first = false {
		var mark [4]byte
		if _, err := io.ReadFull(from, mark[:]); err != nil {
			if !first {
				err = io.ErrUnexpectedEOF
			}
			return r, err
		}
		size := int(binary.BigEndian.Uint32(mark[:]))
		last = size&lastFragment != 0
		size &^= lastFragment
		have := len(r.data)
		if size == 0 && !last || have+size > maxRecord {
			return r, fmt.Errorf("%w: a fragment of %d bytes", errRecord, size)
		}
		if err := conn.SetReadDeadline(time.Now().Add(recordTime)); err != nil {
			return r, err
		}
		more := cost(have+size) - pending
		if err := s.pending.Acquire(ctx, more); err != nil {
			return r, err
		}
		pending += more
		data, next := buffer(have + size)
		copy(data, r.data)
		free()
		r.data, free = data, next
		if _, err := io.ReadFull(from, r.data[have:]); err != nil {
			return r, err
		}
	}
	return r, nil
}

// writeReply sends a reply as one record.
func writeReply(conn net.Conn, w *reply) error {
	var pad [3]byte
	padding := pad[:-len(w.tail)&3]
	mark := binary.BigEndian.AppendUint32(nil, uint32(w.Len()+len(w.tail)+len(padding))|lastFragment) //nolint:gosec // at most maxRecord
	if err := conn.SetWriteDeadline(time.Now().Add(recordTime)); err != nil {
		return err
	}
	_, err := (&net.Buffers{mark, w.Bytes(), w.tail, padding}).WriteTo(conn)
	return err
}

// serveCall answers one record. After an error the connection must be closed.
func (s *Server) serveCall(ctx context.Context, record []byte, send func(*reply) error) error {
	args := bytes.NewReader(record)
	var message rpcv2.RpcMsg
	if _, err := message.ReadFrom(args); err != nil {
		return fmt.Errorf("%w: %w", errRecord, err)
	}
	body, ok := message.Body.(*rpcv2.RpcMsgBody_CALL)
	if !ok {
		return fmt.Errorf("%w: not a call", errRecord)
	}
	head := body.Cbody
	c := &call{prog: head.Prog, vers: head.Vers, proc: head.Proc, args: args, body: record}
	if len(record) > maxCall && (c.prog != nfs3.PROGRAM || c.proc != uint32(nfs3.PROC_WRITE)) {
		return fmt.Errorf("%w: %d bytes for procedure %d", errRecord, len(record), c.proc)
	}
	w := &reply{}
	defer func() {
		if w.done != nil {
			w.done()
		}
	}()
	switch {
	case head.Rpcvers != 2:
		denied := &rpcv2.RejectedReply_RPC_MISMATCH{}
		denied.MismatchInfo.Low, denied.MismatchInfo.High = 2, 2
		w.put(answer(message.Xid, &rpcv2.ReplyBody_MSG_DENIED{Rreply: denied}))
	case !c.authenticate(&head.Cred):
		w.put(answer(message.Xid, &rpcv2.ReplyBody_MSG_DENIED{Rreply: &rpcv2.RejectedReply_AUTH_ERROR{Stat: rpcv2.AUTH_BADCRED}}))
	default:
		p, failure := s.procedure(c)
		if failure != nil {
			w.put(accept(message.Xid, failure))
			break
		}
		again := s.replays.do(ctx, message.Xid, c, p.once, func() []byte {
			if p.once {
				defer s.underway.begin()()
			}
			w.put(accept(message.Xid, &rpcv2.AcceptedReplyData_SUCCESS{}))
			if err := p.do(s, ctx, c, w); err != nil {
				w.Reset()
				w.put(accept(message.Xid, &rpcv2.AcceptedReplyData_default{Stat: rpcv2.GARBAGE_ARGS}))
			}
			return w.Bytes()
		})
		if again != nil {
			w.Write(again)
		}
	}
	return send(w)
}

// answer is a message with a reply.
func answer(xid uint32, body rpcv2.ReplyBody) *rpcv2.RpcMsg {
	return &rpcv2.RpcMsg{Xid: xid, Body: &rpcv2.RpcMsgBody_REPLY{Rbody: body}}
}

// accept is the head of an answer to a call whose head was valid.
func accept(xid uint32, data rpcv2.AcceptedReplyData) *rpcv2.RpcMsg {
	return answer(xid, &rpcv2.ReplyBody_MSG_ACCEPTED{Areply: rpcv2.AcceptedReply{ReplyData: data}})
}

// nobody is the user of calls without a user, and the owner of other users' files.
const nobody = 65534

// authenticate notes which user is calling, as the VM says. It returns false if it cannot read
// that.
func (c *call) authenticate(cred *rpcv2.OpaqueAuth) bool {
	switch cred.Flavor {
	case rpcv2.AUTH_NONE:
		c.uid, c.gid = nobody, nobody
		return true
	case rpcv2.AUTH_SYS:
		var who nfs3.AuthsysParms
		if _, err := who.ReadFrom(bytes.NewReader(cred.Body)); err != nil {
			return false
		}
		c.uid, c.gid = who.Uid, who.Gid
		return true
	}
	return false
}
