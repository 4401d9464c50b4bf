//go:build vmtest

// These tests run real QEMU under real libvirt as the current user: in a
// session of their own, or on qemu:///system as root. They need
// qemu-system-x86_64, qemu-img and libvirtd, and no image: the VMs find nothing
// to boot.

package vm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"libvirt.org/go/libvirtxml"

	"github.com/devvm/devvm/pkg/disk"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vm/vmtest"
)

// qemu returns a hypervisor with QEMU for the test and a directory that QEMU
// can read. A user's is private, root's is the system's.
func qemu(t *testing.T) (vm.Options, string) {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "devvm-qemu-") //nolint:usetesting // QEMU must be able to pass
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		libvirtd(t)
		return vm.Options{URI: "qemu:///system"}, dir
	}
	return vm.Options{URI: "qemu:///session", RuntimeDir: privateDaemon(t)}, dir
}

func TestConformanceQEMU(t *testing.T) {
	o, dir := qemu(t)
	conformance(t, o, dir)
}

func conformance(t *testing.T, o vm.Options, dir string) {
	t.Helper()
	vmtest.Conformance(t, vmtest.Subject{
		Open: func(ctx context.Context) (vm.Hypervisor, error) { return vm.Open(ctx, o, logger(t)) },
		AddForeign: func(t *testing.T, domain string) {
			addForeign(t, o, libvirtxml.Domain{
				Type:   "qemu",
				Name:   domain,
				Memory: &libvirtxml.DomainMemory{Value: 1 << 16, Unit: "KiB"},
				OS:     &libvirtxml.DomainOS{Type: &libvirtxml.DomainOSType{Type: "hvm", Arch: "x86_64"}},
			})
		},
		Dir: dir,
		MakeDisk: func(t *testing.T, path string) {
			if err := disk.Create(t.Context(), path, 1<<20); err != nil {
				t.Fatal(err)
			}
		},
		Patience: time.Minute,
	})
}

// tiny is a VM that starts and finds nothing to boot.
func tiny(t *testing.T, dir string) vm.Spec {
	t.Helper()
	spec := vm.Spec{
		Name: "killed-" + strconv.Itoa(os.Getpid()), UUID: fmt.Sprintf("7b1f0e66-1f0c-4b52-8888-%012x", os.Getpid()),
		Project: "/p", CPUs: 1, Memory: 64 << 20, Accel: vm.AccelTCG,
		Disk: filepath.Join(dir, "disk.qcow2"), Console: filepath.Join(dir, "console.log"),
	}
	if err := disk.Create(t.Context(), spec.Disk, 1<<20); err != nil {
		t.Fatal(err)
	}
	return spec
}

// processes are the pids of the VM's QEMU: one, or none.
func processes(t *testing.T, spec vm.Spec) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range files {
		b, _ := os.ReadFile(f) // gone since
		if bytes.Contains(b, []byte("guest="+vm.DomainPrefix+spec.Name+",")) && bytes.Contains(b, []byte("-uuid")) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// killDaemon kills the private daemon of a user.
func killDaemon(t *testing.T, o vm.Options) {
	t.Helper()
	if pid := daemonPID(o.RuntimeDir); pid != 0 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
}

// A running VM outlives its daemon, and no call says otherwise for a moment.
func TestDaemonKilledWhileRunning(t *testing.T) {
	o, dir := qemu(t)
	if o.RuntimeDir == "" {
		t.Skip("would kill the system's daemon")
	}
	ctx := t.Context()
	h, spec := open(t, o), tiny(t, dir)
	if err := h.Define(ctx, spec); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	before, err := h.Get(ctx, spec.Name)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		killDaemon(t, o)
		fresh := open(t, o)
		for _, h := range []vm.Hypervisor{h, fresh, h} {
			got, err := h.Get(ctx, spec.Name)
			if err != nil || got.State != vm.StateRunning || got.PID != before.PID {
				t.Errorf("Get: %+v, %v", got, err)
			}
			all, err := h.List(ctx)
			if err != nil || len(all) != 1 || all[0].PID != before.PID {
				t.Errorf("List: %+v, %v", all, err)
			}
		}
		fresh.Close()
	}

	// A wait goes on through it.
	done := make(chan error, 1)
	go func() {
		_, err := h.Wait(ctx, spec.Name, vm.StateStopped)
		done <- err
	}()
	killDaemon(t, o)
	if err := h.Destroy(ctx, spec.Name); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}

	// QEMU dies while nobody looks.
	if err := h.Start(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	pids := processes(t, spec)
	killDaemon(t, o)
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if d, err := h.Get(ctx, spec.Name); err != nil || d.State != vm.StateCrashed {
		t.Errorf("after QEMU and libvirtd were killed: %+v, %v", d, err)
	}
	if err := h.Undefine(ctx, spec.Name); err != nil {
		t.Error(err)
	}
}

