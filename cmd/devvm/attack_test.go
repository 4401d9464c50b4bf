//go:build attack

package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/audit"
)

// TestAttack is the proof of what devvm promises: a neighbour on the network, another
// user of the host and a container, root in its VM included, try all that they can.
//
//	attacker 10.66.0.2 ──── 10.66.0.1 host 10.67.0.1 ──── 10.67.0.2 behind
//
// Each of the three is a network namespace. First the control: Docker runs on the host,
// and the attacker reads a container that is published on 127.0.0.1 only. If that does
// not succeed, the rest proves nothing, and fails. Then a host of the same shape, without
// any firewall, runs devvm. Each kind of attempt has a control of its own: something is
// there that it must find.
//
// It prints an account: who tried what, what should come of it and what did. Run it by
// make attack, as root; .ci/attack makes a mount and a process namespace for it.
func TestAttack(t *testing.T) {
	s := newScene(t)
	if !t.Run("control", s.control) {
		t.Fatal("the control did not succeed: that the same attacks fail against devvm would prove nothing")
	}
	t.Run("trust", s.attackTrust)
	t.Run("devvm", s.devvm)
	if !s.controlled {
		fmt.Println("\nThe control was left out: what follows from this proves nothing.")
	}
	fmt.Printf("\n%d attempts, %d with another outcome than they should have\n", s.attempts, s.failures)
}

// scene is what all parts share.
type scene struct {
	work, program, attacker, docker, user string
	data                                  string // of the user that runs devvm
	attempts, failures                    int
	controlled                            bool // the control was run
}

func newScene(t *testing.T) *scene {
	env := func(name string) string {
		v := os.Getenv(name)
		if v == "" {
			t.Fatalf("%s is not set: run this by make attack", name)
		}
		return v
	}
	return &scene{
		work: env("DEVVM_ATTACK_WORK"), docker: env("DEVVM_ATTACK_DOCKER"), attacker: env("DEVVM_ATTACKER"),
		program: env("DEVVM_TEST_BINARY"), user: env("DEVVM_TEST_USER"), data: env("DEVVM_TEST_HOME"),
	}
}

// section heads a part of the account.
func (s *scene) section(text string) { fmt.Printf("\n# %s\n", text) }

// attempt notes one attempt, what should come of it and what did.
func (s *scene) attempt(t *testing.T, who, what, want, got string, ok bool) {
	t.Helper()
	s.attempts++
	word := "ok"
	if !ok {
		word = "FAIL"
		s.failures++
		t.Errorf("%s: %s: want %s, got %s", who, what, want, got)
	}
	fmt.Printf("%-4s %-26s %-48s want: %-22s got: %s\n", word, who, what, want, strings.Join(strings.Fields(got), " "))
}

// command runs a program to its end and returns its standard output.
func command(ctx context.Context, in io.Reader, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = 5 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w\n%s%s", strings.Join(argv, " "), err, &out, &errs)
	}
	return out.String(), err
}

