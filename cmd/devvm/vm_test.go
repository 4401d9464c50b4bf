//go:build vmtest

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/devvm/devvm/pkg/state"
)

// TestVM runs the scripts in testdata/vm against real VMs. .ci/vmtest gives it a home, an image
// store and the program, and says which of the tests run where: see there. Tests that say
// t.Parallel run side by side, after those that need the host for themselves.
func TestVM(t *testing.T) {
	t.Parallel()
	scripts := []string{"fork"}
	if !testing.Short() { // the pass as root is what differs there
		scripts = append(scripts, "docker", "egress", "nuke", "ports")
	}
	runVMScripts(t, scripts...)
}

// TestVMHost compares what listens on this host before and after: it runs alone. Root compares
// more, because nobody else may read the firewall.
func TestVMHost(t *testing.T) {
	runVMScripts(t, "host")
}

// TestVMKilled kills libvirt's daemon, which all scripts of a pass share, and as root the
// system's: it runs alone, and not as root.
func TestVMKilled(t *testing.T) {
	runVMScripts(t, "killed")
}

// TestVMEight keeps both cores and the memory busy: it runs alone.
func TestVMEight(t *testing.T) {
	runVMScripts(t, "eight")
}

// TestVMShare is the project's directory in the VM. It measures how soon the VM hears of a
// change: it runs alone.
func TestVMShare(t *testing.T) {
	runVMScripts(t, "share")
}

// TestVMGuard is what the VM does not have of the host's files.
func TestVMGuard(t *testing.T) {
	t.Parallel()
	runVMScripts(t, "guard")
}

// TestVMCopy is devvm cp, and where commands start.
func TestVMCopy(t *testing.T) {
	t.Parallel()
	runVMScripts(t, "cp")
}

// TestVMFiles is how file systems behave, the project's directory in the VM beside the
// VM's own: what differs is listed in the script.
func TestVMFiles(t *testing.T) {
	t.Parallel()
	runVMScripts(t, "files")
}

// TestVMMemory is a VM that runs out of memory, TestVMFull one whose disk is full.
func TestVMMemory(t *testing.T) {
	runVMScripts(t, "memory")
}

func TestVMFull(t *testing.T) {
	runVMScripts(t, "full")
}

// TestVMExamples runs the demos of examples/ as they are.
func TestVMExamples(t *testing.T) {
	t.Parallel()
	runVMScripts(t, "example-offline", "example-web")
}

// TestVMExamplesFromDebian runs the demos that install packages in the VM, which takes
// minutes under emulation.
func TestVMExamplesFromDebian(t *testing.T) {
	t.Parallel()
	runVMScripts(t, "example-compose", "example-provision")
}

// TestVMLong is what takes too long to be run each time: ports in full numbers, and what
// clients do with terminals.
func TestVMLong(t *testing.T) {
	if os.Getenv("DEVVM_TEST_LONG") == "" {
		t.Skip("takes long: DEVVM_TEST_LONG=1 make vmtest VMTEST_RUN=TestVMLong")
	}
	runVMScripts(t, "long")
}

// TestVMTogether is what host and VM make of files that both are at: what a request sees
// of 1,000 changes that came before it, and what is lost of a log that both append to.
func TestVMTogether(t *testing.T) {
	if os.Getenv("DEVVM_TEST_LONG") == "" {
		t.Skip("takes long: DEVVM_TEST_LONG=1 make vmtest VMTEST_RUN=TestVMTogether")
	}
	runVMScripts(t, "together")
}

