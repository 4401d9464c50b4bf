package machine

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vmnet"
)

// Phase is what up is waiting for.
type Phase string

// Phases, in order. A VM can fall back to PhaseSSH.
const (
	PhaseKernel Phase = "kernel" // to run its first program
	PhaseSSH    Phase = "ssh"    // to answer
	PhaseEngine Phase = "engine" // to answer
)

// Text is the phase in words for the user.
func (p Phase) Text() string {
	switch p {
	case PhaseKernel:
		return "boot the kernel"
	case PhaseSSH:
		return "wait for SSH"
	}
	return "wait for Docker Engine"
}

// phaseOf returns what a supervisor in this state waits for.
func phaseOf(s supervisor.State) Phase {
	switch s {
	case supervisor.StateConnecting, supervisor.StateLost, supervisor.StateStopped:
		return PhaseSSH
	case supervisor.StateSSH, supervisor.StateReady:
		return PhaseEngine
	}
	return ""
}

// An Event is something that happens while a VM starts.
type Event interface{ event() }

// The events.
type (
	// ConsoleReady says that the guest's console shows that its kernel runs.
	ConsoleReady struct{}
	// SupervisorStatus is the supervisor's status when it changes. The first one is from before
	// the wait.
	SupervisorStatus struct{ supervisor.Status }
	// EngineAnswer is the engine's answer to [Action.PingEngine].
	EngineAnswer struct{ Err error }
	// Domain is libvirt's answer to [Action.GetDomain].
	Domain struct {
		vm.Domain
		Err error
	}
	// NetworkAnswer is the network process's answer to [Action.AskNetwork].
	NetworkAnswer struct{ Err error }
	// HelperLost says that the supervisor or the network process does not answer and never will, see
	// [supervisor.ErrHung] and [vmnet.ErrNoNetwork].
	HelperLost struct{ Err error }
	// WatchEnded says that the supervisor's stream of statuses has ended.
	WatchEnded struct{ Err error }
	// Tick comes twice a second.
	Tick struct{}
	// KernelDeadline says that the kernel's time is over.
	KernelDeadline struct{}
	// PortsDeadline says that the time for the ports of containers is over, which [Action.AwaitPorts]
	// starts.
	PortsDeadline struct{}
	// Deadline says that the time for the whole start is over.
	Deadline struct{}
)

func (ConsoleReady) event()     {}
func (SupervisorStatus) event() {}
func (EngineAnswer) event()     {}
func (Domain) event()           {}
func (NetworkAnswer) event()    {}
func (HelperLost) event()       {}
func (WatchEnded) event()       {}
func (Tick) event()             {}
func (KernelDeadline) event()   {}
func (PortsDeadline) event()    {}
func (Deadline) event()         {}

// Action is what to do after an event.
type Action struct {
	// Done ends the wait: the VM is ready, or Err says why not.
	Done bool
	Err  error

	Failed error  // the phase that is shown has failed
	Phase  Phase  // show this one from now on; "": no change
	Note   string // tell the user; "": nothing

	PingEngine bool // through docker.sock, the path that users take
	GetDomain  bool // from libvirt
	AskNetwork bool // whether the network process runs
	AwaitPorts bool // start the time of PortsDeadline, or start it again
}

// Errors that end a wait, in addition to those of the events.
var (
	// ErrNoKernel says that the guest's kernel hangs. Under emulation a boot sometimes stops for
	// good, with both CPUs halted and no timer to wake them (once in about forty boots on a busy
	// host, QEMU 7.2). The next boot works. Under a KVM that has never run a VM here, nested in
	// another hypervisor, no kernel may come up.
	ErrNoKernel = errors.New("the guest's kernel did not come up")
	// ErrPatience says that the time for the whole start is over.
	ErrPatience = errors.New("the engine did not answer in time")
	// ErrWatch says that the supervisor ended.
	ErrWatch = errors.New("the supervisor ended while the VM was starting")
)

// EngineError says that the engine does not start.
type EngineError struct{ Status supervisor.Status }

// Error implements error.
func (e *EngineError) Error() string { return "the engine does not start: " + e.Status.EngineFailed }

// StoppedError says that the VM stopped while it was starting.
type StoppedError struct {
	Domain   vm.Domain
	KernelUp bool // its kernel ran
}

// Error implements error.
func (e *StoppedError) Error() string {
	return fmt.Sprintf("the VM stopped while it was starting: %s (%s)", e.Domain.State, e.Domain.Reason)
}

// PatienceError is an [ErrPatience] that says how far the VM got.
type PatienceError struct {
	Phase  Phase
	Why    string        // it got no further, if the supervisor says why
	Silent time.Duration // how long the VM has been silent; 0: it is not
}

// Error implements error.
func (e *PatienceError) Error() string { return ErrPatience.Error() }

