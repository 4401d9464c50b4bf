package supervisor_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/procfs"

	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/guest/guesttest"
	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/supervisor"
)

// hostileDir has this test binary be a supervisor, of the guest in that directory.
const hostileDir = "SUPERVISOR_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(hostileDir); dir != "" {
		if err := superviseHostile(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// maxResident is the promise about a supervisor's memory, in bytes.
const maxResident = 64 << 20

// superviseHostile is a supervisor in a process of its own, until its input ends.
func superviseHostile(dir string) error {
	supervisor.LimitMemory()
	keys, err := guest.LoadKeys(filepath.Join(dir, "keys"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	docker := filepath.Join(dir, "docker.sock")
	return supervisor.Run(ctx, supervisor.Options{
		Name: "hostile", Version: "test", Log: slog.New(slog.NewJSONHandler(io.Discard, nil)),
		Lock: filepath.Join(dir, "lock"), Control: filepath.Join(dir, "control.sock"), Docker: docker,
		Gone: func(error) bool { return false },
		Ping: func(ctx context.Context) error { return engine.Ping(ctx, docker) },
		Target: guest.Target{User: "root", Keys: keys, Dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "ssh"))
		}},
		Ports: supervisor.PortOptions{Options: ports.Options{
			VM:  ports.VM{Addr: netip.MustParseAddr("192.0.2.2"), Loopback: netip.MustParseAddr("192.0.2.3")},
			Own: netip.MustParseAddr("127.98.97.95"), Exposures: filepath.Join(dir, "exposures.json"),
			Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errGone },
		}},
		Share: supervisor.Share{
			Socket: filepath.Join(dir, "share.sock"), Address: netip.MustParseAddr("192.0.2.1"),
			Exports: []share.Export{{Source: filepath.Join(dir, "project"), Target: "/project", Writable: true}},
			Watches: filepath.Join(dir, "watches"),
		},
		Ready: func() error { fmt.Println("ready"); return nil },
	})
}

