package supervisor_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/supervisor"
)

// TestPortsBeforeAnswer: who has been told that a container runs finds its ports open, where
// the engine has chosen them too, and though the engine's events are lost.
func TestPortsBeforeAnswer(t *testing.T) {
	f := start(t)
	f.until(t, supervisor.StateReady, 0)
	f.engine.Mute()
	given := freePorts(t, 1)[0]
	for name, config := range map[string]string{
		"given":  fmt.Sprintf(`{"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"%d"}]}}}`, given),
		"any":    `{"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":""}]}}}`,
		"range":  fmt.Sprintf(`{"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"%d-%d"}]}}}`, given+1, given+20),
		"all":    `{"ExposedPorts":{"80/tcp":{}},"HostConfig":{"PublishAllPorts":true}}`,
		"nobody": `{"ExposedPorts":{"80/tcp":{}}}`,
	} {
		if code, text := f.ask(t, http.MethodPost, "/containers/create?name="+name, config); code != http.StatusCreated {
			t.Fatal(code, text)
		}
		want := 1
		if name == "nobody" {
			want = 0
		}
		for _, verb := range []string{"start", "restart", "start"} { // the last has nothing to do
			if code, text := f.ask(t, http.MethodPost, "/containers/"+name+"/"+verb, ""); code >= http.StatusBadRequest {
				t.Fatal(code, text)
			}
			r, err := f.client.Ports(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			port := 0
			for _, c := range f.engine.State().Containers {
				if p := c.Published(); c.Name == name && len(p) > 0 {
					port = p[0].PublicPort
				}
			}
			n := 0
			for _, p := range r.Ports {
				if p.Container == name && len(p.Addresses) > 0 && p.Addresses[0].State == "open" {
					n++
					if int(p.HostPort) != port {
						t.Errorf("%s after %s: port %d is open, the engine has chosen %d", name, verb, p.HostPort, port)
					}
				}
			}
			if n != want {
				t.Errorf("%s after %s: %d open: %+v", name, verb, n, r.Ports)
			}
		}
	}
}

// TestPortsBeforeAnswerGone: who has been told that a container does not run finds its port
// closed.
func TestPortsBeforeAnswerGone(t *testing.T) {
	f := start(t)
	f.until(t, supervisor.StateReady, 0)
	f.engine.Mute()
	port := freePorts(t, 1)[0]
	for _, call := range []struct{ method, path string }{
		{http.MethodPost, "/stop"},
		{http.MethodPost, "/kill"},
		{http.MethodDelete, "?force=1"},
	} {
		if code, text := f.create(t, "web"+call.path[1:5], port); code != http.StatusCreated {
			t.Fatal(code, text)
		}
		at := "/containers/web" + call.path[1:5]
		for _, step := range []struct {
			method, path string
			open         int
		}{{http.MethodPost, "/start", 1}, {call.method, call.path, 0}} {
			if code, text := f.ask(t, step.method, at+step.path, ""); code != http.StatusNoContent {
				t.Fatal(code, text)
			}
			r, err := f.client.Ports(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if r.Open() != step.open {
				t.Errorf("after %s of %s, %d ports are open: %+v", step.path, at, r.Open(), r.Ports)
			}
		}
	}
}

// TestPortsBeforeAnswerLost: an engine that does not say what is published delays no answer for
// long, and one that breaks off does not either.
func TestPortsBeforeAnswerLost(t *testing.T) {
	f := start(t)
	f.until(t, supervisor.StateReady, 0)
	if code, text := f.create(t, "web", freePorts(t, 1)[0]); code != http.StatusCreated {
		t.Fatal(code, text)
	}
	release := f.engine.HoldLists()
	begin := time.Now()
	if code, text := f.ask(t, http.MethodPost, "/containers/web/start", ""); code != http.StatusNoContent {
		t.Error(code, text)
	}
	if d := time.Since(begin); d < time.Second || d > 20*time.Second {
		t.Errorf("it took %s", d)
	}
	release()
	f.untilPorts(t, 1)
	// Nor is one that answers with nothing but errors waited for.
	f.engine.FailLists(true)
	begin = time.Now()
	for range 5 {
		if code, text := f.ask(t, http.MethodPost, "/containers/web/restart", ""); code != http.StatusNoContent {
			t.Error(code, text)
		}
	}
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("five restarts took %s", d) // 25 s if each is held
	}
	f.engine.FailLists(false)
	f.untilPorts(t, 1)
	f.engine.HoldLists()
	begin = time.Now()
	go f.server.CloseConns()
	f.ask(t, http.MethodPost, "/containers/web/restart", "") // may be cut off, or wait for the next link
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("it took %s", d)
	}
}
