//go:build vmtest

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/vm"
)

// report is what the bench prints as JSON, and before that as tables.
type report struct {
	// Boot is the phases of a way to a running VM (a cold up with the image
	// "trimmed" or "stock", the up of a "fork", a "nuke", these two also "at once"),
	// medians in seconds; "total" is from the command's start to an answering engine.
	Boot map[string]map[string]float64 `json:"boot_seconds"`
	// Ratio is one total to another.
	Ratio map[string]float64 `json:"boot_ratios"`
	// Ping is the median time of GET /_ping on a new connection, which for
	// DOCKER_HOST=ssh:// is one of SSH, as each docker command makes one.
	Ping map[string]float64 `json:"ping_ms"`
	// Client is the median time of a whole docker command, by its name.
	Client map[string]map[string]float64 `json:"docker_command_ms"`
	// Upload is the throughput of a stream into the engine, the best of three.
	Upload map[string]float64 `json:"upload_mb_per_s"`
	// Resident is the memory of devvm's processes, from /proc/PID/status.
	Resident map[string]float64 `json:"resident_mb"`
	BinaryMB float64            `json:"binary_mb"`
	// Many is the median time of commands with a hundred projects defined.
	Many map[string]float64 `json:"hundred_projects_ms"`
}

// BenchmarkReport measures what devvm claims about speed and size, all in one
// run on one machine, and prints it. make bench runs it.
func BenchmarkReport(b *testing.B) {
	h := newBench(b)
	r := report{
		Boot: map[string]map[string]float64{}, Ping: map[string]float64{}, Client: map[string]map[string]float64{},
		Upload: map[string]float64{}, Resident: map[string]float64{}, Many: map[string]float64{},
	}
	h.boots(&r)
	h.socket(&r)
	h.many(&r)
	r.print(os.Stdout)
}

// bench is a home for the projects of the bench.
type bench struct {
	*testing.B
	binary string
	dir    string // of the project
	env    []string
}

func newBench(b *testing.B) *bench {
	b.Helper()
	binary, images := os.Getenv("DEVVM_TEST_BINARY"), os.Getenv("DEVVM_TEST_IMAGES")
	if binary == "" || images == "" {
		b.Skip("run this by make bench")
	}
	if err := shareImages(images, filepath.Join(os.Getenv("XDG_DATA_HOME"), "devvm", "images")); err != nil && !os.IsNotExist(err) {
		b.Fatal(err)
	}
	dir := b.TempDir()
	h := &bench{B: b, binary: binary, dir: dir, env: os.Environ()}
	b.Cleanup(func() {
		_ = h.devvm("rm", "--yes").Run()
	})
	h.image("debian-13", "--stock=false")
	return h
}

// image builds an image if it is not there.
func (h *bench) image(name, stock string) {
	h.Helper()
	if !bytes.Contains(h.must(h.devvm("image", "ls", "--json")), []byte(`"name": "`+name+`"`)) {
		h.must(h.devvm("image", "build", stock))
	}
}

func (h *bench) devvm(args ...string) *exec.Cmd {
	cmd := exec.Command(h.binary, args...)
	cmd.Dir, cmd.Env = h.dir, h.env
	return cmd
}

func (h *bench) must(cmd *exec.Cmd) []byte {
	h.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		h.Fatalf("%v: %v\n%s%s", cmd.Args, err, out, stderr.String())
	}
	return out
}

