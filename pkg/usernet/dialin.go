package usernet

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/usernet/internal/socket"
	"github.com/devvm/devvm/pkg/vmnet"
)

// dialInTimeout bounds a dial into the VM that its client does not.
const dialInTimeout = 30 * time.Second

// maxPolicy is more than the longest policy as JSON, in bytes.
const maxPolicy = 1 << 20

// serveDialIn serves the dial socket until ctx ends; then it ends the tunnels.
func (s *Stack) serveDialIn(ctx context.Context, l net.Listener, stop func()) error {
	var running sync.WaitGroup // connections, and tunnels, which outlive them
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		status := s.Status()
		status.PID = os.Getpid()
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status)
	})
	mux.HandleFunc("GET /egress", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if !r.URL.Query().Has("follow") {
			_ = json.NewEncoder(w).Encode(s.Egress())
			return
		}
		_ = http.NewResponseController(w).Flush()
		_ = s.FollowEgress(r.Context(), func(a vmnet.Attempt) error {
			if err := json.NewEncoder(w).Encode(a); err != nil {
				return err
			}
			return http.NewResponseController(w).Flush()
		})
	})
	mux.HandleFunc("PUT /policy", func(w http.ResponseWriter, r *http.Request) {
		var p egress.Policy
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxPolicy)).Decode(&p); err != nil {
			vmnet.AnswerError(w, fmt.Errorf("read policy: %w", err))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(vmnet.PolicyAnswer{Cut: s.SetPolicy(p)})
	})
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusAccepted)
		_ = http.NewResponseController(w).Flush()
		stop()
	})
	mux.HandleFunc("GET "+vmnet.UDPPath+"{host}/{port}/", func(w http.ResponseWriter, r *http.Request) {
		running.Add(1)
		defer running.Done()
		s.tunnelUDP(ctx, w, r)
	})
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		// A connection counts from its accept on: one that counted first in its
		// handler could come after the Wait.
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				running.Add(1)
			case http.StateHijacked, http.StateClosed:
				running.Done()
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodConnect { // the mux has no patterns for authorities
				mux.ServeHTTP(w, r)
				return
			}
			running.Add(1)
			defer running.Done()
			s.tunnelTCP(ctx, &running, w, r)
		}),
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	err := server.Serve(l)
	_ = server.Close() // also what was accepted meanwhile
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve dial socket: %w", err)
}

// tunnelTCP serves one CONNECT. The tunnel outlives the call, as one of tunnels.
func (s *Stack) tunnelTCP(ctx context.Context, tunnels *sync.WaitGroup, w http.ResponseWriter, r *http.Request) {
	dialing, cancel := context.WithTimeout(r.Context(), dialInTimeout)
	guest, err := s.Dial(dialing, "tcp", r.Host)
	cancel()
	if err != nil {
		vmnet.AnswerError(w, err)
		return
	}
	client, ahead, err := hijack(w, "HTTP/1.1 200 Connection established\r\n\r\n")
	if err != nil {
		abort(guest)
		return
	}
	// On a goroutine of its own: the server's has buffers that nobody needs any more.
	to := r.Host
	tunnels.Go(func() {
		s.dialIns.Add(1)
		defer s.dialIns.Add(-1)
		if _, err := guest.Write(ahead); err != nil {
			abort(guest)
			abort(client)
			return
		}
		if err := s.relays.join(ctx, guest.(*socket.TCP), client, false); err != nil {
			s.log.Debug("connection into the VM broke", "to", to, "error", err)
		}
	})
}

// hijack takes over the connection of a request and writes the start of the
// answer to it. It returns also what was read of it beyond the request.
func hijack(w http.ResponseWriter, answer string) (streamConn, []byte, error) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, nil, err
	}
	stream, ok := conn.(streamConn)
	if !ok {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("a %T is not a stream socket", conn)
	}
	err = conn.SetDeadline(time.Time{})
	if err == nil {
		_, err = io.WriteString(conn, answer)
	}
	if err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	ahead, _ := rw.Peek(rw.Reader.Buffered())
	return stream, ahead, nil
}
