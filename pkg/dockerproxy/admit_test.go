package dockerproxy_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"github.com/devvm/devvm/pkg/condition"
	"github.com/devvm/devvm/pkg/dockerproxy"
)

// raw is an engine's side of which the test reads every byte: it answers each request
// that net/http finds in them by what answer says, and records them all.
type raw struct {
	mu  sync.Mutex
	got bytes.Buffer
}

func (r *raw) bytes() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got.String()
}

func (r *raw) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got.Write(b)
}

func (r *raw) dial(t *testing.T, answer func(*http.Request) string) dockerproxy.DialFunc {
	return func(context.Context) (net.Conn, error) {
		near, far := socketpair(t)
		go func() {
			defer func() { _ = far.Close() }()
			in := bufio.NewReader(io.TeeReader(far, r))
			for {
				req, err := http.ReadRequest(in)
				if err != nil {
					_, _ = io.Copy(io.Discard, in)
					return
				}
				if req.Header.Get("Expect") != "" {
					_, _ = io.WriteString(far, "HTTP/1.1 100 Continue\r\n\r\n")
				}
				_, _ = io.Copy(io.Discard, req.Body)
				_, _ = io.WriteString(far, answer(req))
			}
		}()
		return near, nil
	}
}

const (
	noContent = "HTTP/1.1 204 No Content\r\n\r\n"
	okChunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Trailer: t\r\n\r\n"
	created   = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{\"Id\":\"i\"}"
)

// judge refuses what names a port or a container "bad", and records what it is asked.
type judge struct {
	mu    sync.Mutex
	calls []dockerproxy.Call
	done  int
}

func (j *judge) admit(_ context.Context, c dockerproxy.Call) (v dockerproxy.Verdict, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.calls = append(j.calls, c)
	if c.Volume.Options["device"] == "/bad" {
		return v, errors.New("bad device")
	}
	for _, b := range c.HostConfig.PortBindings[network.MustParsePort("80/tcp")] {
		if b.HostPort == "666" {
			return v, &dockerproxy.Refusal{Status: http.StatusConflict, Message: `port 666 is taken by "x"`}
		}
	}
	if c.Container == "bad" {
		return v, errors.New("bad container")
	}
	v.Done = func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.done++
	}
	return v, nil
}

func (j *judge) asked() []dockerproxy.Call {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]dockerproxy.Call(nil), j.calls...)
}

func request(method, path, body string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: docker\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
}

func volume(device string) string {
	return `{"Name":"v","Driver":"local","DriverOpts":{"o":"bind","device":"` + device + `"}}`
}

func chunked(method, path string, chunks ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: docker\r\nTransfer-Encoding: chunked\r\n\r\n", method, path)
	for _, c := range chunks {
		fmt.Fprintf(&b, "%x;ext=1\r\n%s\r\n", len(c), c)
	}
	b.WriteString("0\r\nTrailer: 1\r\n\r\n")
	return b.String()
}