// boots measures, in turn, a cold up with the untrimmed and the trimmed image, the up
// of a new project that is forked from a template, and a nuke: of a machine at rest, as
// users do it, and both at once, right after the command before. A nuke at once waits
// until the VM has written what it wrote while it came up.
func (h *bench) boots(r *report) {
	const (
		rounds = 5
		rest   = 3 * time.Second
	)
	samples := map[string]map[string][]float64{}
	image := func(name string) {
		if err := os.WriteFile(filepath.Join(h.dir, "devvm.toml"), []byte("image = \""+name+"\"\ncpus = 2\nmemory = \"2GiB\"\n"), 0o600); err != nil {
			h.Fatal(err)
		}
	}
	h.image("debian-13-stock", "--stock=true")
	image("debian-13")
	h.must(h.devvm("template", "build"))
	for range rounds {
		for _, way := range []struct {
			kind, image string
			rest        time.Duration
			args        []string
		}{
			{"stock", "debian-13-stock", rest, []string{"up", "--cold", "--json"}},
			{"trimmed", "debian-13", rest, []string{"up", "--cold", "--json"}},
			{"fork", "debian-13", rest, []string{"up", "--json"}},
			{"nuke", "debian-13", rest, []string{"nuke", "--yes", "--json"}},
			{"fork at once", "debian-13", 0, []string{"up", "--json"}},
			{"nuke at once", "debian-13", 0, []string{"nuke", "--yes", "--json"}},
		} {
			if way.args[0] == "up" {
				_ = h.devvm("rm", "--yes").Run()
			}
			image(way.image)
			time.Sleep(way.rest)
			start := time.Now()
			out := h.must(h.devvm(way.args...))
			phases := samples[way.kind]
			if phases == nil {
				phases = map[string][]float64{}
				samples[way.kind] = phases
			}
			phases["total"] = append(phases["total"], time.Since(start).Seconds())
			for line := range bytes.Lines(out) {
				var e struct {
					Type, Phase, State string
					Elapsed            float64 `json:"elapsed_ms"`
				}
				if json.Unmarshal(line, &e) == nil && e.Type == "phase" && e.State == "done" {
					phases[e.Phase] = append(phases[e.Phase], e.Elapsed/1000)
				}
			}
		}
	}
	for kind, phases := range samples {
		r.Boot[kind] = map[string]float64{}
		for phase, s := range phases {
			r.Boot[kind][phase] = median(s)
		}
	}
	total := func(kind string) float64 { return r.Boot[kind]["total"] }
	r.Ratio = map[string]float64{
		"trimmed to stock":      total("trimmed") / total("stock"),
		"trimmed to fork":       total("trimmed") / total("fork"),
		"stock to fork":         total("stock") / total("fork"),
		"nuke to fork":          total("nuke") / total("fork"),
		"at once, nuke to fork": total("nuke at once") / total("fork at once"),
	}
}

