package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/guest/guesttest"
)

func listen(t *testing.T) (net.Listener, string) {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "docker.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, sock
}

// fake serves the fake engine, which keeps its state in dir.
func fake(t *testing.T, dir string) (*guesttest.Engine, string) {
	t.Helper()
	e, err := guesttest.NewEngine(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	l, sock := listen(t)
	go func() { _ = e.Serve(l) }()
	return e, sock
}

// handler serves whatever an engine of another kind would answer.
func handler(t *testing.T, answers map[string]any) string {
	t.Helper()
	l, sock := listen(t)
	answers = maps.Clone(answers)
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.45")
		w.Header().Set("Content-Type", "application/json")
		path := r.URL.Path
		if rest, ok := strings.CutPrefix(path, "/v1.45"); ok {
			path = rest
		}
		switch a := answers[path].(type) {
		case nil:
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"message":"no such page"}`)
		case http.HandlerFunc:
			a(w, r)
		default:
			_ = json.NewEncoder(w).Encode(a)
		}
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return sock
}

func post(t *testing.T, sock, path, body string) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", sock)
	}}}
	resp, err := c.Post("http://docker/v1.45"+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode >= 300 {
		t.Fatal(resp.Status)
	}
}

func TestQuestions(t *testing.T) {
	dir := t.TempDir()
	e, sock := fake(t, dir)
	if err := engine.Ping(t.Context(), sock); err != nil {
		t.Error(err)
	}
	v, err := engine.GetVersion(t.Context(), sock)
	if v != "26.1.5" || err != nil {
		t.Error(v, err)
	}
	u, err := engine.GetUsage(t.Context(), sock)
	if diff := cmp.Diff(engine.Usage{Sized: true}, u); diff != "" || err != nil {
		t.Error(diff, err)
	}

	post(t, sock, "/images/load", "twelve bytes")
	post(t, sock, "/containers/create?name=web", "{}")
	post(t, sock, "/containers/create?name=db", "{}")
	post(t, sock, "/volumes/create", `{"Name":"data"}`)
	image := e.State().Images[0].Name
	want := engine.Usage{
		Containers: []engine.Container{{Name: "db"}, {Name: "web"}},
		Images:     []engine.Image{{Name: image, Size: 12}},
		Volumes:    []engine.Volume{{Name: "data", Size: 1 << 20}},
		Sized:      true,
	}
	u, err = engine.GetUsage(t.Context(), sock)
	if diff := cmp.Diff(want, u); diff != "" || err != nil {
		t.Error(diff, err)
	}
	// The fake keeps its state: what was in the disk comes back with it.
	_ = e.Close()
	_, sock = fake(t, dir)
	u, err = engine.GetUsage(t.Context(), sock)
	if diff := cmp.Diff(want, u); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

func TestUsageWithoutSizes(t *testing.T) {
	pages := map[string]any{
		"/_ping":           "OK",
		"/containers/json": []map[string]any{{"Id": "0123456789abcdef", "State": "running"}},
		"/images/json": []map[string]any{
			{"Id": "sha256:fedcba9876543210", "RepoTags": nil, "Size": 5},
			{"Id": "sha256:aedcba9876543210", "RepoTags": []string{"<none>:<none>"}, "Size": -1},
		},
		"/volumes": map[string]any{"Volumes": []map[string]any{{"Name": "v"}}},
	}
	want := engine.Usage{
		Containers: []engine.Container{{Name: "0123456789ab"}},
		Images:     []engine.Image{{Name: "aedcba987654"}, {Name: "fedcba987654"}},
		Volumes:    []engine.Volume{{Name: "v"}},
	}
	for name, df := range map[string]any{
		"not there": nil,
		"fails": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"message":"a disk operation is already running"}`)
		}),
		"slow": http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }),
	} {
		t.Run(name, func(t *testing.T) {
			pages["/system/df"] = df
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			u, err := engine.GetUsage(ctx, handler(t, pages))
			if diff := cmp.Diff(want, u); diff != "" || err != nil {
				t.Error(diff, err)
			}
		})
	}

	// Sizes that the engine did not compute.
	pages["/system/df"] = map[string]any{
		"Containers": []map[string]any{{"Id": "0123456789abcdef"}},
		"Images":     []map[string]any{{"Id": "sha256:fedcba9876543210", "Size": -1}},
		"Volumes":    []map[string]any{{"Name": "v", "UsageData": map[string]any{"Size": -1, "RefCount": -1}}, {"Name": "w"}},
	}
	want.Sized = true
	u, err := engine.GetUsage(t.Context(), handler(t, pages))
	if diff := cmp.Diff(want, u); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// Docker names its version in each answer; others are asked for it.
