// Package vm runs virtual machines through libvirt.
//
// It turns a [Spec] into libvirt's domain XML (pure code, golden tests) and
// applies effects through one small interface, [Hypervisor], which the libvirt
// client and the fake in vmtest both implement; one conformance suite covers
// them.
//
// Only this package imports go-libvirt and libvirtxml. It knows nothing about
// projects, Docker or SSH. libvirt is the only truth about VMs: nothing here
// caches a state.
//
// # Failure
//
// libvirt's daemon may be absent, hang or die at any time. [Open] starts one, or
// says why it cannot ([ErrNoLibvirt]). A call ends when its context does, however
// the daemon fares, or when that has not answered anybody for 40 s ([ErrNoLibvirt], too), or
// when it waits for a QEMU that is stopped ([ErrStopped]);
// one that reads is repeated with the next daemon, one that
// changes something returns [ErrConnectionLost] and may be repeated by the caller:
// each finds what the former has left. QEMU outlives the daemon; a QEMU that the
// daemon has lost is ended by the next Start, Destroy or Undefine.
//
// Errors carry libvirt's and QEMU's own words and wrap one of the errors below,
// or the operating system's (fs.ErrNotExist, syscall.ENOSPC, …) where that is
// the cause.
package vm

import (
	"context"
	"errors"
	"time"
)

// DomainPrefix starts the name of each libvirt domain that devvm owns.
const DomainPrefix = "devvm-"

// Errors that callers tell apart with errors.Is.
var (
	// ErrNotFound says that no domain has the name.
	ErrNotFound = errors.New("no such VM")
	// ErrForeign says that a domain with the name exists, but without devvm's
	// metadata: it belongs to somebody else and is never touched.
	ErrForeign = errors.New("a libvirt domain of this name exists that devvm did not make")
	// ErrNotRunning says that an operation needs a running VM.
	ErrNotRunning = errors.New("VM is not running")
	// ErrRunning says that an operation needs a stopped VM.
	ErrRunning = errors.New("VM is running")
	// ErrDiskInUse says that another QEMU holds the VM's disk.
	ErrDiskInUse = errors.New("the VM's disk is in use")
	// ErrNoLibvirt says that no libvirt daemon answers and none could be started.
	ErrNoLibvirt = errors.New("libvirt is not available")
	// ErrNoQEMU says that libvirt finds no QEMU.
	ErrNoQEMU = errors.New("QEMU for x86-64 is not installed (Debian and Ubuntu: package qemu-system-x86)")
	// ErrConnectionLost says that the connection to libvirt broke in mid-call;
	// the caller cannot know whether the operation was carried out.
	ErrConnectionLost = errors.New("connection to libvirt lost")
	// ErrNoSnapshot says that the VM has no snapshot of the name.
	ErrNoSnapshot = errors.New("no such snapshot")
	// ErrStopped says that the VM's QEMU was stopped by a signal while something was asked of
	// it; Start lets it go on.
	ErrStopped = errors.New("the VM's QEMU is stopped by a signal (SIGSTOP)")
	// ErrAccel says that the VM could not start with hardware acceleration, or ended
	// before its kernel ran.
	ErrAccel = errors.New("KVM does not work here")
)

// State of a VM, reduced from libvirt's virDomainState.
type State string

// The states that devvm distinguishes.
const (
	StateRunning State = "running"
	StatePaused  State = "paused"  // also: paused by an I/O or KVM error, see Domain.Reason
	StateSaved   State = "saved"   // off, with a managed save image
	StateStopped State = "stopped" // off
	StateCrashed State = "crashed"
)

// String is the state in the words of devvm's commands.
func (s State) String() string {
	if s == StateSaved {
		return "suspended"
	}
	return string(s)
}

// Halt is why a VM that has a QEMU does not run on, as far as callers tell that apart. A
// Reason has the words.
type Halt string

