package machine

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/devvm/devvm/pkg/daemon"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/subnet"
	"github.com/devvm/devvm/pkg/template"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
	"github.com/devvm/devvm/pkg/vmnet"
)

// Env is what all VMs of a user share.
type Env struct {
	Dirs         state.Dirs
	Images       *image.Store
	Templates    *template.Store
	Accelerators *vm.AccelStore
	Exe          string        // this program, for its background processes
	Version      string        // of this program
	Zone         string        // time zone for the guests, e.g. "Europe/Berlin"
	Timeout      time.Duration // for the engine to answer after a start; 0: depends on the accelerator
	Kernel       time.Duration // for the kernel to come up, within Timeout; 0: patienceKernel
	Slow         time.Duration // of silence before a command tells the user that it waits for the VM; 0: aliveEvery
	Note         func(string)  // shows the user a line; nil: no user
	// Free returns how many bytes can be written into a directory; nil: file.Free.
	Free func(dir string) (int64, error)
	// Routes returns the networks that this host reaches; nil: subnet.HostRoutes.
	Routes func() ([]subnet.Route, error)
	Log    *slog.Logger
}

// How long to wait for a VM.
const (
	patienceKVM = 2 * time.Minute
	patienceTCG = 6 * time.Minute
	// patienceKernel is many times as long as a kernel needs on a busy host without KVM.
	patienceKernel = 90 * time.Second
	PatienceOff    = 90 * time.Second // for the guest to stop its containers and power off
	PatienceSSH    = 15 * time.Second // for an SSH connection to a guest that may be ill
	// PatienceForPorts is for the ports of containers to be open, once the engine answers.
	PatienceForPorts = 5 * time.Second
)

// SSHAddress is the address on the VM's network where the guest's sshd listens.
func SSHAddress(f state.Files) string {
	at := vmnet.Guest
	if state.Marked(f.Management()) {
		at = vmnet.Management
	}
	return netip.AddrPortFrom(at, SSHPort).String()
}

// SSHPort is the port of the guest's sshd.
const SSHPort = 22

// noteAddress notes where the sshd of the VM listens, which depends on its image.
func noteAddress(f state.Files, img image.Image) error {
	if !img.Management {
		return state.Unmark(f.Management())
	}
	if state.Marked(f.Management()) {
		return nil
	}
	return file.Replace(f.Management(), nil, 0o600)
}

// guestMAC is the address of the guest's network card. All VMs have the same: each VM is alone
// on its network, and a fork keeps the address of its template.
const guestMAC = "52:54:00:64:76:6d"

// Daemons are the processes that serve the project's VM.
func (e *Env) Daemons(p state.Project) daemon.Set {
	return daemon.Set{
		Project: p.Name, Files: e.Dirs.Files(p.Name), Watches: e.Dirs.Watches(), Exe: e.Exe, Version: e.Version, Log: e.Log,
	}
}

// Target is how SSH reaches the project's guest.
func (e *Env) Target(p state.Project, emulated bool) (guest.Target, error) {
	f := e.Dirs.Files(p.Name)
	keys, err := guest.LoadKeys(f.Keys())
	if err != nil {
		return guest.Target{}, fmt.Errorf("load keys of project %s: %w", p.Name, err)
	}
	return guest.Target{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return vmnet.NewDialer(f.DialSocket()).Dial(ctx, "tcp", SSHAddress(f))
		},
		User:     "root",
		Keys:     keys,
		Emulated: emulated,
	}, nil
}

// aliveEvery is how often a connection that serves one command checks that the VM is alive: a
// VM that freezes for good must not hang the command (guest.SilenceLimit).
const aliveEvery = 10 * time.Second

// ConnectSSH opens an SSH connection that ends when the guest is silent for minutes. The user is
// told once that the guest is silent.
func (e *Env) ConnectSSH(ctx context.Context, p state.Project, accel vm.Accel) (*guest.Client, error) {
	target, err := e.Target(p, accel == vm.AccelTCG)
	if err != nil {
		return nil, err
	}
	slow := cmp.Or(e.Slow, aliveEvery)
	note := sync.OnceFunc(func() {
		if e.Note != nil {
			e.Note("the VM does not answer yet (slow host?); still waiting, Ctrl-C to stop")
		}
	})
	connecting, cancel := context.WithTimeout(ctx, guest.SilenceLimit)
	defer cancel()
	timer := time.AfterFunc(slow, note)
	client, err := guest.Connect(connecting, target)
	timer.Stop()
	if err != nil {
		return nil, err
	}
	go func() { // ends with the connection
		err := client.Keepalive(context.WithoutCancel(ctx), guest.Silence{Every: slow / 2, Slow: slow, Changed: func(since time.Time) {
			if !since.IsZero() {
				note()
			}
		}})
		e.Log.Debug("SSH connection ended", "err", err)
	}()
	return client, nil
}

// MakeDirs creates the project's directories.
func (e *Env) MakeDirs(f state.Files) error {
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{
		{e.Dirs.Data, e.Dirs.Passable()},
		{filepath.Dir(f.Root), e.Dirs.Passable()},
		{f.Root, e.Dirs.Passable()},
		{f.VM, e.Dirs.Passable()},
		{f.Credentials(), e.Dirs.Passable()},
		{f.Keys(), 0o700},
		{f.Logs, 0o700},
	} {
		if err := os.MkdirAll(dir.path, dir.mode); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		if err := os.Chmod(dir.path, dir.mode); err != nil { // MkdirAll is subject to umask
			return fmt.Errorf("make directory: %w", err)
		}
	}
	return e.Dirs.MakeRuntime(f)
}

// RunInGuest runs a command in the guest, for at most patience.
func (e *Env) RunInGuest(ctx context.Context, p state.Project, dom vm.Domain, patience time.Duration, argv ...string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client, err := e.ConnectSSH(ctx, p, dom.Accel)
	if err != nil {
		return err
	}
	defer client.Close()
	code, err := client.Run(ctx, guest.Command{Argv: argv})
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("%v: exit code %d", argv, code)
	}
	return nil
}

// CheckOwner returns an error if a domain belongs to somebody else, by its description or by
// libvirt's error.
func CheckOwner(p state.Project, dom vm.Domain, err error) error {
	switch {
	case err != nil:
		return &ui.Error{
			Msg:  fmt.Sprintf("a libvirt domain named %s%s exists that devvm did not make; it stays as it is", vm.DomainPrefix, p.Name),
			Hint: "rename it (virsh domrename) or remove it, then run devvm again",
			Err:  err,
		}
	case dom.Project != p.Dir:
		return &ui.Error{
			Msg:  fmt.Sprintf("the VM %s belongs to another directory: %s", p.Name, dom.Project),
			Hint: "rename one of the two directories",
		}
	}
	return nil
}
