//go:build vmtest

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// portsReport is what BenchmarkPorts prints.
type portsReport struct {
	Down   map[string]float64 `json:"from_container_mb_per_s"` // best of three
	Up     map[string]float64 `json:"to_container_mb_per_s"`
	Echo   map[string]float64 `json:"connect_and_echo_ms"` // medians
	Opened float64            `json:"start_to_open_ms"`    // beyond the engine's own answer, median
	Closed float64            `json:"die_to_closed_ms"`    // from the engine's event, median
}

// BenchmarkPorts compares the roads to a container's port in one run: a published port,
// an SSH channel (ssh -L to the port in the VM), and QEMU's own hostfwd to the same
// container in a VM of the same image; and it times opening and closing.
func BenchmarkPorts(b *testing.B) {
	h := newBench(b)
	if err := os.WriteFile(filepath.Join(h.dir, "devvm.toml"), []byte("cpus = 2\nmemory = \"2GiB\"\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	h.must(h.devvm("up"))
	docker := h.portServer()
	const echoAt, sinkAt, sourceAt = 21907, 21909, 21919
	h.must(docker("run", "-d", "--name", "server", "-p", "21907:7", "-p", "21909:9", "-p", "21919:19", "server"))

	roads := map[string][3]string{"published": {local(echoAt), local(sinkAt), local(sourceAt)}}
	h.say("ssh -L")
	roads["ssh -L"] = h.forwardPorts(echoAt, sinkAt, sourceAt)
	h.say("hostfwd: a VM")
	if slirp, err := h.hostfwd(docker); err != nil {
		b.Logf("no comparison with hostfwd: %v", err)
	} else {
		roads["hostfwd"] = slirp
	}
	r := portsReport{Down: map[string]float64{}, Up: map[string]float64{}, Echo: map[string]float64{}}
	const size = 48 << 20
	echo := map[string][]float64{}
	for round := range 3 { // in turn, so that the machine's moods are shared
		for name, at := range roads {
			h.say(name, " ", round+1)
			for range 15 {
				start := time.Now()
				c := h.dial(at[0])
				_, err := c.Write([]byte("x"))
				if err == nil {
					_, err = io.ReadFull(c, make([]byte, 1))
				}
				if err != nil {
					b.Fatal(name, err)
				}
				echo[name] = append(echo[name], ms(time.Since(start)))
				_ = c.Close()
			}
			start := time.Now()
			c := h.dial(at[2])
			if _, err := io.CopyN(io.Discard, c, size); err != nil {
				b.Fatal(name, err)
			}
			_ = c.Close()
			r.Down[name] = max(r.Down[name], size/1e6/time.Since(start).Seconds())

			start = time.Now()
			c = h.dial(at[1])
			_, err := io.CopyN(c, zeroes{}, size)
			if err == nil {
				err = c.(*net.TCPConn).CloseWrite()
			}
			answer, aerr := io.ReadAll(c) // how much has come through
			if err = errors.Join(err, aerr); err != nil || strings.TrimSpace(string(answer)) != strconv.Itoa(size) {
				b.Fatal(name, string(answer), err)
			}
			_ = c.Close()
			r.Up[name] = max(r.Up[name], size/1e6/time.Since(start).Seconds())
		}
	}
	for name, s := range echo {
		r.Echo[name] = median(s)
	}
	h.say("openings")
	h.openings(&r, docker)
	r.print(os.Stdout)
}

// say tells how far the bench is, which takes minutes.
func (h *bench) say(what ...any) {
	fmt.Fprintln(os.Stderr, time.Now().Format(time.TimeOnly), fmt.Sprint(what...))
}

func local(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// dial connects, waiting for a road that is being made.
func (h *bench) dial(address string) net.Conn {
	h.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", address, 10*time.Second)
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(10 * time.Minute))
			return c
		}
		if time.Now().After(deadline) {
			h.Fatal(err)
		}
	}
}

