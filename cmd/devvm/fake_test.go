package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/devvm/devvm/pkg/disk"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/guest/guesttest"
	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/subnet"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vm/vmtest"
	"github.com/devvm/devvm/pkg/vmnet"
)

// fakeEnv names the directory of the fake hypervisor that the program under
// test uses in place of libvirt.
const fakeEnv = "DEVVM_FAKE_DIR"

// fakeDevvm is devvm with the fake hypervisor. The files are real, and so are
// the network process, the supervisor and all that they do.
func fakeDevvm() int {
	dir := os.Getenv(fakeEnv)
	a := newApp(ui.System(os.Getenv), os.Getenv, func(_ context.Context, _ vm.Options, _ *slog.Logger) (vm.Hypervisor, error) {
		if _, err := os.Stat(filepath.Join(dir, "nolibvirt")); err == nil {
			return nil, fmt.Errorf("no daemon at %s: %w", dir, vm.ErrNoLibvirt)
		}
		return vmtest.NewFake(dir, vmtest.Options{Command: []string{"fakevm", "{spec}"}}), nil
	})
	for name, patience := range map[string]*time.Duration{"kernel": &a.kernel, "halt": &a.halt, "slow": &a.slow, "again": &a.again, "ready": &a.ready} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		if *patience, err = time.ParseDuration(string(b)); err != nil {
			panic(err)
		}
	}
	a.free = func(at string) (int64, error) { // a supervisor in its sandbox can read the configuration
		b, err := os.ReadFile(filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "devvm", "free"))
		if err != nil {
			return file.Free(at)
		}
		return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	}
	a.routes = func() (list []subnet.Route, err error) { // the tests' host may reach anything
		b, err := os.ReadFile(filepath.Join(dir, "routes"))
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return list, errors.Join(err, json.Unmarshal(b, &list))
	}
	return run(os.Args[1:], a)
}

// fakeVM is what runs in QEMU's place: a machine that joins the VM's network,
// with an SSH server and a small engine whose state is beside its disk.
func fakeVM() int {
	if err := bootFakeVM(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "fakevm:", err)
		return 1
	}
	return 0
}

// silent is the connection of a VM that takes nothing from its network for a while.
type silent struct {
	net.Conn
	now func() bool
}

// Read implements [net.Conn].
func (s silent) Read(b []byte) (int, error) {
	for s.now() {
		time.Sleep(10 * time.Millisecond)
	}
	return s.Conn.Read(b)
}

func bootFakeVM(specPath string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	b, err := os.ReadFile(specPath)
	if err != nil {
		return err
	}
	var spec vm.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		return err
	}
	fake := filepath.Dir(filepath.Dir(specPath))
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", spec.NetSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if accel, err := os.ReadFile(filepath.Join(fake, "hang")); err == nil && strings.Contains(string(spec.Accel), string(accel)) { // a guest that never boots
		<-ctx.Done()
		return nil
	}
	console, err := os.OpenFile(spec.Console, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer console.Close()
	fmt.Fprintln(console, "devvm: kernel up")
	flagged := func(name string) bool {
		_, err := os.Stat(filepath.Join(fake, name))
		return err == nil
	}
	guest, err := usernettest.NewGuest(silent{conn, func() bool { return ctx.Err() == nil && flagged("silent") }}, usernettest.Options{})
	if err != nil {
		return err
	}
	defer guest.Close()
	state := filepath.Join(filepath.Dir(spec.Disk), "guest")
	engine, err := guesttest.NewEngine(filepath.Join(state, "engine"))
	if err != nil {
		return err
	}
	defer engine.Close()
	if err := guest.AddAddress(vmnet.GuestLoopback, 32); err != nil {
		return err
	}
	engine.OnPublish(publishFake(guest))
	hostKey, err := os.ReadFile(spec.Credentials["devvm.host_key"])
	if err != nil {
		return err
	}
	authorized, err := os.ReadFile(spec.Credentials["devvm.authorized_keys"])
	if err != nil {
		return err
	}
	sockets := map[string]func(context.Context) (net.Conn, error){guesttest.DockerSocket: func(ctx context.Context) (net.Conn, error) {
		if flagged("deaf") {
			<-ctx.Done()
		}
		return engine.Dial(ctx)
	}}
	// Its files are those of this host, but for those below a directory of this name, and the reserve
	// of its disk.
	rewrite := []string{"/onlyhost", "/onlyhost.vm", "/var/lib/devvm/reserve", "/dev/null"}
	daemon, err := os.ReadFile(spec.Credentials["devvm.daemon.json"])
	if err != nil {
		return err
	}
	if err := engine.Configure(daemon); err != nil {
		return err
	}
	if strings.Contains(string(daemon), `"nonsense"`) { // systemd has given the engine up
		sockets = nil
		rewrite = append(rewrite,
			"systemctl is-failed -q docker.service", "true",
			"journalctl -b", "echo unknown option: nonsense; true -b",
			"systemctl show", "echo",
		)
	}
	server, err := guesttest.NewServer(guesttest.Options{
		HostKey:        hostKey,
		AuthorizedKeys: authorized,
		Dir:            filepath.Join(state, "root"),
		Sockets:        sockets,
		OnPoweroff: func() { // which takes a while, during which all goes on
			go func() {
				for flagged("slowoff") && ctx.Err() == nil {
					time.Sleep(10 * time.Millisecond)
				}
				stop()
			}()
		},
		Rewrite: strings.NewReplacer(rewrite...).Replace,
		// What runs in the fake guest runs on this host, whose clock is right.
		Intercept: func(line string) (int, bool) {
			switch {
			case strings.Contains(line, "date -u -s"):
				return 1, true
			case strings.Contains(line, "/var/lib/devvm/share"):
				return 0, true // the project's directory is where it must be already
			case strings.Contains(line, "journalctl --no-pager"):
				return 0, true
			case strings.Contains(line, "utimensat"):
				return 0, true // nothing is to be told of it, either
			case strings.Contains(line, "exec reach "):
				_, to, _ := strings.Cut(line, "exec reach ")
				return reachFrom(ctx, guest, strings.Trim(to, "' ")), true
			case strings.Contains(line, "/usr/lib/devvm/seal"):
				_, err := fmt.Fprintln(console, "devvm: sealed")
				return 0, err == nil
			case strings.Contains(line, "cat >/var/lib/devvm/provision"):
				return 0, true // its file system is this host's, too
			case strings.Contains(line, "/var/lib/devvm/provision"):
				if _, err := os.Stat(filepath.Join(fake, "badprovision")); err == nil {
					return 7, true
				}
				return 0, true
			}
			return 0, false
		},
	})
	if err != nil {
		return err
	}
	at, err := sshdOf(spec)
	if err != nil {
		return err
	}
	if err := guest.AddAddress(vmnet.Management, 32); err != nil {
		return err
	}
	l, err := guest.ListenOn(at, 22)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	// As in QEMU, the loss of the network does not end the machine.
	<-ctx.Done()
	<-served
	return os.WriteFile(os.Getenv(vmtest.OffEnv), nil, 0o600)
}

