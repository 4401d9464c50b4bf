package project

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/devvm/devvm/pkg/daemon"
	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/vm"
)

// await waits until the engine answers. It gives up when the VM stops or
// patience ends. A nil console means that the kernel is up already.
func (b *boot) await(ctx context.Context, con *console) error {
	err := b.watch(ctx, con)
	if errors.Is(err, supervisor.ErrHung) {
		b.progress.Fail(err)
		if err = b.daemons(b.project).StartSupervisor(ctx, b.accel == vm.AccelTCG); err == nil {
			err = b.watch(ctx, con)
		}
	}
	if !errors.Is(err, usernet.ErrNoNetwork) {
		return err
	}
	b.progress.Fail(err)
	if err := b.rewire(ctx); err != nil {
		return err
	}
	return b.watch(ctx, nil)
}

// probeEvery is how often a VM's daemons are looked at while it is waited for.
const probeEvery = 5 * time.Second

// probeHelpers looks now and then whether the VM's supervisor and network process answer, until
// ctx ends or one never will: supervisor.ErrHung, usernet.ErrNoNetwork.
func (b *boot) probeHelpers(ctx context.Context) error {
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
		_, serr := b.daemons(b.project).Supervisor().Status(ctx)
		_, nerr := b.askNet(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(serr, supervisor.ErrHung) {
			if hung = cmp.Or(hung, asked); daemon.Lost(b.files.SupervisorLock(), hung) {
				return serr
			}
		} else {
			hung = time.Time{}
		}
		if nerr != nil {
			silent = cmp.Or(silent, asked)
			nobody := errors.Is(nerr, usernet.ErrNoNetwork)
			if nobody && gone || !nobody && daemon.Lost(b.files.NetLock(), silent) { // once may be one that is being started
				return fmt.Errorf("%w: %w", usernet.ErrNoNetwork, nerr)
			}
			gone = nobody
		} else {
			silent, gone = time.Time{}, false
		}
	}
}