// portServer puts an image of the port server into the VM's engine, and returns how to
// run Docker's client.
func (h *bench) portServer() func(args ...string) *exec.Cmd {
	var vars map[string]string
	if err := json.Unmarshal(h.must(h.devvm("env", "--json")), &vars); err != nil {
		h.Fatal(err)
	}
	client, err := exec.LookPath("docker")
	if err != nil {
		client = filepath.Join(h.dir, "docker")
		if err := os.WriteFile(client, h.must(h.devvm("exec", "--", "cat", "/usr/bin/docker")), 0o700); err != nil {
			h.Fatal(err)
		}
	}
	docker := func(args ...string) *exec.Cmd {
		cmd := exec.Command(client, args...)
		cmd.Env = append(h.env, "DOCKER_HOST="+vars["DOCKER_HOST"], "DOCKER_CONFIG="+h.dir)
		return cmd
	}
	self, err := os.Executable()
	if err != nil {
		h.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(h.dir, "portserver")); err != nil {
		h.Fatal(err)
	}
	tar := exec.Command("tar", "ch", "-C", h.dir, "portserver")
	load := docker("import", "-c", `ENTRYPOINT ["/portserver"]`, "-", "server")
	if load.Stdin, err = tar.StdoutPipe(); err != nil {
		h.Fatal(err)
	}
	if err := tar.Start(); err != nil {
		h.Fatal(err)
	}
	h.must(load)
	if err := tar.Wait(); err != nil {
		h.Fatal(err)
	}
	return docker
}

// forwardPorts runs ssh -L to ports of the VM.
func (h *bench) forwardPorts(list ...int) (at [3]string) {
	config := filepath.Join(h.dir, "ssh_config_ports")
	text := h.must(h.devvm("ssh", "--config"))
	if err := os.WriteFile(config, text, 0o600); err != nil {
		h.Fatal(err)
	}
	host := ""
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Host "); ok {
			host = name
		}
	}
	args := []string{"-F", config, "-N"}
	for i, port := range list {
		at[i] = local(port + 100)
		args = append(args, "-L", fmt.Sprintf("%d:192.0.2.2:%d", port+100, port))
	}
	h.background(exec.Command("ssh", append(args, host)...))
	return at
}

// background runs a command until the end of the bench.
func (h *bench) background(cmd *exec.Cmd) {
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// hostfwd boots a VM of the same image in a QEMU of its own, with QEMU's user network in
// the place of ours, and runs the same container in it.
func (h *bench) hostfwd(docker func(...string) *exec.Cmd) (at [3]string, err error) {
	run := func(cmd *exec.Cmd) ([]byte, error) {
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%v: %w: %s", cmd.Args, err, out)
		}
		return out, err
	}
	var status struct{ Image, Accel, Project string }
	if err := json.Unmarshal(h.must(h.devvm("status", "--json")), &status); err != nil {
		return at, err
	}
	data := filepath.Join(os.Getenv("XDG_DATA_HOME"), "devvm")
	image := filepath.Join(data, "images", status.Image)
	vm := filepath.Join(data, "projects", status.Project, "vm")
	disk := filepath.Join(h.dir, "hostfwd.qcow2")
	if _, err := run(exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", filepath.Join(image, "disk.qcow2"), disk, "20G")); err != nil {
		return at, err
	}
	var manifest struct{ Cmdline string }
	b, err := os.ReadFile(filepath.Join(image, "manifest.json"))
	if err == nil {
		err = json.Unmarshal(b, &manifest)
	}
	if err != nil {
		return at, err
	}
	net := "user,id=n,net=192.0.2.0/24,host=192.0.2.1,dhcpstart=192.0.2.2,hostfwd=tcp:127.0.0.1:22222-192.0.2.2:22"
	for i, port := range []int{21907, 21909, 21919} {
		at[i] = local(port + 200)
		net += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-192.0.2.2:%d", port+200, port)
	}
	args := []string{
		"-machine", "q35,accel=" + status.Accel, "-cpu", "max", "-smp", "2", "-m", "2048", "-display", "none", "-nodefaults",
		"-kernel", filepath.Join(image, "kernel"), "-initrd", filepath.Join(image, "initrd"), "-append", manifest.Cmdline,
		"-serial", "file:" + filepath.Join(h.dir, "hostfwd.log"),
		"-drive", "if=virtio,format=qcow2,file=" + disk,
		"-netdev", net, "-device", "virtio-net-pci,netdev=n,romfile=",
	}
	for _, name := range []string{"devvm.host_key", "devvm.authorized_keys", "devvm.hostname", "system.machine_id"} {
		args = append(args, "-fw_cfg", fmt.Sprintf("name=opt/io.systemd.credentials/%s,file=%s", name, filepath.Join(vm, "credentials", name)))
	}
	h.background(exec.Command("qemu-system-x86_64", args...))
	ssh := func(command string) *exec.Cmd {
		return exec.Command("ssh", "-p", "22222", "-i", filepath.Join(vm, "keys", "id_ed25519"),
			"-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null", "-oLogLevel=ERROR", "-oBatchMode=yes", "root@127.0.0.1", command)
	}
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(time.Second) {
		_, err := run(ssh("docker version"))
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return at, err
		}
	}
	save, load := docker("save", "server"), ssh("docker load")
	if load.Stdin, err = save.StdoutPipe(); err != nil {
		return at, err
	}
	if err := save.Start(); err != nil {
		return at, err
	}
	if _, err := run(load); err != nil {
		return at, err
	}
	if err := save.Wait(); err != nil {
		return at, err
	}
	_, err = run(ssh("docker run -d -p 21907:7 -p 21909:9 -p 21919:19 server"))
	return at, err
}

