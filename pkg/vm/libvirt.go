package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"
	"libvirt.org/go/libvirtxml"
)

// URIs that [Open] knows.
const (
	uriSession = "qemu:///session"
	uriSystem  = "qemu:///system"
	uriTest    = "test:///default" // libvirt's own mock driver, for tests
)

const kvmDevice = "/dev/kvm"

// hypervisor is the Hypervisor on libvirt.
type hypervisor struct {
	uri     string
	sandbox Sandbox
	daemon  daemon
	timeout time.Duration
	log     *slog.Logger

	mu     sync.Mutex
	closed bool
	idle   []*link
	host   *Host // of the current daemon; nil: ask
}

// Open connects to libvirt and starts its daemon if none runs (for the session,
// and for the system where no systemd does that). Without libvirt the error
// wraps [ErrNoLibvirt] and says what was tried.
func Open(ctx context.Context, o Options, log *slog.Logger) (Hypervisor, error) {
	s := processSurroundings()
	if o.URI == "" {
		o.URI = uriSession
		if s.uid == 0 {
			o.URI = uriSystem
		}
	}
	d, err := findDaemon(o.URI, o.RuntimeDir, s, log)
	if err != nil {
		return nil, err
	}
	h := &hypervisor{uri: o.URI, sandbox: o.Sandbox, daemon: d, timeout: cmp.Or(o.Timeout, 30*time.Second), log: log}
	l, err := h.connect(ctx)
	if err != nil {
		return nil, err
	}
	h.put(l)
	return h, nil
}

// Close implements Hypervisor.
func (h *hypervisor) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, l := range h.idle {
		l.conn.Close()
	}
	h.idle = nil
	return nil
}

// forget drops what the next daemon may answer otherwise.
func (h *hypervisor) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.host = nil
}

// Host implements Hypervisor.
func (h *hypervisor) Host(ctx context.Context) (Host, error) {
	h.mu.Lock()
	known := h.host
	h.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	host := Host{URI: h.uri, KVMDevice: kvmDevice, Kernel: kernelRelease(), CPU: cpuModel(), QEMUUser: -1, QEMUGroup: -1, SaveDir: h.saveDir()}
	var caps libvirtxml.Caps
	err := h.read(ctx, func(l *link) error {
		lib, err := l.ConnectGetLibVersion()
		if err != nil {
			return err
		}
		host.Libvirt = version(lib)
		hv, err := l.ConnectGetVersion()
		switch {
		case err == nil:
		case strings.Contains(err.Error(), "suitable emulator"), // libvirt 9
			strings.Contains(err.Error(), "could not find capabilities"): // 11
			return ErrNoQEMU
		default:
			return err
		}
		host.QEMU = version(hv)
		doc, err := l.ConnectGetCapabilities()
		if err != nil {
			return err
		}
		return caps.Unmarshal(doc)
	})
	if err != nil {
		return Host{}, fmt.Errorf("ask libvirt about the host: %w", err)
	}
	for _, model := range caps.Host.SecModel {
		switch model.Name {
		case "apparmor", "selinux":
			host.Confinement = model.Name
		case "dac":
			for _, label := range model.Labels {
				if label.Type != "kvm" && label.Type != "qemu" {
					continue
				}
				uid, gid, ok := parseDAC(label.Value)
				if ok {
					host.QEMUUser, host.QEMUGroup = uid, gid
				}
			}
		}
	}
	for _, guest := range caps.Guests {
		if guest.Arch.Name != "x86_64" {
			continue
		}
		host.Emulator = guest.Arch.Emulator
		for _, domain := range guest.Arch.Domains {
			host.KVMListed = host.KVMListed || domain.Type == "kvm"
		}
	}
	if host.Sandbox, err = h.findSandbox(ctx, host); err != nil {
		host.Sandbox, host.NoSandbox = "", err.Error()
	}
	h.mu.Lock()
	h.host = &host
	h.mu.Unlock()
	return host, nil
}

