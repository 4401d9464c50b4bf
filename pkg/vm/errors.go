package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"syscall"

	libvirt "github.com/digitalocean/go-libvirt"
)

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