// socket compares docker.sock with OpenSSH's forward of the same guest socket
// and with DOCKER_HOST=ssh://.
func (h *bench) socket(r *report) {
	var vars map[string]string
	if err := json.Unmarshal(h.must(h.devvm("env", "--json")), &vars); err != nil {
		h.Fatal(err)
	}
	ours := strings.TrimPrefix(vars["DOCKER_HOST"], "unix://")
	config := filepath.Join(h.dir, "ssh_config")
	if err := os.WriteFile(config, h.must(h.devvm("ssh", "--config")), 0o600); err != nil {
		h.Fatal(err)
	}
	host := ""
	for line := range strings.Lines(string(h.must(exec.Command("cat", config)))) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Host "); ok {
			host = name
		}
	}
	run, err := os.MkdirTemp("/tmp", "dvb")
	if err != nil {
		h.Fatal(err)
	}
	defer os.RemoveAll(run)
	theirs := filepath.Join(run, "s")
	forward := exec.Command("ssh", "-F", config, "-N", "-L", theirs+":/run/docker.sock", host)
	if err := forward.Start(); err != nil {
		h.Fatal(err)
	}
	defer func() { _ = forward.Process.Kill(); _ = forward.Wait() }()
	for deadline := time.Now().Add(time.Minute); ; {
		if _, err := ping(dialUnix(theirs)); err == nil {
			break
		} else if time.Now().After(deadline) {
			h.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}

	sockets := map[string]dialer{"docker.sock": dialUnix(ours), "ssh -L": dialUnix(theirs), "ssh://": dialSSH(config, host)}
	samples := map[string][]float64{}
	for i := range 60 { // in turn, so that the machine's moods are shared
		for name, dial := range sockets {
			if name == "ssh://" && i%6 != 0 {
				continue
			}
			d, err := ping(dial)
			if err != nil {
				h.Fatal(err)
			}
			samples[name] = append(samples[name], ms(d))
		}
	}
	for name, s := range samples {
		r.Ping[name] = median(s)
	}

	// The whole client: its start, negotiation and two requests.
	docker, err := exec.LookPath("docker")
	if err != nil {
		docker = filepath.Join(h.dir, "docker")
		if err := os.WriteFile(docker, h.must(h.devvm("exec", "--", "cat", "/usr/bin/docker")), 0o700); err != nil {
			h.Fatal(err)
		}
	}
	// docker runs ssh from its PATH, without a flag for a configuration.
	wrapper := filepath.Join(h.dir, "bin")
	if err := os.MkdirAll(wrapper, 0o755); err != nil {
		h.Fatal(err)
	}
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		h.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\nexec %s -F '%s' \"$@\"\n", ssh, config)
	if err := os.WriteFile(filepath.Join(wrapper, "ssh"), []byte(script), 0o755); err != nil {
		h.Fatal(err)
	}
	client := func(dockerHost string, args ...string) *exec.Cmd {
		cmd := exec.Command(docker, args...)
		cmd.Env = append(h.env, "DOCKER_HOST="+dockerHost, "PATH="+wrapper+":"+os.Getenv("PATH"), "DOCKER_CONFIG="+h.dir)
		return cmd
	}
	ways := []struct{ name, host string }{{"docker.sock", "unix://" + ours}, {"ssh -L", "unix://" + theirs}, {"ssh://", "ssh://" + host}}
	for _, command := range []string{"ps", "version"} {
		samples := map[string][]float64{}
		for range 7 {
			for _, way := range ways {
				start := time.Now()
				h.must(client(way.host, command))
				samples[way.name] = append(samples[way.name], ms(time.Since(start)))
			}
		}
		r.Client[command] = map[string]float64{}
		for name, s := range samples {
			r.Client[command][name] = median(s)
		}
	}

	// Upload: a stream into a container that throws it away.
	load := client("unix://"+ours, "import", "-", "box")
	load.Stdin = bytes.NewReader(h.must(exec.Command("tar", "c", "-C", "/bin", "busybox")))
	h.must(load)
	h.must(client("unix://"+ours, "run", "-d", "--name", "sink", "box", "/busybox", "sleep", "100000"))
	const size = 64 << 20
	for range 3 {
		for _, way := range ways[:2] {
			up := client(way.host, "exec", "-i", "sink", "/busybox", "dd", "of=/dev/null", "bs=64k")
			up.Stdin = io.LimitReader(zeroes{}, size)
			start := time.Now()
			h.must(up)
			r.Upload[way.name] = max(r.Upload[way.name], size/1e6/time.Since(start).Seconds())
		}
	}

	r.Resident["supervisor"] = h.resident("devvm supervisor")
	r.Resident["net"] = h.resident("devvm net")
	if info, err := os.Stat(h.binary); err == nil {
		r.BinaryMB = float64(info.Size()) / 1e6
	}
}

// zeroes reads as zeroes without end.
type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// dialer makes a connection to an engine.
type dialer = func(context.Context) (net.Conn, error)

func dialUnix(path string) dialer {
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
}

// dialSSH connects as the docker command does for DOCKER_HOST=ssh://, by the standard
// streams of "docker system dial-stdio" on the other side.
func dialSSH(config, host string) dialer {
	return func(context.Context) (net.Conn, error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		near, far := os.NewFile(uintptr(fds[0]), "ssh"), os.NewFile(uintptr(fds[1]), "ssh")
		defer near.Close()
		defer far.Close()
		cmd := exec.Command("ssh", "-F", config, "-o", "ConnectTimeout=30", "-T", "--", host, "docker", "system", "dial-stdio")
		cmd.Stdin, cmd.Stdout = far, far
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		go cmd.Wait() // it ends with the connection
		return net.FileConn(near)
	}
}

// ping asks an engine for a sign of life on a new connection.
func ping(dial dialer) (time.Duration, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}}
	start := time.Now()
	resp, err := client.Get("http://docker/_ping")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, err
	}
	return time.Since(start), nil
}

