package supervisor_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"github.com/devvm/devvm/pkg/condition"
	"github.com/devvm/devvm/pkg/guest/guesttest"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/supervisor"
)

// guarded starts a supervisor whose VM has the first of two directories of the host.
func guarded(t *testing.T) (f *fixture, shared, other string) {
	t.Helper()
	shared, other = t.TempDir(), t.TempDir()
	f = start(t, func(g *guesttest.Options, o *supervisor.Options) {
		dir, err := os.MkdirTemp("/tmp", "dv") //nolint:usetesting // sockets need a short path
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		o.Share = supervisor.Share{
			Socket:  filepath.Join(dir, "share"),
			Exports: []share.Export{{Source: shared, Target: shared, Writable: true}},
		}
		o.Guard = supervisor.Guard{Dir: shared}
		// The fake VM's files are this host's; this one is not in it.
		g.Rewrite = func(line string) string { return strings.ReplaceAll(line, other, other+".vm") }
		g.Intercept = func(line string) (int, bool) {
			return 0, strings.Contains(line, "/var/lib/devvm/share") || strings.Contains(line, "utimensat")
		}
	})
	f.until(t, supervisor.StateReady, 0)
	return f, shared, other
}

// bind makes a container with a HostConfig.
func (f *fixture) bind(t *testing.T, name string, host map[string]any) (int, string) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"HostConfig": host})
	if err != nil {
		t.Fatal(err)
	}
	code, text := f.ask(t, http.MethodPost, "/containers/create?name="+name, string(body))
	var answer struct{ Message string }
	if code != http.StatusCreated && json.Unmarshal([]byte(text), &answer) == nil {
		text = answer.Message
	}
	return code, text
}