// sshdOf is the address at which the sshd of VMs of an image listens.
func sshdOf(spec vm.Spec) (netip.Addr, error) {
	b, err := os.ReadFile(filepath.Join(filepath.Dir(spec.Kernel), "manifest.json"))
	if err != nil {
		return netip.Addr{}, err
	}
	var m image.Manifest
	if err := json.Unmarshal(b, &m); err != nil || !m.Management {
		return vmnet.Guest, err
	}
	return vmnet.Management, nil
}

// reachFrom is the command "reach HOST:PORT" of the fake guest: a connection to an
// address, or to a name by the DNS that the guest has. The exit code is 0, 6 for a
// name that is not found, 7 for a connection that is refused.
func reachFrom(ctx context.Context, guest *usernettest.Guest, to string) int {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return guest.Dial(ctx, "tcp", usernettest.Address(vmnet.Gateway, 53))
	}}
	host, port, err := net.SplitHostPort(to)
	if err != nil {
		return 2
	}
	addrs, err := resolver.LookupNetIP(ctx, "ip4", host)
	if err != nil {
		return 6
	}
	conn, err := guest.Dial(ctx, "tcp", net.JoinHostPort(addrs[0].Unmap().String(), port))
	if errors.Is(err, syscall.ECONNREFUSED) {
		return 7
	}
	if err != nil {
		return 1
	}
	_ = conn.Close()
	return 0
}

// publishFake makes the ports of fake containers answer in the guest: HTTP on TCP with
// the container's name, an echo on UDP.
func publishFake(guest *usernettest.Guest) func(guesttest.Container, bool) {
	open := map[string][]io.Closer{} // by container
	return func(c guesttest.Container, running bool) {
		if !running {
			for _, l := range open[c.ID] {
				_ = l.Close()
			}
			delete(open, c.ID)
			return
		}
		for _, p := range c.Published() {
			at := vmnet.Guest
			switch p.IP {
			case "127.0.0.1":
				at = vmnet.GuestLoopback
			case "::", "::1":
				continue
			}
			if p.Type == "udp" {
				if conn, err := guest.ListenPacket(p.PublicPort); err == nil {
					open[c.ID] = append(open[c.ID], conn)
					go func() {
						b := make([]byte, 65535)
						for n, from, err := conn.ReadFrom(b); err == nil; n, from, err = conn.ReadFrom(b) {
							_, _ = conn.WriteTo(b[:n], from)
						}
					}()
				}
				continue
			}
			if l, err := guest.ListenOn(at, p.PublicPort); err == nil {
				server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					fmt.Fprintln(w, "container", c.Name)
				})}
				open[c.ID] = append(open[c.ID], server)
				go func() { _ = server.Serve(l) }()
			}
		}
	}
}

// fakeImage puts an image into a store that no VM could boot from, but whose
// files are what they say they are. Its VMs can be forked or not.
func fakeImage(ctx context.Context, store string, forks bool) error {
	if err := os.MkdirAll(store, 0o755); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(store, "making")
	if err != nil {
		return err
	}
	m := image.Manifest{
		Name: "debian-13", Created: time.Now(), Arch: "amd64", Engine: "26.1.5", Cmdline: "root=/dev/vda",
		Recipe: image.RecipeDigest("debian-13"), DiskSize: 1 << 30, Forks: forks, Management: true,
		Files: map[string]image.File{},
	}
	if err := disk.Create(ctx, filepath.Join(scratch, "disk.qcow2"), m.DiskSize); err != nil {
		return err
	}
	digest := sha256.New()
	for _, f := range []struct{ role, name string }{{"disk", "disk.qcow2"}, {"initrd", "initrd"}, {"kernel", "kernel"}} {
		path := filepath.Join(scratch, f.name)
		if f.role != "disk" {
			if err := os.WriteFile(path, []byte(f.role), 0o444); err != nil {
				return err
			}
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		sum := fmt.Sprintf("%x", sha256.Sum256(b))
		m.Files[f.role] = image.File{Name: f.name, SHA256: sum, Size: int64(len(b))}
		fmt.Fprintf(digest, "%s %s\n", f.role, sum)
	}
	fmt.Fprintf(digest, "cmdline %s\n", m.Cmdline)
	m.Digest = fmt.Sprintf("%x", digest.Sum(nil))
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(scratch, "manifest.json"), b, 0o444); err != nil {
		return err
	}
	return os.Rename(scratch, filepath.Join(store, m.Digest))
}
