package audit

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestRulesOfBothBackends(t *testing.T) {
	golden(t, "nft.golden", strings.Join(nftLines(read(t, "nft.txt")), "\n")+"\n")
	golden(t, "legacy.golden", strings.Join(legacyLines(read(t, "legacy.txt")), "\n")+"\n")
}

// TestLargeSet: a block list has many addresses, and each line must be looked at only once.
func TestLargeSet(t *testing.T) {
	var b strings.Builder
	b.WriteString("table ip x {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.0,\n")
	for range 200_000 {
		b.WriteString("\t\t\t     10.1.2.3, 10.1.2.4,\n")
	}
	b.WriteString("\t\t\t     10.9.9.9 }\n\t}\n}\n")
	start := time.Now()
	lines := nftLines(b.String())
	if len(lines) != 4 || !strings.HasSuffix(lines[3], "10.9.9.9 }") {
		t.Errorf("%d lines", len(lines))
	}
	if took := time.Since(start); took > time.Minute { // a tenth of a second, alone
		t.Errorf("it took %v", took)
	}
}

func FuzzNftLines(f *testing.F) {
	f.Add("table ip x {\n\tset s {\n\t\telements = { 1,\n 2 }\n\t}\n}\n")
	f.Add("}\n}\n{{{")
	f.Fuzz(func(t *testing.T, text string) {
		lines := nftLines(text)
		// A plain policy must yield a line.
		if len(lines) == 0 && strings.Contains(text, "policy drop") && !strings.ContainsAny(text, "#\"{}\r") {
			t.Errorf("%q is taken for no rule", text)
		}
	})
}