func TestAdmit(t *testing.T) {
	const good = `{"Image":"x","HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"8080"}]},"Binds":["/a:/b:ro"],"Mounts":[{"Type":"bind","Source":"/c","Target":"/d","ReadOnly":true}]}}`
	const bad = `{"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"666"}]}}}`
	config := container.HostConfig{
		PortBindings: network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: "8080"}}},
		Binds:        []string{"/a:/b:ro"},
		Mounts:       []mount.Mount{{Type: "bind", Source: "/c", Target: "/d", ReadOnly: true}},
	}
	refused := container.HostConfig{PortBindings: network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: "666"}}}}
	big := `{"HostConfig":{"Binds":["` + strings.Repeat("x", 5<<20) + `"]}}`
	for _, c := range []struct {
		name    string
		send    string
		calls   []dockerproxy.Call
		refused string // of send, what the engine does not get
		status  []int
	}{
		{"create", request("POST", "/v1.45/containers/create?name=web", good), []dockerproxy.Call{{Kind: "create", Container: "web", HostConfig: config}}, "", []int{201}},
		{"create without version", request("POST", "/containers/create", good), []dockerproxy.Call{{Kind: "create", HostConfig: config}}, "", []int{201}},
		{"create in chunks", chunked("POST", "/v1.45/containers/create", good[:10], good[10:]), []dockerproxy.Call{{Kind: "create", HostConfig: config}}, "", []int{201}},
		{"start", request("POST", "/v1.45/containers/web/start", ""), []dockerproxy.Call{{Kind: "start", Container: "web"}}, "", []int{204}},
		{"restart", request("POST", "/containers/a%2Fb/restart?t=1", ""), []dockerproxy.Call{{Kind: "start", Container: "a/b"}}, "", []int{204}},
		{"stop", request("POST", "/v1.45/containers/web/stop?t=1", ""), []dockerproxy.Call{{Kind: "stop", Container: "web"}}, "", []int{200}},
		{"kill", request("POST", "/containers/web/kill", ""), []dockerproxy.Call{{Kind: "stop", Container: "web"}}, "", []int{200}},
		{"remove", request("DELETE", "/v1.45/containers/a%2Fb?force=1", ""), []dockerproxy.Call{{Kind: "stop", Container: "a/b"}}, "", []int{200}},
		{"remove what is no container", request("DELETE", "/images/web", ""), nil, "", []int{200}},
		{"size of a terminal", request("POST", "/v1.41/containers/a/resize?h=30&w=100", ""), []dockerproxy.Call{{Kind: "resize", Container: "a"}}, "", []int{200}},
		{"others", request("GET", "/containers/web/json", "") + request("POST", "/containers/web/pause", "") + request("POST", "/exec/start/start", "{}") + request("GET", "/containers/create", "") + request("POST", "/images/create", ""), nil, "", []int{200, 200, 200, 200, 200}},
		{"refused", request("POST", "/v1.45/containers/create", bad), []dockerproxy.Call{{Kind: "create", HostConfig: refused}}, request("POST", "/v1.45/containers/create", bad), []int{409}},
		{"refused start, no status", request("POST", "/containers/bad/start", ""), []dockerproxy.Call{{Kind: "start", Container: "bad"}}, request("POST", "/containers/bad/start", ""), []int{500}},
		{
			"one connection", request("GET", "/_ping", "") + request("POST", "/containers/bad/start", "") + request("POST", "/containers/create", good) + request("HEAD", "/_ping", "") + request("POST", "/containers/bad/start", "") + chunked("POST", "/build", "abc", "def") + request("POST", "/containers/x/start", ""),
			[]dockerproxy.Call{{Kind: "start", Container: "bad"}, {Kind: "create", HostConfig: config}, {Kind: "start", Container: "bad"}, {Kind: "start", Container: "x"}},
			request("POST", "/containers/bad/start", ""),
			[]int{200, 500, 201, 200, 500, 200, 204},
		},
		{
			"volumes", request("POST", "/v1.45/volumes/create", volume("/x")) + request("POST", "/volumes/create", volume("/bad")) + request("POST", "/volumes/prune", ""),
			[]dockerproxy.Call{
				{Kind: "create volume", Volume: mount.Driver{Name: "local", Options: map[string]string{"o": "bind", "device": "/x"}}},
				{Kind: "create volume", Volume: mount.Driver{Name: "local", Options: map[string]string{"o": "bind", "device": "/bad"}}},
				{Kind: "prune"},
			},
			request("POST", "/volumes/create", volume("/bad")),
			[]int{200, 500, 200},
		},
		{
			"volume in a mount", request("POST", "/containers/create", `{"HostConfig":{"Mounts":[{"Type":"volume","Source":"v","VolumeOptions":{"DriverConfig":{"Name":"local","Options":{"o":"bind"}}}}]}}`),
			[]dockerproxy.Call{{Kind: "create", HostConfig: container.HostConfig{Mounts: []mount.Mount{{
				Type: "volume", Source: "v",
				VolumeOptions: &mount.VolumeOptions{DriverConfig: &mount.Driver{Name: "local", Options: map[string]string{"o": "bind"}}},
			}}}}},
			"",
			[]int{201},
		},
		{"no volume", request("POST", "/volumes/create", `{"DriverOpts":7}`), nil, "", []int{200}},
		{"not JSON", request("POST", "/containers/create", "{"), nil, "", []int{201}},
		{"other types", request("POST", "/containers/create", `{"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":666}]}}}`), nil, "", []int{201}},
		{"an address that is none", request("POST", "/containers/create", `{"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"localhost","HostPort":"666"}]}}}`), nil, "", []int{201}},
		{"a port that is none", request("POST", "/containers/create", `{"HostConfig":{"PortBindings":{"x":[{"HostPort":"666"}]}}}`), nil, "", []int{201}},
		{"too large to read", request("POST", "/containers/create", big) + request("POST", "/containers/x/start", ""), []dockerproxy.Call{{Kind: "start", Container: "x"}}, "", []int{201, 204}},
	} {
		for _, slow := range []bool{false, true} {
			if slow && len(c.send) > 1<<20 {
				continue
			}
			t.Run(fmt.Sprintf("%s/slow=%v", c.name, slow), func(t *testing.T) {
				var r raw
				var j judge
				dial := r.dial(t, func(req *http.Request) string {
					switch {
					case strings.HasSuffix(req.URL.Path, "/containers/create") && req.Method == http.MethodPost:
						return created
					case strings.HasSuffix(req.URL.Path, "start") && strings.Contains(req.URL.Path, "containers"):
						return noContent
					case req.Method == http.MethodHead:
						return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
					}
					return okChunked
				})
				_, sock := serve(t, dockerproxy.Options{Dial: dial, Admit: j.admit})
				conn := connect(t, sock)
				go func() {
					for rest := []byte(c.send); len(rest) > 0; {
						n := len(rest)
						if slow {
							n = 1
						}
						_, _ = conn.Write(rest[:n])
						rest = rest[n:]
					}
				}()
				in := bufio.NewReader(conn)
				sent := bufio.NewReader(strings.NewReader(c.send))
				for i, want := range c.status {
					req, err := http.ReadRequest(sent)
					if err != nil {
						t.Fatal(err)
					}
					_, _ = io.Copy(io.Discard, req.Body)
					resp, err := http.ReadResponse(in, req)
					if err != nil {
						t.Fatalf("answer %d: %v", i, err)
					}
					body, err := io.ReadAll(resp.Body)
					if err != nil || resp.StatusCode != want {
						t.Fatalf("answer %d: %d %q, want %d, %v", i, resp.StatusCode, body, want, err)
					}
					if want == http.StatusConflict && string(body) != `{"message":"port 666 is taken by \"x\""}` {
						t.Errorf("%q", body)
					}
					if want == http.StatusInternalServerError && string(body) != `{"message":"bad container"}` && string(body) != `{"message":"bad device"}` {
						t.Errorf("%q", body)
					}
				}
				want := c.send
				if c.refused != "" {
					want = strings.ReplaceAll(want, c.refused, "")
				}
				if got := r.bytes(); got != want {
					t.Errorf("the engine got %d bytes %.200q, want %d %.200q", len(got), got, len(want), want)
				}
				if diff := cmp.Diff(c.calls, j.asked(), cmpopts.EquateComparable(network.Port{}, netip.Addr{})); diff != "" {
					t.Error(diff)
				}
				admitted := len(c.calls) - strings.Count(c.send, c.refused)
				if c.refused == "" {
					admitted = len(c.calls)
				}
				condition.Wait(t, "calls are done", func() bool {
					j.mu.Lock()
					defer j.mu.Unlock()
					return j.done == admitted
				})
			})
		}
	}
}