// TestHostileGuest has a guest do to its supervisor, a process of its own, all that comes
// to mind. Its memory stays small, it has few of the host's ports, and another project's
// docker.sock answers all the time. DEVVM_TEST_TIME says for how long.
func TestHostileGuest(t *testing.T) {
	length := 20 * time.Second
	if testing.Short() || raced {
		length = 5 * time.Second
	}
	if s := os.Getenv("DEVVM_TEST_TIME"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	other := start(t)
	other.until(t, supervisor.StateReady, 0)

	dir, err := os.MkdirTemp("/tmp", "dv") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	h := newHostile(ctx, t, dir)
	defer h.run.Wait()
	defer cancel()

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), hostileDir+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	if _, err := fmt.Fscanln(out, new(string)); err != nil {
		t.Fatal(err)
	}
	client := supervisor.NewClient(filepath.Join(dir, "control.sock"))
	ready, done := context.WithTimeout(ctx, 30*time.Second)
	defer done()
	if err := client.Watch(ready, func(s supervisor.Status) bool { return s.State != supervisor.StateReady }); err != nil {
		t.Fatalf("the hostile guest's supervisor does not get ready, which is no test of it: %v", err)
	}
	idle := memoryOf(t, cmd.Process.Pid, "VmRSS")
	h.attack(ctx, dir)

	most, open, slowest, asked := int64(0), 0, time.Duration(0), 0
	for end := time.Now().Add(length); time.Now().Before(end); {
		begin := time.Now()
		asking, answered := context.WithTimeout(ctx, 10*time.Second)
		if err := engine.Ping(asking, other.docker); err != nil {
			t.Errorf("another project's docker.sock: %v", err)
		}
		answered()
		slowest = max(slowest, time.Since(begin))
		asked++
		most = max(most, memoryOf(t, cmd.Process.Pid, "VmRSS"))
		if asked%20 == 0 {
			open = max(open, listeners(t, cmd.Process.Pid))
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	peak := memoryOf(t, cmd.Process.Pid, "VmHWM")
	t.Logf("%s: %d KiB idle, at most %d KiB resident (peak %d KiB, of which files %d KiB); at most %d ports open; another docker.sock answered %d times, within %s; %s",
		length, idle>>10, most>>10, peak>>10, memoryOf(t, cmd.Process.Pid, "RssFile")>>10, open, asked, slowest, h.summary())
	if !raced && peak > maxResident {
		t.Errorf("the supervisor had %d KiB, which is more than %d", peak>>10, maxResident>>10)
	}
	if open > ports.DefaultMost {
		t.Errorf("%d ports were open", open)
	}
	if open == 0 && !raced {
		t.Error("no port was ever open: this test shows nothing")
	}
	if h.lists.Load() == 0 || h.events.Load() == 0 || h.calls.Load() == 0 || h.commands.Load() == 0 {
		t.Errorf("not all attacks took place: %s", h.summary())
	}
}

// memoryOf is a line of a process's status, in bytes.
func memoryOf(t *testing.T, pid int, name string) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("the supervisor has ended: it has no %s", name)
	return 0
}

// listeners counts the TCP ports of 127.0.0.1 on which a process listens.
func listeners(t *testing.T, pid int) int {
	t.Helper()
	process, err := procfs.NewProc(pid)
	if err != nil {
		t.Fatal(err)
	}
	opens, err := process.FileDescriptorTargets()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := fs.NetTCP() //nolint:staticcheck // what comes in its place needs netlink
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range sockets {
		if s.St == tcpListen && s.LocalAddr.String() == "127.0.0.1" && slices.Contains(opens, fmt.Sprintf("socket:[%d]", s.Inode)) {
			n++
		}
	}
	return n
}

// tcpListen is TCP_LISTEN of Linux's net/tcp_states.h.
const tcpListen = 10

// hostile is a guest whose root means ill.
type hostile struct {
	run      sync.WaitGroup
	attacks  atomic.Bool
	lists    atomic.Int64
	events   atomic.Int64
	calls    atomic.Int64
	commands atomic.Int64
}

func (h *hostile) summary() string {
	return fmt.Sprintf("%d lists, %d events, %d calls for files, %d commands",
		h.lists.Load(), h.events.Load(), h.calls.Load(), h.commands.Load())
}

// newHostile serves a guest's SSH in a directory, with an engine of its own behind it.
func newHostile(ctx context.Context, t *testing.T, dir string) *hostile {
	t.Helper()
	h := &hostile{}
	keys, err := guest.GenerateKeys(filepath.Join(dir, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "project"), 0o755); err != nil {
		t.Fatal(err)
	}
	listen := func(name string) net.Listener {
		l, err := new(net.ListenConfig).Listen(ctx, "unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	docker := listen("engine")
	server := &http.Server{Handler: http.HandlerFunc(h.serve), ReadHeaderTimeout: time.Minute}
	h.run.Go(func() { _ = server.Serve(docker) })
	context.AfterFunc(ctx, func() { _ = server.Close() })
	ssh, err := guesttest.NewServer(guesttest.Options{
		HostKey: keys.HostKeyPEM(), AuthorizedKeys: []byte(keys.AuthorizedKey()), Dir: filepath.Join(dir, "guest"),
		Sockets: map[string]func(context.Context) (net.Conn, error){
			guesttest.DockerSocket: func(ctx context.Context) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", docker.Addr().String())
			},
		},
		Intercept: func(line string) (int, bool) {
			return 0, strings.Contains(line, "/var/lib/devvm/share") || strings.Contains(line, "DEVVM_COMMAND=") && strings.Contains(line, "kill -")
		},
		Rewrite: func(string) string { // whatever is asked for: words without end, in one line or many
			n := h.commands.Add(1)
			return []string{
				"exec timeout 3 cat /dev/zero", "exec timeout 3 yes .", "exec timeout 3 yes >&2", "exec sleep 3", "exit 3",
				"exec timeout 3 tr '\\0' x </dev/zero", "exec timeout 3 yes 1.5",
			}[n%7]
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	l := listen("ssh")
	h.run.Go(func() { _ = ssh.Serve(ctx, l) })
	return h
}

// serve is the engine. It is a good one until the attack begins, and to pings.
func (h *hostile) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.45")
	w.Header().Set("Content-Type", "application/json")
	path := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	switch {
	case path == "_ping":
		_, _ = io.WriteString(w, "OK")
	case path == "events":
		h.tell(w, r)
	case path == "json" && strings.HasSuffix(r.URL.Path, "/containers/json"):
		h.list(w, r)
	case path == "json": // one container
		h.inspect(w, r)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// flood writes the beginning of an answer and then its middle, n times or until nobody
// reads it.
func flood(w io.Writer, begin, middle, end string, n int) {
	if _, err := io.WriteString(w, begin); err != nil {
		return
	}
	block := strings.Repeat(middle, max(1, 32<<10/len(middle)))
	for size := 0; size < n*len(middle); size += len(block) {
		if _, err := io.WriteString(w, block); err != nil {
			return
		}
	}
	_, _ = io.WriteString(w, end)
}

const endless = 1 << 30

// list answers what runs.
func (h *hostile) list(w http.ResponseWriter, r *http.Request) {
	if !h.attacks.Load() {
		_, _ = io.WriteString(w, "[]")
		return
	}
	mb := strings.Repeat("x", 1<<20)
	n := h.lists.Add(1)
	attack := 0
	if n%2 == 0 { // what comes between is read, and is followed by the next at once
		attack = int(n/2%11) + 1
	}
	switch attack {
	case 1:
		flood(w, "[{}", ",{}", "]", 2_600_000)
	case 2:
		flood(w, `[{"Id":"`, "x", "", endless)
	case 3:
		flood(w, "", `[`, "", 1_000_000)
	case 4:
		flood(w, `[{"Id":"a","Names":["/`+mb+`"],"Labels":{"a":"`+mb+`"}}`, `,{"Id":"b","Names":["/`+mb+`"]}`, "]", 10_000)
	case 5:
		flood(w, `[{"Id":"a","Mounts":[{}`, ",{}", "]}]", 49_000)
	case 6:
		flood(w, `[{"Id":"a","Names":[""`, `,""`, "]}]", 190_000)
	case 7: // hang in the middle
		flood(w, `[{"Id":"a",`, ` `, "", 1000)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
		case <-time.After(time.Second):
		}
	case 8:
		_, _ = io.WriteString(w, `[{"Id":"a","Labels":{`)
		for i := range 190_000 {
			if _, err := fmt.Fprintf(w, `"%x":"",`, i); err != nil {
				return
			}
		}
		_, _ = io.WriteString(w, `"z":""}}]`)
	case 9:
		flood(w, `[{"Id":"a","Mounts":[{"Type":"bind","Source":"/project/f0"}`, `,{"Type":"bind","Source":"/project/f`+fmt.Sprint(n)+`"}`, "]}]", 10_000)
	case 10:
		for range 2000 {
			w.Header().Add("X-Flood", strings.Repeat("x", 1000))
		}
		_, _ = io.WriteString(w, "[]")
	case 11:
		w.WriteHeader(http.StatusInternalServerError)
		flood(w, `{"message":"`, "x", `"}`, 1_000_000)
	default: // 20,000 published ports, others each time, of 10 containers with long names
		ports := 20_000
		if n%4 == 1 {
			ports = 250
		}
		first := 20_000 + rand.IntN(19_000)
		for i := range 10 {
			_, _ = fmt.Fprintf(w, `%s{"Id":"c%d-%d","Names":["/%s"],"Ports":[`, []string{"[", ","}[min(i, 1)], n, i, strings.Repeat("n", 10_000))
			for k := range ports / 10 {
				if k > 0 {
					_, _ = io.WriteString(w, ",")
				}
				at := 20_000 + (first+i*ports/10+k)%20_000
				_, _ = fmt.Fprintf(w, `{"IP":"0.0.0.0","PrivatePort":%d,"PublicPort":%d,"Type":"%s"}`, at, at, []string{"tcp", "udp"}[k%2])
			}
			_, _ = io.WriteString(w, "]}")
		}
		_, _ = io.WriteString(w, "]")
	}
}

// tell tells what happens.
func (h *hostile) tell(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).Flush()
	for !h.attacks.Load() {
		select {
		case <-r.Context().Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
	begin := time.Now()
	for i := 0; time.Since(begin) < 4*time.Second; i++ {
		h.events.Add(1)
		action := []string{"die", "start", "rename"}[i%3]
		if _, err := fmt.Fprintf(w, `{"Type":"container","Action":"%s","Actor":{"ID":"%x%s","Attributes":{"name":"n"}}}`+"\n", action, i, strings.Repeat("i", i%5000)); err != nil {
			return
		}
	}
	flood(w, `{"Type":"container","Action":"`, "x", "", endless)
}

// inspect answers what one container wants.
func (h *hostile) inspect(w http.ResponseWriter, _ *http.Request) {
	switch h.lists.Load() % 3 {
	case 0:
		flood(w, `{"HostConfig":{"Binds":["/project/a:/b"`, `,"/project/a:/b"`, "]}}", 190_000)
	case 1:
		flood(w, `{"HostConfig":{"PortBindings":{"1/tcp":[{}`, `,{"HostPort":"1-60000"}`, "]}}}", 49_000)
	default:
		flood(w, `{"HostConfig":{"Mounts":[{}`, ",{}", "", endless)
	}
}

// attack begins.
func (h *hostile) attack(ctx context.Context, dir string) {
	h.attacks.Store(true)
	// The host changes files, of which the agent is told.
	h.run.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			name := filepath.Join(dir, "project", fmt.Sprint("f", i%2000))
			_ = os.WriteFile(name, nil, 0o600)
			if i%3 == 0 {
				_ = os.Remove(name)
			}
			<-time.After(time.Millisecond)
		}
	})
	// The user starts containers.
	h.run.Go(func() {
		c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "docker.sock"))
		}}}
		for ctx.Err() == nil {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://docker/v1.45/containers/a/start", nil)
			if err != nil {
				return
			}
			if resp, err := c.Do(req); err == nil {
				_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
				_ = resp.Body.Close()
			}
			<-time.After(100 * time.Millisecond)
		}
	})
	// Somebody looks on.
	client := supervisor.NewClient(filepath.Join(dir, "control.sock"))
	h.run.Go(func() {
		for ctx.Err() == nil {
			_ = client.WatchPorts(ctx, func(ports.Report) bool { return true })
			<-time.After(100 * time.Millisecond)
		}
	})
	h.run.Go(func() {
		for ctx.Err() == nil {
			_ = client.Watch(ctx, func(supervisor.Status) bool { return true })
			<-time.After(100 * time.Millisecond)
		}
	})
	// The VM's kernel asks for files: more connections than there may be, records of all
	// sizes, some that never end, and nobody who reads the answers.
	for i := range 40 {
		h.run.Go(func() {
			for ctx.Err() == nil {
				conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "share.sock"))
				if err == nil {
					stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
					err = h.callFiles(conn, i)
					stop()
					_ = conn.Close()
				}
				if err != nil && errors.Is(err, os.ErrNotExist) {
					return
				}
				<-time.After(50 * time.Millisecond)
			}
		})
	}
}

