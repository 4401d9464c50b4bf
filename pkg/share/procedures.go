package share

import (
	"context"
	"io"

	"github.com/buildbarn/go-xdr/pkg/protocols/rpcv2"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// procedure answers one kind of call. do returns an error if it cannot read the arguments.
type procedure struct {
	do   func(*Server, context.Context, *call, *reply) error
	once bool // must not be carried out twice
}

// with adds the reading of the arguments to a procedure.
func with[A any, P interface {
	*A
	io.ReaderFrom
}](f func(*Server, context.Context, *call, P, *reply)) func(*Server, context.Context, *call, *reply) error {
	return func(s *Server, ctx context.Context, c *call, w *reply) error {
		args := P(new(A))
		if _, err := args.ReadFrom(c.args); err != nil {
			return err
		}
		f(s, ctx, c, args, w)
		return nil
	}
}

func (s *Server) nothing(context.Context, *call, *reply) error { return nil }

var nfsProcedures = map[nfs3.Nfsproc3]procedure{
	nfs3.PROC_NULL:        {do: (*Server).nothing},
	nfs3.PROC_GETATTR:     {do: with((*Server).getattr)},
	nfs3.PROC_SETATTR:     {do: with((*Server).setattr), once: true},
	nfs3.PROC_LOOKUP:      {do: with((*Server).lookup)},
	nfs3.PROC_ACCESS:      {do: with((*Server).access)},
	nfs3.PROC_READLINK:    {do: with((*Server).readlink)},
	nfs3.PROC_READ:        {do: with((*Server).read)},
	nfs3.PROC_WRITE:       {do: with((*Server).write), once: true},
	nfs3.PROC_CREATE:      {do: with((*Server).create), once: true},
	nfs3.PROC_MKDIR:       {do: with((*Server).mkdir), once: true},
	nfs3.PROC_SYMLINK:     {do: with((*Server).symlink), once: true},
	nfs3.PROC_MKNOD:       {do: with((*Server).mknod), once: true},
	nfs3.PROC_REMOVE:      {do: with((*Server).remove), once: true},
	nfs3.PROC_RMDIR:       {do: with((*Server).rmdir), once: true},
	nfs3.PROC_RENAME:      {do: with((*Server).rename), once: true},
	nfs3.PROC_LINK:        {do: with((*Server).link), once: true},
	nfs3.PROC_READDIR:     {do: with((*Server).readdir)},
	nfs3.PROC_READDIRPLUS: {do: with((*Server).readdirplus)},
	nfs3.PROC_FSSTAT:      {do: with((*Server).fsstat)},
	nfs3.PROC_FSINFO:      {do: with((*Server).fsinfo)},
	nfs3.PROC_PATHCONF:    {do: with((*Server).pathconf)},
	nfs3.PROC_COMMIT:      {do: with((*Server).commit)},
}

var mountProcedures = map[nfs3.Mountproc3]procedure{
	nfs3.MOUNT_NULL:    {do: (*Server).nothing},
	nfs3.MOUNT_MNT:     {do: with((*Server).mount)},
	nfs3.MOUNT_DUMP:    {do: (*Server).noMounts},
	nfs3.MOUNT_UMNT:    {do: (*Server).nothing},
	nfs3.MOUNT_UMNTALL: {do: (*Server).nothing},
	nfs3.MOUNT_EXPORT:  {do: (*Server).noMounts},
}

// procedure returns the procedure that a call asks for, or the answer if there is none.
func (s *Server) procedure(c *call) (procedure, rpcv2.AcceptedReplyData) {
	var p procedure
	var ok bool
	version := uint32(nfs3.VERSION)
	switch c.prog {
	case nfs3.PROGRAM:
		p, ok = nfsProcedures[nfs3.Nfsproc3(c.proc)]
		if instead, known := s.instead[c.uid][nfs3.Nfsproc3(c.proc)]; known {
			p = instead
		}
	case nfs3.MOUNT_PROGRAM:
		p, ok = mountProcedures[nfs3.Mountproc3(c.proc)]
	default:
		return p, &rpcv2.AcceptedReplyData_default{Stat: rpcv2.PROG_UNAVAIL}
	}
	if c.vers != version {
		mismatch := &rpcv2.AcceptedReplyData_PROG_MISMATCH{}
		mismatch.MismatchInfo.Low, mismatch.MismatchInfo.High = version, version
		return p, mismatch
	}
	if !ok {
		return p, &rpcv2.AcceptedReplyData_default{Stat: rpcv2.PROC_UNAVAIL}
	}
	return p, nil
}

// mount returns the handle of an export's root.
func (s *Server) mount(_ context.Context, _ *call, a *nfs3.Dirpath, w *reply) {
	for _, e := range s.exports {
		if e.Target != string(a.Path) {
			continue
		}
		root, err := e.openRoot()
		if err != nil {
			w.put(statusOf(err))
			return
		}
		root.close()
		w.put(nfs3.OK, &nfs3.Mountres3Ok{
			Fhandle:     e.handle(e.root).Data,
			AuthFlavors: []int32{int32(rpcv2.AUTH_SYS)},
		})
		return
	}
	w.put(nfs3.ERR_NOENT)
}

// noMounts returns an empty list.
func (s *Server) noMounts(_ context.Context, _ *call, w *reply) error {
	w.uint32(0)
	return nil
}