// A client that expects to be asked for its body is asked by the engine; a refusal then
// ends the connection, for the engine has the head.
func TestAdmitExpect(t *testing.T) {
	for _, c := range []struct{ port, status string }{{"8080", "HTTP/1.1 201 Created"}, {"666", "HTTP/1.1 409 Conflict"}} {
		var r raw
		var j judge
		_, sock := serve(t, dockerproxy.Options{Admit: j.admit, Dial: r.dial(t, func(*http.Request) string { return created })})
		conn := connect(t, sock)
		body := `{"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"` + c.port + `"}]}}}`
		fmt.Fprintf(conn, "POST /containers/create HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(body))
		in := bufio.NewReader(conn)
		if line, err := in.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" || err != nil {
			t.Fatal(line, err)
		}
		_, _ = in.ReadString('\n')
		_, _ = io.WriteString(conn, body)
		line, err := in.ReadString('\n')
		if strings.TrimSpace(line) != c.status || err != nil || len(j.asked()) != 1 {
			t.Errorf("%q, %v, %v", line, err, j.asked())
		}
		_ = conn.CloseWrite()
		if _, err := io.Copy(io.Discard, in); err != nil {
			t.Error(err)
		}
	}
}

// After an upgrade, a hijacked stream and an answer without an end nothing is looked at,
// and what a client types passes at once.
func TestAdmitStreams(t *testing.T) {
	for name, answer := range map[string]string{
		"upgrade":    "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
		"hijack":     "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n",
		"no HTTP":    "garbage\r\n\r\n",
		"after 103":  "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 101 UPGRADED\r\n\r\n",
		"bad framed": "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			dial, accepted := halves(t)
			var j judge
			_, sock := serve(t, dockerproxy.Options{Dial: dial, Admit: j.admit})
			c, e := connect(t, sock), <-accepted
			ask := request("POST", "/exec/x/start", "{}")
			_, _ = io.WriteString(c, ask)
			read(t, e, ask)
			_, _ = io.WriteString(e, answer)
			read(t, c, answer)
			for _, s := range []string{"l", "s", "\r", request("POST", "/containers/bad/start", ""), "\x00\xff"} {
				_, _ = io.WriteString(c, s)
				read(t, e, s)
				_, _ = io.WriteString(e, s)
				read(t, c, s)
			}
			if got := j.asked(); len(got) > 0 {
				t.Error(got)
			}
		})
	}
}

