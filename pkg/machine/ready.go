package machine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/devvm/devvm/pkg/daemon"
	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vmnet"
)

// WaitReady waits until the engine answers. It gives up when the VM stops or
// patience ends. A nil console means that the kernel is up already.
func (m *Machine) WaitReady(ctx context.Context, con *console) error {
	err := m.waitOnce(ctx, con)
	if errors.Is(err, supervisor.ErrHung) {
		m.Progress.Fail(err)
		if err = m.Daemons(m.Project).StartSupervisor(ctx, m.Accel == vm.AccelTCG); err == nil {
			err = m.waitOnce(ctx, con)
		}
	}
	if !errors.Is(err, vmnet.ErrNoNetwork) {
		return err
	}
	m.Progress.Fail(err)
	if err := m.replaceNetwork(ctx); err != nil {
		return err
	}
	return m.waitOnce(ctx, nil)
}

// probeEvery is how often a VM's daemons are looked at while it is waited for.
const probeEvery = 5 * time.Second

// probeDaemons looks now and then whether the VM's supervisor and network process answer, until
// ctx ends or one never will: supervisor.ErrHung, vmnet.ErrNoNetwork.
func (m *Machine) probeDaemons(ctx context.Context) error {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	var hung, silent time.Time // since when; zero: it has answered
	for gone := false; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		asked := time.Now()
		_, serr := m.Daemons(m.Project).Supervisor().Status(ctx)
		_, nerr := m.askNet(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(serr, supervisor.ErrHung) {
			if hung = cmp.Or(hung, asked); daemon.Lost(m.Files.SupervisorLock(), hung) {
				return serr
			}
		} else {
			hung = time.Time{}
		}
		if nerr != nil {
			silent = cmp.Or(silent, asked)
			nobody := errors.Is(nerr, vmnet.ErrNoNetwork)
			if nobody && gone || !nobody && daemon.Lost(m.Files.NetLock(), silent) { // once may be one that is being started
				return fmt.Errorf("%w: %w", vmnet.ErrNoNetwork, nerr)
			}
			gone = nobody
		} else {
			silent, gone = time.Time{}, false
		}
	}
}

// waitOnce is WaitReady, but for a VM whose network process ends meanwhile: that is
// vmnet.ErrNoNetwork. A supervisor that stops answering is supervisor.ErrHung.
func (m *Machine) waitOnce(ctx context.Context, con *console) error {
	patience := m.patience()
	ctx, cancel := context.WithTimeoutCause(ctx, patience, ErrPatience)
	defer cancel()
	var owned sync.WaitGroup
	defer owned.Wait()
	defer cancel()

	events := make(chan Event)
	send := func(e Event) bool {
		select {
		case events <- e:
			return true
		case <-ctx.Done():
			return false
		}
	}
	owned.Go(func() {
		err := m.Daemons(m.Project).Supervisor().Watch(ctx, func(st supervisor.Status) bool { return send(SupervisorStatus{Status: st}) })
		send(WatchEnded{Err: err})
	})
	owned.Go(func() {
		if err := m.probeDaemons(ctx); err != nil {
			send(HelperLost{Err: err})
		}
	})
	var look <-chan time.Time
	if con != nil {
		ticker := time.NewTicker(50 * time.Millisecond)
		defer ticker.Stop()
		look = ticker.C
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	kernel := time.NewTimer(cmp.Or(m.Kernel, patienceKernel))
	defer kernel.Stop()
	var ports <-chan time.Time

	wait, do := NewWait(Options{KernelUp: con == nil, Fresh: m.forked, Version: m.Version})
	for {
		m.show(do)
		if do.Done {
			return m.explainWait(do.Err, patience)
		}
		if do.PingEngine {
			owned.Go(func() { send(EngineAnswer{Err: engine.Ping(ctx, m.Files.DockerSocket())}) })
		}
		if do.GetDomain { // libvirt may take its time, and has nothing to do with the rest
			owned.Go(func() {
				dom, err := m.Hypervisor.Get(ctx, m.Project.Name)
				send(Domain{Domain: dom, Err: err})
			})
		}
		if do.AskNetwork {
			owned.Go(func() {
				_, err := m.askNet(ctx)
				send(NetworkAnswer{Err: err})
			})
		}
		if do.AwaitPorts {
			ports = time.After(PatienceForPorts)
		}
		var e Event
		select {
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), ErrPatience) {
				return ctx.Err()
			}
			e = Deadline{}
		case e = <-events:
			if ctx.Err() != nil { // it comes of the end, and says nothing
				e = nil
			}
		case <-look:
			if con.shows() {
				e, look = ConsoleReady{}, nil
			}
		case <-tick.C:
			e = Tick{}
		case <-kernel.C:
			e = KernelDeadline{}
		case <-ports:
			e = PortsDeadline{}
		}
		do = wait.On(e, time.Now())
	}
}

