// Package guesttest stands in for a guest in tests: an SSH server in Go that runs commands on
// the local machine in a scratch directory, and a fake Docker engine behind a unix socket "in
// the guest".
//
// It is only for tests and for the fake VM of the command-line tests; it isolates nothing. It
// does not import guest, so guest's own tests can use it. It fails as a guest does: by closing
// connections.
package guesttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/crypto/ssh"
)

// DockerSocket is the path of the engine's socket in a guest.
const DockerSocket = "/run/docker.sock"

// Options configure a [Server].
type Options struct {
	// HostKey is the private host key, as the guest gets it in its credentials.
	HostKey []byte
	// AuthorizedKeys is in the format of the file of that name.
	AuthorizedKeys []byte
	// Dir is the scratch directory: home and working directory of commands.
	Dir string
	// Sockets maps paths of unix sockets in the guest to their dial functions.
	Sockets map[string]func(context.Context) (net.Conn, error)
	// Intercept, if set, sees each command line first, as it came over the wire, including what
	// the client puts around the command. If it returns handled, the line does not run and exit
	// is its exit code.
	Intercept func(line string) (exit int, handled bool)
	// Rewrite, if set, changes each command line before it is run.
	Rewrite func(line string) string
	// OnPoweroff is called, once per command, when a command line contains "poweroff". That
	// command does not run; its exit code is 0. Other commands that would change this host do
	// not run either; their exit code is 127.
	OnPoweroff func()
	// Log receives events; nil discards them.
	Log *slog.Logger
}

// Server is an SSH server.
type Server struct {
	opts   Options
	log    *slog.Logger
	config *ssh.ServerConfig
	home   string

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// NewServer makes a server. It creates the directories that it needs.
func NewServer(opts Options) (*Server, error) {
	host, err := ssh.ParsePrivateKey(opts.HostKey)
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	var authorized [][]byte
	for rest := bytes.TrimSpace(opts.AuthorizedKeys); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		var key ssh.PublicKey
		if key, _, _, rest, err = ssh.ParseAuthorizedKey(rest); err != nil {
			return nil, fmt.Errorf("authorised keys: %w", err)
		}
		authorized = append(authorized, key.Marshal())
	}
	s := &Server{opts: opts, log: opts.Log, home: filepath.Join(opts.Dir, "root"), conns: map[net.Conn]struct{}{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{s.home, filepath.Join(opts.Dir, "tmp")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	s.config = &ssh.ServerConfig{
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			for _, a := range authorized {
				if bytes.Equal(a, key.Marshal()) {
					return nil, nil
				}
			}
			return nil, errors.New("unknown key")
		},
	}
	s.config.AddHostKey(host)
	return s, nil
}

// Serve accepts SSH connections until ctx ends or the listener is closed, and
// then closes the listener and all connections.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	defer func() { _ = l.Close() }()
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		conns.Go(func() { s.ServeConn(ctx, conn) })
	}
}

// ServeConn serves one SSH connection until it or ctx ends.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) {
	s.mu.Lock()
	s.conns[conn] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
		_ = conn.Close()
	}()
	serving := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()

	sc, chans, reqs, err := ssh.NewServerConn(conn, s.config)
	if err != nil {
		s.log.Debug("SSH handshake", "err", err)
		return
	}
	go ssh.DiscardRequests(reqs)
	var channels sync.WaitGroup
	for open := range chans {
		channels.Go(func() {
			switch open.ChannelType() {
			case "session":
				s.session(serving, open)
			case "direct-streamlocal@openssh.com":
				s.streamLocal(ctx, open)
			default:
				_ = open.Reject(ssh.UnknownChannelType, "unknown channel type")
			}
		})
	}
	_ = sc.Close()
	cancel()
	channels.Wait()
}

// CloseConns cuts all connections, as a dying guest does.
func (s *Server) CloseConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		_ = conn.Close()
	}
}

// streamLocal connects a channel to a unix socket in the guest.
func (s *Server) streamLocal(ctx context.Context, open ssh.NewChannel) {
	var to struct {
		Path      string
		Reserved0 string
		Reserved1 uint32
	}
	if err := ssh.Unmarshal(open.ExtraData(), &to); err != nil {
		_ = open.Reject(ssh.ConnectionFailed, "bad request")
		return
	}
	dial, ok := s.opts.Sockets[to.Path]
	if !ok {
		_ = open.Reject(ssh.ConnectionFailed, "open failed")
		return
	}
	target, err := dial(ctx)
	if err != nil {
		s.log.Debug("connect", "path", to.Path, "err", err)
		_ = open.Reject(ssh.ConnectionFailed, "open failed")
		return
	}
	ch, reqs, err := open.Accept()
	if err != nil {
		_ = target.Close()
		return
	}
	closed := make(chan struct{})
	go func() {
		ssh.DiscardRequests(reqs)
		close(closed)
	}()
	defer context.AfterFunc(ctx, func() { _ = target.Close() })()

	// As in sshd, the end of one direction is passed on. When the target stops reading, or the
	// peer has closed, both directions end.
	var directions sync.WaitGroup
	directions.Go(func() {
		if _, err := copyBuffer(target, ch); err != nil || closeWrite(target) != nil {
			_ = ch.Close()
		}
	})
	directions.Go(func() {
		if _, err := copyBuffer(ch, target); err != nil || ch.CloseWrite() != nil {
			_ = ch.Close()
		}
	})
	go func() {
		<-closed
		_ = target.Close()
	}()
	directions.Wait()
	_ = ch.Close()
	_ = target.Close()
}