// Unwrap returns ErrPatience.
func (e *PatienceError) Unwrap() error { return ErrPatience }

// Options of a [Wait].
type Options struct {
	KernelUp bool   // the VM was already running
	Fresh    bool   // the VM has no containers with ports to wait for
	Version  string // of this program; a supervisor of another version may not report ports
}

// Wait decides what to do with a VM that is starting. It has no effects: it gets one event at a
// time and returns what to do next, which [Machine.WaitReady] does. Create it with [NewWait].
type Wait struct {
	o        Options
	kernelUp bool
	phase    Phase
	last     supervisor.Status
	heard    bool // a status after the first has come
	noted    bool // the user knows that the VM is slow
	pinging  bool
	answered bool // by the engine, since the supervisor was last not ready
	getting  bool // libvirt was asked and has not answered yet
}

// NewWait begins a wait.
func NewWait(o Options) (*Wait, Action) {
	w := &Wait{o: o, kernelUp: o.KernelUp, phase: PhaseKernel}
	if o.KernelUp {
		w.phase = PhaseSSH
	}
	return w, Action{Phase: w.phase}
}

// On returns what to do after an event. Once an Action is Done, On must not be called again.
func (w *Wait) On(e Event, now time.Time) Action {
	switch e := e.(type) {
	case ConsoleReady:
		return w.console()
	case SupervisorStatus:
		return w.status(e.Status, now)
	case EngineAnswer:
		return w.engine(e.Err)
	case Domain:
		return w.domain(e)
	case NetworkAnswer:
		if errors.Is(e.Err, vmnet.ErrNoNetwork) {
			return done(e.Err)
		}
	case HelperLost:
		return done(e.Err)
	case WatchEnded:
		return done(errors.Join(ErrWatch, e.Err))
	case Tick:
		a := w.ping()
		a.GetDomain = !w.getting
		w.getting = true
		return a
	case KernelDeadline:
		if !w.kernelUp {
			return done(ErrNoKernel)
		}
	case PortsDeadline:
		if w.answered { // the ports will open later, without up
			return done(nil)
		}
	case Deadline:
		return w.deadline(now)
	}
	return Action{}
}

func done(err error) Action { return Action{Done: true, Err: err} }

func (w *Wait) console() Action {
	if w.kernelUp {
		return Action{}
	}
	w.kernelUp, w.phase = true, PhaseSSH
	return Action{Phase: w.phase}
}

func (w *Wait) status(now supervisor.Status, at time.Time) Action {
	first := !w.heard
	w.last, w.heard = now, true
	if now.State != supervisor.StateReady {
		w.answered = false
	}
	if w.answered && now.PortsKnown {
		return done(nil)
	}
	if now.EngineFailed != "" && now.State != supervisor.StateSSH && !first {
		return done(&EngineError{now})
	}
	a := w.ping()
	if !w.noted && !now.SlowSince.IsZero() {
		w.noted = true
		a.Note = fmt.Sprintf("the VM is slow: it has not answered for %s; still waiting", at.Sub(now.SlowSince).Round(time.Second))
	}
	w.kernelUp = w.kernelUp || now.State == supervisor.StateSSH || now.State == supervisor.StateReady
	if next := phaseOf(now.State); next != w.phase && next != "" && w.kernelUp {
		if next == PhaseSSH { // again
			a.Failed = errors.New(cmp.Or(now.Error, "the connection broke"))
		}
		w.phase, a.Phase = next, next
	}
	// The supervisor's state may be out of date.
	a.AskNetwork = now.State == supervisor.StateStopped
	return a
}

// ping asks the engine. A VM that has just crashed looks ready to its supervisor for some seconds,
// so the engine itself has the last word.
func (w *Wait) ping() Action {
	if w.pinging || w.answered || w.last.State != supervisor.StateReady {
		return Action{}
	}
	w.pinging = true
	return Action{PingEngine: true}
}

func (w *Wait) engine(err error) Action {
	w.pinging = false
	switch {
	case err != nil:
		return Action{}
	case w.o.Fresh, w.last.PortsKnown, w.last.Version != w.o.Version:
		return done(nil)
	}
	w.answered = true
	return Action{AwaitPorts: true}
}

func (w *Wait) domain(d Domain) Action {
	w.getting = false
	switch {
	case errors.Is(d.Err, vm.ErrNoLibvirt):
		return done(d.Err)
	case d.Err == nil && d.State != vm.StateRunning:
		return done(&StoppedError{d.Domain, w.kernelUp})
	}
	return Action{}
}

func (w *Wait) deadline(now time.Time) Action {
	e := &PatienceError{Phase: w.phase, Why: w.last.Error}
	if !w.last.SlowSince.IsZero() {
		e.Silent = now.Sub(w.last.SlowSince)
	}
	return done(e)
}
