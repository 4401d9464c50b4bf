//go:build vmtest

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rogpeppe/go-internal/txtar"
)

// TestVMClients runs Docker clients as they are against docker.sock and against the engine's
// own socket, which OpenSSH forwards. All cases must pass on both, but for those that this machine
// cannot run on either. .ci/clients brings the clients.
func TestVMClients(t *testing.T) {
	if os.Getenv("DEVVM_TEST_CLIENTS") == "" {
		t.Skip("needs the clients: make clients")
	}
	runVMScripts(t, "clients")
}

// patienceCase is what one case of a client may take, under emulation and on a busy machine.
const patienceCase = 10 * time.Minute

// absent is the exit code of a case that cannot run here, for the reason that it printed last.
const absent = 77

// endpoint is a socket that clients are pointed at.
type endpoint struct {
	name   string
	socket string
	// dir is the user's runtime directory for clients: docker.sock in it is a link to the socket.
	dir string
}

// cmdClients: clients runs the cases in testdata/clients, those of the clients that
// DEVVM_TEST_CLIENTS_RUN matches.
func cmdClients(ts *testscript.TestScript, _ bool, _ []string) {
	pick, err := regexp.Compile(os.Getenv("DEVVM_TEST_CLIENTS_RUN"))
	ts.Check(err)
	files, err := filepath.Glob(filepath.Join("testdata", "clients", "*.txtar"))
	ts.Check(err)
	own := endpoint{name: "docker.sock", socket: strings.TrimPrefix(ts.Getenv("DOCKER_HOST"), "unix://"), dir: shortDir(ts)}
	ts.Check(os.Symlink(own.socket, filepath.Join(own.dir, "docker.sock")))
	engine := forwardEngine(ts)
	clientImages(ts)

	var table strings.Builder
	failed, notHere := 0, 0
	for _, file := range files {
		client := strings.TrimSuffix(filepath.Base(file), ".txtar")
		if !pick.MatchString(client) {
			continue
		}
		archive, err := txtar.ParseFile(file)
		ts.Check(err)
		mine, theirs := runClient(ts, own, client, archive), runClient(ts, engine, client, archive)
		for i, c := range mine {
			fmt.Fprintf(&table, "%-18s %-18s %-14s %s\n", client, c.name, c, theirs[i])
			switch {
			case c.code == 0 && theirs[i].code == 0:
			case c.code == absent && theirs[i].code == absent:
				notHere++
			default: // a case that one side leaves out compares nothing
				failed++
			}
		}
	}
	fmt.Fprintf(os.Stderr, "%-18s %-18s %-14s %s\n%s", "client", "case", own.name, engine.name, table.String())
	if notHere > 0 {
		fmt.Fprintf(os.Stderr, "%d not here\n", notHere)
	}
	if failed > 0 {
		ts.Fatalf("%d cases failed", failed)
	}
	if table.Len() == 0 {
		ts.Fatalf("no client is named so")
	}
}

// outcome is what came of a case.
type outcome struct {
	name string
	code int // -1: it did not end by itself
	took time.Duration
}

func (o outcome) String() string {
	switch o.code {
	case 0:
		return fmt.Sprintf("pass %.1fs", o.took.Seconds())
	case absent:
		return "not here"
	}
	return fmt.Sprintf("FAIL %.1fs", o.took.Seconds())
}