// The halts.
const (
	// HaltPassing says that libvirt or the guest is at something that ends by itself and
	// leaves the VM in another state: its memory is being saved, or it powers off.
	HaltPassing Halt = "passing"
	// HaltIO says that QEMU could not write to the disk: most often the host's is full. When
	// there is room, Proceed lets it go on.
	HaltIO Halt = "io"
	// HaltSignal says that QEMU's process is stopped by a signal (SIGSTOP). Proceed lets it
	// go on.
	HaltSignal Halt = "signal"
)

// Accel is the way a VM's CPU is run.
type Accel string

// The accelerators.
const (
	AccelKVM Accel = "kvm"
	AccelTCG Accel = "tcg" // software emulation
)

// Spec is everything that defines a VM. It is pure data; [DomainXML] renders it.
type Spec struct {
	Name    string // without DomainPrefix, e.g. "app-1a2b3c4d"
	UUID    string // RFC 9562 text form
	Project string // canonical path of the project directory
	Image   string // digest of the base image, kept in the domain's metadata

	CPUs   int
	Memory int64 // bytes
	Accel  Accel

	Disk    string   // path of the qcow2 overlay, virtio-blk, discard on
	Backing []string // qcow2 images that Disk lies on, the uppermost first; empty: libvirt finds them, see DomainXML
	Kernel  string   // direct boot; empty: firmware boots Disk
	Initrd  string
	Cmdline string
	Seed    string // optional path of a cloud-init seed image, attached read-only

	NetSocket string // unix socket of the network process, which must listen before the VM starts, see Reconnects
	MAC       string
	MTU       int    // 0: 1500
	Console   string // file that receives the guest's serial console

	// Credentials reach the guest's systemd as system credentials: name to
	// path of the file with the content (0600; secrets must not stand on a
	// command line, which every user of the host can read).
	// https://systemd.io/CREDENTIALS/
	Credentials map[string]string
}

// Domain is what the hypervisor knows about one VM of ours.
type Domain struct {
	Name    string // without DomainPrefix
	UUID    string
	Project string
	Image   string
	State   State
	Reason  string // libvirt's reason for State, in words; may be empty
	Halt    Halt   // why it does not run on; "": it does, is off, or has another reason
	CPUs    int
	Memory  int64 // bytes
	Accel   Accel
	Disk    string
	PID     int   // QEMU's process, 0 if unknown or not running
	Saved   int64 // bytes that the memory of a saved VM takes on the disk, if known
}

// Snapshot is a state of a VM that was kept.
type Snapshot struct {
	Name    string
	Created time.Time
	Memory  bool // the VM ran, and its memory was kept, too
}

// Host describes the machine that runs the VMs.
type Host struct {
	URI         string // e.g. qemu:///session
	Libvirt     string // version, e.g. "9.0.0"
	QEMU        string // version, e.g. "7.2.22"
	Kernel      string // release, e.g. "6.1.0-37-amd64"
	CPU         string // model
	KVMListed   bool   // libvirt lists KVM; proves nothing about it working
	KVMDevice   string // path of KVM's device, there or not
	QEMUUser    int    // uid that runs QEMU, -1: our own
	QEMUGroup   int    // gid that runs QEMU, -1: our own
	Confinement string // "apparmor", "selinux" or ""
	SaveDir     string // where the memory of saved VMs is kept; it need not exist
	Emulator    string // path of the QEMU that libvirt takes by itself
	Sandbox     string // path of the program that is QEMU's sandbox, "": VMs run without one
	NoSandbox   string // why they do
}

