package machine_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vmnet"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// in is a supervisor's status.
func in(s supervisor.State, change ...func(*supervisor.Status)) machine.Event {
	st := supervisor.Status{State: s, Version: "1"}
	for _, c := range change {
		c(&st)
	}
	return machine.SupervisorStatus{Status: st}
}

func portsKnown(s *supervisor.Status)   { s.PortsKnown = true }
func otherVersion(s *supervisor.Status) { s.Version = "0" }
func slow(s *supervisor.Status)         { s.SlowSince = now.Add(-7 * time.Second) }
func linkLost(s *supervisor.Status)     { s.Error = "no answer" }
func engineFailed(s *supervisor.Status) { s.EngineFailed = "invalid daemon.json" }

// say shows an action, in the order in which it is carried out.
func say(a machine.Action) string {
	var words []string
	add := func(is bool, word string) {
		if is {
			words = append(words, word)
		}
	}
	add(a.Failed != nil, fmt.Sprintf("failed(%v)", a.Failed))
	add(a.Phase != "", "show "+string(a.Phase))
	add(a.Note != "", "note")
	add(a.Done && a.Err == nil, "ready")
	add(a.Err != nil, fmt.Sprintf("error(%v)", a.Err))
	add(a.PingEngine, "ping")
	add(a.GetDomain, "get")
	add(a.AskNetwork, "network")
	add(a.AwaitPorts, "ports")
	return strings.Join(words, " ")
}

// step is an event and what is to come of it.
type step struct {
	event machine.Event
	want  string
}