func runVMScripts(t *testing.T, scripts ...string) {
	t.Helper()
	params := testscript.Params{
		RequireExplicitExec: true,
		Setup:               setUpVM,
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Getuid() == 0, nil
			case "long":
				return os.Getenv("DEVVM_TEST_LONG") != "", nil
			case "outside":
				return os.Getenv("DEVVM_TEST_OUTSIDE") != "", nil
			case "outside6":
				return os.Getenv("DEVVM_TEST_OUTSIDE6") != "", nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code":        cmdCode,
			"eventually":  cmdEventually,
			"slay":        cmdSlayVM,
			"client":      cmdClient,
			"clients":     cmdClients,
			"context":     cmdContext,
			"box":         cmdBox,
			"serve":       cmdServe,
			"fingerprint": cmdFingerprint,
			"traceless":   cmdTraceless,
			"confined":    cmdConfined,
		},
	}
	maps.Copy(params.Cmds, portCommands)
	maps.Copy(params.Cmds, shareCommands)
	for _, name := range scripts {
		params.Files = append(params.Files, filepath.Join("testdata", "vm", name+".txtar"))
	}
	testscript.Run(t, params)
}

// setUpVM gives a script the directories of the pass, which all scripts share,
// and projects of its own in its work directory.
func setUpVM(e *testscript.Env) error {
	binary, images := os.Getenv("DEVVM_TEST_BINARY"), os.Getenv("DEVVM_TEST_IMAGES")
	if binary == "" || images == "" {
		return fmt.Errorf("run this by make vmtest, which sets DEVVM_TEST_BINARY and DEVVM_TEST_IMAGES")
	}
	bin := filepath.Join(e.WorkDir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	if err := os.Symlink(binary, filepath.Join(bin, "devvm")); err != nil {
		return err
	}
	for _, name := range []string{"HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "DEVVM_LIBVIRT_URI", "DEVVM_TEST_OUTSIDE", "DEVVM_TEST_TIME", "DEVVM_TEST_FILES"} {
		e.Setenv(name, os.Getenv(name))
	}
	if host, port, err := net.SplitHostPort(os.Getenv("DEVVM_TEST_OUTSIDE")); err == nil {
		e.Setenv("OUTSIDE_HOST", host)
		e.Setenv("OUTSIDE_PORT", port)
	}
	if host, _, err := net.SplitHostPort(os.Getenv("DEVVM_TEST_OUTSIDE6")); err == nil {
		e.Setenv("OUTSIDE6_HOST", host)
	}
	e.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	e.Setenv("DOCKER_CONFIG", filepath.Join(e.WorkDir, "docker"))
	e.Setenv("TERM", "dumb")
	e.Setenv("FSCHECK", os.Getenv("DEVVM_TEST_FSCHECK"))
	e.Setenv("EXAMPLES", os.Getenv("DEVVM_TEST_EXAMPLES"))
	store := filepath.Join(os.Getenv("XDG_DATA_HOME"), "devvm", "images")
	if err := shareImages(images, store); err != nil {
		return err
	}
	dirs := []string{filepath.Join(e.WorkDir, "app"), filepath.Join(e.WorkDir, "other", "app")}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	e.Cd = dirs[0]
	e.Defer(func() {
		more, _ := filepath.Glob(filepath.Join(e.WorkDir, "p[0-9]"))
		for _, dir := range append(dirs, more...) {
			if e.T().(interface{ Failed() bool }).Failed() {
				showLogs(e.T(), binary, dir)
			}
			cmd := exec.Command(binary, "-C", dir, "rm", "--yes")
			if out, err := cmd.CombinedOutput(); err != nil && !bytes.Contains(out, []byte("no VM")) {
				fmt.Fprintf(os.Stderr, "remove %s: %v\n%s", dir, err, out)
			}
		}
	})
	return nil
}

// showLogs logs what a VM and its processes have said, before it is removed.
func showLogs(t testscript.T, binary, dir string) {
	for _, log := range []string{"--console", "--supervisor", "--network"} {
		out, err := exec.Command(binary, "-C", dir, "logs", log, "--tail=100").CombinedOutput()
		if err == nil { // else there is none
			t.Log(fmt.Sprintf("%s: logs %s:\n%s", dir, log, out))
		}
	}
}

// shareImages puts the images of another store into this one, if it is
// another: QEMU's user must be able to read them.
func shareImages(from, to string) error {
	if from == to {
		return nil
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		path := filepath.Join(to, entry.Name())
		if _, err := os.Stat(path); err == nil || !entry.IsDir() || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		tmp, err := os.MkdirTemp(to, "."+entry.Name()) // scripts run at the same time
		if err != nil {
			return err
		}
		if out, err := exec.Command("cp", "-a", "-T", filepath.Join(from, entry.Name()), tmp).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if err := os.Rename(tmp, path); err != nil {
			_ = os.RemoveAll(tmp) // another script was quicker
		}
	}
	return nil
}

// cmdClient: client makes docker, with compose and buildx, work on this host against the
// VM of the current directory: the host's own client, else the VM's.
func cmdClient(ts *testscript.TestScript, _ bool, _ []string) {
	plugins := filepath.Join(ts.Getenv("DOCKER_CONFIG"), "cli-plugins")
	ts.Check(os.MkdirAll(plugins, 0o755))
	ts.Check(ts.Exec("devvm", "env", "--json"))
	var vars map[string]string
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &vars))
	for k, v := range vars {
		ts.Setenv(k, v)
	}
	if _, err := exec.LookPath("docker"); err != nil {
		link(ts, "/usr/bin/docker", filepath.Join(ts.Getenv("WORK"), "bin", "docker"))
	}
	for _, plugin := range []string{"docker-compose", "docker-buildx"} {
		link(ts, "/usr/libexec/docker/cli-plugins/"+plugin, filepath.Join(plugins, plugin))
	}
}