// parseDAC reads "+64055:+994", the user and group of QEMU.
func parseDAC(label string) (uid, gid int, ok bool) {
	u, g, ok := strings.Cut(label, ":")
	if !ok {
		return 0, 0, false
	}
	uid, err1 := strconv.Atoi(strings.TrimPrefix(u, "+"))
	gid, err2 := strconv.Atoi(strings.TrimPrefix(g, "+"))
	return uid, gid, err1 == nil && err2 == nil
}

// version renders libvirt's number, major*1000000 + minor*1000 + micro.
func version(n uint64) string {
	return fmt.Sprintf("%d.%d.%d", n/1_000_000, n/1000%1000, n%1000)
}

// Define implements Hypervisor.
func (h *hypervisor) Define(ctx context.Context, spec Spec) error {
	host, err := h.Host(ctx)
	if err != nil {
		return err
	}
	doc, err := DomainXML(spec, host)
	if err != nil {
		return err
	}
	if _, err := h.view(ctx, spec.Name); err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("define VM %s: %w", spec.Name, err)
	}
	err = h.do(ctx, func(l *link) error {
		_, err := l.DomainDefineXMLFlags(doc, 0)
		var refused libvirt.Error
		if !errors.As(err, &refused) {
			return err
		}
		// Validation finds better words for what is wrong. It reads libvirt's
		// whole schema for that, tens of milliseconds, so not each time.
		if _, err := l.DomainDefineXMLFlags(doc, libvirt.DomainDefineValidate); err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("define VM %s: %w", spec.Name, explain(err))
	}
	return nil
}

// Get implements Hypervisor.
func (h *hypervisor) Get(ctx context.Context, name string) (Domain, error) {
	v, err := h.view(ctx, name)
	if err != nil {
		return Domain{}, fmt.Errorf("read VM %s: %w", name, err)
	}
	return v.Domain, nil
}

// Start implements Hypervisor.
func (h *hypervisor) Start(ctx context.Context, name string) error {
	return h.act(ctx, "start", name, func(l *link, v view) error {
		switch v.State {
		case StateRunning:
			return nil
		case StatePaused:
			return h.proceed(ctx, l, v)
		case StateSaved:
			if err := h.checkSaved(v.Name); err != nil {
				return err
			}
		}
		if err := h.reap(ctx, v); err != nil {
			return err
		}
		_, err := l.DomainCreateWithFlags(v.dom, 0)
		return err
	})
}

// Proceed implements Hypervisor.
func (h *hypervisor) Proceed(ctx context.Context, name string, why Halt) error {
	return h.act(ctx, "let go on", name, func(l *link, v view) error {
		if v.State != StatePaused || v.Halt != why {
			return nil
		}
		return h.proceed(ctx, l, v)
	})
}

// proceed lets a paused VM go on.
func (h *hypervisor) proceed(ctx context.Context, l *link, v view) error {
	if v.Halt == HaltSignal {
		h.log.InfoContext(ctx, "letting a QEMU go on that was stopped by a signal", "vm", v.Name, "pid", v.PID)
		return process{pid: v.PID, name: v.Name}.proceed()
	}
	return l.DomainResume(v.dom) // fails while libvirt saves it
}

// Shutdown implements Hypervisor.
func (h *hypervisor) Shutdown(ctx context.Context, name string) error {
	return h.act(ctx, "shut down", name, func(l *link, v view) error {
		if !v.on() {
			return ErrNotRunning
		}
		return l.DomainShutdownFlags(v.dom, libvirt.DomainShutdownDefault)
	})
}

// patienceTerm is how long a QEMU that was told to end may take to write what it holds and
// to give its memory back.
const patienceTerm = 3 * time.Second

