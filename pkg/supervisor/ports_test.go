package supervisor_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/supervisor"
)

// ask asks the engine through docker.sock.
func (f *fixture) ask(t *testing.T, method, path, body string) (int, string) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", f.docker)
	}}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://docker/v1.45"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil { // the link was cut under it
		return 0, err.Error()
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(answer)
}

// create makes a container that publishes a port.
func (f *fixture) create(t *testing.T, name string, port uint16) (int, string) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"HostConfig": map[string]any{
		"PortBindings": map[string]any{"80/tcp": []map[string]string{{"HostPort": fmt.Sprint(port)}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return f.ask(t, http.MethodPost, "/containers/create?name="+name, string(body))
}

// freePorts are ports that nobody listens on now, below those that the kernel gives to
// others' connections.
func freePorts(t *testing.T, n int) []uint16 {
	t.Helper()
	var list []uint16
	for port := uint16(14000 + os.Getpid()*101%7000); len(list) < n; port++ {
		if !listening(port) {
			list = append(list, port)
		}
	}
	return list
}

// listening tells whether a port stays taken. A child that the guest has forked and that has not
// run its program yet holds what was closed here, for a moment.
func listening(port uint16) bool {
	for range 20 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = l.Close()
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return true
}

// take listens on a free port, which what listening asked with may still hold.
func take(t *testing.T, port uint16) net.Listener {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return l
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// untilPorts waits until the published ports are as many.
func (f *fixture) untilPorts(t *testing.T, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var last ports.Report
	err := f.client.WatchPorts(ctx, func(r ports.Report) bool { last = r; return len(r.Ports) != want || r.Open() != want })
	if err != nil {
		t.Fatalf("wait for %d ports: %v: %+v", want, err, last)
	}
}

func TestPublishedPorts(t *testing.T) {
	f := start(t)
	f.until(t, supervisor.StateReady, 0)
	free := freePorts(t, 2)
	port := free[0]
	if code, text := f.create(t, "web", port); code != http.StatusCreated {
		t.Fatal(code, text)
	}
	if !listening(port) {
		t.Error("the port of a container that was made is not held")
	}
	if code, text := f.ask(t, http.MethodPost, "/containers/web/start", ""); code != http.StatusNoContent {
		t.Fatal(code, text)
	}
	f.untilPorts(t, 1)
	if s, err := f.client.Status(t.Context()); err != nil || s.Ports != 1 {
		t.Errorf("%+v, %v", s, err)
	}

	// A port that somebody has is refused, and the engine never hears of the container.
	l := take(t, free[1])
	code, text := f.create(t, "db", free[1])
	want := fmt.Sprintf(`{"message":"driver failed programming external connectivity on endpoint db: Bind for 127.0.0.1:%d failed: port is already allocated: port %d is taken by process supervisor.test (pid `, free[1], free[1])
	if code != http.StatusInternalServerError || !strings.HasPrefix(text, want) || len(f.engine.State().Containers) != 1 {
		t.Errorf("%d %s, want %s", code, text, want)
	}
	_ = l.Close()
	if code, text := f.create(t, "db", free[1]); code != http.StatusCreated {
		t.Fatal(code, text)
	}

	// An exposure, with what is wrong about others.
	e := ports.Exposure{Port: port, To: netip.MustParsePrefix("198.51.100.0/24"), Until: time.Now().Add(time.Hour)}
	if err := f.client.Expose(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	if s, err := f.client.Status(t.Context()); err != nil || len(s.Exposures) != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	e.Until = time.Now().Add(-time.Hour)
	if err := f.client.Expose(t.Context(), e); err == nil || err.Error() != "the time is over already" {
		t.Error(err)
	}
	if n, err := f.client.Conceal(t.Context(), 0); n != 1 || err != nil {
		t.Error(n, err)
	}

	// Suspended, all is closed and nothing is told; resumed, all is as before.
	if err := f.client.Suspend(t.Context()); err != nil {
		t.Fatal(err)
	}
	if listening(port) {
		t.Error("a suspended VM's port is open")
	}
	if _, err := f.client.Ports(t.Context()); err == nil {
		t.Error("ports of a suspended VM")
	}
	if err := f.client.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.until(t, supervisor.StateReady, 1)
	f.untilPorts(t, 1)

	// The VM goes.
	f.gone.Store(true)
	f.server.CloseConns()
	f.until(t, supervisor.StateStopped, 1)
	if listening(port) {
		t.Error("a port of a VM that is gone is open")
	}
}

// TestPortRange: the engine chooses from a range only what nobody else has on this host.
func TestPortRange(t *testing.T) {
	f := start(t)
	f.until(t, supervisor.StateReady, 0)
	first := freePorts(t, 1)[0]
	for listening(first) || listening(first+1) || listening(first+2) {
		first++
	}
	bindings := func(name string) string {
		for _, c := range f.engine.State().Containers {
			if c.Name == name {
				return fmt.Sprint(c.Bindings)
			}
		}
		return "none"
	}
	create := func(name string) (int, string) {
		return f.ask(t, http.MethodPost, "/containers/create?name="+name, fmt.Sprintf(
			`{"New":1e999,"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"%d-%d","New":[]}]}}}`, first, first+2))
	}
	occupy := func(port uint16) net.Listener {
		t.Helper()
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		return l
	}

	if code, text := create("whole"); code != http.StatusCreated {
		t.Fatal(code, text)
	}
	if got, want := bindings("whole"), fmt.Sprintf("map[80/tcp:[{ %d-%d}]]", first, first+2); got != want {
		t.Errorf("nothing is taken: the engine got %s, want %s", got, want)
	}

	occupy(first)
	if code, text := create("part"); code != http.StatusCreated {
		t.Fatal(code, text)
	}
	if got, want := bindings("part"), fmt.Sprintf("map[80/tcp:[{ %d-%d}]]", first+1, first+2); got != want {
		t.Errorf("the first is taken: the engine got %s, want %s", got, want)
	}
	if code, text := f.ask(t, http.MethodPost, "/containers/part/start", ""); code != http.StatusNoContent {
		t.Fatal(code, text)
	}
	f.untilPorts(t, 1)
	if r, err := f.client.Ports(t.Context()); err != nil || r.Ports[0].HostPort != first+1 {
		t.Errorf("%+v, %v", r, err)
	}
	// One that was made before may be given any of them, and is not started.
	code, text := f.ask(t, http.MethodPost, "/containers/whole/start", "")
	want := fmt.Sprintf("the engine may choose any of %d-%d, and port %d is taken by process supervisor.test (pid ", first, first+2, first)
	if code != http.StatusInternalServerError || !strings.Contains(text, want) || !strings.Contains(text, "make the container again") {
		t.Errorf("%d %s, want %s", code, text, want)
	}

	// One is left, and it is reserved.
	l := occupy(first + 2)
	if code, text := f.ask(t, http.MethodPost, "/containers/part/stop", ""); code != http.StatusNoContent {
		t.Fatal(code, text)
	}
	f.untilPorts(t, 0)
	if code, text := create("one"); code != http.StatusCreated {
		t.Fatal(code, text)
	}
	if got, want := bindings("one"), fmt.Sprintf("map[80/tcp:[{ %d}]]", first+1); got != want {
		t.Errorf("two are taken: the engine got %s, want %s", got, want)
	}
	if !listening(first + 1) {
		t.Error("the port that is left is not held")
	}
	_ = l.Close()

	// None is.
	occupy(first + 2)
	if code, text := f.ask(t, http.MethodPost, "/containers/one/start", ""); code != http.StatusNoContent {
		t.Fatal(code, text)
	}
	f.untilPorts(t, 1)
	if code, text := f.ask(t, http.MethodPost, "/containers/one/stop", ""); code != http.StatusNoContent {
		t.Fatal(code, text)
	}
	f.untilPorts(t, 0)
	for deadline := time.Now().Add(20 * time.Second); listening(first + 1); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the port of a container that has ended stays open")
		}
	}
	occupy(first + 1)
	code, text = create("none")
	want = fmt.Sprintf("none of %d-%d is free: port %d is taken by process supervisor.test (pid ", first, first+2, first)
	if code != http.StatusInternalServerError || !strings.Contains(text, want) || bindings("none") != "none" {
		t.Errorf("%d %s, want %s", code, text, want)
	}
}

// TestPortChosen: engines choose alike, and each project's gets a range of its own to choose
// from, of which nobody has a part on this host.
func TestPortChosen(t *testing.T) {
	f := start(t)
	f.until(t, supervisor.StateReady, 0)
	create := func(name, binding string) string {
		t.Helper()
		if code, text := f.ask(t, http.MethodPost, "/containers/create?name="+name, `{"HostConfig":{"PortBindings":{"80/tcp":[`+binding+`]}}}`); code != http.StatusCreated {
			t.Fatal(code, text)
		}
		for _, c := range f.engine.State().Containers {
			if c.Name == name {
				return c.Bindings["80/tcp"][0].HostPort
			}
		}
		t.Fatal("no container", name)
		return ""
	}
	var first, last uint16
	if _, err := fmt.Sscanf(create("empty", `{"HostIp":"","HostPort":""}`), "%d-%d", &first, &last); err != nil || first < 32768 || last <= first {
		t.Fatal(first, last, err)
	}
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", first))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, binding := range map[string]string{"null": `{"HostPort":""}`, "zero": `{"hostport":"0"}`} {
		var from uint16
		if _, err := fmt.Sscanf(create(name, binding), "%d-", &from); err != nil || from <= first {
			t.Errorf("%s: %d, %v; %d is taken", name, from, err, first)
		}
	}
	if got := create("absent", `{}`); got != "" {
		t.Errorf("a field was added: %q", got)
	}
	// What somebody has of it since is no reason not to start.
	if code, text := f.ask(t, http.MethodPost, "/containers/empty/start", ""); code != http.StatusNoContent {
		t.Fatal(code, text)
	}
	f.untilPorts(t, 1)
	if r, err := f.client.Ports(t.Context()); err != nil || r.Ports[0].HostPort != first {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestPortRangesMany: a VM, or a client, that names a thousand long ranges has only some ports of
// this host tried for them. What is not looked at is as the client asked.
func TestPortRangesMany(t *testing.T) {
	f := start(t)
	f.until(t, supervisor.StateReady, 0)
	first := freePorts(t, 1)[0]
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", first))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	last := fmt.Sprintf(`"9/tcp":[{"HostPort":"%d-%d"}]`, first, first)
	for name, many := range map[string]int{"few": 1, "many": 200} {
		long := strings.Repeat(`,{"HostPort":"20000-60000"}`, many)[1:]
		code, text := f.ask(t, http.MethodPost, "/containers/create?name="+name, `{"HostConfig":{"PortBindings":{"1/udp":[`+long+`],`+last+`}}}`)
		if want := map[string]int{"few": http.StatusInternalServerError, "many": http.StatusCreated}[name]; code != want {
			t.Errorf("%s: %d %.300s", name, code, text)
		}
	}
}

// Containers start and end at random, by way of the proxy and behind its back, while the
// link is cut now and then: in the end the host's sockets are those of what runs.
func TestPortsAtRandom(t *testing.T) {
	f := start(t)
	f.until(t, supervisor.StateReady, 0)
	n := 200
	if testing.Short() {
		n = 60
	}
	free := freePorts(t, n)
	for i, port := range free {
		if code, text := f.create(t, fmt.Sprint("c", i), port); code != http.StatusCreated {
			t.Fatal(code, text)
		}
	}
	running := map[int]bool{}
	behind := func(path string) { // the engine itself, as `devvm docker` would
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return f.engine.Dial(ctx)
		}}}
		resp, err := c.Post("http://docker"+path, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	random := rand.New(rand.NewPCG(uint64(n), 1))
	for step := range 3 * n {
		i := random.IntN(n)
		verb := map[bool]string{true: "stop", false: "start"}[running[i]]
		path := fmt.Sprintf("/containers/c%d/%s", i, verb)
		if random.IntN(2) == 0 {
			behind(path)
			running[i] = !running[i]
		} else if code, _ := f.ask(t, http.MethodPost, path, ""); code == http.StatusNoContent {
			running[i] = !running[i]
		}
		if step%50 == 49 {
			f.server.CloseConns()
		}
	}
	// The number alone can be right while two containers are yet to be heard of.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		r, err := f.client.Ports(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		open := map[int]bool{}
		for _, p := range r.Ports {
			var i int
			if _, err := fmt.Sscanf(p.Container, "c%d", &i); err != nil || p.HostPort != free[i] {
				t.Fatalf("%+v", p)
			}
			open[i] = true
		}
		for i, c := range f.engine.State().Containers {
			running[i] = c.Running // what a cut connection made of a request is the engine's to say
		}
		maps.DeleteFunc(running, func(_ int, on bool) bool { return !on })
		if maps.Equal(open, running) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("open are %v, running are %v", open, running)
		}
	}
	for i := range n {
		behind(fmt.Sprintf("/containers/c%d/stop", i))
	}
	f.untilPorts(t, 0)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left := 0
		for _, port := range free {
			if listening(port) {
				left++
			}
		}
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d listeners are left", left)
		}
	}
}
