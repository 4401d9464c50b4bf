package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
)

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		text, words string
		kind        error
	}{
		{
			"internal error: process exited while connecting to monitor: 2026-11-23T15:38:13.530Z qemu-system-x86_64: -accel kvm: Could not access KVM kernel module: Permission denied\n2026-11-23T15:38:13.530Z qemu-system-x86_64: -accel kvm: failed to initialize kvm: Permission denied",
			"-accel kvm: Could not access KVM kernel module: Permission denied -accel kvm: failed to initialize kvm: Permission denied",
			ErrAccel,
		},
		{"unsupported configuration: Emulator '/usr/bin/qemu-system-x86_64' does not support virt type 'kvm'", "", ErrAccel},
		{"invalid argument: could not find capabilities for arch=x86_64 domaintype=kvm ", "", ErrAccel},
		{"unsupported configuration: Domain requires KVM, but it is not available. Check that virtualization is enabled", "", ErrAccel},
		{"internal error: process exited while connecting to monitor: error: failed to set MSR 0x10a to 0x69", "error: failed to set MSR 0x10a to 0x69", ErrAccel},
		{"internal error: process exited while connecting to monitor: qemu-system-x86_64: ../../target/i386/kvm/kvm.c:3183: kvm_buf_set_msrs: Assertion `ret == x' failed.", "../../target/i386/kvm/kvm.c:3183: kvm_buf_set_msrs: Assertion `ret == x' failed.", ErrAccel},
		{"internal error: process exited while connecting to monitor: ioctl(KVM_CREATE_VM) failed: 12 Cannot allocate memory", "ioctl(KVM_CREATE_VM) failed: 12 Cannot allocate memory", syscall.ENOMEM},
		{"internal error: process exited while connecting to monitor: ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy", "ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy", ErrAccel},
		{"Cannot access storage file '/d' (as uid:64055, gid:64055): No such file or directory", "", fs.ErrNotExist},
		{"internal error: process exited while connecting to monitor: qemu-system-x86_64: -netdev {}: Failed to connect to '/n.sock': Connection refused", "-netdev {}: Failed to connect to '/n.sock': Connection refused", syscall.ECONNREFUSED},
		{"internal error: qemu unexpectedly closed the monitor: /usr/bin/qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory", "cannot set up guest memory 'pc.ram': Cannot allocate memory", syscall.ENOMEM},
		{"internal error: process exited while connecting to monitor: qemu-system-x86_64: -device x: Failed to get \"write\" lock\nIs another process using the image [/d]?", "-device x: Failed to get \"write\" lock Is another process using the image [/d]?", ErrDiskInUse},
		{"operation failed: write: No space left on device", "", syscall.ENOSPC},
		{"something else", "", nil},
	} {
		err := explain(fmt.Errorf("wrapped: %w", libvirt.Error{Code: 1, Message: c.text}))
		if c.kind != nil && !errors.Is(err, c.kind) {
			t.Errorf("%q: %v, want %v", c.text, err, c.kind)
		}
		words := c.words
		if words == "" {
			words = strings.TrimSpace(c.text)
		}
		if !strings.HasSuffix(err.Error(), words) {
			t.Errorf("%q: %q lacks %q", c.text, err, words)
		}
		for _, kind := range []error{ErrAccel, ErrDiskInUse, syscall.ENOSPC, fs.ErrNotExist} {
			if !errors.Is(kind, c.kind) && errors.Is(err, kind) {
				t.Errorf("%q: is %v, too", c.text, kind)
			}
		}
	}
	if err := explain(libvirt.Error{Code: uint32(libvirt.ErrNoDomain), Message: "Domain not found"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
	if err := explain(ErrForeign); !errors.Is(err, ErrForeign) {
		t.Errorf("%v, want it as it was", err)
	}
}

func TestConnectionLost(t *testing.T) {
	for _, err := range []error{syscall.EINVAL, libvirt.ErrInterrupted, io.EOF, syscall.EPIPE, fmt.Errorf("x: %w", syscall.ECONNRESET), libvirt.Error{Code: uint32(libvirt.ErrRPC)}} {
		if !connectionLost(err) {
			t.Errorf("%v is not seen as a lost connection", err)
		}
	}
	for _, err := range []error{nil, errors.New("x"), ErrNotFound, libvirt.Error{Code: uint32(libvirt.ErrNoDomain)}} {
		if connectionLost(err) {
			t.Errorf("%v is seen as a lost connection", err)
		}
	}
}

// The words for people cover what libvirt can say; a state never lacks one that
// devvm knows.
func TestReduce(t *testing.T) {
	for _, c := range []struct {
		state  libvirt.DomainState
		reason int32
		saved  bool
		want   State
		words  string
	}{
		{libvirt.DomainRunning, int32(libvirt.DomainRunningBooted), false, StateRunning, "booted"},
		{libvirt.DomainBlocked, 0, false, StateRunning, ""},
		{libvirt.DomainShutdown, int32(libvirt.DomainShutdownUser), false, StateRunning, "powering off"},
		{libvirt.DomainPaused, int32(libvirt.DomainPausedIoerror), false, StatePaused, "I/O error"},
		{libvirt.DomainPaused, int32(libvirt.DomainPausedUnknown), false, StatePaused, "error"},
		{libvirt.DomainPaused, 99, false, StatePaused, ""},
		{libvirt.DomainPmsuspended, 0, false, StatePaused, "suspended"},
		{libvirt.DomainShutoff, int32(libvirt.DomainShutoffDestroyed), false, StateStopped, "by force"},
		{libvirt.DomainShutoff, int32(libvirt.DomainShutoffShutdown), false, StateStopped, "powered off"},
		{libvirt.DomainShutoff, int32(libvirt.DomainShutoffUnknown), false, StateStopped, ""},
		{libvirt.DomainShutoff, int32(libvirt.DomainShutoffFailed), false, StateStopped, "start failed"},
		{libvirt.DomainShutoff, int32(libvirt.DomainShutoffCrashed), false, StateCrashed, "killed"},
		{libvirt.DomainShutoff, int32(libvirt.DomainShutoffSaved), true, StateSaved, "saved"},
		{libvirt.DomainShutoff, int32(libvirt.DomainShutoffUnknown), true, StateSaved, "saved"},
		{libvirt.DomainCrashed, int32(libvirt.DomainCrashedPanicked), false, StateCrashed, "crashed"},
	} {
		state, words := reduce(c.state, c.reason, c.saved)
		if state != c.want || !strings.Contains(words, c.words) {
			t.Errorf("reduce(%v, %d, %v) = %v, %q; want %v, %q", c.state, c.reason, c.saved, state, words, c.want, c.words)
		}
	}
}

// What ends by itself is waited for; what a full disk has stopped is let go on.
func TestHalt(t *testing.T) {
	for _, c := range []struct {
		state  libvirt.DomainState
		reason int32
		want   Halt
	}{
		{libvirt.DomainRunning, int32(libvirt.DomainRunningBooted), ""},
		{libvirt.DomainShutdown, int32(libvirt.DomainShutdownUser), HaltPassing},
		{libvirt.DomainPaused, int32(libvirt.DomainPausedSave), HaltPassing},
		{libvirt.DomainPaused, int32(libvirt.DomainPausedSnapshot), HaltPassing},
		{libvirt.DomainPaused, int32(libvirt.DomainPausedIoerror), HaltIO},
		{libvirt.DomainPaused, int32(libvirt.DomainPausedUser), ""},
		{libvirt.DomainPaused, int32(libvirt.DomainPausedFromSnapshot), ""},
		{libvirt.DomainShutoff, int32(libvirt.DomainShutoffSaved), ""}, // as a number the same as a save under way
		{libvirt.DomainCrashed, int32(libvirt.DomainCrashedPanicked), ""},
	} {
		if got := halt(c.state, c.reason); got != c.want {
			t.Errorf("halt(%v, %d) = %q, want %q", c.state, c.reason, got, c.want)
		}
	}
}

// A job is aborted once the command is cancelled, and again if it had not begun then.
func TestAbortable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		aborts := make(chan struct{}, 10)
		began := time.Now()
		time.AfterFunc(time.Second, cancel)
		err := abortable(ctx, func() error {
			<-aborts // as if libvirt had not begun
			<-aborts
			return context.Canceled
		}, func() { aborts <- struct{}{} })
		if took := time.Since(began); !errors.Is(err, context.Canceled) || took != time.Second+retryDial {
			t.Errorf("%v after %s", err, took)
		}
		err = abortable(t.Context(), func() error { return nil }, func() { t.Error("aborted what was not cancelled") })
		if err != nil {
			t.Error(err)
		}
	})
}

