package vm

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// kvmHost is a host whose KVM can be opened, as far as anybody can tell.
func kvmHost(t *testing.T) Host {
	t.Helper()
	device := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return Host{URI: uriSession, QEMU: "7.2.22", KVMListed: true, KVMDevice: device, QEMUUser: -1, QEMUGroup: -1}
}

func TestAccelRemembers(t *testing.T) {
	host := kvmHost(t)
	path := filepath.Join(t.TempDir(), "cache", "accel.json")
	choose := func() Verdict { return NewAccelStore(path).Choose(host) } // as the next process would
	record := func(works bool, why string) {
		t.Helper()
		if err := NewAccelStore(path).Record(host, works, why); err != nil {
			t.Fatal(err)
		}
	}
	if v := choose(); v.Accel != AccelKVM || v.Proven || v.Note != "" {
		t.Errorf("at first: %+v, want an unproven try", v)
	}
	record(true, "")
	if v := choose(); v.Accel != AccelKVM || !v.Proven || v.Note != "" {
		t.Errorf("after it worked: %+v", v)
	}
	record(false, "ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy")
	if v := choose(); v.Accel != AccelKVM {
		t.Errorf("while another hypervisor had the processor: %+v", v)
	}
	record(false, "KVM internal error\n suberror: 1")
	if v := choose(); v.Accel != AccelTCG || !v.Proven || !strings.Contains(v.Note, "KVM internal error suberror: 1") {
		t.Errorf("after it failed: %+v", v)
	}

	system := host
	system.URI = uriSystem
	for _, c := range []struct {
		host Host
		why  string
		hint bool
	}{
		{system, "failed to initialize kvm: Permission denied", true},
		{system, "KVM internal error", false},
		{host, "failed to initialize kvm: Permission denied", false},
	} {
		if err := NewAccelStore(path).Record(c.host, false, c.why); err != nil {
			t.Fatal(err)
		}
		if v := NewAccelStore(path).Choose(c.host); strings.Contains(v.Hint, "sudo chmod 660 "+host.KVMDevice) != c.hint {
			t.Errorf("%s, %s: %+v", c.host.URI, c.why, v)
		}
	}
	record(true, "Device or resource busy")
	if v := choose(); v.Accel != AccelKVM || !v.Proven {
		t.Errorf("after it worked again: %+v", v)
	}
	record(false, "KVM internal error")

	// Another QEMU, another try.
	other := host
	other.QEMU = "8.0.0"
	if v := NewAccelStore(path).Choose(other); v.Accel != AccelKVM {
		t.Errorf("with another QEMU: %+v", v)
	}
	// A device whose permissions have changed, another try.
	<-time.After(20 * time.Millisecond) // coarser than the file system's clock
	if err := os.Chmod(host.KVMDevice, 0o660); err != nil {
		t.Fatal(err)
	}
	if v := choose(); v.Accel != AccelKVM || v.Proven {
		t.Errorf("with other permissions: %+v", v)
	}
}

func TestAccelWithoutKVM(t *testing.T) {
	store := NewAccelStore(filepath.Join(t.TempDir(), "accel.json"))
	for what, c := range map[string]struct {
		change func(*Host)
		note   string
		hint   string
	}{
		"no device":  {func(h *Host) { h.KVMDevice += "-none" }, "no KVM", "virtualisation"},
		"no name":    {func(h *Host) { h.KVMDevice = "" }, "no KVM", "virtualisation"},
		"not listed": {func(h *Host) { h.KVMListed = false }, "does not offer", "restart"},
		"directory":  {func(h *Host) { h.KVMDevice = filepath.Dir(h.KVMDevice) }, "does not open", ""},
	} {
		host := kvmHost(t)
		if err := store.Record(host, true, ""); err != nil { // that it once worked is no excuse
			t.Fatal(err)
		}
		c.change(&host)
		v := store.Choose(host)
		if v.Accel != AccelTCG || !strings.Contains(v.Note, c.note) || !strings.Contains(v.Note, "emulation") || !strings.Contains(v.Hint, c.hint) {
			t.Errorf("%s: %+v", what, v)
		}
	}
	if os.Getuid() != 0 {
		host := kvmHost(t)
		if err := os.Chmod(host.KVMDevice, 0o400); err != nil {
			t.Fatal(err)
		}
		if v := store.Choose(host); v.Accel != AccelTCG || !strings.Contains(v.Hint, "devvm doctor") {
			t.Errorf("no permission: %+v", v)
		}
		// A QEMU of another user may have what this one lacks.
		host.QEMUUser = 64055
		if v := store.Choose(host); v.Accel != AccelKVM {
			t.Errorf("another user's QEMU: %+v", v)
		}
	}
}

func TestAccelBadMemory(t *testing.T) {
	host := kvmHost(t)
	for _, content := range []string{"", "null", "[]", "{\"x\": 3}", "\x00"} {
		path := filepath.Join(t.TempDir(), "accel.json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		s := NewAccelStore(path)
		if v := s.Choose(host); v.Accel != AccelKVM {
			t.Errorf("%q: %+v", content, v)
		}
		if err := s.Record(host, true, ""); err != nil {
			t.Errorf("%q: %v", content, err)
		}
		if v := s.Choose(host); !v.Proven {
			t.Errorf("%q: nothing was remembered", content)
		}
	}
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := NewAccelStore(filepath.Join(blocked, "accel.json")).Record(host, true, ""); err == nil {
		t.Error("Record below a file said that it worked")
	}
}

func TestAccelTogether(t *testing.T) {
	host := kvmHost(t)
	dir := t.TempDir()
	s := NewAccelStore(filepath.Join(dir, "accel.json"))
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			if err := s.Record(host, n%2 == 0, "why"); err != nil {
				t.Error(err)
			}
			s.Choose(host)
		})
	}
	wg.Wait()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
