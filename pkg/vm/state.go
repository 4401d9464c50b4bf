package vm

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sync/errgroup"
	"libvirt.org/go/libvirtxml"
)

// halt tells which of libvirt's states is one that passes by itself, and which a failed write.
func halt(state libvirt.DomainState, reason int32) Halt {
	switch {
	case state == libvirt.DomainShutdown:
		return HaltPassing
	case state != libvirt.DomainPaused:
		return ""
	}
	switch libvirt.DomainPausedReason(reason) {
	case libvirt.DomainPausedIoerror:
		return HaltIO
	case libvirt.DomainPausedSave, libvirt.DomainPausedDump, libvirt.DomainPausedSnapshot,
		libvirt.DomainPausedShuttingDown, libvirt.DomainPausedStartingUp:
		return HaltPassing
	}
	return ""
}

// reduce maps libvirt's state and reason to devvm's.
func reduce(state libvirt.DomainState, reason int32, saved bool) (State, string) {
	switch state {
	case libvirt.DomainRunning, libvirt.DomainBlocked:
		return StateRunning, runningReasons[libvirt.DomainRunningReason(reason)]
	case libvirt.DomainShutdown:
		return StateRunning, "the guest is powering off"
	case libvirt.DomainPaused, libvirt.DomainPmsuspended:
		if state == libvirt.DomainPmsuspended {
			return StatePaused, "suspended by the guest"
		}
		return StatePaused, pausedReasons[libvirt.DomainPausedReason(reason)]
	case libvirt.DomainCrashed:
		return StateCrashed, "the guest crashed"
	}
	if saved {
		return StateSaved, "its memory is saved"
	}
	if libvirt.DomainShutoffReason(reason) == libvirt.DomainShutoffCrashed {
		return StateCrashed, shutoffReasons[libvirt.DomainShutoffCrashed]
	}
	return StateStopped, shutoffReasons[libvirt.DomainShutoffReason(reason)]
}

var runningReasons = map[libvirt.DomainRunningReason]string{
	libvirt.DomainRunningBooted:       "booted",
	libvirt.DomainRunningRestored:     "resumed from its saved memory",
	libvirt.DomainRunningFromSnapshot: "resumed from a snapshot",
	libvirt.DomainRunningUnpaused:     "resumed",
	libvirt.DomainRunningSaveCanceled: "a save was cancelled",
	libvirt.DomainRunningWakeup:       "woke up",
	libvirt.DomainRunningCrashed:      "resumed after a crash",
}

var pausedReasons = map[libvirt.DomainPausedReason]string{
	libvirt.DomainPausedUnknown:      "QEMU stopped it after an error of its own",
	libvirt.DomainPausedUser:         "paused on request",
	libvirt.DomainPausedSave:         "its memory is being saved",
	libvirt.DomainPausedDump:         "its memory is being dumped",
	libvirt.DomainPausedIoerror:      "disk I/O error (no space left on the host?)",
	libvirt.DomainPausedWatchdog:     "stopped by its watchdog",
	libvirt.DomainPausedFromSnapshot: "reverted to a paused snapshot",
	libvirt.DomainPausedShuttingDown: "powering off",
	libvirt.DomainPausedSnapshot:     "a snapshot is being taken",
	libvirt.DomainPausedCrashed:      "the guest crashed",
	libvirt.DomainPausedStartingUp:   "starting",
	libvirt.DomainPausedAPIError:     "stopped by an error of libvirt",
}

var shutoffReasons = map[libvirt.DomainShutoffReason]string{
	libvirt.DomainShutoffShutdown:     "powered off",
	libvirt.DomainShutoffDestroyed:    "stopped by force",
	libvirt.DomainShutoffCrashed:      "QEMU crashed or was killed",
	libvirt.DomainShutoffSaved:        "its memory was saved",
	libvirt.DomainShutoffFailed:       "its start failed",
	libvirt.DomainShutoffFromSnapshot: "reverted to a snapshot taken while off",
	libvirt.DomainShutoffDaemon:       "stopped by libvirt's daemon",
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