// must is command where a failure ends the test.
func must(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := command(t.Context(), nil, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// place is somewhere to attack from: a command line that runs what is put behind it.
type place struct {
	name   string
	prefix []string
}

func (p place) argv(args ...string) []string { return append(slices.Clone(p.prefix), args...) }

// within is a network namespace.
func within(namespace string) place {
	return place{namespace, []string{"nsenter", "--net=/run/netns/" + namespace}}
}

// found is what the attacker's program says.
type found struct{ Target, Got, Text string }

func (f found) String() string {
	if f.Text == "" || f.Got == "closed" || f.Got == "silent" {
		return f.Got
	}
	text := f.Text
	if i := strings.LastIndex(text, "\n"); i >= 0 { // below the headers of HTTP
		text = text[i+1:]
	}
	return f.Got + " (" + text + ")"
}

// try runs the attacker's program from a place.
func (s *scene) try(t *testing.T, p place, in io.Reader, args ...string) []found {
	t.Helper()
	out, err := command(t.Context(), in, p.argv(args...)...)
	if err != nil {
		t.Errorf("from %s: %v", p.name, err)
		return nil
	}
	var all []found
	for d := json.NewDecoder(strings.NewReader(out)); ; {
		var f found
		if err := d.Decode(&f); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Errorf("from %s: %v in %q", p.name, err, out)
			return all
		}
		all = append(all, f)
	}
}

// none lets a place ask targets from which nothing must come: not a byte, not even a
// connection. The words say what each target is.
func (s *scene) none(t *testing.T, p place, targets [][2]string, args ...string) {
	t.Helper()
	argv := append([]string{"get"}, args...)
	for _, target := range targets {
		argv = append(argv, target[0])
	}
	answers := s.try(t, p, nil, argv...)
	if len(answers) != len(targets) {
		t.Errorf("from %s: %d answers for %d targets", p.name, len(answers), len(targets))
	}
	for i, f := range answers {
		s.attempt(t, p.name, targets[i][1]+" "+f.Target, "nothing", f.String(), f.Got == "closed" || f.Got == "silent" || f.Got == "denied")
	}
}

// reads lets a place ask one target for the text that must come.
func (s *scene) reads(t *testing.T, p place, what, target, text string, args ...string) bool {
	t.Helper()
	var got found
	deadline := time.Now().Add(20 * time.Second)
	for {
		if all := s.try(t, p, nil, append(append([]string{"get"}, args...), target)...); len(all) == 1 {
			got = all[0]
		}
		if got.Got == "answer" && strings.Contains(got.Text, text) {
			s.attempt(t, p.name, what+" "+target, text, got.String(), true)
			return true
		}
		if time.Now().After(deadline) || t.Failed() {
			s.attempt(t, p.name, what+" "+target, text, got.String(), false)
			return false
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// lan is a host with a neighbour, and something behind it, each a network namespace.
type lan struct{ host, neighbour, behind string }

// Addresses in a lan.
const (
	hostAddr, hostAddr6 = "10.66.0.1", "fd00:66::1"
	hostInner           = "10.67.0.1"
	neighbourAddr       = "10.66.0.2"
	otherNeighbour      = "10.66.0.3"
	behindAddr          = "10.67.0.2"
	behindOther         = "10.67.0.3"
	metadataAddr        = "169.254.169.254"
)

// newLAN makes the namespaces. The host forwards packets, as one does that Docker has
// run on, and has no firewall.
func newLAN(t *testing.T, name string) lan {
	l := lan{host: name + "-host", neighbour: name + "-neighbour", behind: name + "-behind"}
	for _, ns := range []string{l.host, l.neighbour, l.behind} {
		must(t, "ip", "netns", "add", ns)
		t.Cleanup(func() { _, _ = command(context.WithoutCancel(t.Context()), nil, "ip", "netns", "del", ns) })
		must(t, "ip", "-n", ns, "link", "set", "lo", "up")
		// Addresses serve at once, with no wait for duplicates.
		must(t, within(ns).argv("sysctl", "-q", "-w", "net.ipv6.conf.default.accept_dad=0")...)
	}
	for _, c := range []string{
		"link add eth0 netns " + l.host + " type veth peer name eth0 netns " + l.neighbour,
		"link add eth1 netns " + l.host + " type veth peer name eth0 netns " + l.behind,
		"-n " + l.host + " addr add " + hostAddr + "/24 dev eth0",
		"-n " + l.host + " addr add " + hostAddr6 + "/64 dev eth0 nodad",
		"-n " + l.host + " addr add " + hostInner + "/24 dev eth1",
		"-n " + l.neighbour + " addr add " + neighbourAddr + "/24 dev eth0",
		"-n " + l.neighbour + " addr add " + otherNeighbour + "/24 dev eth0",
		"-n " + l.neighbour + " addr add fd00:66::2/64 dev eth0 nodad",
		"-n " + l.behind + " addr add " + behindAddr + "/24 dev eth0",
		"-n " + l.behind + " addr add " + behindOther + "/24 dev eth0",
		"-n " + l.behind + " addr add " + metadataAddr + "/32 dev eth0",
		"-n " + l.host + " link set eth0 up", "-n " + l.host + " link set eth1 up",
		"-n " + l.neighbour + " link set eth0 up", "-n " + l.behind + " link set eth0 up",
		"-n " + l.host + " route add " + metadataAddr + " via " + behindAddr,
		"-n " + l.behind + " route add default via " + hostInner,
		"-n " + l.neighbour + " route add 10.67.0.0/24 via " + hostAddr,
	} {
		must(t, append([]string{"ip"}, strings.Fields(c)...)...)
	}
	must(t, within(l.host).argv("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")...)
	return l
}

// service is one that is there to be found.
type service struct {
	mu    sync.Mutex
	lines []string
}

// serve runs services in a place until the test ends.
func (s *scene) serve(t *testing.T, p place, say string, targets ...string) *service {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), p.prefix[0], p.argv(append([]string{s.attacker, "serve", "-say", say}, targets...)...)[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &service{}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		t.Fatalf("the services of %s do not start", p.name)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines.Scan() {
			v.mu.Lock()
			v.lines = append(v.lines, lines.Text())
			v.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = in.Close()
		<-done
		_ = cmd.Wait()
	})
	return v
}

// saw tells whether a datagram with the text has come.
func (v *service) saw(text string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.ContainsFunc(v.lines, func(l string) bool { return strings.Contains(l, text) })
}

// soon says whether a condition holds within ten seconds.
func soon(f func() bool) bool {
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// image is a container image for docker import: the attacker's program and nothing else.
func (s *scene) image(t *testing.T) []byte {
	t.Helper()
	program, err := os.ReadFile(s.attacker)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, dir := range []string{"etc/", "proc/", "sys/", "dev/", "tmp/"} {
		if err := w.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteHeader(&tar.Header{Name: "attacker", Mode: 0o755, Size: int64(len(program))}); err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(program)
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// dockerScript runs dockerd in a mount namespace of its own: with a /run of its own and,
// where nobody has mounted them, the cgroup controllers.
const dockerScript = `set -eu
mount -t tmpfs -o mode=755 tmpfs /run
if [ ! -e /sys/fs/cgroup/cgroup.controllers ] && [ ! -d /sys/fs/cgroup/devices ]; then
	mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
	for c in $(awk '!/^#/ && $4 == 1 { print $1 }' /proc/cgroups); do
		mkdir "/sys/fs/cgroup/$c"
		mount -t cgroup -o "$c" cgroup "/sys/fs/cgroup/$c" || rmdir "/sys/fs/cgroup/$c"
	done
fi
exec dockerd --data-root "$1/data" --exec-root /run/docker --pidfile /run/docker.pid \
	-H "unix://$1/docker.sock" --storage-driver vfs --exec-opt native.cgroupdriver=cgroupfs \
	--cgroup-parent "$2" --log-level warn`

// startDocker runs a Docker Engine on a host and returns its client.
func (s *scene) startDocker(t *testing.T, host string) place {
	t.Helper()
	dir := filepath.Join(s.work, "docker")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	group := fmt.Sprintf("devvm-attack-%d", os.Getpid())
	env := []string{
		"env", "PATH=" + s.docker + "/usr/sbin:" + s.docker + "/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LD_LIBRARY_PATH=" + s.docker + "/usr/lib/x86_64-linux-gnu", "DOCKER_HOST=unix://" + dir + "/docker.sock", "DOCKER_CONFIG=" + dir,
	}
	p := within(host)
	argv := p.argv(append(slices.Clone(env), "unshare", "--mount", "--propagation", "private", "sh", "-c", dockerScript, "sh", dir, "/"+group)...)
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), argv[0], argv[1:]...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	client := place{"Docker's client", p.argv(append(env, "docker")...)}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		_, _ = command(ctx, nil, "sh", "-c", `"$@" rm -f $("$@" ps -aq)`, "sh", "env", env[1], env[2], env[3], env[4], "docker")
		_ = cmd.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(15 * time.Second):
			_ = cmd.Process.Kill()
		}
		left, _ := filepath.Glob("/sys/fs/cgroup/*/" + group)
		for _, dir := range append(left, "/sys/fs/cgroup/"+group) {
			_ = os.Remove(dir)
		}
		_ = os.RemoveAll(dir)
	})
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		_, err := command(t.Context(), nil, client.argv("version")...)
		if err == nil {
			return client
		}
		select {
		case err := <-ended:
			t.Fatalf("dockerd ended: %v\n%s", err, &log)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("dockerd does not answer: %v\n%s", err, &log)
		}
	}
}

// control is the attack against Docker on the host. It must succeed.
func (s *scene) control(t *testing.T) {
	l := newLAN(t, "control")
	host, neighbour := within(l.host), within(l.neighbour)
	host.name, neighbour.name = "the host itself", "neighbour"
	s.controlled = true
	s.section("The control: Docker on the host, a container published on 127.0.0.1 only")
	// A careful host: nothing comes in that it has not asked for.
	for _, rule := range []string{"-P INPUT DROP", "-A INPUT -i lo -j ACCEPT", "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"} {
		must(t, host.argv(append([]string{"iptables"}, strings.Fields(rule)...)...)...)
	}
	before := filepath.Join(s.work, "before-docker.json")
	must(t, host.argv(s.program, "audit", "--save", before)...)
	docker := s.startDocker(t, l.host)
	version := strings.TrimSpace(must(t, docker.argv("version", "--format", "{{.Server.Version}}")...))
	fmt.Printf("     Docker %s, firewall: INPUT DROP\n", version)
	if _, err := command(t.Context(), bytes.NewReader(s.image(t)), docker.argv("import", "-", "box")...); err != nil {
		t.Fatal(err)
	}
	must(t, docker.argv("run", "-d", "--name", "web", "-p", "127.0.0.1:8080:80", "box", "/attacker", "serve", "-forever", "-say", "secret of the container", "tcp::80")...)
	address := strings.TrimSpace(must(t, docker.argv("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web")...))
	s.reads(t, host.with(s.attacker), "the published port", "tcp:127.0.0.1:8080", "secret of the container")
	must(t, "ip", "-n", l.neighbour, "route", "add", "172.17.0.0/16", "via", hostAddr)
	if !s.reads(t, neighbour.with(s.attacker), "ip route add 172.17.0.0/16;", "tcp:"+address+":80", "secret of the container") {
		t.Fatalf("Docker %s on this host does not let itself be attacked in this way (28 and later has a rule against it); the control needs an older one, see .ci/attack", version)
	}

	// devvm audit sees what Docker has changed, and knows who did it and what helps.
	report := s.audit(t, s.asRoot(l.host), "--since", before)
	changes := 0
	if report.Host != nil {
		changes = len(report.Host.Changes)
	}
	s.attempt(t, "devvm audit", "the host after Docker's start", "changes, all Docker's", fmt.Sprintf("%d changes, pass: %v", changes, report.Pass), changes > 0 && report.Pass)
	for _, c := range explained(report, "") {
		t.Errorf("audit does not know who made this change: %s", c)
	}
	fix := ""
	for _, f := range report.Findings {
		if f.Name == "Docker on the host" {
			fix = f.Fix
		}
	}
	for line := range strings.Lines(fix) {
		if c, ok := strings.CutPrefix(line, "sudo "); ok {
			must(t, host.argv(strings.Fields(c)...)...)
		}
	}
	s.reads(t, host.with(s.attacker), "after audit's fix, the published port", "tcp:127.0.0.1:8080", "secret of the container")
	s.none(t, neighbour.with(s.attacker), [][2]string{{"tcp:" + address + ":80", "after audit's fix,"}})
}

// with is the place with a program in it.
func (p place) with(argv ...string) place { return place{p.name, p.argv(argv...)} }

// asRoot is root, with directories that nobody has used.
func (s *scene) asRoot(namespace string) place {
	own := filepath.Join(s.work, "root")
	return within(namespace).with("env", "XDG_DATA_HOME="+own, "XDG_CONFIG_HOME="+own, "XDG_CACHE_HOME="+own, "XDG_RUNTIME_DIR="+own)
}

// audit runs devvm audit.
func (s *scene) audit(t *testing.T, p place, args ...string) audit.Report {
	t.Helper()
	cmd := p.argv(append([]string{s.program, "audit", "--json"}, args...)...)
	out, _ := command(t.Context(), nil, cmd...) // exit code 1 is in the report
	var r audit.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd, " "), err, out)
	}
	return r
}

