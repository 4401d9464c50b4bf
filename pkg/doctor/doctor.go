// Package doctor looks at the host and says what keeps devvm from working, what
// makes it slow, and the exact command that mends it on this distribution.
//
// Checks are data: [Checks] makes them, [Run] carries them out at once, and
// every [Finding] says what was seen, what it means and how to fix it. A fix is
// always something that a shell takes: commands, or advice behind "# ". Nothing
// here changes the host.
//
// The package reads the host only through [Host], so that tests can give it
// another one. It must not import go-libvirt, nor know how images are built or
// projects are kept: what it needs of those comes as functions in [Options].
// No check fails as such; what cannot be found out is a warning.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/devvm/devvm/pkg/vm"
)

// Status of a check.
type Status string

// The states.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Result is what a check has found out.
type Result struct {
	Status  Status `json:"status"`
	Blocks  bool   `json:"blocks"`            // `devvm up` cannot work before this is mended
	What    string `json:"what"`              // what was seen
	Meaning string `json:"meaning,omitempty"` // what follows from it
	Fix     string `json:"fix,omitempty"`     // lines for a shell; advice stands behind "# "
}

// Check is one question to the host.
type Check struct {
	Name string
	Run  func(ctx context.Context) Result
}

// Finding is a check's name and result.
type Finding struct {
	Name string `json:"name"`
	Result
}

// Options are what only the caller knows. All are optional.
type Options struct {
	Version string // of this program
	Program string // its path

	// Libvirt connects to libvirt, starting its daemon if that is how it is
	// done here, and describes it. It is called once.
	Libvirt func(ctx context.Context) (vm.Host, error)
	// URI is the libvirt that Libvirt connects to, for messages.
	URI string
	// Accel says how a VM would be run: vm.AccelStore's Choose.
	Accel func(vm.Host) vm.Verdict
	// HaveImage reports whether there is a base image, so that what is only
	// needed to build one does not block.
	HaveImage func(ctx context.Context) bool
	// Leftovers lists what is left over of earlier runs and serves nothing.
	Leftovers func(ctx context.Context) ([]Leftover, error)

	Data    string // directory of images and disks
	Work    string // directory in which images are built
	Runtime string // directory of sockets
	Socket  string // the longest path of a socket that devvm would use here
	Unsafe  error  // why sockets would not be safe from other users
	Memory  int64  // bytes that a VM is given

	Shared []string // directories of this host that the VM of the project here has

	EngineProxies []string // what of "http-proxy" and "https-proxy" the engine is told
	ConfigFile    string   // the user's own, for all projects
}

// Leftover is a thing of ours that nothing needs any more.
type Leftover struct {
	What string // "the VM of /home/u/gone, whose directory is gone"
	Fix  string // "devvm rm --project gone-1a2b3c4d"
}

// patience is how long one check may take. Starting libvirt's daemon is the
// longest thing that one does.
const patience = 40 * time.Second

// Run carries out all checks at once and returns the findings in the order of
// the checks. A check that does not end in time, or before ctx does, is a
// warning.
func Run(ctx context.Context, checks []Check) []Finding {
	findings := make([]Finding, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() { findings[i] = Finding{c.Name, runOne(ctx, c, patience)} })
	}
	wg.Wait()
	return findings
}

func runOne(ctx context.Context, c Check, limit time.Duration) Result {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan Result, 1)
	go func() { done <- c.Run(ctx) }()
	select {
	case r := <-done:
		return r
	case <-ctx.Done():
	}
	// It may just have noticed itself, and know more.
	select {
	case r := <-done:
		return r
	case <-time.After(time.Second):
		return Result{Status: Warn, What: fmt.Sprintf("the check did not finish in time (%v)", ctx.Err()), Meaning: "the result is unknown"}
	}
}

// Blocks reports whether any finding keeps `devvm up` from working.
func Blocks(findings []Finding) bool {
	for _, f := range findings {
		if f.Blocks {
			return true
		}
	}
	return false
}

// Checks returns all checks of the host.
func Checks(h Host, o Options) []Check {
	d := &doctor{h: h, o: o, os: ReadOS(h)}
	return []Check{
		{"system", d.system},
		{"QEMU", d.qemu},
		{"qemu-img", d.qemuImg},
		{"libvirt", d.libvirt},
		{"KVM", d.kvm},
		{"sandbox", d.sandbox},
		{"image tools", d.imageTools},
		{"user namespaces", d.userNamespaces},
		{"disk space", d.diskSpace},
		{"memory", d.memory},
		{"runtime directory", d.runtimeDir},
		{"sockets", d.sockets},
		{"proxy", d.proxy},
		{"Docker client", d.dockerClient},
		{"Docker on the host", d.dockerHost},
		{"other hypervisors", d.hypervisors},
		{"shared files", d.sharedFiles},
		{"shared repositories", d.gitIndex},
		{"leftovers", d.leftovers},
	}
}

// doctor is what the checks share.
type doctor struct {
	h  Host
	o  Options
	os OS

	askLibvirt sync.Once
	host       vm.Host
	hostErr    error

	askImage sync.Once
	image    bool
}

// libvirtHost asks libvirt once for all checks.
func (d *doctor) libvirtHost(ctx context.Context) (vm.Host, error) {
	d.askLibvirt.Do(func() {
		if d.o.Libvirt == nil {
			d.hostErr = errNotAsked
			return
		}
		d.host, d.hostErr = d.o.Libvirt(ctx)
	})
	return d.host, d.hostErr
}

// haveImage asks once for all checks.
func (d *doctor) haveImage(ctx context.Context) bool {
	d.askImage.Do(func() { d.image = d.o.HaveImage != nil && d.o.HaveImage(ctx) })
	return d.image
}

var errNotAsked = errors.New("libvirt was not asked")

// ok, warn and fail make results.
func ok(what, meaning string) Result { return Result{Status: OK, What: what, Meaning: meaning} }

func warn(what, meaning, fix string) Result {
	return Result{Status: Warn, What: what, Meaning: meaning, Fix: fix}
}

// blocked is a failure that keeps `devvm up` from working.
func blocked(what, meaning, fix string) Result {
	return Result{Status: Fail, Blocks: true, What: what, Meaning: meaning, Fix: fix}
}