// Whenever the daemon dies, the next calls put things right.
func TestDaemonKilledAnyTime(t *testing.T) {
	o, dir := qemu(t)
	if o.RuntimeDir == "" {
		t.Skip("would kill the system's daemon")
	}
	if testing.Short() {
		t.Skip("long")
	}
	h, spec := open(t, o), tiny(t, dir)
	rounds := 2
	if n, err := strconv.Atoi(os.Getenv("DEVVM_TEST_ROUNDS")); err == nil {
		rounds = n
	}
	for round := range rounds {
		for what, act := range map[string]struct {
			before, during func(context.Context) error
		}{
			"start": {
				func(context.Context) error { return nil },
				func(ctx context.Context) error {
					if err := h.Define(ctx, spec); err != nil {
						return err
					}
					return h.Start(ctx, spec.Name)
				},
			},
			"save": {
				func(ctx context.Context) error {
					if err := h.Define(ctx, spec); err != nil {
						return err
					}
					return h.Start(ctx, spec.Name)
				},
				func(ctx context.Context) error { return h.Save(ctx, spec.Name) },
			},
			"resume": {
				func(ctx context.Context) error {
					if err := h.Define(ctx, spec); err != nil {
						return err
					}
					if err := h.Start(ctx, spec.Name); err != nil {
						return err
					}
					return h.Save(ctx, spec.Name)
				},
				func(ctx context.Context) error { return h.Start(ctx, spec.Name) },
			},
		} {
			delay := time.Duration(1000/rounds*round) * time.Millisecond
			t.Run(fmt.Sprintf("%s/%v", what, delay), func(t *testing.T) {
				ctx := t.Context()
				if err := act.before(ctx); err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() { done <- act.during(ctx) }()
				<-time.After(delay)
				killDaemon(t, o)
				err := <-done
				t.Logf("%v", err)
				if err != nil && !errors.Is(err, vm.ErrConnectionLost) {
					t.Errorf("%v, want ErrConnectionLost", err)
				}
				if err := h.Define(ctx, spec); err != nil {
					t.Fatal(err)
				}
				if err := h.Start(ctx, spec.Name); err != nil {
					t.Fatal(err)
				}
				if d, err := h.Get(ctx, spec.Name); err != nil || d.State != vm.StateRunning {
					t.Errorf("%+v, %v", d, err)
				}
				if pids := processes(t, spec); len(pids) != 1 {
					t.Errorf("QEMU processes %v, want one", pids)
				}
				if err := h.Destroy(ctx, spec.Name); err != nil {
					t.Fatal(err)
				}
				if err := h.Undefine(ctx, spec.Name); err != nil {
					t.Fatal(err)
				}
				if pids := processes(t, spec); len(pids) != 0 {
					t.Errorf("QEMU processes %v are left", pids)
				}
			})
		}
	}
}

// QEMU reads the credentials, which only their owner can, and connects to the
// network process, again and again where it is able to.
func TestDevices(t *testing.T) {
	o, dir := qemu(t)
	ctx := t.Context()
	h, spec := open(t, o), tiny(t, dir)
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		_ = h.Destroy(ctx, spec.Name)
		if err := h.Undefine(ctx, spec.Name); err != nil {
			t.Error(err)
		}
	})
	host, err := h.Host(ctx)
	if err != nil {
		t.Fatal(err)
	}
	spec.Credentials = map[string]string{"devvm.hostname": filepath.Join(dir, "a name")}
	if err := os.WriteFile(spec.Credentials["devvm.hostname"], []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec.NetSocket = filepath.Join(dir, "n,=\" é.sock")
	spec.MAC, spec.MTU = "52:54:00:12:34:56", 4000
	spec.Seed = filepath.Join(dir, "seed.img")
	if err := os.WriteFile(spec.Seed, make([]byte, 1<<16), 0o644); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(dir, "base.qcow2")
	if err := disk.Create(ctx, base, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(base, 0o444); err != nil {
		t.Fatal(err)
	}
	spec.Disk, spec.Backing = filepath.Join(dir, "top.qcow2"), []string{base}
	if err := disk.CreateOverlay(ctx, spec.Disk, base, 2<<20); err != nil {
		t.Fatal(err)
	}
	if err := h.Define(ctx, spec); err != nil {
		t.Fatal(err)
	}

	connected := make(chan net.Conn)
	listen := func() net.Listener {
		t.Helper()
		l, err := (&net.ListenConfig{}).Listen(ctx, "unix", spec.NetSocket)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(spec.NetSocket, 0o777); err != nil { // QEMU may run as another user
			t.Fatal(err)
		}
		go func() {
			conn, err := l.Accept()
			if err == nil {
				connected <- conn
			}
		}()
		return l
	}
	await := func(what string) net.Conn {
		t.Helper()
		select {
		case conn := <-connected:
			return conn
		case <-time.After(30 * time.Second):
			t.Fatalf("QEMU did not connect %s", what)
			return nil
		}
	}
	l := listen()
	if err := h.Start(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	conn := await("at its start")
	l.Close()
	conn.Close()
	if vm.Reconnects(host) {
		l = listen()
		await("again").Close()
		l.Close()
	}
	if d, err := h.Get(ctx, spec.Name); err != nil || d.State != vm.StateRunning {
		t.Errorf("without its network: %+v, %v", d, err)
	}

	// A save and a start give it a new one in any case.
	l = listen()
	defer l.Close()
	if vm.Reconnects(host) {
		await("once more").Close()
		l.Close()
		l = listen()
	}
	if err := h.Save(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	if vm.Reconnects(host) {
		select { // it may have been back before it was saved
		case conn := <-connected:
			conn.Close()
			l.Close()
			defer listen().Close()
		default:
		}
	}
	if err := h.Start(ctx, spec.Name); err != nil {
		t.Fatal(err)
	}
	await("after it was saved").Close()

	info, err := os.Stat(base)
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != os.Getuid() || info.Mode().Perm() != 0o444 {
		t.Errorf("the image has become %v of %d", info.Mode(), owner)
	}
}

// Where there is no KVM, that is what the error says.
func TestNoKVM(t *testing.T) {
	if _, err := os.Stat("/dev/kvm"); err == nil {
		t.Skip("this host has KVM")
	}
	o, dir := qemu(t)
	ctx := t.Context()
	h, spec := open(t, o), tiny(t, dir)
	spec.Accel = vm.AccelKVM
	if err := h.Define(ctx, spec); !errors.Is(err, vm.ErrAccel) {
		t.Errorf("%v, want ErrAccel", err)
	}
	if _, err := h.Get(ctx, spec.Name); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("%v, want nothing left", err)
	}
}