func TestVersionWithoutQuestion(t *testing.T) {
	docker := handler(t, map[string]any{"/_ping": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Server", "Docker/26.1.5+dfsg1 (linux)")
	})})
	other := handler(t, map[string]any{
		"/_ping": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Server", "Libpod/5.0 (linux)")
		}),
		"/version": map[string]string{"Version": "5.0", "ApiVersion": "1.41"},
	})
	if v, err := engine.GetVersion(t.Context(), docker); v != "26.1.5+dfsg1" || err != nil {
		t.Error(v, err)
	}
	if v, err := engine.GetVersion(t.Context(), other); v != "5.0" || err != nil {
		t.Error(v, err)
	}
}

func TestErrors(t *testing.T) {
	const message = "devvm: the VM is not running; start it with: devvm up"
	refusing := handler(t, map[string]any{"/_ping": unavailable(message), "/version": unavailable(message)})
	broken := handler(t, map[string]any{"/_ping": "OK"})
	mute, muteSock := listen(t)
	go func() {
		for {
			c, err := mute.Accept()
			if err != nil {
				return
			}
			defer func() { _ = c.Close() }()
		}
	}()

	if err := engine.Ping(t.Context(), refusing); !errors.Is(err, engine.ErrUnavailable) || err.Error() != "ping the engine: "+message {
		t.Errorf("503: %v", err)
	}
	if _, err := engine.GetVersion(t.Context(), broken); err == nil || errors.Is(err, engine.ErrUnavailable) || !strings.Contains(err.Error(), "no such page") {
		t.Errorf("404: %v", err)
	}
	if err := engine.Ping(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("no socket: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for name, ask := range map[string]func() error{
		"ping":    func() error { return engine.Ping(ctx, muteSock) },
		"version": func() error { _, err := engine.GetVersion(ctx, muteSock); return err },
		"usage":   func() error { _, err := engine.GetUsage(ctx, muteSock); return err },
	} {
		if err := ask(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func unavailable(message string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": message})
	}
}

// Of a network's subnet it is told whether somebody has asked for it.
func TestNetworks(t *testing.T) {
	_, sock := fake(t, t.TempDir())
	post(t, sock, "/networks/create", `{"Name":"app_default"}`)
	post(t, sock, "/networks/create", `{"Name":"asked","IPAM":{"Config":[{"Subnet":"10.1.2.0/24"},{"Subnet":"fd00::/64"}]}}`)
	post(t, sock, "/networks/create", `{"Name":"unknown","IPAM":{"Config":[{"Subnet":"10.1.3.0/24","Gateway":"10.1.3.1"}]}}`)
	got, err := engine.GetNetworks(t.Context(), sock)
	want := []engine.Network{
		{Name: "bridge", Subnet: netip.MustParsePrefix("172.17.0.0/16")},
		{Name: "app_default", Subnet: netip.MustParsePrefix("172.18.0.0/16")},
		{Name: "asked", Subnet: netip.MustParsePrefix("10.1.2.0/24"), Asked: true},
		{Name: "unknown", Subnet: netip.MustParsePrefix("10.1.3.0/24")},
	}
	if !slices.Equal(got, want) || err != nil {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}