func TestGuard(t *testing.T) {
	f, shared, other := guarded(t)
	for _, host := range []map[string]any{
		{"Binds": []string{shared + ":/a", shared + "/new:/b", "named:/c", "/etc:/d:ro", "/var/run/docker.sock:/var/run/docker.sock"}},
		{"Mounts": []map[string]any{{"Type": "bind", "Source": shared, "Target": "/a"}, {"Type": "volume", "Source": "v", "Target": "/b"}, {"Type": "tmpfs", "Target": "/c"}}},
	} {
		if code, text := f.bind(t, "good", host); code != http.StatusCreated {
			t.Errorf("%v: %d %s", host, code, text)
		}
	}
	made := len(f.engine.State().Containers)

	lines, end := "\n\n[[mounts]]\nsource = \""+other+"\"\n", "\nThen run 'devvm down && devvm up'"
	driver := map[string]any{"Name": "local", "Options": map[string]string{"type": "none", "o": "bind", "device": other}}
	for _, host := range []map[string]any{
		{"Binds": []string{other + ":/a"}},
		{"Binds": []string{shared + ":/s", other + "/:/a:z"}},
		{"Mounts": []map[string]any{{"Type": "bind", "Source": other, "Target": "/a"}}},
		{"Mounts": []map[string]any{{"Type": "bind", "Source": other, "Target": "/a", "BindOptions": map[string]any{"CreateMountpoint": true}}}},
		{"Mounts": []map[string]any{{"Type": "volume", "Target": "/a", "VolumeOptions": map[string]any{"DriverConfig": driver}}}},
	} {
		code, text := f.bind(t, "bad", host)
		if code != http.StatusBadRequest || !strings.HasPrefix(text, `invalid mount config for type "bind": bind source path does not exist: `+other+"\n") ||
			!strings.HasSuffix(text, lines+"writable = true\n"+end) || !strings.Contains(text, filepath.Join(shared, "devvm.toml")) {
			t.Errorf("%v: %d %s", host, code, text)
		}
	}
	code, text := f.ask(t, http.MethodPost, "/volumes/create", `{"Name":"v","Driver":"local","DriverOpts":{"type":"none","o":"bind","device":"`+other+`"}}`)
	if code != http.StatusBadRequest || !strings.Contains(text, "bind source path does not exist") {
		t.Error(code, text)
	}
	// What is in the VM only as Docker has left it.
	if err := os.Mkdir(other+".vm", 0o755); err != nil {
		t.Fatal(err)
	}
	if code, text := f.bind(t, "bad", map[string]any{"Binds": []string{other + ":/a:ro"}}); code != http.StatusBadRequest || !strings.HasSuffix(text, lines+end) {
		t.Errorf("%d %s", code, text)
	}
	// What somebody has made there.
	if err := os.WriteFile(filepath.Join(other+".vm", "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, text := f.bind(t, "full", map[string]any{"Binds": []string{other + ":/a"}}); code != http.StatusCreated {
		t.Errorf("%d %s", code, text)
	}
	if n := len(f.engine.State().Containers); n != made+1 {
		t.Errorf("%d containers", n)
	}
	// A link that leads out of what the VM has.
	outer := filepath.Join(other, "outer")
	if err := errors.Join(os.Mkdir(outer, 0o755), os.Symlink(outer, filepath.Join(shared, "link")), os.Symlink("/etc", filepath.Join(shared, "etc"))); err != nil {
		t.Fatal(err)
	}
	if code, text := f.bind(t, "own", map[string]any{"Binds": []string{shared + "/etc:/a"}}); code != http.StatusCreated {
		t.Errorf("%d %s", code, text)
	}

	// At the start, too.
	if code, text := f.ask(t, http.MethodPost, "/containers/full/start", ""); code != http.StatusNoContent {
		t.Fatal(code, text)
	}
	if err := os.RemoveAll(other + ".vm"); err != nil {
		t.Fatal(err)
	}
	if code, text := f.ask(t, http.MethodPost, "/containers/full/restart", ""); code != http.StatusBadRequest {
		t.Error(code, text)
	}
}

// TestDockerSocket: whoever binds docker.sock, by the path that DOCKER_HOST names or by a link to
// it, has the socket of the engine. What else stands in the request stays.
func TestDockerSocket(t *testing.T) {
	for name, off := range map[string]bool{"guarded": false, "bind_guard = false": true} {
		t.Run(name, func(t *testing.T) {
			shared, outside := t.TempDir(), t.TempDir()
			f := start(t, func(_ *guesttest.Options, o *supervisor.Options) {
				o.Guard = supervisor.Guard{Dir: shared, Off: func() (bool, error) { return off, nil }}
			})
			f.until(t, supervisor.StateReady, 0)
			link, dir := filepath.Join(outside, "link"), filepath.Join(outside, "dir")
			if err := errors.Join(os.Symlink(f.docker, link), os.Symlink(filepath.Dir(f.docker), dir)); err != nil {
				t.Fatal(err)
			}
			const want = "/run/docker.sock"
			volume := func(device string) map[string]any {
				return map[string]any{"Name": "local", "Options": map[string]string{"type": "none", "o": "bind", "device": device}}
			}
			for i, path := range []string{f.docker, link, dir + "/docker.sock", filepath.Dir(f.docker) + "//./docker.sock"} {
				name := fmt.Sprint("c", i)
				if code, text := f.bind(t, name, map[string]any{
					"Binds": []string{"named:/n", path + ":/var/run/docker.sock:ro"},
					"Mounts": []map[string]any{
						{"Type": "bind", "Source": path, "Target": "/a", "BindOptions": map[string]any{"CreateMountpoint": true}},
						{"Type": "volume", "Target": "/b", "VolumeOptions": map[string]any{"DriverConfig": volume(path)}},
					},
				}); code != http.StatusCreated {
					t.Fatalf("%s: %d %s", path, code, text)
				}
				c := f.engine.State().Containers[i]
				if diff := cmp.Diff([]string{"named:/n", want + ":/var/run/docker.sock:ro"}, c.Binds); diff != "" {
					t.Errorf("%s: %s", path, diff)
				}
				mounts := `[{"BindOptions":{"CreateMountpoint":true},"Source":"/run/docker.sock","Target":"/a","Type":"bind"},` +
					`{"Target":"/b","Type":"volume","VolumeOptions":{"DriverConfig":{"Name":"local","Options":{"device":"/run/docker.sock","o":"bind","type":"none"}}}}]`
				if string(c.Mounts) != mounts {
					t.Errorf("%s: %s", path, c.Mounts)
				}
				if code, text := f.ask(t, http.MethodPost, "/volumes/create", `{"Name":"v","DriverOpts":{"type":"none","o":"bind","device":"`+path+`"}}`); code != http.StatusCreated {
					t.Fatalf("%s: %d %s", path, code, text)
				}
				if v := f.engine.State().Volumes[i]; v.Options["device"] != want {
					t.Errorf("%s: %v", path, v)
				}
				// At the start it is the VM's, which the guard lets pass.
				if code, text := f.ask(t, http.MethodPost, "/containers/"+name+"/start", ""); code != http.StatusNoContent {
					t.Errorf("%s: %d %s", path, code, text)
				}
			}
			// What is the VM's own already, and what only looks like the socket, is left alone.
			for _, spec := range []string{"/var/run/docker.sock:/s", want + ":/s", "docker.sock:/s"} {
				if code, text := f.bind(t, "own", map[string]any{"Binds": []string{spec}}); code != http.StatusCreated {
					t.Fatal(code, text)
				}
				all := f.engine.State().Containers
				if got := all[len(all)-1].Binds[0]; got != spec {
					t.Errorf("%s became %s", spec, got)
				}
			}
		})
	}
}

// TestHoldsSockets: a directory of sockets, with what their servers put beside them, is one, and
// nothing else.
func TestHoldsSockets(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "dv") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	check := func(want bool, when string) {
		t.Helper()
		if got := supervisor.HoldsSockets(dir); got != want {
			t.Errorf("%s: %v", when, got)
		}
	}
	file := func(name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check(false, "empty")
	file(".s.PGSQL.5432.lock")
	check(false, "a lock")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(dir, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	check(true, "a socket and its lock")
	file("server.pid")
	check(true, "a socket, its lock and a process number")
	file("data")
	check(false, "a file, too")
	if err := errors.Join(os.Remove(filepath.Join(dir, "data")), os.Mkdir(filepath.Join(dir, "old.pid"), 0o700)); err != nil {
		t.Fatal(err)
	}
	check(false, "a directory, too")
	if err := os.Remove(filepath.Join(dir, "old.pid")); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		file(fmt.Sprint(i, ".pid"))
	}
	check(false, "more than is read")
	if supervisor.HoldsSockets(filepath.Join(dir, "server.pid")) || supervisor.HoldsSockets("/nowhere") {
		t.Error("no directory")
	}
}

// TestGuardSDK makes a container as programs do, by Docker's own client library.
func TestGuardSDK(t *testing.T) {
	f, shared, other := guarded(t)
	c, err := client.New(client.WithHost("unix://"+f.docker), client.WithDialContext(func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", f.docker)
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for source, refused := range map[string]bool{shared: false, other: true} {
		for _, host := range []*container.HostConfig{
			{Binds: []string{source + ":/a"}},
			{Mounts: []mount.Mount{{Type: mount.TypeBind, Source: source, Target: "/a", BindOptions: &mount.BindOptions{CreateMountpoint: true}}}},
		} {
			_, err := c.ContainerCreate(t.Context(), client.ContainerCreateOptions{Image: "scratch", Config: &container.Config{}, HostConfig: host})
			if (err != nil) != refused || refused && !strings.Contains(err.Error(), "[[mounts]]\nsource = ") {
				t.Errorf("%s: %v", source, err)
			}
		}
	}
}

// With bind_guard = false nothing is looked at, and it is read again at each up.
func TestGuardOff(t *testing.T) {
	off := true
	f := start(t, func(_ *guesttest.Options, o *supervisor.Options) {
		o.Guard = supervisor.Guard{Dir: "/nowhere", Off: func() (bool, error) { return off, nil }}
	})
	f.until(t, supervisor.StateReady, 0)
	host := map[string]any{"Binds": []string{"/nowhere/at/all:/a"}}
	if code, text := f.bind(t, "any", host); code != http.StatusCreated {
		t.Error(code, text)
	}
	off = false
	if err := f.client.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, text := f.bind(t, "some", host); code != http.StatusBadRequest {
		t.Error(code, text)
	}
}

// The file of a single-file bind is held before the engine hears of the start: the host may
// replace it as soon as the client has its answer.
func TestStartHoldsFiles(t *testing.T) {
	f, shared, _ := guarded(t)
	file := filepath.Join(shared, "app.conf")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	held := func() bool {
		fds, _ := filepath.Glob("/proc/self/fd/*")
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); to == file {
				return true
			}
		}
		return false
	}
	atStart := make(chan bool, 1)
	f.engine.OnPublish(func(_ guesttest.Container, running bool) {
		if running {
			atStart <- held()
		}
	})
	if code, text := f.bind(t, "one", map[string]any{"Binds": []string{file + ":/app.conf:ro"}}); code != http.StatusCreated {
		t.Fatal(code, text)
	}
	if held() {
		t.Error("held already by a container that does not run")
	}
	if code, text := f.ask(t, http.MethodPost, "/containers/one/start", ""); code != http.StatusNoContent {
		t.Fatal(code, text)
	}
	if !<-atStart {
		t.Error("not held when the container started")
	}
}

// A terminal's size that comes before its container runs waits for that.
func TestResizeBeforeStart(t *testing.T) {
	f, _, _ := guarded(t)
	if code, text := f.bind(t, "one", map[string]any{}); code != http.StatusCreated {
		t.Fatal(code, text)
	}
	before := f.engine.Asked()
	sized := make(chan int, 1)
	go func() {
		code, _ := f.ask(t, http.MethodPost, "/containers/one/resize?h=30&w=100", "")
		sized <- code
	}()
	condition.Wait(t, "the engine is asked whether the container runs", func() bool { return f.engine.Asked() > before })
	if code, text := f.ask(t, http.MethodPost, "/containers/one/start", ""); code != http.StatusNoContent {
		t.Fatal(code, text)
	}
	if code := <-sized; code != http.StatusOK {
		t.Error(code)
	}
	// One that has ended gets the engine's own answer, and so does one that is not there.
	if code, text := f.ask(t, http.MethodPost, "/containers/one/stop", ""); code != http.StatusNoContent {
		t.Fatal(code, text)
	}
	for name, want := range map[string]int{"one": http.StatusConflict, "two": http.StatusNotFound} {
		if code, text := f.ask(t, http.MethodPost, "/containers/"+name+"/resize?h=30&w=100", ""); code != want {
			t.Error(name, code, text)
		}
	}
}
