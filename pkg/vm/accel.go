package vm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/file"
)

// AccelStore remembers whether KVM really runs VMs on this host. That the
// device exists, opens and is listed by libvirt proves nothing: only a guest
// whose kernel came up does. The memory is a small file that may be removed at
// any time; it only saves a failed try.
type AccelStore struct {
	path string
}

// NewAccelStore returns the store that is kept in the file, which need not
// exist.
func NewAccelStore(path string) *AccelStore { return &AccelStore{path: path} }

// Verdict says how to run the next VM.
type Verdict struct {
	Accel  Accel
	Proven bool   // a VM has run this way; otherwise KVM is a try, see [AccelStore.Record]
	Note   string // why not KVM, for people; empty with KVM
	Hint   string // what to do about it, if anything
}

// proof is what was seen of KVM.
type proof struct {
	Works bool   `json:"works"`
	Why   string `json:"why,omitempty"`
	// Device is the state of /dev/kvm at the time. A failure counts for as
	// long as the device stays as it was: a reboot, a module loaded anew or a
	// permission granted asks for another try.
	Device string `json:"device,omitempty"`
}

// Choose decides how to run a VM on the host. It does not fail: without a
// readable memory it knows nothing yet.
func (s *AccelStore) Choose(host Host) Verdict {
	const slow = "software emulation, many times slower"
	switch err := host.openKVM(); {
	case errors.Is(err, fs.ErrNotExist):
		return Verdict{
			Accel: AccelTCG, Note: "this host has no KVM: " + slow,
			Hint: "switch on virtualisation in the firmware (on a virtual machine: nested virtualisation), then: sudo modprobe -a kvm_intel kvm_amd",
		}
	case errors.Is(err, fs.ErrPermission):
		return Verdict{
			Accel: AccelTCG, Note: "this user may not use KVM (" + host.KVMDevice + ": permission denied): " + slow,
			Hint: "what opens it: devvm doctor",
		}
	case err != nil:
		return Verdict{Accel: AccelTCG, Note: fmt.Sprintf("KVM does not open (%v): %s", err, slow)}
	case !host.KVMListed:
		return Verdict{
			Accel: AccelTCG, Note: "libvirt does not offer KVM: " + slow,
			Hint: "restart libvirt's daemon, which looks for KVM when it starts",
		}
	}
	seen, known := s.load()[host.accelKey()]
	switch {
	case known && seen.Works:
		return Verdict{Accel: AccelKVM, Proven: true}
	case known && seen.Device == host.kvmState():
		v := Verdict{Accel: AccelTCG, Proven: true, Note: "KVM did not work here (" + seen.Why + "): " + slow}
		if host.URI == uriSystem && strings.Contains(seen.Why, "Permission denied") {
			group := "kvm"
			if host.QEMUGroup > 0 {
				group = strconv.Itoa(host.QEMUGroup)
			}
			v.Hint = "# QEMU's user may not open " + host.KVMDevice + ", so libvirt asks QEMU again at each start, which takes seconds; until the next boot:\n" +
				fmt.Sprintf("sudo chgrp %s %s\nsudo chmod 660 %[2]s", group, host.KVMDevice)
		}
		return v
	}
	return Verdict{Accel: AccelKVM}
}

// Record remembers that a guest's kernel has come up under KVM, or why KVM is
// of no use. Why is ignored if it works. That another hypervisor has the processor
// (EBUSY) is of the moment, and the next VM tries again.
func (s *AccelStore) Record(host Host, works bool, why string) error {
	if !works && strings.Contains(why, "Device or resource busy") {
		return nil
	}
	key := host.accelKey()
	all := s.load()
	p := proof{Works: works}
	if !works {
		p.Why, p.Device = oneLine(why), host.kvmState()
	}
	if all[key] == p {
		return nil
	}
	all[key] = p
	if err := s.save(all); err != nil {
		return fmt.Errorf("remember the accelerator: %w", err)
	}
	return nil
}

func (s *AccelStore) load() map[string]proof {
	all := map[string]proof{}
	b, err := os.ReadFile(s.path)
	if err != nil || json.Unmarshal(b, &all) != nil || all == nil {
		return map[string]proof{}
	}
	return all
}

// save replaces the file. Of two savers at once one loses its entry, which
// costs a try and no more.
func (s *AccelStore) save(all map[string]proof) error {
	b, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(s.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return file.Replace(s.path, append(b, '\n'), 0o600)
}

// accelKey names what decides whether KVM works: the kernel, QEMU, the CPU, and
// as whom QEMU runs.
func (h Host) accelKey() string {
	return strings.Join([]string{"linux " + kernelRelease(), "qemu " + h.QEMU, cpuModel(), h.URI}, "; ")
}

// openKVM tries the device as QEMU would. A QEMU that runs as another user is
// taken at libvirt's word.
func (h Host) openKVM() error {
	if h.KVMDevice == "" {
		return fs.ErrNotExist
	}
	if h.QEMUUser >= 0 && h.QEMUUser != os.Getuid() {
		_, err := os.Stat(h.KVMDevice)
		return err
	}
	f, err := os.OpenFile(h.KVMDevice, os.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// kvmState is a text that changes when the device is made anew or its
// permissions change.
func (h Host) kvmState() string {
	var st unix.Stat_t
	if err := unix.Stat(h.KVMDevice, &st); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d %o %d:%d %d.%09d", st.Ino, st.Mode, st.Uid, st.Gid, st.Ctim.Sec, st.Ctim.Nsec)
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "?"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// cpuModel is the processor's name and microcode-independent numbers.
func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "?"
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "?"
}

// oneLine shortens a message to what fits into a note.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	const most = 500
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
