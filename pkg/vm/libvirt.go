package vm

import (
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sync/errgroup"
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

// view is a Domain with libvirt's own words for it.
type view struct {
	Domain
	dom       libvirt.Domain
	crashedOn bool // crashed, and libvirt keeps its QEMU
	// orphan is the QEMU of a domain that is off by libvirt's word: its daemon
	// was killed at a moment when it had not yet noted that it runs.
	orphan process
}

// settleTime is how long libvirt and the process table may disagree on whether
// a domain runs. They do for a moment while it starts or stops, and for longer
// when a daemon has just started and looks for the QEMU processes that its
// predecessor left.
const settleTime = 3 * time.Second

// view reads one VM, in a state that has settled.
func (h *hypervisor) view(ctx context.Context, name string) (view, error) {
	v, err := h.settled(ctx, func(l *link) (libvirt.Domain, error) {
		return l.DomainLookupByName(DomainPrefix + name)
	})
	return v, explain(err)
}

func (h *hypervisor) settled(ctx context.Context, find func(*link) (libvirt.Domain, error)) (view, error) {
	deadline := time.Now().Add(settleTime)
	for {
		var v view
		var agree bool
		err := h.read(ctx, func(l *link) error {
			dom, err := find(l)
			if err == nil {
				v, agree, err = h.look(l, dom, nil)
			}
			return err
		})
		if err != nil {
			return view{}, err
		}
		if agree {
			return v, nil
		}
		if time.Now().After(deadline) {
			if v.orphan.pid != 0 {
				v.PID = v.orphan.pid
				v.Reason = "off by libvirt's word, but its QEMU is still there"
			}
			return v, nil
		}
		if err := pause(ctx, retryDial); err != nil {
			return view{}, err
		}
	}
}

// look reads one domain. agree is false while libvirt and the process table
// contradict each other. A nil power is asked for.
func (h *hypervisor) look(l *link, dom libvirt.Domain, p *power) (v view, agree bool, err error) {
	if p == nil {
		p = &power{}
		if *p, err = readPower(l, dom); err != nil {
			return view{}, false, err
		}
	}
	doc, err := l.DomainGetXMLDesc(dom, 0)
	if err != nil {
		return view{}, false, err
	}
	v.dom = dom
	if v.Domain, err = parseDomain(doc); err != nil {
		return view{}, false, err
	}
	off := p.state == libvirt.DomainShutoff
	v.State, v.Reason = reduce(p.state, p.reason, p.saved)
	v.Halt = halt(p.state, p.reason)
	v.crashedOn = v.State == StateCrashed && !off
	if h.uri == uriTest {
		return v, true, nil // no processes
	}
	if p.saved {
		if info, err := os.Stat(h.savePath(v.Name)); err == nil {
			v.Saved = info.Size()
		}
	}
	qemu, known := findProcess(h.pidFile(l.dir, v.Name), v.Name)
	switch {
	case !known:
		return v, true, nil
	case off:
		v.orphan = qemu
		return v, qemu.pid == 0, nil
	default:
		v.PID = qemu.pid
		if qemu.stopped() && !v.crashedOn {
			v.State, v.Halt, v.Reason = StatePaused, HaltSignal, "QEMU is stopped by a signal"
		}
		return v, qemu.pid != 0, nil
	}
}

// power is libvirt's word on whether a domain runs.
type power struct {
	state  libvirt.DomainState
	reason int32
	saved  bool // there is a managed save image
}

func readPower(l *link, dom libvirt.Domain) (power, error) {
	state, reason, err := l.DomainGetState(dom, 0)
	if err != nil {
		return power{}, err
	}
	p := power{state: libvirt.DomainState(state), reason: reason}
	if p.state == libvirt.DomainShutoff {
		saved, err := l.DomainHasManagedSaveImage(dom, 0)
		if err != nil {
			return power{}, err
		}
		p.saved = saved != 0
	}
	return p, nil
}

// readPowers is readPower for all domains in two calls. Domains that it does
// not know of are absent.
func readPowers(l *link) (map[libvirt.UUID]*power, error) {
	all := map[libvirt.UUID]*power{}
	stats, err := l.ConnectGetAllDomainStats(nil, uint32(libvirt.DomainStatsState), 0)
	if isCode(err, libvirt.ErrNoSupport) {
		return all, nil // the test driver
	}
	if err != nil {
		return nil, err
	}
	for _, r := range stats {
		p := power{reason: -1}
		for _, param := range r.Params {
			n, ok := param.Value.I.(int32)
			switch {
			case ok && param.Field == "state.state":
				p.state = libvirt.DomainState(n)
			case ok && param.Field == "state.reason":
				p.reason = n
			}
		}
		if p.state != libvirt.DomainNostate {
			all[r.Dom.UUID] = &p
		}
	}
	saved, _, err := l.ConnectListAllDomains(1, libvirt.ConnectListDomainsManagedsave)
	if err != nil {
		return nil, err
	}
	for _, dom := range saved {
		if p := all[dom.UUID]; p != nil {
			p.saved = true
		}
	}
	return all, nil
}

// pidFile is where libvirt writes the pid of a domain's QEMU.
func (h *hypervisor) pidFile(dir, name string) string {
	if h.uri == uriSession {
		return filepath.Join(dir, "qemu", "run", DomainPrefix+name+".pid")
	}
	return filepath.Join(dir, "qemu", DomainPrefix+name+".pid")
}

// saveDir is where libvirt keeps the memory of saved domains.
func (h *hypervisor) saveDir() string {
	if h.uri == uriSession {
		if dir, err := os.UserConfigDir(); err == nil {
			return filepath.Join(dir, "libvirt", "qemu", "save")
		}
	}
	return "/var/lib/libvirt/qemu/save"
}

// parseDomain reads what devvm wants of a definition.
func parseDomain(doc string) (Domain, error) {
	var d libvirtxml.Domain
	if err := d.Unmarshal(doc); err != nil {
		return Domain{}, fmt.Errorf("parse domain: %w", err)
	}
	meta, err := parseMetadata(&d)
	if err != nil {
		return Domain{}, err
	}
	out := Domain{
		Name:    strings.TrimPrefix(d.Name, DomainPrefix),
		UUID:    d.UUID,
		Project: meta.Project,
		Config:  meta.Config,
		Image:   meta.Image,
		Accel:   AccelTCG,
	}
	if d.Type == "kvm" {
		out.Accel = AccelKVM
	}
	if d.VCPU != nil {
		out.CPUs = int(d.VCPU.Value)
	}
	if d.Memory != nil { // libvirt always answers in KiB
		out.Memory = int64(d.Memory.Value) << 10
	}
	if d.Devices != nil {
		for _, disk := range d.Devices.Disks {
			if disk.Target != nil && disk.Target.Dev == "vda" && disk.Source != nil && disk.Source.File != nil {
				out.Disk = disk.Source.File.File
			}
		}
	}
	return out, nil
}

// parseMetadata finds devvm's element; without one the domain is not ours.
func parseMetadata(d *libvirtxml.Domain) (metadata, error) {
	if d.Metadata == nil || !strings.HasPrefix(d.Name, DomainPrefix) {
		return metadata{}, ErrForeign
	}
	var all struct {
		VM *metadata `xml:"https://github.com/devvm/devvm/domain/1 vm"`
	}
	if err := xml.Unmarshal([]byte("<metadata>"+d.Metadata.XML+"</metadata>"), &all); err != nil {
		return metadata{}, fmt.Errorf("parse metadata: %w", err)
	}
	if all.VM == nil {
		return metadata{}, ErrForeign
	}
	project, err := url.PathUnescape(all.VM.Project)
	if err != nil {
		return metadata{}, fmt.Errorf("parse metadata: %w", err)
	}
	all.VM.Project = project
	return *all.VM, nil
}

// List implements Hypervisor.
func (h *hypervisor) List(ctx context.Context) ([]Domain, error) {
	out, err := h.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("list VMs: %w", explain(err))
	}
	slices.SortFunc(out, func(a, b Domain) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// inFlight is how many of one client's calls libvirtd works on at once
// (max_client_requests in its configuration); more would only queue there.
const inFlight = 5

func (h *hypervisor) list(ctx context.Context) ([]Domain, error) {
	var mu sync.Mutex
	var out []Domain
	var unsettled []libvirt.Domain
	err := h.read(ctx, func(l *link) error {
		out, unsettled = nil, nil
		domains, _, err := l.ConnectListAllDomains(1, libvirt.ConnectListDomainsActive|libvirt.ConnectListDomainsInactive)
		if err != nil {
			return err
		}
		domains = slices.DeleteFunc(domains, func(dom libvirt.Domain) bool { return !strings.HasPrefix(dom.Name, DomainPrefix) })
		if len(domains) == 0 {
			return nil
		}
		powers, err := readPowers(l)
		if err != nil {
			return err
		}
		var group errgroup.Group
		group.SetLimit(inFlight)
		for _, dom := range domains {
			group.Go(func() error {
				v, agree, err := h.look(l, dom, powers[dom.UUID])
				mu.Lock()
				defer mu.Unlock()
				switch {
				case errors.Is(err, ErrForeign), libvirt.IsNotFound(err): // not ours, or gone since
					return nil
				case err != nil:
					return err
				case agree:
					out = append(out, v.Domain)
				default:
					unsettled = append(unsettled, dom)
				}
				return nil
			})
		}
		return group.Wait()
	})
	if err != nil {
		return nil, err
	}
	for _, dom := range unsettled {
		v, err := h.settled(ctx, func(*link) (libvirt.Domain, error) { return dom, nil })
		switch {
		case errors.Is(err, ErrForeign), libvirt.IsNotFound(err):
		case err != nil:
			return nil, err
		default:
			out = append(out, v.Domain)
		}
	}
	return out, nil
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

// Save implements Hypervisor. When ctx ends, libvirt is told to stop, and lets the VM run
// on.
func (h *hypervisor) Save(ctx context.Context, name string) error {
	return finish(ctx, func(patient context.Context) error {
		return h.act(patient, "save", name, func(l *link, v view) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if !v.on() {
				return ErrNotRunning
			}
			err := abortable(ctx, func() error { return l.DomainManagedSave(v.dom, 0) }, func() { _ = l.DomainAbortJob(v.dom) })
			if isCode(err, libvirt.ErrOperationAborted) && ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		})
	})
}

// abortable carries out a job of libvirt's that abort ends. Once ctx ends, it aborts until
// the job has ended: the first time the job may not have begun.
func abortable(ctx context.Context, job func() error, abort func()) error {
	done := make(chan struct{})
	var aborting sync.WaitGroup
	defer aborting.Wait()
	defer close(done)
	aborting.Go(func() {
		select {
		case <-ctx.Done():
		case <-done:
			return
		}
		again := time.NewTicker(retryDial)
		defer again.Stop()
		for {
			abort()
			select {
			case <-again.C:
			case <-done:
				return
			}
		}
	})
	return job()
}

// patienceFinish is for what libvirt is at when a command is cancelled.
const patienceFinish = time.Minute

// finish carries out what must not be left half done: libvirt goes on with a call whose
// client is gone, and a VM may stand still meanwhile. The context that f gets ends a while
// after ctx, and f has to see to ctx itself.
func finish(ctx context.Context, f func(context.Context) error) error {
	patient, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel(nil)
	watching.Go(func() {
		select {
		case <-ctx.Done():
		case <-patient.Done():
			return
		}
		select {
		case <-time.After(patienceFinish):
			cancel(errUnfinished)
		case <-patient.Done():
		}
	})
	return f(patient)
}

// errUnfinished says that libvirt is still at what was cancelled.
var errUnfinished = fmt.Errorf("libvirt has not come to an end of it within %s of the cancellation, and goes on", patienceFinish)

// DropSaved implements Hypervisor.
func (h *hypervisor) DropSaved(ctx context.Context, name string) error {
	return h.act(ctx, "drop the saved memory of", name, func(l *link, v view) error {
		if v.State != StateSaved {
			return nil
		}
		if h.uri != uriTest { // libvirt fails where the file is gone already
			path := h.savePath(v.Name)
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err == nil {
				_ = f.Close()
			}
		}
		return l.DomainManagedSaveRemove(v.dom, 0)
	})
}

// savePath is where libvirt keeps the memory of a saved domain of ours.
func (h *hypervisor) savePath(name string) string {
	return filepath.Join(h.saveDir(), DomainPrefix+name+".save")
}

// checkSaved looks at a saved memory before libvirt does, which boots the VM without a word
// if the file is gone, and removes one that does not begin as it should.
func (h *hypervisor) checkSaved(name string) error {
	if h.uri == uriTest {
		return nil
	}
	path := h.savePath(name)
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read its saved memory: %w", err)
	}
	defer f.Close()
	magic := make([]byte, len(memoryMagic))
	switch _, err := io.ReadFull(f, magic); {
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("read its saved memory: %w", err)
	case string(magic) != memoryMagic:
		return fmt.Errorf("%w: %s does not begin with %q", ErrMemory, path, memoryMagic)
	}
	return nil
}

// Freeze implements Hypervisor.
func (h *hypervisor) Freeze(ctx context.Context, name, path string) error {
	err := h.act(ctx, "freeze", name, func(l *link, v view) error {
		if !v.on() {
			return ErrNotRunning
		}
		return l.DomainSaveFlags(v.dom, path, nil, uint32(libvirt.DomainSaveRunning))
	})
	if err != nil || h.uri == uriTest {
		return err
	}
	if err := checkMemory(path); err != nil {
		return err
	}
	if err := dropZeroes(ctx, path); err != nil { // forks are slower, no more
		if ctx.Err() != nil {
			return fmt.Errorf("freeze VM %s: %w", name, err)
		}
		h.log.WarnContext(ctx, "memory stays as QEMU saved it", "vm", name, "err", err)
	}
	return nil
}

// Fork implements Hypervisor.
func (h *hypervisor) Fork(ctx context.Context, spec Spec, memory, scratch string, meanwhile func(context.Context) error) error {
	host, err := h.Host(ctx)
	if err != nil {
		return err
	}
	doc, err := DomainXML(spec, host)
	if err != nil {
		return err
	}
	preparing, preparingCtx := errgroup.WithContext(ctx)
	preparing.Go(func() error { return copyMemory(preparingCtx, scratch, memory, doc) })
	preparing.Go(func() error { return meanwhile(preparingCtx) })
	preparing.Go(func() error { return h.redefine(ctx, spec) }) // whatever the others do
	if err := preparing.Wait(); err != nil {
		return fmt.Errorf("fork VM %s: %w", spec.Name, err)
	}
	return h.act(ctx, "fork", spec.Name, func(l *link, v view) error {
		if v.on() {
			return ErrRunning
		}
		if err := h.reap(ctx, v); err != nil {
			return err
		}
		return l.DomainRestoreFlags(scratch, nil, uint32(libvirt.DomainSaveRunning))
	})
}

// redefine is Define, but nothing of a stopped VM that had the name stays.
func (h *hypervisor) redefine(ctx context.Context, spec Spec) error {
	if err := h.Undefine(ctx, spec.Name); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return h.Define(ctx, spec)
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

// explain turns what libvirt and QEMU say into devvm's errors: their words, and
// a kind that errors.Is finds.
func explain(err error) error {
	var fromDaemon libvirt.Error
	if !errors.As(err, &fromDaemon) {
		return err
	}
	if fromDaemon.Code == uint32(libvirt.ErrNoDomain) {
		return ErrNotFound
	}
	words := qemuWords(fromDaemon.Message)
	for _, c := range causes {
		for _, s := range c.says {
			if strings.Contains(fromDaemon.Message, s) {
				return fmt.Errorf("%w: %s", c.err, words)
			}
		}
	}
	return errors.New(words)
}

// causes are the failures that callers tell apart, the first that fits counts:
// a KVM that may not be opened is a permission denied, too.
var causes = []struct {
	err  error
	says []string
}{
	{ErrNoQEMU, []string{"No emulator found", "Cannot find suitable emulator"}},
	{ErrAccel, []string{
		"failed to initialize kvm",
		"Could not access KVM kernel module",
		"invalid accelerator kvm",
		"KVM kernel module",
		"Domain requires KVM",
		"KVM is not available",
		"KVM is not supported",
		"kvm_init_vcpu failed",
		"kvm run failed",
		"KVM internal error",
		"failed to set MSR",               // a hypervisor below that promises more than it does
		"/kvm/kvm.c:",                     // an assertion of QEMU's
		"ioctl(KVM_CREATE_VM) failed: 16", // EBUSY: another hypervisor has the processor
		"/dev/kvm",
		"virt type 'kvm'",
		"type=kvm", // also domaintype=
	}},
	{syscall.ENOSPC, []string{"No space left on device"}},
	{syscall.EDQUOT, []string{"Disk quota exceeded"}},
	{syscall.ENOMEM, []string{"Cannot allocate memory"}},
	{ErrDiskInUse, []string{"Failed to get \"write\" lock", "Failed to get shared \"write\" lock"}},
	{syscall.ECONNREFUSED, []string{"Connection refused"}},
	{syscall.EADDRINUSE, []string{"Address already in use"}},
	{fs.ErrNotExist, []string{"No such file or directory"}},
	{fs.ErrPermission, []string{"Permission denied"}},
	{syscall.EIO, []string{"Input/output error"}},
	// The last: only what has no other cause is the memory's own fault.
	{ErrMemory, []string{
		"load of migration failed", // QEMU
		"error while loading state",
		"image magic is incorrect", // libvirt
		"save image is incomplete",
		"image version is not supported",
		"failed to read qemu header",
		"invalid header data length",
		"invalid XML length",
		"failed to read domain XML",
	}},
}

// qemuWords drops what libvirt puts before QEMU's own complaint, and the time
// stamps in it.
func qemuWords(text string) string {
	for _, s := range []string{
		"process exited while connecting to monitor:",
		"qemu unexpectedly closed the monitor:",
	} {
		if _, after, ok := strings.Cut(text, s); ok && strings.TrimSpace(after) != "" {
			text = after
		}
	}
	return oneLine(qemuStamp.ReplaceAllString(text, ""))
}

// qemuStamp is the start of a line of QEMU's as libvirt has it written.
var qemuStamp = regexp.MustCompile(`(?m)^\s*(\d{4}-\d\d-\d\dT[\d:.]+Z )?(/\S*/)?qemu-system-\w+: `)

func isCode(err error, code libvirt.ErrorNumber) bool {
	var e libvirt.Error
	return errors.As(err, &e) && e.Code == uint32(code)
}