// explained are the changes of the host that somebody has made, "" nobody knows who.
func explained(r audit.Report, by string) []string {
	var out []string
	if r.Host != nil {
		for _, c := range r.Host.Changes {
			if c.By == by {
				out = append(out, c.String())
			}
		}
	}
	return out
}

// victim is a project of the user's, whose VM runs on the host of a lan.
type victim struct {
	name, dir string
	run       place // devvm -C dir
	root      place // the attacker's program as root in the VM
	address   string
}

// asUser is the host's user that runs devvm, in a namespace.
func (s *scene) asUser(namespace string, argv ...string) place {
	env := []string{
		"runuser", "-u", s.user, "--", "env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"USER=" + s.user, "LOGNAME=" + s.user, "HOME=" + s.data + "/home", "LANG=C.UTF-8", "TERM=dumb", "TMPDIR=/var/tmp",
		"XDG_DATA_HOME=" + s.data + "/data", "XDG_CONFIG_HOME=" + s.data + "/config", "XDG_CACHE_HOME=" + s.data + "/cache",
		"XDG_STATE_HOME=" + s.data + "/state", "XDG_RUNTIME_DIR=" + s.data + "/run",
	}
	return within(namespace).with(append(env, argv...)...)
}

// up brings up a project's VM with the attacker's program in it, and an image to run.
func (s *scene) up(t *testing.T, namespace, name, config string) victim {
	t.Helper()
	v := victim{name: name, dir: filepath.Join(s.work, "projects", name)}
	if err := os.MkdirAll(v.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if config != "" {
		if err := os.WriteFile(filepath.Join(v.dir, "devvm.toml"), []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "chown", "-R", s.user+":", v.dir)
	v.run = s.asUser(namespace, s.program, "-C", v.dir)
	t.Cleanup(func() {
		_, err := command(context.WithoutCancel(t.Context()), nil, v.run.argv("rm", "--yes")...)
		if err != nil {
			t.Errorf("remove project %s: %v", name, err)
		}
	})
	start := time.Now()
	must(t, v.run.argv("up", "--yes")...)
	if _, err := command(t.Context(), bytes.NewReader(s.image(t)), v.run.argv("docker", "import", "-", "box")...); err != nil {
		t.Fatal(err)
	}
	program, err := os.Open(s.attacker)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if _, err := command(t.Context(), program, v.run.argv("exec", "--", "sh", "-c", "cat >/usr/local/bin/attacker && chmod 755 /usr/local/bin/attacker")...); err != nil {
		t.Fatal(err)
	}
	v.root = v.run.with("exec", "--", "/usr/local/bin/attacker")
	v.root.name = "root in the VM of " + name
	fmt.Printf("     project %s is up (%.0f s)\n", name, time.Since(start).Seconds())
	return v
}

// gateway is the VM's network interface and the link address of its router.
func (v victim) gateway(t *testing.T) (dev, mac string) {
	t.Helper()
	table := must(t, v.run.argv("exec", "--", "cat", "/proc/net/arp")...)
	for line := range strings.Lines(table) {
		// IP address, HW type, Flags, HW address, Mask, Device
		if f := strings.Fields(line); len(f) == 6 && f[0] == "192.0.2.1" {
			return f[5], f[3]
		}
	}
	t.Fatalf("the VM of %s does not know its gateway:\n%s", v.name, table)
	return "", ""
}

// container is one in the project's VM.
func (v victim) container(kind string, flags ...string) place {
	p := v.run.with(append(append([]string{"docker", "run", "--rm"}, flags...), "box", "/attacker")...)
	p.name = kind + " of " + v.name
	return p
}

// Ports: what projects publish, and what is there to be found.
const (
	portAll, portAny, portLocal, portUDP = "8080", "8081", "8082", "8083" // of project a
	portB                                = "9090"                         // of project b
	decoy, decoyLocal                    = "40001", "40002"               // of the host
)

// devvm is the same attack, and all others, against devvm.
func (s *scene) devvm(t *testing.T) {
	s.names(t)
	l := newLAN(t, "devvm")
	host, neighbour, behind := within(l.host), within(l.neighbour), within(l.behind)
	host.name, neighbour.name, behind.name = "the host itself", "neighbour", "behind the host"

	s.section("A host without a firewall that forwards packets, with devvm on it")
	before := filepath.Join(s.work, "before-devvm.json")
	must(t, host.argv(s.program, "audit", "--save", before)...)
	decoys := s.serve(t, host, "the host's service", "tcp::"+decoy, "udp::"+decoy)
	local := s.serve(t, host, "the host's local service", "tcp:127.0.0.1:"+decoyLocal, "udp:127.0.0.1:"+decoyLocal, "tcp:[::1]:"+decoyLocal)
	outer := s.serve(t, behind, "behind the host", "tcp:"+behindAddr+":80", "tcp:"+behindAddr+":81",
		"tcp:"+behindOther+":80", "tcp:"+behindOther+":53", "udp:"+behindOther+":53", "udp:"+behindOther+":9")
	s.serve(t, behind, "credentials", "tcp:"+metadataAddr+":80")

	a := s.up(t, l.host, "a", "")
	b := s.up(t, l.host, "b", "")
	must(t, a.run.argv("docker", "run", "-d", "--name", "web", "-p", portAll+":80", "-p", "0.0.0.0:"+portAny+":80", "-p", "127.0.0.1:"+portLocal+":80", "-p", portUDP+":9/udp",
		"box", "/attacker", "serve", "-forever", "-say", "secret of a", "tcp::80", "udp::9")...)
	must(t, b.run.argv("docker", "run", "-d", "-p", portB+":80", "box", "/attacker", "serve", "-forever", "-say", "secret of b", "tcp::80")...)
	for _, v := range []*victim{&a, &b} {
		var ports struct{ Address string }
		if err := json.Unmarshal([]byte(must(t, v.run.argv("ports", "--json")...)), &ports); err != nil || ports.Address == "" {
			t.Fatalf("devvm ports --json names no address of %s: %v", v.name, err)
		}
		v.address = ports.Address
	}

	s.section("Controls: on the host itself, and beyond it, all is there to be found")
	here := host.with(s.attacker)
	for _, port := range []string{portAll, portAny, portLocal} {
		s.reads(t, here, "published port", "tcp:127.0.0.1:"+port, "secret of a")
	}
	s.reads(t, here, "published port", "tcp:[::1]:"+portAll, "secret of a")
	s.reads(t, here, "a's own address", "tcp:"+a.address+":"+portAll, "secret of a")
	s.reads(t, here, "published port", "udp:127.0.0.1:"+portUDP, "secret of a", "-say", "from the host")
	s.reads(t, here, "published port of b", "tcp:127.0.0.1:"+portB, "secret of b")
	s.reads(t, here, "b's own address", "tcp:"+b.address+":"+portB, "secret of b")
	s.reads(t, here, "metadata service", "tcp:"+metadataAddr+":80", "credentials")
	s.reads(t, neighbour.with(s.attacker), "a service of the host", "tcp:"+hostAddr+":"+decoy, "the host's service")
	s.reads(t, neighbour.with(s.attacker), "a service of the host", "udp:"+hostAddr+":"+decoy, "the host's service")
	s.reads(t, neighbour.with(s.attacker), "through the host", "tcp:"+behindAddr+":80", "behind the host")
	s.reads(t, a.root, "through its network", "tcp:"+behindAddr+":80", "behind the host")
	s.reads(t, a.root, "through its network", "udp:"+behindOther+":9", "behind the host", "-say", "from a's VM")

	t.Run("neighbour", func(t *testing.T) { s.attackFromNetwork(t, l, a, b, decoys) })
	t.Run("user", func(t *testing.T) { s.attackFromUser(t, l, a) })
	t.Run("guest", func(t *testing.T) { s.attackFromGuest(t, a, b, decoys, local, outer) })
	t.Run("cp", func(t *testing.T) { s.attackCopy(t, l, a) })
	t.Run("shares", func(t *testing.T) { s.attackShares(t, a) })
	t.Run("management", func(t *testing.T) { s.attackManagement(t, a, decoys) })
	t.Run("socket", func(t *testing.T) { s.attackSocket(t, l) })
	t.Run("compose", func(t *testing.T) { s.attackCompose(t, a) })
	t.Run("translated", func(t *testing.T) { s.attackTranslated(t, l, a) })
	t.Run("flood", func(t *testing.T) { s.attackFlood(t, l, a, b) })
	t.Run("egress", func(t *testing.T) { s.attackEgress(t, l, outer) })
	t.Run("audit", func(t *testing.T) { s.attackAudit(t, l, before) })
	t.Run("expose", func(t *testing.T) { s.attackExposed(t, l, a) })
	t.Run("bounds", func(t *testing.T) { s.attackBounds(t, l, a, b) })
}

// names gives this mount namespace a hosts file with the names of the test.
func (s *scene) names(t *testing.T) {
	t.Helper()
	for name, text := range map[string]string{
		"/etc/hosts":       "127.0.0.1 localhost\n" + behindAddr + " allowed.test\n" + behindOther + " denied.test\n",
		"/etc/resolv.conf": "nameserver 127.0.0.1\n",
	} {
		own := filepath.Join(s.work, filepath.Base(name))
		if err := os.WriteFile(own, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		must(t, "mount", "--bind", own, name)
		t.Cleanup(func() { _, _ = command(context.WithoutCancel(t.Context()), nil, "umount", name) })
	}
}

// linkAddress is the link address of a namespace's eth0.
func linkAddress(t *testing.T, namespace string) string {
	t.Helper()
	var links []struct{ Address string }
	if err := json.Unmarshal([]byte(must(t, "ip", "-j", "-n", namespace, "link", "show", "eth0")), &links); err != nil || len(links) != 1 {
		t.Fatalf("link of %s: %v", namespace, err)
	}
	return links[0].Address
}

// linkLocal is the link-local address of a namespace's eth0.
func linkLocal(t *testing.T, namespace string) string {
	t.Helper()
	for _, f := range strings.Fields(must(t, "ip", "-6", "-o", "-n", namespace, "addr", "show", "dev", "eth0", "scope", "link")) {
		if addr, _, found := strings.Cut(f, "/"); found && strings.HasPrefix(addr, "fe80:") {
			return addr
		}
	}
	t.Fatalf("%s has no link-local address", namespace)
	return ""
}

// attackFromNetwork is what a neighbour on the LAN tries.
func (s *scene) attackFromNetwork(t *testing.T, l lan, a, b victim, decoys *service) {
	host := within(l.host)
	neighbour := within(l.neighbour).with(s.attacker)
	neighbour.name = "neighbour"

	s.section("A neighbour: routes through the host to everything behind it")
	hostLink := "[" + linkLocal(t, l.host) + "%eth0]"
	s.reads(t, neighbour, "control: IPv6", "tcp:["+hostAddr6+"]:"+decoy, "the host's service")
	s.reads(t, neighbour, "control: link-local", "tcp:"+hostLink+":"+decoy, "the host's service")
	for _, c := range []string{
		"-n " + l.neighbour + " route add 192.0.2.0/24 via " + hostAddr,
		"-n " + l.neighbour + " route add 172.17.0.0/16 via " + hostAddr,
		// The neighbour gives up its own loopback, to send packets for the host's.
		"-n " + l.neighbour + " addr del 127.0.0.1/8 dev lo",
		"-n " + l.neighbour + " route add 127.0.0.0/8 via " + hostAddr + " src " + neighbourAddr,
	} {
		must(t, append([]string{"ip"}, strings.Fields(c)...)...)
	}
	// It also takes answers that come from there.
	must(t, within(l.neighbour).argv("sysctl", "-q", "-w", "net.ipv4.conf.all.route_localnet=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0")...)
	var targets [][2]string
	for _, to := range []struct{ what, address, ports string }{
		{"the VM", "192.0.2.2", "22 80 2375 " + portAll + " " + portB},
		{"the VM's gateway", "192.0.2.1", "53 80"},
		{"the VM's host alias", "192.0.2.254", "80"},
		{"Docker's bridge", "172.17.0.1", "22 " + portAll},
		{"a container", "172.17.0.2", "80"},
		{"a container", "172.17.0.3", "80"},
		{"the host's loopback", "127.0.0.1", portAll + " " + portAny + " " + portLocal + " " + portB + " " + decoyLocal},
		{"a's own address", a.address, portAll},
		{"b's own address", b.address, portB},
		{"the host", hostAddr, portAll + " " + portAny + " " + portLocal + " " + portB},
		{"the host, IPv6", "[" + hostAddr6 + "]", portAll + " " + portB},
		{"the host, link-local", hostLink, portAll + " " + portB},
	} {
		for port := range strings.FieldsSeq(to.ports) {
			targets = append(targets, [2]string{"tcp:" + to.address + ":" + port, to.what})
		}
	}
	for _, address := range []string{hostAddr, "[" + hostAddr6 + "]", "127.0.0.1", a.address, "192.0.2.2", "172.17.0.2"} {
		targets = append(targets, [2]string{"udp:" + address + ":" + portUDP, "UDP"})
	}
	for _, port := range []string{"13", "53", "67", "2049"} {
		targets = append(targets, [2]string{"udp:" + hostAddr + ":" + port, "UDP"})
	}
	s.none(t, neighbour, targets, "-say", "from the neighbour")

	s.section("The same, on a host that takes packets for its loopback from the network (route_localnet, as kube-proxy sets it)")
	must(t, host.argv("sysctl", "-q", "-w", "net.ipv4.conf.all.route_localnet=1")...)
	s.reads(t, neighbour, "control: the host's local service", "tcp:127.0.0.1:"+decoyLocal, "the host's local service")
	mac := linkAddress(t, l.host)
	forge := func(what string, answers bool) {
		t.Helper()
		sources := []string{"127.0.0.1", hostAddr, "192.0.2.2", "192.0.2.1", "172.17.0.2", otherNeighbour, behindAddr, a.address}
		targets := []string{hostAddr, "127.0.0.1", a.address, b.address, "192.0.2.2", "172.17.0.2"}
		ports := []string{portAll, portAny, portLocal, portUDP, portB, "22"}
		replies, sent, want := "", false, "no answer"
		if answers { // a handshake may begin before the peer is looked at; the logs below tell
			want = "no datagram taken"
		}
		for _, f := range s.try(t, neighbour, nil, "forge", "-dev", "eth0", "-mac", mac, "-src", strings.Join(sources, ","),
			"-dst", strings.Join(targets, ","), "-port", strings.Join(ports, ","), "-say", "forged") {
			sent = sent || f.Got == "sent"
			if f.Got == "answer" {
				replies += f.Text + "; "
			}
		}
		s.attempt(t, neighbour.name, fmt.Sprintf("%s: %d sources, %d addresses, %d ports", what, len(sources), len(targets), len(ports)), want, fmt.Sprintf("answers: %q", replies), (answers || replies == "") && sent)
	}
	answers := s.try(t, neighbour, nil, "get", "-say", "from the neighbour", "tcp:127.0.0.1:"+portAll, "tcp:127.0.0.1:"+portLocal, "tcp:"+a.address+":"+portAll, "tcp:"+b.address+":"+portB, "udp:127.0.0.1:"+portUDP)
	for _, f := range answers {
		s.attempt(t, neighbour.name, "published port "+f.Target, "not a byte", f.String(), f.Got != "answer")
	}
	forge("forged, too", true)
	must(t, host.argv("sysctl", "-q", "-w", "net.ipv4.conf.all.route_localnet=0")...)

	s.section("A neighbour: every TCP port of every address of the host")
	open := map[string]string{}
	closed := map[string]string{}
	addresses := []string{hostAddr, hostAddr6, strings.Trim(hostLink, "[]")}
	for _, f := range s.try(t, neighbour, nil, append([]string{"scan"}, addresses...)...) {
		if f.Got == "open" {
			address := f.Target[len("tcp:"):strings.LastIndex(f.Target, ":")]
			address = strings.Trim(address, "[]")
			open[address] = strings.TrimSpace(open[address] + " " + f.Target[strings.LastIndex(f.Target, ":")+1:])
			continue
		}
		closed[f.Target] += f.Got + " " + f.Text + "; "
	}
	for _, address := range addresses {
		got := open[address]
		s.attempt(t, neighbour.name, address+" ports 1-65535", "only "+decoy+" (the control)", "open: "+got+"; "+closed[address], got == decoy)
	}

	s.section("A neighbour: packets that claim to come from somebody else")
	heard := false
	for _, f := range s.try(t, neighbour, nil, "forge", "-dev", "eth0", "-mac", mac, "-src", otherNeighbour, "-dst", hostAddr, "-port", decoy, "-say", "forged") {
		heard = heard || f.Got == "answer"
	}
	seen := soon(func() bool { return decoys.saw("forged from " + otherNeighbour) })
	s.attempt(t, neighbour.name, "control: as "+otherNeighbour+" to the host's service", "it arrives, is answered", fmt.Sprintf("arrived: %v, answered: %v", seen, heard), seen && heard)
	forge("forged", false)
	// What came in would be in the container's log, beside what the host itself sent.
	logs := must(t, a.run.argv("docker", "logs", "web")...)
	s.attempt(t, "the container", "its UDP port heard the host (control)", "it did", fmt.Sprint(strings.Contains(logs, "from the host")), strings.Contains(logs, "from the host"))
	bad := strings.Contains(logs, "forged") || strings.Contains(logs, "from the neighbour")
	s.attempt(t, "the container", "its UDP port heard the neighbour", "it did not", fmt.Sprint(bad), !bad)
}

// attackFromUser is what another user of the host tries.
func (s *scene) attackFromUser(t *testing.T, l lan, a victim) {
	s.section("Another user of the host")
	var env map[string]string
	if err := json.Unmarshal([]byte(must(t, a.run.argv("env", "--json")...)), &env); err != nil {
		t.Fatal(err)
	}
	socket := strings.TrimPrefix(env["DOCKER_HOST"], "unix://")
	name := filepath.Base(filepath.Dir(socket))
	var paths []string
	for _, root := range []string{filepath.Join(s.data, "data", "devvm", "projects"), filepath.Join(s.data, "run"), filepath.Join(s.data, "config", "libvirt")} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				paths = append(paths, path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range s.audit(t, s.asUser(l.host)).Processes {
		if p.Project == name {
			for _, f := range []string{"environ", "fd", "maps"} {
				paths = append(paths, fmt.Sprintf("/proc/%d/%s", p.PID, f))
			}
		}
	}
	must(t, "test", "-S", socket)
	for _, want := range []string{"docker.sock", "control.sock", "dial.sock", name + ".sock", "id_ed25519", "disk.qcow2", "console.log", "devvm.host_key", "supervisor.log"} {
		if !slices.ContainsFunc(paths, func(p string) bool { return filepath.Base(p) == want }) {
			t.Errorf("the project has no %s: what is there to be protected?\n%s", want, strings.Join(paths, "\n"))
		}
	}
	list := strings.Join(paths, "\n") + "\n"
	owner := s.asUser(l.host, s.attacker)
	other := within(l.host).with("runuser", "-u", "nobody", "--", s.attacker)
	owner.name, other.name = "their owner", "another user"
	opened := func(p place) []string {
		var out []string
		for _, f := range s.try(t, p, strings.NewReader(list), "snoop") {
			if f.Got == "open" {
				out = append(out, f.Target)
			}
		}
		return out
	}
	mine, theirs := opened(owner), opened(other)
	s.attempt(t, owner.name, fmt.Sprintf("%d files, directories, sockets (control)", len(paths)), "most open", fmt.Sprintf("%d open", len(mine)), len(mine) > len(paths)*3/4 && slices.Contains(mine, socket))
	s.attempt(t, other.name, fmt.Sprintf("the same %d", len(paths)), "none opens", fmt.Sprintf("%d open %s", len(theirs), strings.Join(theirs, " ")), len(theirs) == 0 && len(paths) > 0)

	// SSH leads through a socket that others cannot open; without the key it does not
	// even lead the owner in.
	config := filepath.Join(s.work, "ssh_config")
	keyless := filepath.Join(s.work, "ssh_config.keyless") // a key of the command line would only be one more
	block := must(t, a.run.argv("ssh", "--config")...)
	var without []string
	for line := range strings.Lines(block) {
		if !strings.Contains(line, "IdentityFile") {
			without = append(without, line)
		}
	}
	for path, text := range map[string]string{config: block, keyless: strings.Join(without, "")} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ssh := func(p place, config, what, want string, ok func(out string, err error) bool, flags ...string) {
		argv := slices.Concat([]string{"ssh", "-n", "-F", config, "-o", "BatchMode=yes"}, flags, []string{"devvm-" + name, "echo", "inside"})
		out, err := command(t.Context(), nil, p.argv(argv...)...)
		got := strings.TrimSpace(out)
		if err != nil {
			lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
			got = lines[len(lines)-1]
		}
		s.attempt(t, p.name, what, want, got, ok(out, err))
	}
	owner = s.asUser(l.host)
	owner.name = "their owner"
	ssh(owner, config, "SSH with the key (control)", "inside", func(out string, err error) bool { return err == nil && strings.Contains(out, "inside") })
	refused := func(_ string, err error) bool {
		return err != nil && strings.Contains(err.Error(), "Permission denied")
	}
	ssh(owner, keyless, "SSH without the key", "Permission denied", refused, "-i", "/dev/null")
	key := filepath.Join(s.work, "key")
	must(t, "rm", "-f", key, key+".pub")
	must(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
	must(t, "chown", s.user+":", key)
	ssh(owner, keyless, "SSH with another key", "Permission denied", refused, "-i", key)
	other = within(l.host).with("runuser", "-u", "nobody", "--", "env", "-i", "HOME=/nonexistent", "PATH=/usr/bin:/bin")
	other.name = "another user"
	ssh(other, config, "SSH with the owner's configuration", "refused", func(_ string, err error) bool { return err != nil })
}

// attackFromGuest is what a container, and root in its VM, try.
func (s *scene) attackFromGuest(t *testing.T, a, b victim, decoys, local, outer *service) {
	s.section("A container, and root in its VM: the host, another project, the cloud's metadata")
	var targets [][2]string
	for _, to := range []struct{ what, address, ports string }{
		{"b's port", "127.0.0.1", portB},
		{"b's port at its own address", b.address, portB},
		{"b's port at the host", hostAddr, portB},
		{"b's port at the host", hostInner, portB},
		{"b's port at the host alias", "192.0.2.254", portB},
		{"b's port at the gateway", "192.0.2.1", portB},
		{"the host's service", hostAddr, decoy},
		{"the host's service", hostInner, decoy},
		{"the host's service", "192.0.2.254", decoy + " " + decoyLocal},
		{"the host's service", "192.0.2.1", decoy + " " + decoyLocal},
		{"the host's service", "[" + hostAddr6 + "]", decoy},
		{"the host's local service", "127.0.0.1", decoyLocal},
		{"the host's local service", "127.0.0.2", decoyLocal},
		{"the host's service", "0.0.0.0", decoy},
		{"metadata", metadataAddr, "80"},
		{"the neighbour on the host's link", "169.254.1.1", "80"},
	} {
		for port := range strings.FieldsSeq(to.ports) {
			targets = append(targets, [2]string{"tcp:" + to.address + ":" + port, to.what})
		}
	}
	for _, address := range []string{hostAddr, hostInner, "192.0.2.254", "192.0.2.1"} {
		targets = append(targets, [2]string{"udp:" + address + ":" + decoy, "the host's service"}, [2]string{"udp:" + address + ":" + decoyLocal, "the host's local service"})
	}
	for _, p := range []place{a.root, a.container("container"), a.container("privileged container", "--privileged", "--network", "host")} {
		s.none(t, p, targets, "-wait", "3s", "-say", "from a's VM to the host")
	}
	heard := decoys.saw("from a's VM to the host") || local.saw("from a's VM to the host")
	s.attempt(t, "the host's services", "they heard the VM", "they did not", fmt.Sprint(heard), !heard)

	s.section("Root in the VM: packets that claim to come from somebody else, and to addresses that the VM's own kernel would not send to")
	dev, mac := a.gateway(t)
	forge := func(src, dst, ports, say string) {
		out := s.try(t, a.root, nil, "forge", "-dev", dev, "-mac", mac, "-src", src, "-dst", dst, "-port", ports, "-say", say)
		if len(out) == 0 {
			t.Error("nothing was forged")
		}
	}
	forge("192.0.2.2", behindOther, "9", "rightful")
	seen := soon(func() bool { return outer.saw("rightful from 192.0.2.2") })
	s.attempt(t, a.root.name, "control: with its own source, behind the host", "it arrives", fmt.Sprint("arrived: ", seen), seen)
	forge("127.0.0.1,"+hostAddr+",10.66.0.77,192.0.2.1,192.0.2.254,192.0.2.77", behindOther+","+hostAddr+","+hostInner+",127.0.0.1,192.0.2.254", "9,"+decoy+","+decoyLocal, "forged in the guest")
	forge("192.0.2.2", hostAddr+","+hostInner+",127.0.0.1,127.0.0.2,0.0.0.0,255.255.255.255,10.66.0.255,10.67.0.255,192.0.2.1,192.0.2.254", decoy+","+decoyLocal, "forged in the guest")
	heard = outer.saw("forged in the guest") || decoys.saw("forged in the guest") || local.saw("forged in the guest")
	s.attempt(t, a.root.name, "from 6 sources to 5 addresses, to 10 of the host's", "nothing arrives", fmt.Sprint("arrived: ", heard), !heard)
}

// attackEgress is what root in a VM tries that may reach one name and port only.
func (s *scene) attackEgress(t *testing.T, l lan, outer *service) {
	s.section(`Root in a VM with egress = ["allowed.test:80"]`)
	v := s.up(t, l.host, "narrow", "[network]\negress = [\"allowed.test:80\"]\n")
	s.reads(t, v.root, "what is allowed", "tcp:allowed.test:80", "behind the host")
	for _, p := range []place{v.root, v.container("container")} {
		s.none(t, p, [][2]string{
			{"tcp:allowed.test:81", "another port"},
			{"tcp:denied.test:80", "another name"},
			{"tcp:" + behindOther + ":80", "its address"},
			{"tcp:" + neighbourAddr + ":80", "another address"},
			{"tcp:" + behindOther + ":53", "a DNS server of its own, TCP"},
			{"udp:" + behindOther + ":53", "a DNS server of its own, UDP"},
			{"udp:" + behindOther + ":9", "its address, UDP"},
		}, "-say", "out of the narrow VM")
	}
	for _, tcp := range []bool{false, true} {
		args := []string{"lookup", "-server", "192.0.2.1"}
		over := "UDP"
		if tcp {
			args, over = append(args, "-tcp"), "TCP"
		}
		allowed := s.try(t, v.root, nil, append(slices.Clone(args), "allowed.test")...)
		s.attempt(t, v.root.name, "DNS over "+over+" for allowed.test (control)", behindAddr, fmt.Sprint(allowed), len(allowed) == 1 && allowed[0].Text == behindAddr)
		denied := s.try(t, v.root, nil, append(slices.Clone(args), "denied.test")...)
		s.attempt(t, v.root.name, "DNS over "+over+" for denied.test", "no address", fmt.Sprint(denied), len(denied) == 1 && denied[0].Got != "answer")
	}
	s.none(t, v.root, [][2]string{{"tcp:" + behindOther + ":80", "after the question, its address"}})
	dev, mac := v.gateway(t)
	s.try(t, v.root, nil, "forge", "-dev", dev, "-mac", mac, "-src", "192.0.2.2,192.0.2.77,"+behindAddr+",127.0.0.1", "-dst", behindOther, "-port", "9,53", "-say", "out of the narrow VM")
	heard := outer.saw("out of the narrow VM")
	s.attempt(t, v.root.name, "UDP to what is not allowed, from 4 sources", "nothing arrives", fmt.Sprint("arrived: ", heard), !heard)
	s.attackGrowth(t, v)
}

// attackExposed: what is opened to one neighbour on purpose is found by that one, which
// also shows that the attempts before would have found an open port.
func (s *scene) attackExposed(t *testing.T, l lan, a victim) {
	s.section("A port that its owner opens to one neighbour")
	neighbour := within(l.neighbour).with(s.attacker)
	neighbour.name = "neighbour"
	target := "tcp:" + hostAddr + ":" + portAll
	must(t, a.run.argv("expose", portAll, "--to", neighbourAddr+"/32", "--for", "10m")...)
	s.reads(t, neighbour, "the exposed port", target, "secret of a", "-from", neighbourAddr)
	for _, f := range s.try(t, neighbour, nil, "get", "-from", otherNeighbour, target) {
		s.attempt(t, "another neighbour", "the exposed port "+target, "not a byte", f.String(), f.Got != "answer")
	}
	s.none(t, neighbour, [][2]string{{"tcp:" + hostAddr + ":" + portAny, "another port"}}, "-from", neighbourAddr)
	report := s.audit(t, s.asUser(l.host))
	exposed := 0
	for _, v := range report.Listeners {
		if v.Verdict == audit.Exposed {
			exposed++
		}
	}
	s.attempt(t, "devvm audit", "the exposed port", "pass, and named", fmt.Sprintf("pass: %v, exposed: %d", report.Pass, exposed), report.Pass && exposed > 0)
	must(t, a.run.argv("expose", "--stop")...)
	s.none(t, neighbour, [][2]string{{target, "after expose --stop,"}}, "-from", neighbourAddr)
}

// attackAudit: the host is as it was before devvm.
func (s *scene) attackAudit(t *testing.T, l lan, before string) {
	s.section("The host, compared with what it was before devvm")
	for _, c := range []struct {
		who  string
		p    place
		args []string
	}{
		{"devvm audit as root", s.asRoot(l.host), []string{"--since", before}},
		{"devvm audit as its user", s.asUser(l.host), nil},
	} {
		r := s.audit(t, c.p, c.args...)
		same, changes := "", 0
		if r.Host != nil {
			same, changes = strings.Join(r.Host.Same, ", "), len(r.Host.Changes)
		}
		kinds := map[string]int{}
		for _, p := range r.Processes {
			kinds[p.Kind]++
		}
		s.attempt(t, c.who, fmt.Sprintf("%d listeners, %d processes", len(r.Listeners), len(r.Processes)), "pass, the host identical", fmt.Sprintf("pass: %v, %d changes; same: %s", r.Pass, changes, same),
			r.Pass && r.Host != nil && changes == 0 && strings.Contains(same, audit.PartRoutes))
		for _, kind := range []string{audit.KindNet, audit.KindSupervisor, audit.KindQEMU} {
			if kinds[kind] < 2 {
				t.Errorf("%s: it found %d processes of the kind %s, and there are two projects: %v", c.who, kinds[kind], kind, slices.Sorted(maps.Keys(kinds)))
			}
		}
		for _, f := range r.Findings {
			if f.Status == audit.Fail {
				t.Errorf("%s: %+v", c.who, f)
			}
		}
	}
}