// openings times how long after the engine's answer to a start a port is open, and how
// long after the event of a container's end it is closed.
func (h *bench) openings(r *portsReport, docker func(...string) *exec.Cmd) {
	h.must(docker("create", "--name", "timed", "-p", "21930:7", "server"))
	var opened, closed []float64
	time.Sleep(6 * time.Second) // what is held for a new container is let go
	for range 7 {
		h.must(docker("start", "timed"))
		start := time.Now()
		for {
			c, err := net.DialTimeout("tcp", local(21930), time.Second)
			if err == nil {
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				_, err = c.Write([]byte("x"))
				if err == nil {
					_, err = io.ReadFull(c, make([]byte, 1))
				}
				_ = c.Close()
			}
			if err == nil {
				break
			}
		}
		opened = append(opened, ms(time.Since(start)))

		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		events := docker("events", "--filter", "event=die", "--format", "{{.Action}}")
		out, err := events.StdoutPipe()
		if err == nil {
			err = events.Start()
		}
		if err != nil {
			h.Fatal(err)
		}
		kill := make(chan struct{})
		go func() {
			defer close(kill)
			time.Sleep(time.Second) // until the events are followed
			h.must(docker("kill", "timed"))
		}()
		if _, err := out.Read(make([]byte, 16)); err != nil {
			h.Fatal(err)
		}
		start = time.Now()
		for ctx.Err() == nil {
			c, err := net.DialTimeout("tcp", local(21930), time.Second)
			if err != nil {
				break
			}
			_ = c.Close()
		}
		closed = append(closed, ms(time.Since(start)))
		cancel()
		<-kill
		_ = events.Process.Kill()
		_ = events.Wait()
	}
	slices.Sort(opened)
	slices.Sort(closed)
	r.Opened, r.Closed = median(opened), median(closed)
}

func (r portsReport) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	names := []string{"published", "ssh -L", "hostfwd"}
	fmt.Fprintf(t, "\na container's port\t%s\n", strings.Join(names, "\t"))
	for _, row := range []struct {
		text   string
		values map[string]float64
	}{
		{"from the container, MB/s (best of 3)", r.Down},
		{"to the container, MB/s (best of 3)", r.Up},
		{"connect and echo a byte, ms (median)", r.Echo},
	} {
		fmt.Fprintf(t, "  %s", row.text)
		for _, name := range names {
			fmt.Fprintf(t, "\t%.1f", row.values[name])
		}
		fmt.Fprintln(t)
	}
	fmt.Fprintf(t, "  from the engine's answer to an open port, ms (median)\t%.0f\t\t\n", r.Opened)
	fmt.Fprintf(t, "  from the container's end to a closed port, ms (median)\t%.0f\t\t\n", r.Closed)
	_ = t.Flush()
	if b, err := json.MarshalIndent(r, "", "  "); err == nil {
		fmt.Fprintf(w, "\n%s\n", b)
	}
}