// Destroy implements Hypervisor. QEMU is sent the signal that libvirt would send it:
// libvirt then looks each 200 ms whether it has ended, but hears at once when one ends by
// itself, see process.end. What it still has to do then, the next call waits for, see
// settled.
func (h *hypervisor) Destroy(ctx context.Context, name string) error {
	return h.act(ctx, "destroy", name, func(l *link, v view) error {
		if !v.on() {
			return h.reap(ctx, v)
		}
		if v.PID != 0 {
			patient, cancel := context.WithTimeout(ctx, patienceTerm)
			defer cancel()
			err := process{pid: v.PID, name: v.Name}.end(patient, unix.SIGTERM)
			if err == nil {
				return nil
			}
			h.log.InfoContext(ctx, "QEMU does not end by itself", "vm", v.Name, "err", err)
		}
		return l.DomainDestroyFlags(v.dom, libvirt.DomainDestroyDefault)
	})
}

// Undefine implements Hypervisor.
func (h *hypervisor) Undefine(ctx context.Context, name string) error {
	return h.act(ctx, "undefine", name, func(l *link, v view) error {
		if v.on() {
			return ErrRunning // libvirt would make it transient and let it run on
		}
		if err := h.reap(ctx, v); err != nil {
			return err
		}
		return l.DomainUndefineFlags(v.dom, undefineFlags)
	})
}

// reap ends the QEMU that libvirt has lost, if there is one: it would hold the
// disk for ever.
func (h *hypervisor) reap(ctx context.Context, v view) error {
	if v.orphan.pid == 0 {
		return nil
	}
	h.log.WarnContext(ctx, "ending a QEMU that libvirt has lost", "vm", v.Name, "pid", v.orphan.pid)
	return v.orphan.kill(ctx)
}

// undefineFlags make libvirt forget all that it keeps beside a definition; it
// would refuse otherwise.
const undefineFlags = libvirt.DomainUndefineManagedSave | libvirt.DomainUndefineSnapshotsMetadata

// on reports whether there is a QEMU for libvirt to stop. A crashed domain is
// one whose QEMU libvirt keeps for a look, or none.
func (v view) on() bool {
	return v.State == StateRunning || v.State == StatePaused || v.crashedOn
}

// act reads the VM and does something with it. When libvirt says that this
// cannot be done in the domain's state, the state has changed since it was read,
// or a fresh daemon has not settled: both are read again.
func (h *hypervisor) act(ctx context.Context, what, name string, f func(*link, view) error) error {
	deadline := time.Now().Add(settleTime)
	for {
		v, err := h.view(ctx, name)
		if err == nil {
			err = h.doWith(ctx, name, func(l *link) error { return f(l, v) })
		}
		if isCode(err, libvirt.ErrOperationInvalid) && time.Now().Before(deadline) {
			if err := pause(ctx, retryDial); err != nil {
				return fmt.Errorf("%s VM %s: %w", what, name, err)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("%s VM %s: %w", what, name, explain(err))
		}
		return nil
	}
}

// Wait implements Hypervisor.
func (h *hypervisor) Wait(ctx context.Context, name string, states ...State) (Domain, error) {
	// Events only shorten the wait: they can be lost, so the state is also
	// read now and then.
	const look = 500 * time.Millisecond
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := h.watch(ctx)
	for {
		d, err := h.Get(ctx, name)
		if err != nil {
			return Domain{}, err
		}
		if slices.Contains(states, d.State) {
			return d, nil
		}
		timer := time.NewTimer(look)
		select {
		case _, ok := <-events:
			if !ok {
				events = nil
			}
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return d, fmt.Errorf("wait for VM %s to be %v: %w", name, states, context.Cause(ctx))
		}
		timer.Stop()
	}
}

// watch reports lifecycle events of any domain until ctx ends or the connection
// breaks; then the channel is closed. It is closed at once if there are no
// events to be had.
func (h *hypervisor) watch(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	l, err := h.connect(ctx) // of its own: it is closed to end the subscription
	if err != nil {
		close(out)
		return out
	}
	context.AfterFunc(ctx, func() { l.conn.Close() })
	events, err := l.LifecycleEvents(ctx)
	if err != nil {
		l.conn.Close()
		close(out)
		return out
	}
	go func() {
		defer close(out)
		for range events { // to the end: go-libvirt blocks until each is taken
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}()
	return out
}