// resident is the memory of the bench's own process of that name, in MB.
func (h *bench) resident(words string) float64 {
	for _, pid := range vmProcesses(words, filepath.Base(h.dir)) {
		f, err := os.Open("/proc/" + pid + "/status")
		if err != nil {
			continue
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if rest, ok := strings.CutPrefix(s.Text(), "VmRSS:"); ok {
				kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				if err == nil {
					return kb * 1024 / 1e6
				}
			}
		}
	}
	h.Errorf("no process %q", words)
	return 0
}

// many measures commands with a hundred projects defined.
func (h *bench) many(r *report) {
	ctx := context.Background()
	hv, err := vm.Open(ctx, vm.Options{URI: os.Getenv("DEVVM_LIBVIRT_URI")}, slog.New(slog.DiscardHandler))
	if err != nil {
		h.Fatal(err)
	}
	defer hv.Close()
	for i := range 100 {
		spec := vm.Spec{
			Name: fmt.Sprintf("bench%d-%08x", i, i), UUID: fmt.Sprintf("00000000-0000-8000-8000-%012x", i+1),
			Project: fmt.Sprintf("/nonexistent/bench%d", i), CPUs: 1, Memory: 1 << 30, Accel: vm.AccelTCG,
			Disk: "/nonexistent/disk.qcow2", NetSocket: "/nonexistent/net.sock", MAC: "52:54:00:00:00:01", Console: "/nonexistent/console.log",
		}
		if err := hv.Define(ctx, spec); err != nil {
			h.Fatal(err)
		}
		defer func() { _ = hv.Undefine(ctx, spec.Name) }()
	}
	for _, verb := range []string{"ls", "status"} {
		var s []float64
		for range 11 {
			start := time.Now()
			h.must(h.devvm(verb))
			s = append(s, ms(time.Since(start)))
		}
		r.Many[verb] = median(s)
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func median(s []float64) float64 {
	s = slices.Sorted(slices.Values(s))
	return s[len(s)/2]
}

// print writes tables for people, then one JSON document.
func (r report) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	kinds := []string{"stock", "trimmed", "fork", "nuke", "fork at once", "nuke at once"}
	fmt.Fprintf(t, "\nto a running VM, seconds (medians)\t%s\n", strings.Join(kinds, "\t"))
	for _, phase := range []string{"destroy", "disk", "define", "start", "fork", "kernel", "ssh", "engine", "total"} {
		row := "  " + phase
		for _, kind := range kinds {
			cell := ""
			if v := r.Boot[kind][phase]; v > 0 {
				cell = fmt.Sprintf("%.2f", v)
			}
			row += "\t" + cell
		}
		fmt.Fprintln(t, row)
	}
	for _, what := range slices.Sorted(maps.Keys(r.Ratio)) {
		fmt.Fprintf(t, "  %s\t%.2f\t\t\t\n", what, r.Ratio[what])
	}
	fmt.Fprintln(t, "\nthe engine's socket\tdocker.sock\tssh -L\tssh://")
	fmt.Fprintf(t, "  GET /_ping, ms (median)\t%.1f\t%.1f\t%.1f\n", r.Ping["docker.sock"], r.Ping["ssh -L"], r.Ping["ssh://"])
	for _, command := range slices.Sorted(maps.Keys(r.Client)) {
		c := r.Client[command]
		fmt.Fprintf(t, "  docker %s, ms (median)\t%.0f\t%.0f\t%.0f\n", command, c["docker.sock"], c["ssh -L"], c["ssh://"])
	}
	fmt.Fprintf(t, "  upload, MB/s (best of 3)\t%.1f\t%.1f\t\n", r.Upload["docker.sock"], r.Upload["ssh -L"])
	fmt.Fprintln(t, "\nsize\t\t\t")
	fmt.Fprintf(t, "  supervisor, resident MB\t%.1f\t\t\n  network process, resident MB\t%.1f\t\t\n  binary, MB\t%.1f\t\t\n", r.Resident["supervisor"], r.Resident["net"], r.BinaryMB)
	fmt.Fprintln(t, "\nwith 100 projects\t\t\t")
	fmt.Fprintf(t, "  ls, ms (median)\t%.0f\t\t\n  status, ms (median)\t%.0f\t\t\n", r.Many["ls"], r.Many["status"])
	_ = t.Flush()
	b, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		fmt.Fprintf(w, "\n%s\n", b)
	}
}