// watch is await, but for a VM whose network process ends meanwhile: that is
// usernet.ErrNoNetwork. A supervisor that stops answering is supervisor.ErrHung.
func (b *boot) watch(ctx context.Context, con *console) error {
	patience := b.Timeout
	if patience == 0 {
		patience = patienceKVM
		if b.accel == vm.AccelTCG {
			patience = patienceTCG
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, machine.ErrPatience)
	defer cancel()
	var owned sync.WaitGroup
	defer owned.Wait()
	defer cancel()

	events := make(chan machine.Event)
	send := func(e machine.Event) bool {
		select {
		case events <- e:
			return true
		case <-ctx.Done():
			return false
		}
	}
	owned.Go(func() {
		err := b.daemons(b.project).Supervisor().Watch(ctx, func(st supervisor.Status) bool { return send(machine.SupervisorStatus{Status: st}) })
		send(machine.WatchEnded{Err: err})
	})
	owned.Go(func() {
		if err := b.probeHelpers(ctx); err != nil {
			send(machine.HelperLost{Err: err})
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
	kernel := time.NewTimer(cmp.Or(b.Kernel, patienceKernel))
	defer kernel.Stop()
	var ports <-chan time.Time

	wait, do := machine.NewWait(machine.Options{KernelUp: con == nil, Fresh: b.forked, Version: b.Version})
	for {
		if do.Failed != nil {
			b.progress.Fail(do.Failed)
		}
		if do.Phase != "" {
			b.progress.Start(string(do.Phase), do.Phase.Text())
		}
		if do.Note != "" {
			b.progress.Note("%s", do.Note)
		}
		if do.Done {
			return b.explainWait(do.Err, patience)
		}
		if do.PingEngine {
			owned.Go(func() { send(machine.EngineAnswer{Err: engine.Ping(ctx, b.files.DockerSocket())}) })
		}
		if do.GetDomain { // libvirt may take its time, and has nothing to do with the rest
			owned.Go(func() {
				dom, err := b.hv.Get(ctx, b.project.Name)
				send(machine.Domain{Domain: dom, Err: err})
			})
		}
		if do.AskNetwork {
			owned.Go(func() {
				_, err := b.askNet(ctx)
				send(machine.NetworkAnswer{Err: err})
			})
		}
		if do.AwaitPorts {
			ports = time.After(patienceForPorts)
		}
		var e machine.Event
		select {
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), machine.ErrPatience) {
				return ctx.Err()
			}
			e = machine.Deadline{}
		case e = <-events:
			if ctx.Err() != nil { // it comes of the end, and says nothing
				e = nil
			}
		case <-look:
			if con.shows() {
				e, look = machine.ConsoleReady{}, nil
			}
		case <-tick.C:
			e = machine.Tick{}
		case <-kernel.C:
			e = machine.KernelDeadline{}
		case <-ports:
			e = machine.PortsDeadline{}
		}
		do = wait.On(e, time.Now())
	}
}

// explainWait says in words that users see why a wait has ended.
func (b *boot) explainWait(err error, patience time.Duration) error {
	if stopped, ok := errors.AsType[*machine.StoppedError](err); ok {
		return b.died(stopped.Domain, stopped.KernelUp)
	}
	if failed, ok := errors.AsType[*machine.EngineError](err); ok {
		why := ui.Escape(failed.Status.EngineFailed)
		if full := problemFull(failed.Status); full != "" {
			return &ui.Error{Msg: full + "; Docker Engine does not start: " + why, Hint: AdviceFull}
		}
		return &ui.Error{
			Msg:  "Docker Engine does not start in the VM: " + why,
			Hint: "mend [docker.daemon] in devvm.toml if it is to blame, then: devvm down; devvm up",
		}
	}
	if late, ok := errors.AsType[*machine.PatienceError](err); ok {
		if late.Silent > 0 {
			return &ui.Error{
				Msg:  fmt.Sprintf("the VM is slow: it runs, and has said nothing for %s (short of memory, or this host is busy)", late.Silent.Round(time.Second)),
				Hint: fmt.Sprintf("wait longer: devvm up --timeout %s; or boot it again: devvm down; devvm up%s", 2*patience, seeConsole(b.files)),
				Err:  err,
			}
		}
		return &ui.Error{
			Msg:  fmt.Sprintf("the VM runs, but after %s it has not come further than %q%s", patience, late.Phase, because(late.Why)),
			Hint: fmt.Sprintf("if it only needs longer: devvm up --timeout %s%s", 2*patience, seeConsole(b.files)),
			Err:  err,
		}
	}
	if errors.Is(err, machine.ErrWatch) {
		return &ui.Error{
			Msg:  machine.ErrWatch.Error(),
			Hint: "run devvm up again" + see(b.files.SupervisorLog(), "its log: devvm logs --supervisor"),
			Err:  err,
		}
	}
	if errors.Is(err, machine.ErrNoKernel) {
		return fmt.Errorf("%w within %s", err, cmp.Or(b.Kernel, patienceKernel))
	}
	return err
}

// died explains a VM that stopped while its engine was awaited.
func (b *boot) died(dom vm.Domain, kernelUp bool) error {
	if b.attends && (dom.State == vm.StateStopped || dom.State == vm.StateSaved || dom.Halt == vm.HaltPassing || dom.Halt == vm.HaltSignal) {
		return fmt.Errorf("%w: it is %s%s", errWentOff, dom.State, because(dom.Reason))
	}
	if dom.Halt == vm.HaltIO {
		if err := b.errFull(b.files); err != nil {
			return err
		}
	}
	if b.accel == vm.AccelKVM && !kernelUp && dom.Halt == "" {
		return fmt.Errorf("%w: the guest died before its kernel ran (%s)", vm.ErrAccel, dom.Reason)
	}
	hint := "start it again with: devvm up" + seeConsole(b.files)
	if dom.Halt == vm.HaltSignal {
		hint = "let it go on with: devvm up"
	}
	return &ui.Error{
		Msg:  fmt.Sprintf("the VM stopped while it was starting: %s%s", dom.State, because(dom.Reason)),
		Hint: hint,
	}
}