// callFiles sends calls until the server has had enough, or for some seconds.
func (h *hostile) callFiles(conn net.Conn, i int) error {
	_ = conn.SetDeadline(time.Now().Add(time.Duration(1+i%5) * time.Second))
	word := binary.BigEndian.AppendUint32
	for n := uint32(0); ; n++ {
		proc := n % 23
		args := 200 + int(rand.Uint32N(8<<10))
		if i%4 == 0 { // WRITE, of what is just too small to be counted by its size, and the largest
			proc, args = 7, []int{66 << 10, 1 << 20}[n%2]
		}
		b := []byte{}
		for _, x := range []uint32{n, 0, 2, 100003, 3, proc, 0, 0, 0, 0} {
			b = word(b, x)
		}
		b = append(b, make([]byte, args)...)
		if _, err := rand.NewChaCha8([32]byte{byte(n), byte(i)}).Read(b[40:min(len(b), 400)]); err != nil {
			return err
		}
		size := uint32(len(b))
		if i%8 == 0 { // and the rest does not come
			b = b[:len(b)/2]
		}
		if _, err := conn.Write(append(word(nil, size|1<<31), b...)); err != nil {
			return err
		}
		h.calls.Add(1)
		if i%8 == 0 {
			_, err := io.Copy(io.Discard, conn)
			return err
		}
		if i%3 > 0 {
			_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, _ = conn.Read(make([]byte, 64<<10))
			_ = conn.SetReadDeadline(time.Time{})
		}
	}
}