// Bytes that are no HTTP/1 pass as soon as that shows.
func TestAdmitNoHTTP(t *testing.T) {
	for _, s := range []string{"hello there\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET\r\n", "POST /x HTTP/1.1\r\nContent-Length: x\r\n\r\n", strings.Repeat("x", 2<<20)} {
		dial, accepted := halves(t)
		_, sock := serve(t, dockerproxy.Options{Dial: dial})
		c, e := connect(t, sock), <-accepted
		go func() { _, _ = io.WriteString(c, s) }()
		read(t, e, s)
		_, _ = io.WriteString(c, "more")
		read(t, e, "more")
	}
}

// An answer that comes before the end of the request, as to a broken build, does not
// stop either.
func TestAdmitEarlyAnswer(t *testing.T) {
	dial, accepted := halves(t)
	var j judge
	_, sock := serve(t, dockerproxy.Options{Dial: dial, Admit: j.admit})
	c, e := connect(t, sock), <-accepted
	_, _ = io.WriteString(c, "POST /build HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
	read(t, e, "POST /build HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
	_, _ = io.WriteString(e, okChunked)
	read(t, c, okChunked)
	_, _ = io.WriteString(c, "3\r\ndef\r\n0\r\n\r\n"+request("POST", "/containers/bad/start", ""))
	read(t, e, "3\r\ndef\r\n0\r\n\r\n")
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusInternalServerError || len(j.asked()) != 1 {
		t.Errorf("%v %v %v", resp, err, j.asked())
	}
}

// read wants exactly these bytes next.
func read(t *testing.T, c net.Conn, want string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, len(want))
	n, err := io.ReadFull(c, b)
	if err != nil || string(b) != want {
		t.Fatalf("%.100q, %v, want %.100q", b[:n], err, want)
	}
}