// runClient runs the cases of a client, the files *.sh of an archive, in a directory of the
// project that has its other files. What they have made in the VM is removed.
func runClient(ts *testscript.TestScript, at endpoint, client string, archive *txtar.Archive) []outcome {
	dir, home := ts.MkAbs(filepath.Join(at.name, client)), filepath.Join(ts.Getenv("WORK"), "homes", at.name, client)
	ts.Check(errors.Join(os.MkdirAll(dir, 0o755), os.MkdirAll(home, 0o755)))
	tools := os.Getenv("DEVVM_TEST_CLIENTS")
	env := []string{
		"PATH=" + filepath.Join(tools, "bin") + ":" + ts.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + dir, "LANG=C.UTF-8", "TERM=dumb",
		"XDG_RUNTIME_DIR=" + at.dir, "DOCKER_CONFIG=" + ts.Getenv("DOCKER_CONFIG"),
	}
	for _, name := range []string{"TESTCONTAINERS_DOCKER_SOCKET_OVERRIDE", "TESTCONTAINERS_HOST_OVERRIDE"} {
		env = append(env, name+"="+ts.Getenv(name))
	}
	env = append(env, "DOCKER_HOST=unix://"+at.socket)
	missing := ""
	for line := range strings.Lines(string(archive.Comment)) {
		if tool, ok := strings.CutPrefix(strings.TrimSpace(line), "needs "); ok && !hasTool(ts, tools, tool) {
			missing = tool
		}
	}
	var list []outcome
	for _, f := range archive.Files {
		name, isCase := strings.CutSuffix(f.Name, ".sh")
		if !isCase {
			path := filepath.Join(dir, f.Name)
			ts.Check(errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, f.Data, 0o644)))
			continue
		}
		o := outcome{name: name, code: absent}
		if missing == "" {
			o = runCase(ts, name, string(f.Data), dir, env)
		}
		fmt.Fprintf(os.Stderr, "%s: %s/%s: %s\n", at.name, client, name, o)
		list = append(list, o)
	}
	if missing != "" {
		fmt.Fprintf(os.Stderr, "%s is not here\n", missing)
		return list
	}
	cmd := exec.Command("sh", "-c", `
		docker ps -aq | xargs -r docker rm -fv
		docker network prune -f
		docker volume prune -af
		docker images -q built | xargs -r docker rmi -f`)
	cmd.Env = append(env, "DOCKER_HOST="+ts.Getenv("DOCKER_HOST"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		ts.Fatalf("%s: clean: %v\n%s", client, err, out)
	}
	return list
}

func hasTool(ts *testscript.TestScript, tools, name string) bool {
	for _, dir := range append([]string{filepath.Join(tools, "bin")}, filepath.SplitList(ts.Getenv("PATH"))...) {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return true
		}
	}
	return false
}

// runCase runs a case. It shows what that said if it did not pass, else its notes alone.
func runCase(ts *testscript.TestScript, name, script, dir string, env []string) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), patienceCase)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-eu", "-c", fetchFunction+script)
	cmd.Dir, cmd.Env = dir, env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	start := time.Now()
	err := cmd.Run()
	o := outcome{name: name, took: time.Since(start)}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		o.code = cmp.Or(exit.ExitCode(), -1)
	} else if err != nil {
		o.code = -1
	}
	for line := range strings.Lines(out.String()) {
		if o.code != 0 || strings.HasPrefix(line, "note: ") {
			fmt.Fprint(os.Stderr, line)
		}
	}
	return o
}

// fetchFunction asks a published port. One that OpenSSH's engine has just published is open
// when devvm has heard of it.
const fetchFunction = `fetch() { curl -sS --noproxy '*' --retry 20 --retry-delay 1 --retry-all-errors "http://$1/"; }
`

// shortDir is a directory with a path that is short enough for sockets.
func shortDir(ts *testscript.TestScript) string {
	dir, err := os.MkdirTemp("/tmp", "dv")
	ts.Check(err)
	ts.Defer(func() { _ = os.RemoveAll(dir) })
	return dir
}