// TestWait: orders of events, most of which went wrong once.
func TestWait(t *testing.T) {
	var (
		lost    = errors.New("lost")
		running = machine.Domain{Domain: vm.Domain{State: vm.StateRunning}}
		crashed = machine.Domain{Domain: vm.Domain{State: vm.StateCrashed, Reason: "killed"}}
		ok      = machine.EngineAnswer{}
		refused = machine.EngineAnswer{Err: lost}
	)
	for _, c := range []struct {
		name    string
		options machine.Options
		begin   string
		steps   []step
	}{
		{"a boot", machine.Options{Version: "1"}, "show kernel", []step{
			{in(supervisor.StateConnecting), ""},
			{machine.Tick{}, "get"},
			{running, ""},
			{machine.ConsoleReady{}, "show ssh"},
			{machine.KernelDeadline{}, ""},
			{in(supervisor.StateSSH), "show engine"},
			{in(supervisor.StateReady), "ping"},
			{ok, "ports"},
			{in(supervisor.StateReady, portsKnown), "ready"},
		}},
		{"SSH answers before the console is read", machine.Options{Version: "1"}, "show kernel", []step{
			{in(supervisor.StateSSH), "show engine"},
			{machine.ConsoleReady{}, ""},
			{machine.KernelDeadline{}, ""},
		}},
		{"a fork has no ports to wait for", machine.Options{KernelUp: true, Fresh: true, Version: "1"}, "show ssh", []step{
			{in(supervisor.StateReady), "show engine ping"},
			{ok, "ready"},
		}},
		{"ports are known first", machine.Options{KernelUp: true, Version: "1"}, "show ssh", []step{
			{in(supervisor.StateReady, portsKnown), "show engine ping"},
			{ok, "ready"},
		}},
		{"a supervisor of another version may not tell of ports", machine.Options{KernelUp: true, Version: "1"}, "show ssh", []step{
			{in(supervisor.StateReady, otherVersion), "show engine ping"},
			{ok, "ready"},
		}},
		{"ports take too long", machine.Options{KernelUp: true, Version: "1"}, "show ssh", []step{
			{in(supervisor.StateReady), "show engine ping"},
			{ok, "ports"},
			{machine.PortsDeadline{}, "ready"},
		}},
		{"the time for ports is over after the link broke", machine.Options{KernelUp: true, Version: "1"}, "show ssh", []step{
			{in(supervisor.StateReady), "show engine ping"},
			{ok, "ports"},
			{in(supervisor.StateLost, linkLost), "failed(no answer) show ssh"},
			{machine.PortsDeadline{}, ""},
			{in(supervisor.StateReady), "show engine ping"},
			{ok, "ports"},
		}},
		{"a crashed VM looks ready for some seconds", machine.Options{KernelUp: true, Version: "1"}, "show ssh", []step{
			{in(supervisor.StateReady, portsKnown), "show engine ping"},
			{refused, ""},
			{machine.Tick{}, "ping get"},
			{machine.Tick{}, ""},
			{crashed, "error(the VM stopped while it was starting: crashed (killed))"},
		}},
		{"an engine that does not answer is asked again", machine.Options{KernelUp: true, Version: "1"}, "show ssh", []step{
			{in(supervisor.StateReady), "show engine ping"},
			{in(supervisor.StateReady), ""},
			{machine.Tick{}, "get"},
			{refused, ""},
			{running, ""},
			{machine.Tick{}, "ping get"},
			{ok, "ports"},
			{machine.Tick{}, ""},
		}},
		{"the link breaks without a reason", machine.Options{KernelUp: true, Version: "1"}, "show ssh", []step{
			{in(supervisor.StateSSH), "show engine"},
			{in(supervisor.StateConnecting), "failed(the connection broke) show ssh"},
		}},
		{"an old failure of the engine counts for nothing", machine.Options{KernelUp: true, Version: "1"}, "show ssh", []step{
			{in(supervisor.StateReady, engineFailed), "show engine ping"},
			{in(supervisor.StateSSH, engineFailed), ""},
			{in(supervisor.StateReady), ""},
		}},
		{"the engine fails now", machine.Options{KernelUp: true, Version: "1"}, "show ssh", []step{
			{in(supervisor.StateConnecting), ""},
			{in(supervisor.StateReady, engineFailed), "error(the engine does not start: invalid daemon.json)"},
		}},
		{"no kernel", machine.Options{Version: "1"}, "show kernel", []step{
			{in(supervisor.StateConnecting), ""},
			{machine.KernelDeadline{}, "error(the guest's kernel did not come up)"},
		}},
		{"a stopped supervisor may be an old one", machine.Options{KernelUp: true, Version: "1"}, "show ssh", []step{
			{in(supervisor.StateStopped), "network"},
			{machine.NetworkAnswer{}, ""},
			{in(supervisor.StateStopped), "network"},
			{machine.NetworkAnswer{Err: fmt.Errorf("ask: %w", vmnet.ErrNoNetwork)}, "error(ask: " + vmnet.ErrNoNetwork.Error() + ")"},
		}},
		{"a busy network process is there", machine.Options{KernelUp: true, Version: "1"}, "show ssh", []step{
			{in(supervisor.StateStopped), "network"},
			{machine.NetworkAnswer{Err: lost}, ""},
		}},
		{"a helper is lost", machine.Options{Version: "1"}, "show kernel", []step{
			{machine.HelperLost{Err: supervisor.ErrHung}, "error(" + supervisor.ErrHung.Error() + ")"},
		}},
		{"the supervisor ends", machine.Options{Version: "1"}, "show kernel", []step{
			{machine.WatchEnded{Err: lost}, "error(the supervisor ended while the VM was starting\nlost)"},
		}},
		{"libvirt ends", machine.Options{Version: "1"}, "show kernel", []step{
			{machine.Tick{}, "get"},
			{machine.Domain{Err: vm.ErrNoLibvirt}, "error(" + vm.ErrNoLibvirt.Error() + ")"},
		}},
		{"libvirt is slow, or fails once", machine.Options{Version: "1"}, "show kernel", []step{
			{machine.Tick{}, "get"},
			{machine.Tick{}, ""},
			{machine.Domain{Err: lost}, ""},
			{machine.Tick{}, "get"},
		}},
		{"a slow VM is told of once", machine.Options{KernelUp: true, Version: "1"}, "show ssh", []step{
			{in(supervisor.StateSSH, slow), "show engine note"},
			{in(supervisor.StateSSH), ""},
			{in(supervisor.StateSSH, slow), ""},
			{machine.Deadline{}, "error(the engine did not answer in time)"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, a := machine.NewWait(c.options)
			if got := say(a); got != c.begin {
				t.Errorf("begins with %q, want %q", got, c.begin)
			}
			for i, s := range c.steps {
				if got := say(w.On(s.event, now)); got != s.want {
					t.Errorf("step %d, %T: %q, want %q", i+1, s.event, got, s.want)
				}
			}
		})
	}
}

// TestWaitPatience: an error of patience says how far the VM has come.
func TestWaitPatience(t *testing.T) {
	w, _ := machine.NewWait(machine.Options{Version: "1"})
	w.On(in(supervisor.StateConnecting, linkLost), now)
	a := w.On(machine.Deadline{}, now)
	late, ok := errors.AsType[*machine.PatienceError](a.Err)
	if !ok || !errors.Is(a.Err, machine.ErrPatience) || late.Phase != machine.PhaseKernel || late.Why != "no answer" || late.Silent != 0 {
		t.Errorf("%+v", a)
	}
	w, _ = machine.NewWait(machine.Options{KernelUp: true, Version: "1"})
	w.On(in(supervisor.StateSSH, slow), now)
	a = w.On(machine.Deadline{}, now.Add(time.Second))
	if late, ok := errors.AsType[*machine.PatienceError](a.Err); !ok || late.Silent != 8*time.Second || late.Phase != machine.PhaseEngine {
		t.Errorf("%+v", a)
	}
}

// TestWaitAtRandom: whatever comes in whatever order, no more than one question is open to the
// engine and to libvirt, and nothing is ready without an engine that has answered.
func TestWaitAtRandom(t *testing.T) {
	states := []supervisor.State{supervisor.StateConnecting, supervisor.StateSSH, supervisor.StateReady, supervisor.StateLost, supervisor.StateStopped}
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 1))
		w, _ := machine.NewWait(machine.Options{KernelUp: seed%2 == 0, Fresh: seed%3 == 0, Version: "1"})
		pings, gets, answered := 0, 0, false
		for range 60 {
			var e machine.Event
			switch n := random.IntN(9); {
			case n < 4:
				e = in(states[random.IntN(len(states))], func(s *supervisor.Status) { s.PortsKnown = random.IntN(4) == 0 })
			case n == 4 && pings > 0:
				var err error
				if random.IntN(2) == 0 {
					err = errors.New("no")
				}
				answered = answered || err == nil
				pings--
				e = machine.EngineAnswer{Err: err}
			case n == 5 && gets > 0:
				gets--
				e = machine.Domain{Domain: vm.Domain{State: vm.StateRunning}}
			case n == 6:
				e = machine.PortsDeadline{}
			case n == 7:
				e = machine.ConsoleReady{}
			default:
				e = machine.Tick{}
			}
			a := w.On(e, now)
			if a.PingEngine {
				pings++
			}
			if a.GetDomain {
				gets++
			}
			if pings > 1 || gets > 1 {
				t.Fatalf("seed %d: %d pings and %d gets are open", seed, pings, gets)
			}
			if a.Done {
				if a.Err != nil || !answered {
					t.Fatalf("seed %d: done with %v, the engine has answered: %v", seed, a.Err, answered)
				}
				break
			}
		}
	}
}
