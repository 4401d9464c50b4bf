package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"github.com/devvm/devvm/pkg/engine"
)

func dialer(sock string) engine.Dial {
	return func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", sock) }
}

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// watch follows an engine for the test and returns what it tells.
func watch(t *testing.T, dial engine.Dial) (told <-chan []engine.Port, ended <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	lists, err := make(chan []engine.Port, 1000), make(chan error, 1)
	go func() { err <- engine.Watch(ctx, dial, nil, func(r engine.Running) { lists <- r.Ports }) }()
	t.Cleanup(cancel)
	return lists, err
}

// next waits until the ports told are as many.
func next(t *testing.T, told <-chan []engine.Port, want int) []engine.Port {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case list := <-told:
			if len(list) == want {
				return list
			}
		case <-deadline:
			t.Fatalf("%d ports were never told", want)
		}
	}
}

func TestWatch(t *testing.T) {
	e, sock := fake(t, t.TempDir())
	told, ended := watch(t, dialer(sock))
	if list := <-told; len(list) != 0 { // at once
		t.Error(list)
	}
	post(t, sock, "/containers/create?name=web", `{"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"8080"}],"53/udp":[{"HostIp":"127.0.0.1","HostPort":"53"}]}}}`)
	post(t, sock, "/containers/web/start", "")
	list := next(t, told, 3)
	id := e.State().Containers[0].ID
	want := []engine.Port{
		{Container: "web", ID: id, Protocol: "udp", Port: 53, IP: netip.MustParseAddr("127.0.0.1"), HostPort: 53},
		{Container: "web", ID: id, Protocol: "tcp", Port: 80, IP: netip.MustParseAddr("0.0.0.0"), HostPort: 8080},
		{Container: "web", ID: id, Protocol: "tcp", Port: 80, IP: netip.MustParseAddr("::"), HostPort: 8080},
	}
	if diff := cmp.Diff(want, list, compareAddrs); diff != "" {
		t.Error(diff)
	}
	post(t, sock, "/containers/web/rename?name=shop", "")
	for next(t, told, 3)[0].Container != "shop" {
	}
	post(t, sock, "/containers/shop/stop", "")
	next(t, told, 0)
	post(t, sock, "/containers/shop/restart", "")
	next(t, told, 3)
	_ = e.Close()
	if err := <-ended; err == nil || !strings.HasPrefix(err.Error(), "follow the engine: ") {
		t.Errorf("ended with %v", err)
	}
	if err := engine.Watch(t.Context(), dialer(sock+"x"), nil, func(engine.Running) { t.Error("told") }); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("without an engine: %v", err)
	}
}

// The engine tells of a container's end before its list knows it: what has ended stays
// ended, and what starts again is back.
func TestWatchStaleList(t *testing.T) {
	var mu sync.Mutex
	events := make(chan string)
	running := []map[string]any{{
		"Id": "x", "Names": []string{"/web"}, "State": "running",
		"Ports": []map[string]any{{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 80, "Type": "tcp"}, {"PrivatePort": 81, "Type": "tcp"}},
	}}
	sock := handler(t, map[string]any{
		"/_ping": "OK",
		"/containers/json": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			_ = json.NewEncoder(w).Encode(running)
		}),
		"/events": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			for {
				select {
				case action := <-events:
					_ = json.NewEncoder(w).Encode(map[string]any{"Type": "container", "Action": action, "Actor": map[string]any{"ID": "x"}})
					_ = http.NewResponseController(w).Flush()
				case <-r.Context().Done():
					return
				}
			}
		}),
	})
	told, _ := watch(t, dialer(sock))
	next(t, told, 1)
	events <- "die"
	next(t, told, 0)             // by the event alone
	if n := len(<-told); n > 0 { // the list that follows it
		t.Errorf("a dead container has %d ports", n)
	}
	events <- "start"
	next(t, told, 1)
	events <- "die"
	next(t, told, 0)
	mu.Lock()
	running = running[:0]
	mu.Unlock()
	events <- "disconnect"
	next(t, told, 0)
}