// clientPrograms are the VM's programs for this host, which all of a pass's VMs have from one
// image: 160 MB, fetched once.
var clientPrograms struct {
	sync.Mutex
	dir string
}

// link makes a link to the VM's program of that path.
func link(ts *testscript.TestScript, program, to string) {
	clientPrograms.Lock()
	defer clientPrograms.Unlock()
	if clientPrograms.dir == "" { // another run's may be of another image
		dir := filepath.Join(os.Getenv("DEVVM_TEST_DATA"), "client")
		ts.Check(os.RemoveAll(dir))
		ts.Check(os.Mkdir(dir, 0o755))
		clientPrograms.dir = dir
	}
	path := filepath.Join(clientPrograms.dir, filepath.Base(program))
	if _, err := os.Stat(path); err != nil {
		// The shell writes it: a program that this process has open for writing, or a child of
		// it that another script has just forked, cannot be run ("text file busy").
		ts.Check(ts.Exec("sh", "-c", `devvm exec -- cat "$0" >"$1.new" && chmod 755 "$1.new" && mv "$1.new" "$1"`, program, path))
	}
	ts.Check(os.Symlink(path, to))
}

// cmdBox: box makes the image of the containers, the host's static busybox with all of its
// commands. To build it as cmdContext's takes half a minute under emulation.
func cmdBox(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(ts.Exec("sh", "-euc", `
		bin=$WORK/box/bin
		mkdir -p "$bin"
		cp /bin/busybox "$bin/busybox"
		for name in $(busybox --list); do
			[ -e "$bin/$name" ] || ln -s busybox "$bin/$name"
		done
		tar -c --owner=0 --group=0 -C "$WORK/box" bin | docker import - box
		rm -r "$WORK/box"`))
}

// cmdContext: context DIR makes a build context that needs no registry: the
// host's static busybox, from scratch. Scripts that are not about building take box.
func cmdContext(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	busybox, err := os.ReadFile("/bin/busybox")
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, "busybox"), busybox, 0o755))
	ts.Check(os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"/bin\"]\n"), 0o644))
}