// Hypervisor manages the VMs of devvm on one host. All methods can be
// cancelled by ctx, and all that take a name return ErrNotFound or ErrForeign
// where that applies. Implementations are safe for concurrent use.
type Hypervisor interface {
	// Host reports versions and identity of the host.
	Host(ctx context.Context) (Host, error)
	// Define makes the VM known, or changes its definition; it does not start
	// it. A running VM takes the change at its next start.
	Define(ctx context.Context, spec Spec) error
	// Get reads one VM.
	Get(ctx context.Context, name string) (Domain, error)
	// List reads all VMs that carry devvm's metadata.
	List(ctx context.Context) ([]Domain, error)
	// Files returns by name of the VM the files that libvirt knows to be in use: its
	// disk, what that lies on, kernel and initrd, by its definition, its snapshots and its
	// saved memory, whether they exist or not. Domains with our prefix that are not ours
	// count. It is never partial.
	Files(ctx context.Context) (map[string][]string, error)
	// Start boots the VM, or resumes it when it is paused or saved. One whose QEMU is stopped
	// by a signal goes on with what it was at, which need not be to run. Starting a
	// running VM is no error. A failure that is due to KVM wraps ErrAccel; ErrMemory says
	// that the memory of a saved VM is of no use. After any failure it is still saved.
	Start(ctx context.Context, name string) error
	// Proceed lets a VM go on that is halted for this reason, if it is. Unlike Start it
	// neither boots one that is off nor resumes one that is saved, so that it does no harm to
	// a VM that somebody else has stopped meanwhile. What libvirt is at, it does not disturb.
	Proceed(ctx context.Context, name string, why Halt) error
	// Shutdown asks the guest to power off (ACPI) and returns at once. For a
	// stopped VM it returns ErrNotRunning.
	Shutdown(ctx context.Context, name string) error
	// Destroy stops the VM at once, as if its plug were pulled. Destroying a
	// stopped VM is no error.
	Destroy(ctx context.Context, name string) error
	// Save stops a running VM and keeps its memory; the next Start resumes it.
	// For a stopped VM it returns ErrNotRunning. When ctx ends before that is done, the
	// VM runs on.
	Save(ctx context.Context, name string) error
	// DropSaved forgets the memory that Save has kept, if any: the next Start boots.
	DropSaved(ctx context.Context, name string) error
	// Freeze stops a running VM and leaves its memory in the file at path, which
	// must not exist. For a stopped VM it returns ErrNotRunning.
	Freeze(ctx context.Context, name, path string) error
	// Fork defines the VM, anew if it is there and stopped (its snapshots are
	// forgotten), and starts it from what Freeze has left of another one of the same
	// shape, on a copy of that at scratch. It makes the copy, unless it finds that of an
	// earlier Fork from the same memory there; the copy stays.
	// The new VM goes on where the other one stood; its disk must lie on the
	// other's as that was then. Beside copying it runs meanwhile, which makes what
	// the VM needs to start: its disk and its network. ErrMemory says that the
	// memory does not fit.
	Fork(ctx context.Context, spec Spec, memory, scratch string, meanwhile func(context.Context) error) error
	// Snapshot keeps the state of the VM under a name of its own, beside those that
	// it has: of a running VM disk and memory, of a stopped one its disk.
	Snapshot(ctx context.Context, name, snapshot string) error
	// Snapshots lists what Snapshot has kept, the oldest first.
	Snapshots(ctx context.Context, name string) ([]Snapshot, error)
	// Revert puts a stopped VM back into the state that a snapshot has kept: it
	// runs after that if it ran then. ErrNoSnapshot says that there is none.
	Revert(ctx context.Context, name, snapshot string) error
	// DeleteSnapshot forgets one. ErrNoSnapshot says that there is none.
	DeleteSnapshot(ctx context.Context, name, snapshot string) error
	// Undefine forgets a stopped VM with its managed save image; disks stay.
	// For a running VM it returns ErrRunning.
	Undefine(ctx context.Context, name string) error
	// Wait blocks until the VM is in one of the states, or ctx ends.
	Wait(ctx context.Context, name string, states ...State) (Domain, error)
	// Close releases the connection.
	Close() error
}

// Options of [Open].
type Options struct {
	URI        string        // qemu:///session, qemu:///system, test:///default; empty: session for users, system for root
	Timeout    time.Duration // for finding or starting the daemon; 0: 30 s
	RuntimeDir string        // the user's runtime directory, for a session; empty: XDG_RUNTIME_DIR
	Sandbox    Sandbox
}

// Sandbox says what confines QEMU in a session, see pkg/sandbox. The zero value: nothing.
type Sandbox struct {
	Program string // that calls sandbox.RunQEMU under the name sandbox.Program
	Dir     string // for links to it
}
