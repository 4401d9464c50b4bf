package guesttest

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// APIVersion is the version of the Docker API that [Engine] claims to speak.
const APIVersion = "1.45"

// Engine is a fake Docker engine. It answers the requests of devvm and the first requests of a
// client. It keeps images, containers and volumes in a file, so that tests see state leave and
// return with a disk.
//
// POST /images/load, /containers/create, /networks/create and /volumes/create make state.
// Containers can be started, stopped, killed, restarted, renamed and removed, and GET /events
// reports it. They run nothing, but their published ports are listed and passed to
// [Engine.OnPublish]. The paths below /test serve tests of proxies: POST /test/hijack (an
// upgraded stream that echoes, and after the client's half-close reports how much it got), POST
// /test/upload (answers with the number of bytes), POST /test/fail?message=TEXT, POST
// /test/progress?message=TEXT (an answer that begins well, then fails), GET
// /test/download?bytes=N, POST /test/mute (from now on events are lost, as a real engine loses
// some).
type Engine struct {
	server   *http.Server
	accept   chan net.Conn
	closed   chan struct{}
	close    sync.Once
	requests atomic.Int64 // in progress
	asked    atomic.Int64 // since the start

	mu          sync.Mutex
	file        string
	state       State
	subscribers map[chan any]bool
	publish     func(Container, bool)
	daemon      daemon
	mute        bool          // events are lost
	listless    bool          // lists of containers fail
	lists       chan struct{} // if not nil, lists of containers wait until it is closed
}

// State is what an engine holds.
type State struct {
	Images     []Object
	Containers []Container
	Volumes    []Object
	Networks   []Network // those that were created
}

// Object is an image, container or volume.
type Object struct {
	ID      string
	Name    string
	Size    int64
	Options map[string]string `json:",omitempty"` // a volume's DriverOpts
}

// NewEngine starts an engine that keeps its state in the directory dir, which it creates if
// necessary.
func NewEngine(dir string) (*Engine, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	e := &Engine{
		accept: make(chan net.Conn),
		closed: make(chan struct{}),
		file:   filepath.Join(dir, "engine.json"),

		subscribers: map[chan any]bool{},
		daemon:      daemon{Pools: dockerPools},
	}
	data, err := os.ReadFile(e.file)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(data, &e.state); err != nil {
			return nil, fmt.Errorf("%s: %w", e.file, err)
		}
		for i := range e.state.Containers {
			e.state.Containers[i].Running = false // this is a new boot
		}
	}
	e.server = &http.Server{Handler: e.handler(), ReadHeaderTimeout: time.Minute}
	go func() { _ = e.server.Serve(dialled{e}) }()
	return e, nil
}

// Close stops the engine and cuts its connections.
func (e *Engine) Close() error {
	e.close.Do(func() { close(e.closed) })
	return e.server.Close()
}

// Dial connects to the engine, like a unix socket but without one. It fits [Options].Sockets.
func (e *Engine) Dial(ctx context.Context) (net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "engine")
		var convErr error
		ends[i], convErr = net.FileConn(f)
		err = errors.Join(err, convErr, f.Close())
	}
	if err == nil {
		select {
		case e.accept <- ends[0]:
			return ends[1], nil
		case <-e.closed:
			err = unix.ECONNREFUSED
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	for _, c := range ends {
		if c != nil {
			_ = c.Close()
		}
	}
	return nil, err
}

// Serve also accepts connections from a listener, until that or the engine is closed.
func (e *Engine) Serve(l net.Listener) error { return e.server.Serve(l) }

// Requests is the number of requests in progress, including upgraded ones.
func (e *Engine) Requests() int { return int(e.requests.Load()) }

// Asked is the number of requests received so far.
func (e *Engine) Asked() int { return int(e.asked.Load()) }

// Mute drops all events from now on.
func (e *Engine) Mute() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mute = true
}

// HoldLists delays answers to requests for lists of containers until release is called.
func (e *Engine) HoldLists() (release func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	held := make(chan struct{})
	e.lists = held
	return sync.OnceFunc(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.lists = nil
		close(held)
	})
}