// cmdServe: serve VARIABLE runs a web server on all addresses of this host for
// the rest of the script, and sets the variable to its port.
func cmdServe(ts *testscript.TestScript, _ bool, args []string) {
	l, err := net.Listen("tcp", ":0")
	ts.Check(err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "service of the host")
	})}
	go func() { _ = server.Serve(l) }()
	ts.Defer(func() { _ = server.Close() })
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Setenv(args[0], port)
	var addresses []string
	all, err := net.InterfaceAddrs()
	ts.Check(err)
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil {
			addresses = append(addresses, ip.IP.String())
		}
	}
	ts.Setenv("HOST_ADDRESSES", strings.Join(addresses, " "))
}

// fingerprintScript prints what Docker and libvirt would change on a host.
const fingerprintScript = `
ip -o link | sed 's/ qlen.*//'; ip -o addr show | sed 's/ valid_lft.*//'; ip route show table all; ip -6 route show table all; ip rule
sysctl -a 2>/dev/null | grep -E '^net\.(ipv4\.(ip_forward|conf\.)|ipv6\.conf\.|bridge\.|netfilter\.nf_conntrack_max)'
ss -Hlntu | awk '{ print $1, $5 }' | sort
if [ "$(id -u)" = 0 ]; then
	iptables-save | grep -v '^#' | sed 's/\[.*//'; ip6tables-save | grep -v '^#' | sed 's/\[.*//'; nft list ruleset
fi
`

// cmdFingerprint: fingerprint FILE writes the state of the host's network.
func cmdFingerprint(ts *testscript.TestScript, _ bool, args []string) {
	cmd := exec.Command("sh", "-c", fingerprintScript)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.Output()
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), out, 0o600))
}

// vmProcesses returns the pids whose command line has all the words.
func vmProcesses(words ...string) []string {
	var out []string
	dirs, _ := filepath.Glob("/proc/[0-9]*")
next:
	for _, dir := range dirs {
		argv, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue
		}
		line := strings.ReplaceAll(string(argv), "\x00", " ")
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		if line != "" && filepath.Base(dir) != fmt.Sprint(os.Getpid()) {
			out = append(out, filepath.Base(dir))
		}
	}
	return out
}

// projectName is the name of the current directory's project.
func projectName(ts *testscript.TestScript) string {
	p, err := state.New(ts.MkAbs("."))
	ts.Check(err)
	return p.Name
}

// cmdSlayVM: slay net|supervisor|qemu|libvirtd sends SIGKILL to that process
// of the current directory's project (libvirtd: of this user).
func cmdSlayVM(ts *testscript.TestScript, _ bool, args []string) {
	var pids []string
	switch name := projectName(ts); args[0] {
	case "net", "supervisor":
		pids = vmProcesses("devvm "+args[0], name)
	case "qemu":
		pids = vmProcesses("qemu-system", name)
	case "libvirtd":
		out, _ := exec.Command("pgrep", "-u", fmt.Sprint(os.Getuid()), "-f", "libvirtd|virtqemud").Output()
		pids = strings.Fields(string(out))
	default:
		pids = vmProcesses(append([]string{name}, args...)...)
	}
	if len(pids) == 0 {
		ts.Fatalf("no process: %v", args)
	}
	ts.Check(exec.Command("kill", append([]string{"-9"}, pids...)...).Run())
}

// cmdTraceless: traceless fails if anything of the current directory's project
// is left: processes, sockets, files, a domain.
func cmdTraceless(ts *testscript.TestScript, _ bool, _ []string) {
	name := projectName(ts)
	wait(ts, func() error {
		if pids := vmProcesses(name); len(pids) > 0 {
			out, _ := exec.Command("ps", append([]string{"-o", "pid,args", "-p"}, strings.Join(pids, ","))...).Output()
			return fmt.Errorf("left running:\n%s", out)
		}
		return nil
	})
	for _, root := range []string{"XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"} {
		err := filepath.WalkDir(os.Getenv(root), func(path string, d os.DirEntry, err error) error {
			if err == nil && strings.Contains(filepath.Base(path), name) && !strings.HasSuffix(path, ".log") {
				return fmt.Errorf("left behind: %s", path)
			}
			return nil
		})
		ts.Check(err)
	}
}
