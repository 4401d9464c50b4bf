// Package share serves directories of the host to one VM: a server of NFS version 3
// (RFC 1813) with its mount protocol, over ONC RPC (RFC 5531), on a listener that it
// is given.
//
// All access is the host user's, whoever asks in the VM: every user of the VM may do what
// the host user may, and files made in the VM belong to the host user on the host. Files of
// the host user have the same number in the VM. The owner that a file has in the VM, by who
// made it or by chown, is kept apart. It is shown to the VM, and changes no file of the host.
//
// The VM is not trusted. The server remembers each object's path below the export's root and
// opens it by openat2 with RESOLVE_BENEATH and no symbolic links. Its inode number and birth
// time must then match the handle. What Hold has opened stays open, even when the host moves
// it. So no link, "..", race or forged handle leads out of an export. Only regular files and
// directories are ever opened for data. The server makes no set-user-ID bits and no device
// nodes. Records, calls under way, their bytes, connections and open files are bounded.
//
// Apart from what Hold keeps open, the server can lose all its state. A handle holds the
// inode number and a hash of each directory above it, so a new server finds the object.
// Written data is in the host's kernel before the VM gets the answer.
//
// NFS has next to no authentication: whoever reaches the listener has the exports.
// The package must not import other packages of devvm.
package share

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
	"github.com/devvm/devvm/pkg/share/internal/watch"
)

// Port is NFS's, and here also that of its mount protocol.
const Port = 2049

// Export is one directory that the VM may mount.
type Export struct {
	// Source is an absolute path on the host without a symbolic link in it. A link that
	// appears in it later is not followed.
	Source string
	// Target is the absolute path in the VM, and the name to mount by.
	Target   string
	Writable bool
}

// Options of a Server.
type Options struct {
	Exports []Export
	// Durable makes data reach the host's disk, not only its kernel, before the VM is told
	// that it is stable. What a container has fsynced then survives a power cut of the
	// host, and small files take many times longer.
	Durable bool
	// Events tells watchers in the VM what the host changes: see Mirror.
	Events bool
	// Ignore lists what Events leaves out: names, patterns (path.Match), or, with a slash
	// in them, paths below the exports.
	Ignore []string
	// Watches is a directory through which all of the user's servers share the number of
	// watches that the kernel gives the user. Empty: this server shares with nobody.
	Watches string
	// Owners is a file that keeps the owners that files have in the VM for the next server.
	// It is created if it is missing.
	Owners string
	Log    *slog.Logger // nil: nothing is logged
}

// Bounds on what a VM may ask for.
const (
	maxIO      = 1 << 20       // bytes of one READ or WRITE
	maxRecord  = maxIO + 4<<10 // bytes of one WRITE call
	maxCall    = 16 << 10      // bytes of any other call
	maxConns   = 32
	maxCalls   = 16          // under way, of one connection
	maxPending = 8 << 20     // bytes of calls and data under way
	recordTime = time.Minute // for a record to come or a reply to go
)

// Server serves its exports to one VM.
type Server struct {
	log      *slog.Logger
	durable  bool
	exports  []*export
	verifier [8]byte // of this run: the VM sends again what it has not committed
	pending  *semaphore.Weighted
	replays  *replays
	underway underway
	instead  map[uint32]map[nfs3.Nfsproc3]procedure // of a user of the VM, instead of the usual ones
	files    *files
	owners   *ownerLog // nil: not kept
	ignore   []string
	watches  *watch.Budget

	holding sync.Mutex // guards binds
	binds   map[Bind]bind
	ahead   map[Bind]*advance // of what is about to start
}

// SweepWatches removes what servers that have ended left in the directory of
// [Options.Watches].
func SweepWatches(dir string) error { return watch.Sweep(dir) }