func TestParseSockets(t *testing.T) {
	const tcp = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000000000000000 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0000000000000000 100 0 0 10 0
   2: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1000        0 13 1 0000000000000000 100 0 0 10 0
   3: garbage
`
	const tcp6 = `   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4712 1 x
   1: 0000000000000000FFFF00000100007F:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4713 1 x
`
	got := append(parseSockets(tcp, "tcp", "0A"), parseSockets(tcp6, "tcp", "0A")...)
	want := []entry{
		{"tcp", netip.MustParseAddrPort("127.0.0.1:8080"), 4711, 1000},
		{"tcp", netip.MustParseAddrPort("0.0.0.0:22"), 12, 0},
		{"tcp", netip.MustParseAddrPort("[::1]:8080"), 4712, 1000},
		{"tcp", netip.MustParseAddrPort("127.0.0.1:8081"), 4713, 1000},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(entry{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 x")
	f.Add("0000000000000000: 00000002 00000000 00010000 0001 01 21573 @abstract\x00\n")
	f.Fuzz(func(_ *testing.T, text string) {
		parseSockets(text, "tcp", "0A")
		parseUnix(text)
		parsePackets(text)
		legacyLines(text)
	})
}

func TestParseUnix(t *testing.T) {
	const table = `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 21573 /run/user/1000/devvm/a b/docker.sock
0000000000000000: 00000003 00000000 00000000 0001 03 21574 /run/user/1000/devvm/a b/docker.sock
0000000000000000: 00000002 00000000 00010000 0001 01 21575 @abstract
0000000000000000: 00000002 00000000 00000000 0002 01 21576 /run/log
0000000000000000: 00000003 00000000 00000000 0001 03 21577
`
	want := []unixSocket{{"/run/user/1000/devvm/a b/docker.sock", 21573}, {"@abstract", 21575}, {"/run/log", 21576}}
	if diff := cmp.Diff(want, parseUnix(table), cmp.AllowUnexported(unixSocket{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestFoundInTheKernel: a listener of this process is found, whichever way the runtime makes it
// (net.Listen makes Multipath TCP sockets).
func TestFoundInTheKernel(t *testing.T) {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	connected, err := net.Dial("udp", u.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	abstract, err := net.Listen("unix", "@devvm-audit-test-"+strconv.Itoa(os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()

	h := System()
	self := Process{PID: os.Getpid(), Kind: KindSupervisor, UID: os.Getuid()}
	s := processSockets(h, []Process{self})
	var r Report
	f := listeners(t.Context(), &r, h, s, Options{})
	got := map[string]string{}
	for _, l := range r.Listeners {
		got[l.String()] = l.Verdict
	}
	want := map[string]string{"tcp " + l.Addr().String(): Open, "udp " + u.LocalAddr().String(): Loopback}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if f.Status != Fail || len(f.Details) != 1 {
		t.Errorf("a listener on all addresses: %+v", f)
	}
	if f := unixSockets(h, s, Dirs{}); f.Status != Fail || len(f.Details) != 1 || !strings.Contains(f.Details[0], "@devvm-audit-test") {
		t.Errorf("an abstract socket: %+v", f)
	}
}

func TestJudge(t *testing.T) {
	until := time.Date(2026, 11, 24, 12, 0, 0, 0, time.Local)
	exposures := []Exposure{
		{Project: "app", Proto: "tcp", Port: 8080, To: "192.168.1.0/24", Until: until},
		{Project: "app", Port: 53, To: "192.168.1.0/24", Until: until},
		{Project: "app", Port: 99, To: "192.168.1.0/24", Until: until.Add(-2 * time.Minute)},
	}
	for _, c := range []struct {
		address, proto string
		p              Process
		want           string
	}{
		{"127.0.0.1:8080", "tcp", Process{Project: "app"}, Loopback},
		{"127.64.3.2:5432", "tcp", Process{Project: "app"}, Loopback},
		{"[::1]:8080", "udp", Process{Project: "app"}, Loopback},
		{"0.0.0.0:8080", "tcp", Process{Project: "app"}, Exposed},
		{"192.168.1.7:8080", "tcp", Process{Project: "app"}, Exposed},
		{"0.0.0.0:8080", "udp", Process{Project: "app"}, Open},
		{"0.0.0.0:8081", "tcp", Process{Project: "app"}, Open},
		{"0.0.0.0:53", "udp", Process{Project: "app"}, Exposed},
		{"0.0.0.0:53", "raw", Process{Project: "app"}, Open},
		{"0.0.0.0:99", "tcp", Process{Project: "app"}, Open},
		{"0.0.0.0:8080", "tcp", Process{Project: "other"}, Open},
		{"[::]:80", "tcp", Process{Kind: KindQEMU}, Open},
		{"[fe80::1]:80", "tcp", Process{}, Open},
		{"192.168.1.7:16509", "tcp", Process{Kind: KindLibvirt, UID: 0}, Libvirt},
		{"192.168.1.7:16509", "tcp", Process{Kind: KindLibvirt, UID: 1000}, Open},
		{"[::]:0", "packet", Process{}, Open},
	} {
		a := netip.MustParseAddrPort(c.address)
		got, why := judge(Listener{Proto: c.proto, Address: a.Addr(), Port: a.Port(), Process: c.p}, exposures, until.Add(-time.Minute))
		if got != c.want || got == Open && why == "" {
			t.Errorf("%s %s of %+v: %s (%s), want %s", c.proto, c.address, c.p, got, why, c.want)
		}
	}
}

// fakeHost is a host in a directory.
type fakeHost struct {
	Host
	t *testing.T
}

func newFake(t *testing.T, uid int) *fakeHost {
	f := &fakeHost{t: t, Host: Host{
		Root: t.TempDir(), UID: uid, PID: 1, Exe: "/usr/bin/devvm",
		Exec:    func(context.Context, string, ...string) (string, error) { return "", fs.ErrNotExist },
		Network: func() ([]Part, error) { return nil, errors.New("no network") },
	}}
	f.file("proc/sys/kernel/random/boot_id", "boot-1\n")
	f.link("proc/self/ns/net", "net:[1]")
	f.link("proc/self/ns/user", "user:[1]")
	f.file("proc/self/net/tcp", "")
	f.file("proc/sys/net/ipv4/ip_forward", "0\n")
	return f
}

func (f *fakeHost) file(name, text string) {
	f.t.Helper()
	path := f.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fakeHost) link(name, target string) {
	f.t.Helper()
	path := f.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		f.t.Fatal(err)
	}
}

// process adds a process with sockets.
func (f *fakeHost) process(pid, ppid, uid int, caps string, argv []string, inodes ...int) {
	dir := "proc/" + strconv.Itoa(pid) + "/"
	f.file(dir+"cmdline", strings.Join(argv, "\x00")+"\x00")
	f.file(dir+"stat", strconv.Itoa(pid)+" (odd) name) S "+strconv.Itoa(ppid)+" 0 0\n")
	id := strconv.Itoa(uid)
	f.file(dir+"status", "Name:\tx\nState:\tS (sleeping)\nUid:\t"+id+"\t"+id+"\t"+id+"\t"+id+"\nCapEff:\t"+caps+"\n")
	f.link(dir+"ns/net", "net:[1]")
	f.link(dir+"ns/user", "user:[1]")
	f.file(dir+"net/tcp", f.text("proc/self/net/tcp"))
	if err := os.MkdirAll(f.path(dir+"fd"), 0o755); err != nil {
		f.t.Fatal(err)
	}
	for i, n := range inodes {
		f.link(dir+"fd/"+strconv.Itoa(i), "socket:["+strconv.Itoa(n)+"]")
	}
}

const none = "0000000000000000"

func TestProcesses(t *testing.T) {
	f := newFake(t, 1000)
	f.process(10, 1, 1000, none, []string{"/usr/bin/devvm", "net", "--project-name", "app-1"})
	f.process(11, 1, 1000, none, []string{"devvm", "supervisor", "--project-name", "app-1", "--emulated"})
	f.process(12, 1, 1000, none, []string{"/usr/bin/qemu-system-x86_64", "-name", "guest=devvm-app-1,debug-threads=on"})
	f.process(13, 1, 1000, none, []string{"/usr/bin/qemu-system-x86_64", "-name", "guest=other,debug-threads=on"})
	f.process(14, 1, 1000, none, []string{"/usr/sbin/libvirtd", "--timeout=120"})
	f.process(15, 11, 1000, none, []string{"ssh", "x"})
	f.process(16, 15, 1000, none, []string{"nc"})
	f.process(17, 1, 1001, none, []string{"devvm", "supervisor", "--project-name", "theirs"})
	f.process(18, 1, 1000, none, []string{"vi", "devvm"})
	f.process(19, 1, 1000, "0000000000003000", []string{"/opt/dv", "up"})
	f.link("proc/19/exe", "/usr/bin/devvm")
	f.process(20, 11, 1000, none, []string{"/usr/bin/devvm", "owner", "--project-name", "app-1"})
	got, err := findProcesses(f.Host)
	if err != nil {
		t.Fatal(err)
	}
	want := []Process{
		{PID: 10, Kind: KindNet, Project: "app-1", UID: 1000},
		{PID: 11, Kind: KindSupervisor, Project: "app-1", UID: 1000},
		{PID: 12, Kind: KindQEMU, Project: "app-1", UID: 1000},
		{PID: 14, Kind: KindLibvirt, UID: 1000},
		{PID: 15, Kind: KindChild, Project: "app-1", UID: 1000},
		{PID: 16, Kind: KindChild, Project: "app-1", UID: 1000},
		{PID: 19, Kind: KindCommand, UID: 1000, Privileged: true, Capabilities: "0000000000003000"},
		{PID: 20, Kind: KindOwner, Project: "app-1", UID: 1000},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if f := privileges(f.Host, got); f.Status != Fail || len(f.Details) != 1 {
		t.Errorf("a process with capabilities: %+v", f)
	}
	f.UID = 0
	if all, err := findProcesses(f.Host); err != nil || len(all) != len(want)+1 {
		t.Errorf("root sees %v, %v", all, err)
	}
}

func TestReport(t *testing.T) {
	uid := os.Getuid()
	f := newFake(t, uid)
	f.file("proc/self/net/tcp", "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 7 1 x\n"+
		"   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0        0 8 1 x\n")
	f.process(11, 1, uid, none, []string{"devvm", "supervisor", "--project-name", "app-1"}, 7)
	f.file("data/projects/app-1/lock", "")
	before, err := Take(t.Context(), f.Host)
	if err != nil {
		t.Fatal(err)
	}
	before.Running = 0
	o := Options{Before: &before, When: "then", Dirs: Dirs{Data: "/data", Runtime: []string{"/run/devvm"}}, Dir: func(string) string { return "/home/u/app" }}
	for _, d := range []string{"data/projects/app-1", "data/projects"} {
		if err := os.Chmod(f.path(d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	run := func() (Report, map[string]Finding) {
		t.Helper()
		r, err := Run(t.Context(), f.Host, o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Fatal(err)
		}
		by := map[string]Finding{}
		for _, f := range r.Findings {
			by[f.Name] = f
		}
		return r, by
	}
	r, by := run()
	if !r.Pass || by["host"].Status != OK || by["files"].Status != OK || by["listeners"].Status != OK || by[notCompared].Status != Unknown {
		t.Errorf("a good host: %+v", r)
	}
	if len(r.Listeners) != 1 || r.Listeners[0].Dir != "/home/u/app" || r.Listeners[0].Verdict != Loopback {
		t.Errorf("listeners: %+v", r.Listeners)
	}

	f.file("proc/sys/net/ipv4/ip_forward", "1\n")
	if r, by := run(); uid != 0 && (!r.Pass || by["host"].Status != Note) || uid == 0 && (r.Pass || by["host"].Status != Fail) {
		t.Errorf("ip_forward was switched on: %+v", by["host"])
	}
	f.file("proc/sys/net/ipv4/ip_forward", "0\n")

	f.file("proc/11/net/tcp", "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 7 1 x\n")
	if r, by := run(); r.Pass || by["listeners"].Status != Fail {
		t.Errorf("a listener on all addresses passes: %+v", by["listeners"])
	}
	o.Exposures = func(context.Context) ([]Exposure, error) {
		return []Exposure{{Project: "app-1", Proto: "tcp", Port: 8080, Until: time.Now().Add(time.Hour)}}, nil
	}
	if r, by := run(); !r.Pass || by["listeners"].Status != OK {
		t.Errorf("an exposed port fails: %+v", by["listeners"])
	}
	o.Exposures = func(context.Context) ([]Exposure, error) { return nil, errors.New("who knows") }
	if r, by := run(); r.Pass || by["listeners"].Status != Fail {
		t.Errorf("an unknown list of exposures passes: %+v", by["listeners"])
	}
	o.Exposures = nil

	f.file("proc/11/net/tcp", "")
	if err := os.Chmod(f.path("data/projects/app-1/lock"), 0o644); err != nil {
		t.Fatal(err)
	}
	if r, by := run(); r.Pass || by["files"].Status != Fail || len(by["files"].Details) != 1 {
		t.Errorf("a file that others can read passes: %+v", by["files"])
	}
	o.Before = nil
	if r, by := run(); by["host"].Status != Unknown || r.Host != nil {
		t.Errorf("nothing to compare with: %+v", by["host"])
	}
}

func TestFiles(t *testing.T) {
	for _, c := range []struct {
		path   string
		mode   fs.FileMode
		shared bool
		bad    bool
	}{
		{"projects/a/vm/keys/id_ed25519", 0o600, false, false},
		{"projects/a/vm/keys/id_ed25519", 0o640, false, true},
		{"projects/a/vm/keys/", 0o711, true, true},
		{"projects/a/vm/credentials/", 0o711, true, false},
		{"projects/a/vm/credentials/", 0o711, false, true},
		{"projects/a/log/net.log", 0o644, false, true},
		{"projects/a/", 0o711, false, false},
		{"projects/a/new/", 0o711, true, true},
		{"images/x/disk.qcow2", 0o444, false, false},
		{"images/x/disk.qcow2", 0o666, false, true},
		{"templates/", 0o777, false, true},
		{"host.json", 0o644, false, true},
		{"projects/a/vm/program", 0o4700, false, true},
	} {
		f := newFake(t, os.Getuid())
		dir, isDir := strings.CutSuffix(c.path, "/")
		if isDir {
			if err := os.MkdirAll(f.path("data", dir), 0o700); err != nil {
				t.Fatal(err)
			}
		} else {
			f.file("data/"+dir, "")
		}
		for up := filepath.Dir("data/" + dir); up != "."; up = filepath.Dir(up) {
			if err := os.Chmod(f.path(up), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		mode := c.mode.Perm()
		if c.mode&0o4000 != 0 {
			mode |= fs.ModeSetuid
		}
		if err := os.Chmod(f.path("data", dir), mode); err != nil {
			t.Fatal(err)
		}
		got := files(f.Host, Dirs{Data: "/data", Shared: c.shared})
		if (got.Status == Fail) != c.bad {
			t.Errorf("%s with mode %04o, shared %v: %+v", c.path, c.mode, c.shared, got)
		}
	}
}

// TestQEMUsFiles lists the files that libvirt gives to QEMU's user. That is allowed only if
// QEMU runs as its own user.
func TestQEMUsFiles(t *testing.T) {
	for path, want := range map[string]bool{
		"images/x/kernel":                    true,
		"images/x/initrd":                    true,
		"images/x/disk.qcow2":                false,
		"images/kernel":                      false,
		"templates/x/disk.qcow2":             false,
		"projects/a/vm/disk.qcow2":           true,
		"projects/a/vm/credentials/host_key": true,
		"projects/a/vm/keys/id_ed25519":      false,
		"projects/a/lock":                    false,
	} {
		if got := dataRule(path, true).qemu; got != want {
			t.Errorf("%s may be QEMU's: %v, not %v", path, got, want)
		}
		if dataRule(path, false).qemu {
			t.Errorf("%s may be QEMU's though that has no user", path)
		}
	}
}

func TestParents(t *testing.T) {
	f := newFake(t, os.Getuid())
	f.file("open/home/data/images/x", "")
	for _, c := range []struct {
		mode fs.FileMode
		want Status
	}{{0o755, OK}, {0o777, Fail}, {0o777 | fs.ModeSticky, OK}} {
		if err := os.Chmod(f.path("open"), c.mode); err != nil {
			t.Fatal(err)
		}
		if got := files(f.Host, Dirs{Data: "/open/home/data"}); got.Status != c.want {
			t.Errorf("mode %v: %+v", c.mode, got)
		}
		if got := files(f.Host, Dirs{Data: "/open/none"}); got.Status != OK {
			t.Errorf("mode %v: nothing is there to replace: %+v", c.mode, got)
		}
	}
}

func TestReachable(t *testing.T) {
	f := newFake(t, os.Getuid())
	f.file("run/a/x.sock", "")
	for _, c := range []struct {
		dir, sock fs.FileMode
		want      bool
	}{{0o700, 0o666, false}, {0o711, 0o600, false}, {0o711, 0o666, true}, {0o755, 0o755, false}, {0o710, 0o660, true}} {
		if err := errors.Join(os.Chmod(f.path("run/a"), c.dir), os.Chmod(f.path("run/a/x.sock"), c.sock), os.Chmod(f.Root, 0o755)); err != nil {
			t.Fatal(err)
		}
		if got := reachable(f.Host, "/run/a/x.sock", accounts{}, os.Getuid()); (got != "") != c.want {
			t.Errorf("directory %04o, socket %04o: %q", c.dir, c.sock, got)
		}
	}
}

// A socket counts under its current name, which may differ from the one it was bound to.
func TestRenamedSocket(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "dv") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "~ocker.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	path := filepath.Join(dir, "docker.sock")
	if err := errors.Join(os.Rename(filepath.Join(dir, "~ocker.sock"), path), os.Chmod(dir, 0o711)); err != nil {
		t.Fatal(err)
	}
	h := System()
	s := processSockets(h, []Process{{PID: os.Getpid(), Kind: KindSupervisor, UID: os.Getuid()}})
	for mode, want := range map[fs.FileMode]Status{0o666: Fail, 0o600: OK} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		f := unixSockets(h, s, Dirs{Runtime: []string{dir}})
		if f.Status != want || want == OK && !strings.HasPrefix(f.What, "1 socket,") || want == Fail && !strings.Contains(strings.Join(f.Details, "\n"), path) {
			t.Errorf("mode %04o: %+v", mode, f)
		}
	}
}

// A group admits nobody if it has no other members, like a user's own group.
func TestReachableByGroup(t *testing.T) {
	f := newFake(t, os.Getuid())
	f.file("run/a/x.sock", "")
	if err := errors.Join(os.Chmod(f.Root, 0o755), os.Chmod(f.path("run/a"), 0o750), os.Chmod(f.path("run/a/x.sock"), 0o775)); err != nil {
		t.Fatal(err)
	}
	passwd := fmt.Sprintf("root:x:0:0::/root:/bin/sh\nme:x:%d:%d::/:/bin/sh\n", os.Getuid(), os.Getgid())
	own := fmt.Sprintf("me:x:%d:\n", os.Getgid())
	for name, c := range map[string]struct {
		passwd, group, nsswitch string
		want                    bool
	}{
		"mine alone":       {passwd, own, "passwd: files systemd\ngroup: files [SUCCESS=merge] systemd\nhosts: files dns\n", false},
		"mine, of many":    {passwd, own, "passwd: files sss\n", false},
		"of many":          {passwd, fmt.Sprintf("users:x:%d:\n", os.Getgid()), "# no:\npasswd: files\ngroup: files ldap # more\n", true},
		"of few":           {passwd, fmt.Sprintf("users:x:%d:\n", os.Getgid()), "passwd: files\n", false},
		"with a member":    {passwd, fmt.Sprintf("me:x:%d:me,mallory\n", os.Getgid()), "", true},
		"as their first":   {passwd + fmt.Sprintf("mallory:x:1234:%d::/:/bin/sh\n", os.Getgid()), own, "", true},
		"of another place": {passwd, "staff:x:4000000:\n", "", true},
		"not readable":     {"", own, "", true},
	} {
		f.file("etc/passwd", c.passwd)
		f.file("etc/group", c.group)
		f.file("etc/nsswitch.conf", c.nsswitch)
		if got := reachable(f.Host, "/run/a/x.sock", readAccounts(f.Host), os.Getuid()); (got != "") != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestOpen tests who can reach a socket, with owners and groups that a test cannot make: root's
// VMs have a separate user and group for QEMU.
func TestOpen(t *testing.T) {
	const root, qemu, me, mallory, eve = 0, 64055, 1000, 1001, 1002
	who := parseAccounts(`root:x:0:0:root:/root:/bin/bash
qemu:x:64055:64055::/:/usr/sbin/nologin
me:x:1000:1000::/home/me:/bin/sh
mallory:x:1001:1001::/home/mallory:/bin/sh
eve:x:1002:50::/home/eve:/bin/sh
# nobody:x:
+::::::`, `root:x:0:
qemu:x:64055:me
me:x:1000:
mallory:x:1001:
users:x:50:me
lab:x:51:me,eve
others:x:52:mallory,of-another-host`, false)
	public := access{mode: fs.ModeDir | 0o755}
	for name, c := range map[string]struct {
		way  []access
		uid  int
		want bool
	}{
		"root's QEMU":                     {[]access{{mode: 0o775}, {mode: 0o750, uid: qemu, gid: qemu}, public}, qemu, false},
		"root's QEMU, of another user":    {[]access{{mode: 0o777}, {mode: 0o770, uid: mallory, gid: root}, public}, qemu, true},
		"root's group, which is root":     {[]access{{mode: 0o660}, {mode: 0o750}, public}, root, false},
		"a group":                         {[]access{{mode: 0o660, uid: me, gid: 50}, {mode: 0o710, uid: me, gid: 50}, public}, me, true},
		"a group, not to write":           {[]access{{mode: 0o640, uid: me, gid: 50}, {mode: 0o710, uid: me, gid: 50}, public}, me, false},
		"two groups":                      {[]access{{mode: 0o660, uid: me, gid: 50}, {mode: 0o710, uid: me, gid: 51}, public}, me, true},
		"two groups of different people":  {[]access{{mode: 0o660, uid: me, gid: 50}, {mode: 0o710, uid: me, gid: 52}, public}, me, false},
		"a group, and everybody":          {[]access{{mode: 0o660, uid: me, gid: 50}, {mode: 0o711, uid: me, gid: me}, public}, me, true},
		"a group of one's own":            {[]access{{mode: 0o775, uid: me, gid: me}, {mode: 0o755, uid: me, gid: me}, public}, me, false},
		"a group of one's own, another's": {[]access{{mode: 0o775, uid: me, gid: me}, {mode: 0o755, uid: me, gid: me}, public}, mallory, true},
		"a member who is not known":       {[]access{{mode: 0o660, uid: mallory, gid: 52}, {mode: 0o755, uid: me, gid: me}, public}, mallory, true},
		"a group that is not known":       {[]access{{mode: 0o660, uid: me, gid: -1}, {mode: 0o711, uid: me, gid: -1}, public}, me, true},
		"everybody":                       {[]access{{mode: 0o666, uid: me, gid: me}, {mode: 0o711, uid: me, gid: me}, public}, me, true},
		"mine by two groups":              {[]access{{mode: 0o660, uid: me, gid: 50}, {mode: 0o750, uid: me, gid: 51}, public}, eve, true},
		"only an owner":                   {[]access{{mode: 0o660, uid: me, gid: me}, {mode: 0o750, uid: me, gid: me}, {mode: fs.ModeDir | 0o755, uid: mallory, gid: mallory}}, me, false},
		"my own":                          {[]access{{mode: 0o666, uid: me, gid: me}, {mode: 0o700, uid: me, gid: me}, public}, me, false},
		"in another user's directory":     {[]access{{mode: 0o666, uid: me, gid: me}, {mode: 0o700, uid: mallory, gid: mallory}, public}, me, true},
		"in a directory of an unknown":    {[]access{{mode: 0o666, uid: me, gid: me}, {mode: 0o700, uid: 4000, gid: me}, public}, me, true},
		"another user's, in mine":         {[]access{{mode: 0o600, uid: mallory, gid: mallory}, {mode: 0o700, uid: me, gid: me}, public}, me, false},
		"another user's, in a public one": {[]access{{mode: 0o600, uid: mallory, gid: mallory}, public}, me, true},
		"users by name":                   {[]access{{mode: 0o770, acl: true}, {mode: 0o711}, public}, root, true},
		"users by name, in mine":          {[]access{{mode: 0o770, acl: true}, {mode: 0o700}, public}, root, false},
		"users by name in both":           {[]access{{mode: 0o660, uid: me, gid: 50, acl: true}, {mode: 0o710, uid: me, gid: 51, acl: true}, public}, me, true},
	} {
		if got := who.open(c.way, c.uid); got != c.want {
			t.Errorf("%s: %v, not %v", name, got, c.want)
		}
	}
}

// An ACL on a socket shows only in the group's bits.
func TestReachableByACL(t *testing.T) {
	f := newFake(t, os.Getuid())
	f.file("run/a/x.sock", "")
	acl := []byte{2, 0, 0, 0} // version, then tag, permissions and id of each entry (xattr(7), linux/posix_acl_xattr.h)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 6, ^uint32(0)}, {0x02, 6, 1234}, {0x04, 0, ^uint32(0)}, {0x10, 6, ^uint32(0)}, {0x20, 0, ^uint32(0)}} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.perm)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	if err := errors.Join(os.Chmod(f.Root, 0o755), os.Chmod(f.path("run/a"), 0o711), os.Chmod(f.path("run/a/x.sock"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if got := reachable(f.Host, "/run/a/x.sock", accounts{}, os.Getuid()); got != "" {
		t.Errorf("before: %q", got)
	}
	if err := unix.Setxattr(f.path("run/a/x.sock"), "system.posix_acl_access", acl, 0); errors.Is(err, unix.ENOTSUP) {
		t.Skip("this file system has no lists of users")
	} else if err != nil {
		t.Fatal(err)
	}
	if got := reachable(f.Host, "/run/a/x.sock", accounts{}, os.Getuid()); got == "" {
		t.Error("a user who is named on the socket is not seen")
	}
}

func TestSaveAndLoad(t *testing.T) {
	f := newFake(t, 0)
	path := filepath.Join(t.TempDir(), "host.json")
	if err := Remember(t.Context(), f.Host, path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	first, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	f.file("proc/sys/net/ipv4/ip_forward", "1\n")
	if err := Remember(t.Context(), f.Host, path); err != nil {
		t.Fatal(err)
	}
	again, err := Load(path)
	if diff := cmp.Diff(first, again); err != nil || diff != "" {
		t.Errorf("the fingerprint of this boot was replaced: %v\n%s", err, diff)
	}
	f.file("proc/sys/kernel/random/boot_id", "boot-2\n")
	if err := Remember(t.Context(), f.Host, path); err != nil {
		t.Fatal(err)
	}
	if next, err := Load(path); err != nil || next.Boot != "boot-2" {
		t.Errorf("after a reboot: %+v, %v", next, err)
	}
	for _, text := range []string{"", "{}", "null"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path); err == nil {
			t.Errorf("%q is taken for a fingerprint", text)
		}
	}
}