// forwardEngine lets OpenSSH forward the engine's socket. For the engine, it is at the same
// path, as it is on a machine without VMs.
func forwardEngine(ts *testscript.TestScript) endpoint {
	e := endpoint{name: "engine", dir: shortDir(ts)}
	e.socket = filepath.Join(e.dir, "engine.sock")
	ts.Check(os.Symlink("engine.sock", filepath.Join(e.dir, "docker.sock")))
	ts.Check(ts.Exec("devvm", "exec", "--", "sh", "-c", `mkdir -p "$1" && ln -s /run/docker.sock "$1/engine.sock" && ln -s engine.sock "$1/docker.sock"`, "sh", e.dir))
	ts.Check(ts.Exec("devvm", "ssh", "--config"))
	config := filepath.Join(e.dir, "config")
	ts.Check(os.WriteFile(config, []byte(ts.ReadFile("stdout")), 0o600))
	cmd := exec.Command("ssh", "-F", config, "-nNT", "-o", "ExitOnForwardFailure=yes", "-L", e.socket+":/run/docker.sock", "devvm-"+projectName(ts))
	cmd.Dir = ts.MkAbs(".")
	var said bytes.Buffer
	cmd.Stderr = &said
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	wait(ts, func() error {
		out, err := exec.Command("curl", "-sS", "--unix-socket", e.socket, "http://engine/_ping").CombinedOutput()
		if err != nil || string(out) != "OK" {
			return fmt.Errorf("the engine by ssh -L: %w, %s", err, out)
		}
		return nil
	})
	return e
}

// clientImages makes the images that the cases use: nothing comes from a registry.
func clientImages(ts *testscript.TestScript) {
	dir := ts.MkAbs("box")
	cmdContext(ts, false, []string{"box"})
	ryuk, err := os.ReadFile(filepath.Join(os.Getenv("DEVVM_TEST_CLIENTS"), "bin", "ryuk"))
	ts.Check(err)
	file, err := os.ReadFile(filepath.Join(dir, "Dockerfile"))
	ts.Check(err)
	file = append(file, `COPY ryuk /bin/ryuk
RUN mkdir -p /etc /tmp /root && echo root:x:0:0:root:/root:/bin/sh >/etc/passwd && echo root:x:0: >/etc/group
CMD ["sh"]
`...)
	ts.Check(errors.Join(os.WriteFile(filepath.Join(dir, "ryuk"), ryuk, 0o755), os.WriteFile(filepath.Join(dir, "Dockerfile"), file, 0o644)))
	ts.Check(ts.Exec("docker", "build", "-q", "-t", "box", dir))
	ts.Check(os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM box\nENTRYPOINT [\"ryuk\"]\n"), 0o644))
	ts.Check(ts.Exec("docker", "build", "-q", "-t", "testcontainers/ryuk:0.14.0", dir))
	if hasTool(ts, os.Getenv("DEVVM_TEST_CLIENTS"), "buildkitd") {
		buildkitImage(ts)
	}
	ts.Check(ts.Exec("docker", "version", "--format", "{{json .}}"))
	var version struct{ Client, Server struct{ Version string } }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &version))
	fmt.Fprintf(os.Stderr, "docker: client %s, engine %s\n", version.Client.Version, version.Server.Version)
}

// buildkitImage makes the image of buildx's container driver of BuildKit and the VM's runc.
func buildkitImage(ts *testscript.TestScript) {
	dir := ts.MkAbs("buildkit")
	ts.Check(os.MkdirAll(dir, 0o755))
	for _, name := range []string{"buildkitd", "buildctl"} {
		ts.Check(ts.Exec("cp", filepath.Join(os.Getenv("DEVVM_TEST_CLIENTS"), "bin", name), dir))
	}
	// The VM has the project's directory.
	ts.Check(ts.Exec("devvm", "exec", "--", "sh", "-c", `tar -c -h -f "$1/runc.tar" /usr/sbin/runc $(ldd /usr/sbin/runc | grep -o '/[^ ]*')`, "sh", dir))
	ts.Check(os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(`FROM box
ADD runc.tar /
COPY buildkitd buildctl /usr/bin/
ENTRYPOINT ["buildkitd"]
`), 0o644))
	ts.Check(ts.Exec("docker", "build", "-q", "-t", "moby/buildkit:buildx-stable-1", dir))
}