// What must not be left half done goes on when the command is cancelled, but not for ever.
func TestFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		time.AfterFunc(time.Hour, cancel)
		err := finish(ctx, func(patient context.Context) error {
			<-patient.Done()
			return context.Cause(patient)
		})
		if took := time.Since(began); !errors.Is(err, errUnfinished) || took != time.Hour+patienceFinish {
			t.Errorf("%v after %s", err, took)
		}
		if err := finish(ctx, func(patient context.Context) error { return patient.Err() }); err != nil {
			t.Error(err)
		}
	})
}

// TestExplainMemory: only what is the memory's own fault lets it be discarded.
func TestExplainMemory(t *testing.T) {
	for message, want := range map[string]bool{
		"operation failed: image magic is incorrect": true,
		"internal error: qemu unexpectedly closed the monitor: qemu-system-x86_64: load of migration failed: Invalid argument":                                                                                      true,
		"internal error: qemu unexpectedly closed the monitor: 2026-12-01T22:00:00.1Z qemu-system-x86_64: Unknown savevm section or instance 'x' 0\nqemu-system-x86_64: load of migration failed: Invalid argument": true,
		"internal error: qemu unexpectedly closed the monitor: qemu-system-x86_64: load of migration failed: Cannot allocate memory":                                                                                false,
		"internal error: qemu unexpectedly closed the monitor: qemu-system-x86_64: load of migration failed: Input/output error":                                                                                    false,
		"Failed to open file '/home/u/.config/libvirt/qemu/save/devvm-a.save': Permission denied":                                                                                                                   false,
		"internal error: process exited while connecting to monitor: qemu-system-x86_64: -blockdev x: Could not open '/d': Permission denied":                                                                       false,
		"Unable to open file: /home/u/vm/console.log: Is a directory":                                                                                                                                               false,
		"unsupported configuration: unknown machine type 'pc-q35-10.0'":                                                                                                                                             false,
	} {
		err := explain(libvirt.Error{Code: uint32(libvirt.ErrOperationFailed), Message: message})
		if got := errors.Is(err, ErrMemory); got != want {
			t.Errorf("%s: %v, want it the memory's fault: %v", message, err, want)
		}
	}
}

func TestCheckSaved(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	h := &hypervisor{uri: uriSession}
	if err := h.checkSaved("a"); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrMemory) {
		t.Errorf("none: %v", err)
	}
	if err := os.MkdirAll(h.saveDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	for content, bad := range map[string]bool{"": true, "Libvirt": true, "LibvirtQemudPart and more": true, memoryMagic + " and more": false} {
		if err := os.WriteFile(h.savePath("a"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := h.checkSaved("a"); errors.Is(err, ErrMemory) != bad || !bad && err != nil {
			t.Errorf("%q: %v", content, err)
		}
	}
	if err := os.Remove(h.savePath("a")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(h.savePath("a"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := h.checkSaved("a"); err == nil || errors.Is(err, ErrMemory) {
		t.Errorf("a directory: %v", err)
	}
}