// TestWatchLook: who asks for a list is told of one that the engine was asked for afterwards,
// though no event says that anything has changed; and of the end.
func TestWatchLook(t *testing.T) {
	e, sock := fake(t, t.TempDir())
	e.Mute()
	post(t, sock, "/containers/create?name=web", `{"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"8080"}]}}}`)
	looks, ended := engine.NewLooks(), make(chan error, 1)
	var list atomic.Pointer[[]engine.Port]
	begun := make(chan struct{})
	looks.Ask(func() { close(begun) }) // before there is somebody to ask
	go func() {
		ended <- engine.Watch(t.Context(), dialer(sock), looks, func(r engine.Running) { list.Store(&r.Ports) })
	}()
	look := func() <-chan struct{} {
		known := make(chan struct{})
		looks.Ask(func() { close(known) })
		return known
	}
	<-begun
	if n := len(*list.Load()); n != 0 {
		t.Errorf("%d ports to begin with", n)
	}
	for i := range 20 {
		path, want := "/containers/web/start", 1
		if i%2 == 1 {
			path, want = "/containers/web/stop", 0
		}
		post(t, sock, path, "")
		<-look()
		if n := len(*list.Load()); n != want {
			t.Errorf("after %s: %d ports, want %d", path, n, want)
		}
	}
	release := e.HoldLists()
	defer release()
	known := look()
	_ = e.Close()
	<-known
	if err := <-ended; err == nil {
		t.Error("it ended well")
	}
}

// What running containers have of the host by binds is told, too.
func TestWatchBound(t *testing.T) {
	sock := handler(t, map[string]any{
		"/_ping": "OK",
		"/containers/json": []map[string]any{{"Id": "x", "State": "running", "Mounts": []map[string]any{
			{"Type": "bind", "Source": "/home/me/f"}, {"Type": "volume", "Source": "/var/lib/docker/volumes/v/_data"}, {"Type": "bind", "Source": "/home/me"},
		}}},
		"/events": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}),
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []engine.Bind
	_ = engine.Watch(ctx, dialer(sock), nil, func(r engine.Running) {
		got = r.Binds
		cancel()
	})
	if diff := cmp.Diff([]engine.Bind{{ID: "x", Path: "/home/me/f"}, {ID: "x", Path: "/home/me"}}, got); diff != "" {
		t.Error(diff)
	}
}

// An engine whose answer has no end, which root in a VM can put in the place of Docker's,
// does not fill this process's memory.
func TestWatchEndless(t *testing.T) {
	endless := func(w http.ResponseWriter, begin string) {
		more := strings.Repeat("x", 64<<10)
		for _, err := io.WriteString(w, begin); err == nil; _, err = io.WriteString(w, more) {
		}
	}
	for _, c := range []struct{ name, list, event string }{
		{"list", `[{"Id":"`, ""},
		{"event", "", `{"Type":"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			sock := handler(t, map[string]any{
				"/_ping": "OK",
				"/containers/json": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					if c.list != "" {
						endless(w, c.list)
					}
					_, _ = io.WriteString(w, "[]")
				}),
				"/events": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_ = http.NewResponseController(w).Flush()
					if c.event != "" {
						endless(w, c.event)
					}
					<-r.Context().Done()
				}),
			})
			_, ended := watch(t, dialer(sock))
			select {
			case err := <-ended:
				if !errors.Is(err, engine.ErrTooMuch) {
					t.Error(err)
				}
			case <-time.After(time.Minute):
				t.Error("it is still being read")
			}
		})
	}
}

func TestWishes(t *testing.T) {
	_, sock := fake(t, t.TempDir())
	post(t, sock, "/containers/create?name=web", `{"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"8080"},{}],"53/udp":[{"HostPort":"53"}]},`+
		`"Binds":["/a:/b:ro"],"Mounts":[{"Type":"bind","Source":"/c","Target":"/d","ReadOnly":true}]}}`)
	got, err := engine.GetWishes(t.Context(), dialer(sock), "web")
	want := engine.Wishes{Name: "web", HostConfig: container.HostConfig{
		PortBindings: network.PortMap{
			network.MustParsePort("80/tcp"): {{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: "8080"}, {}},
			network.MustParsePort("53/udp"): {{HostPort: "53"}},
		},
		Binds:  []string{"/a:/b:ro"},
		Mounts: []mount.Mount{{Type: "bind", Source: "/c", Target: "/d", ReadOnly: true}},
	}}
	if len(got.ID) != 64 {
		t.Errorf("its number is %q", got.ID)
	}
	want.ID = got.ID
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(network.Port{}, netip.Addr{})); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if _, err := engine.GetWishes(t.Context(), dialer(sock), "nosuch"); err == nil || !strings.Contains(err.Error(), "No such container") {
		t.Error(err)
	}
}