// show tells the user of an action.
func (m *Machine) show(a Action) {
	if a.Failed != nil {
		m.Progress.Fail(a.Failed)
	}
	if a.Phase != "" {
		m.Progress.Start(string(a.Phase), a.Phase.Text())
	}
	if a.Note != "" {
		m.Progress.Note("%s", a.Note)
	}
}

// patience is how long the VM's engine may take to answer.
func (m *Machine) patience() time.Duration {
	switch {
	case m.Timeout != 0:
		return m.Timeout
	case m.Accel == vm.AccelTCG:
		return patienceTCG
	}
	return patienceKVM
}

// explainWait says in words that users see why a wait has ended.
func (m *Machine) explainWait(err error, patience time.Duration) error {
	if stopped, ok := errors.AsType[*StoppedError](err); ok {
		return m.died(stopped.Domain, stopped.KernelUp)
	}
	if failed, ok := errors.AsType[*EngineError](err); ok {
		why := ui.Escape(failed.Status.EngineFailed)
		if full := DiskProblem(failed.Status); full != "" {
			return &ui.Error{Msg: full + "; Docker Engine does not start: " + why, Hint: AdviceFull}
		}
		return &ui.Error{
			Msg:  "Docker Engine does not start in the VM: " + why,
			Hint: "fix [docker.daemon] in devvm.toml if that is the cause, then: devvm down; devvm up",
		}
	}
	if late, ok := errors.AsType[*PatienceError](err); ok {
		if late.Silent > 0 {
			return &ui.Error{
				Msg:  fmt.Sprintf("the VM is slow: it runs, but has not answered for %s (it is short of memory, or this host is busy)", late.Silent.Round(time.Second)),
				Hint: fmt.Sprintf("wait longer: devvm up --timeout %s; or boot it again: devvm down; devvm up%s", 2*patience, SeeConsole(m.Files)),
				Err:  err,
			}
		}
		return &ui.Error{
			Msg:  fmt.Sprintf("the VM runs, but is stuck at %q after %s%s", late.Phase, patience, Because(late.Why)),
			Hint: fmt.Sprintf("if it only needs more time: devvm up --timeout %s%s", 2*patience, SeeConsole(m.Files)),
			Err:  err,
		}
	}
	if errors.Is(err, ErrWatch) {
		return &ui.Error{
			Msg:  ErrWatch.Error(),
			Hint: "run devvm up again" + see(m.Files.SupervisorLog(), "its log: devvm logs --supervisor"),
			Err:  err,
		}
	}
	if errors.Is(err, ErrNoKernel) {
		return fmt.Errorf("%w within %s", err, cmp.Or(m.Kernel, patienceKernel))
	}
	return err
}

// died explains a VM that stopped while its engine was awaited.
func (m *Machine) died(dom vm.Domain, kernelUp bool) error {
	if m.wasRunning && (dom.State == vm.StateStopped || dom.State == vm.StateSaved || dom.Halt == vm.HaltPassing || dom.Halt == vm.HaltSignal) {
		return fmt.Errorf("%w: it is %s%s", ErrWentOff, dom.State, Because(dom.Reason))
	}
	if dom.Halt == vm.HaltIO {
		if err := m.ErrFull(m.Files); err != nil {
			return err
		}
	}
	if m.Accel == vm.AccelKVM && !kernelUp && dom.Halt == "" {
		return fmt.Errorf("%w: the guest died before its kernel ran (%s)", vm.ErrAccel, dom.Reason)
	}
	hint := "start it again with: devvm up" + SeeConsole(m.Files)
	if dom.Halt == vm.HaltSignal {
		hint = "resume it with: devvm up"
	}
	return &ui.Error{
		Msg:  fmt.Sprintf("the VM stopped while it was starting: %s%s", dom.State, Because(dom.Reason)),
		Hint: hint,
	}
}