// New opens the exports.
func New(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		log: o.Log, durable: o.Durable,
		pending: semaphore.NewWeighted(maxPending),
		replays: newReplays(),
		files:   newFiles(maxFiles()),
		ignore:  o.Ignore,
		watches: watch.NewBudget(o.Watches, 0),
		instead: map[uint32]map[nfs3.Nfsproc3]procedure{agentUID: phantomProcedures},
		binds:   map[Bind]bind{},
		ahead:   map[Bind]*advance{},
	}
	if err := s.watches.Claim(); err != nil {
		s.log.Warn("few directories are watched for changes", "err", err)
	}
	if _, err := rand.Read(s.verifier[:]); err != nil {
		return nil, fmt.Errorf("write verifier: %w", err)
	}
	for _, e := range o.Exports {
		x, err := newExport(e, s.files)
		if err != nil {
			_ = s.Close()
			return nil, err
		}
		if o.Events {
			x.observer = newMirror(x)
		}
		s.exports = append(s.exports, x)
	}
	if o.Owners != "" {
		if err := s.keepOwners(o.Owners); err != nil {
			s.log.Warn("whose files are in the VM is not kept", "err", err)
		}
	}
	return s, nil
}

// Close closes everything that is open. Serve must have returned.
func (s *Server) Close() error {
	s.files.close()
	s.owners.close()
	for _, e := range s.exports {
		e.close()
	}
	_ = s.watches.Close() // a claim of a process that has ended does not count
	return nil
}

// Unwatched returns the targets of the exports that have more directories than can be
// watched. Watchers in the VM miss changes in some of them.
func (s *Server) Unwatched() []string {
	var list []string
	for _, e := range s.exports {
		if m := e.mirror(); m != nil && m.unwatched.Load() {
			list = append(list, e.Target)
		}
	}
	return list
}

// acceptPause is how long to wait when the host has no descriptor or no memory left.
const acceptPause = 200 * time.Millisecond

// Serve answers connections until ctx ends or the listener fails; it closes the
// listener and waits for what is under way.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var owned sync.WaitGroup
	defer owned.Wait()
	defer cancel()
	context.AfterFunc(ctx, func() { _ = l.Close() })
	owned.Go(func() { s.sweep(ctx) })
	for _, e := range s.exports {
		if m := e.mirror(); m != nil {
			owned.Go(func() { m.watch(ctx, s) })
		}
	}
	places := make(chan struct{}, maxConns)
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if busy(err) {
				s.log.Warn("cannot accept a connection for files for now", "err", err)
				select {
				case <-time.After(acceptPause):
				case <-ctx.Done():
				}
				continue
			}
			return fmt.Errorf("accept a connection for files: %w", err)
		}
		select {
		case places <- struct{}{}:
		default:
			s.log.Warn("the VM has too many connections for files", "limit", maxConns)
			_ = conn.Close()
			continue
		}
		owned.Go(func() {
			defer func() { <-places }()
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			if err := s.serveConn(ctx, conn); err != nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				s.log.Debug("a connection for files ended", "err", err)
			}
		})
	}
}

// mountedMark begins a name that the VM looks up in each directory once it has mounted it.
const mountedMark = ".devvm-mounted-"

// Mounted waits until the VM has told this server that all exports are mounted there.
func (s *Server) Mounted(ctx context.Context) error {
	for _, e := range s.exports {
		select {
		case <-e.arrived:
		case <-ctx.Done():
			return fmt.Errorf("wait for the VM to mount %s: %w", e.Target, context.Cause(ctx))
		}
	}
	return nil
}

// sweep closes files that have not been used for a while.
func (s *Server) sweep(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			s.files.sweep(now)
			s.owners.flush(s.allOwners)
			for _, e := range s.exports {
				e.sweep(now)
			}
		case <-ctx.Done():
			return
		}
	}
}

// maxFiles is how many files may stay open: a part of the process's limit.
func maxFiles() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 128
	}
	return int(max(64, min(4096, limit.Cur/4)))
}

// self is the host user, whose access all access is.
var self = uint32(os.Geteuid())