// FailLists makes requests for lists of containers fail from now on, or succeed again.
func (e *Engine) FailLists(fail bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listless = fail
}

// awaitLists blocks while lists are held, and reports whether the request may get its list.
func (e *Engine) awaitLists(w http.ResponseWriter, r *http.Request) bool {
	e.mu.Lock()
	held, fail := e.lists, e.listless
	e.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-r.Context().Done():
			return false
		}
	}
	if fail {
		answer(w, http.StatusInternalServerError, map[string]string{"message": "no list"})
	}
	return !fail
}

// State returns the current state.
func (e *Engine) State() State {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state
}

// dialled is the listener that Dial feeds.
type dialled struct{ e *Engine }

// Accept implements [net.Listener].
func (d dialled) Accept() (net.Conn, error) {
	select {
	case c := <-d.e.accept:
		return c, nil
	case <-d.e.closed:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (d dialled) Close() error {
	d.e.close.Do(func() { close(d.e.closed) })
	return nil
}

// Addr implements [net.Listener].
func (d dialled) Addr() net.Addr { return &net.UnixAddr{Name: "@", Net: "unix"} }

var versionPrefix = regexp.MustCompile(`^/v1\.\d+/`)

func (e *Engine) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /_ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "OK")
	})
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{
			"Version": "26.1.5", "ApiVersion": APIVersion, "MinAPIVersion": "1.24",
			"Os": "linux", "Arch": "amd64", "KernelVersion": "6.12.0", "GoVersion": "go1.24",
			"Components": []map[string]any{{
				"Name": "Engine", "Version": "26.1.5", "Details": map[string]string{"KernelVersion": "6.12.0"},
			}},
		})
	})
	mux.HandleFunc("GET /info", func(w http.ResponseWriter, _ *http.Request) {
		s := e.State()
		answer(w, http.StatusOK, map[string]any{
			"ID": "guesttest", "Name": "guesttest", "ServerVersion": "26.1.5", "OSType": "linux",
			"Containers": len(s.Containers), "Images": len(s.Images),
		})
	})
	mux.HandleFunc("GET /images/json", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, images(e.State()))
	})
	e.handleContainers(mux)
	e.handleNetworks(mux)
	mux.HandleFunc("GET /volumes", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"Volumes": volumes(e.State(), false), "Warnings": nil})
	})
	mux.HandleFunc("GET /system/df", func(w http.ResponseWriter, _ *http.Request) {
		s := e.State()
		var layers int64
		for _, i := range s.Images {
			layers += i.Size
		}
		answer(w, http.StatusOK, map[string]any{
			"LayersSize": layers, "Images": images(s), "Containers": containers(s, true),
			"Volumes": volumes(s, true), "BuildCache": []any{},
		})
	})
	mux.HandleFunc("POST /images/load", e.loadImage)
	mux.HandleFunc("POST /volumes/create", func(w http.ResponseWriter, r *http.Request) {
		var req struct {
			Name       string
			DriverOpts map[string]string
		}
		_ = json.NewDecoder(r.Body).Decode(&req)
		if req.Name == "" {
			req.Name = newID("")
		}
		e.add(w, func(s *State) {
			s.Volumes = append(s.Volumes, Object{ID: req.Name, Name: req.Name, Size: 1 << 20, Options: req.DriverOpts})
		},
			map[string]any{"Name": req.Name, "Driver": "local", "Scope": "local", "Mountpoint": "/" + req.Name})
	})
	mux.HandleFunc("POST /test/hijack", hijack)
	mux.HandleFunc("POST /test/upload", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err == nil {
			answer(w, http.StatusOK, n)
		}
	})
	mux.HandleFunc("POST /test/fail", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusInternalServerError, map[string]string{"message": r.URL.Query().Get("message")})
	})
	mux.HandleFunc("POST /test/progress", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"status":"Downloading"}`+"\r\n")
		_ = http.NewResponseController(w).Flush()
		message := r.URL.Query().Get("message")
		_ = json.NewEncoder(w).Encode(map[string]any{"errorDetail": map[string]string{"message": message}, "error": message})
	})
	mux.HandleFunc("POST /test/mute", func(http.ResponseWriter, *http.Request) { e.Mute() })
	mux.HandleFunc("GET /test/download", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.URL.Query().Get("bytes"), 10, 64)
		if err != nil {
			answer(w, http.StatusBadRequest, map[string]string{"message": err.Error()})
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		for chunk := make([]byte, 64<<10); n > 0 && err == nil; n -= int64(len(chunk)) {
			_, err = w.Write(chunk[:min(n, int64(len(chunk)))])
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusNotFound, map[string]string{"message": "page not found: " + r.Method + " " + r.URL.Path})
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.asked.Add(1)
		e.requests.Add(1)
		defer e.requests.Add(-1)
		w.Header().Set("Api-Version", APIVersion)
		w.Header().Set("Ostype", "linux")
		w.Header().Set("Docker-Experimental", "false")
		w.Header().Set("Server", "Docker/26.1.5 (linux)")
		if at := versionPrefix.FindStringIndex(r.URL.Path); at != nil {
			r.URL.Path = r.URL.Path[at[1]-1:]
		}
		mux.ServeHTTP(w, r)
	})
}

func (e *Engine) loadImage(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	size, err := io.Copy(sum, r.Body)
	if err != nil {
		return
	}
	id := "sha256:" + hex.EncodeToString(sum.Sum(nil))
	e.add(w, func(s *State) {
		for _, i := range s.Images {
			if i.ID == id {
				return
			}
		}
		s.Images = append(s.Images, Object{ID: id, Name: "loaded:" + id[7:19], Size: size})
	}, map[string]string{"stream": "Loaded image ID: " + id + "\n"})
}

// add changes the state, saves it and sends a reply.
func (e *Engine) add(w http.ResponseWriter, change func(*State), reply any) {
	if err := e.change(change); err != nil {
		answer(w, http.StatusInternalServerError, map[string]string{"message": err.Error()})
		return
	}
	answer(w, http.StatusCreated, reply)
}

// change changes the state and saves it.
func (e *Engine) change(change func(*State)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := State{
		Images:     slices.Clone(e.state.Images),
		Containers: slices.Clone(e.state.Containers),
		Volumes:    slices.Clone(e.state.Volumes),
		Networks:   slices.Clone(e.state.Networks),
	}
	change(&s)
	data, err := json.Marshal(s)
	if err == nil {
		err = os.WriteFile(e.file+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(e.file+".new", e.file)
	}
	if err == nil {
		e.state = s
	}
	return err
}

func images(s State) []map[string]any {
	list := []map[string]any{}
	for _, i := range s.Images {
		list = append(list, map[string]any{
			"Id": i.ID, "RepoTags": []string{i.Name}, "Size": i.Size, "SharedSize": -1, "Containers": -1,
		})
	}
	return list
}

func volumes(s State, sizes bool) []map[string]any {
	list := []map[string]any{}
	for _, v := range s.Volumes {
		m := map[string]any{"Name": v.Name, "Driver": "local", "Scope": "local", "Mountpoint": "/" + v.Name}
		if sizes {
			m["UsageData"] = map[string]any{"Size": v.Size, "RefCount": 0}
		}
		list = append(list, m)
	}
	return list
}

// hijack upgrades the connection, echoes, and after the client's half-close reports how many
// bytes it received.
func hijack(w http.ResponseWriter, _ *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		answer(w, http.StatusInternalServerError, map[string]string{"message": err.Error()})
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	n, err := copyBuffer(conn, bufio.NewReader(rw.Reader))
	if err == nil {
		_, _ = fmt.Fprintf(conn, "\nend after %d bytes\n", n)
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func newID(seed string) string {
	sum := sha256.Sum256(fmt.Append(nil, seed, time.Now().UnixNano()))
	return hex.EncodeToString(sum[:])
}
