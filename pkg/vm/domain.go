package vm

import (
	"cmp"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"libvirt.org/go/libvirtxml"

	"github.com/devvm/devvm/pkg/sandbox"
)

// metadataURI is the XML namespace of devvm's element in a domain's metadata.
// A domain without that element is not ours.
const metadataURI = "https://github.com/devvm/devvm/domain/1"

// credentialPrefix is where systemd looks for credentials in QEMU's fw_cfg.
const credentialPrefix = "opt/io.systemd.credentials/"

// maxFWCfgName is the longest name of a fw_cfg entry: QEMU's FW_CFG_MAX_FILE_PATH
// less the closing NUL.
const maxFWCfgName = 55

// unescaped are the characters that libvirt (9.0 to 11.3) does not pass on as
// they are in the path of a fw_cfg file: the comma ends it, and the others become
// XML entities.
const unescaped = "," + `&<>'"`

// maxSocketPath is the longest path of a unix socket: sun_path in unix(7) less
// the closing NUL.
const maxSocketPath = 107

// Slots on the root bus. They are fixed because a saved VM can only be restored
// into a machine whose devices stand where they stood. All devices are on the
// root bus and none behind a root port: a guest needs time to probe each port,
// and devvm plugs nothing in while the VM runs.
const (
	slotDisk    = 0x02
	slotSeed    = 0x03
	slotBalloon = 0x04
	slotRNG     = 0x05
	slotNIC     = 0x10
)

// metadata is devvm's element in a domain's <metadata>.
type metadata struct {
	XMLName xml.Name `xml:"https://github.com/devvm/devvm/domain/1 vm"`
	// Project is percent-encoded: a path is any sequence of bytes, XML is not.
	Project string `xml:"project"`
	Image   string `xml:"image,omitempty"`
}

// DomainXML renders the libvirt definition of a VM for the given host. It is
// pure; an error says which part of the spec no libvirt could take.
func DomainXML(spec Spec, host Host) (string, error) {
	if err := spec.validate(); err != nil {
		return "", err
	}
	meta, err := xml.MarshalIndent(metadata{
		Project: (&url.URL{Path: spec.Project}).EscapedPath(),
		Image:   spec.Image,
	}, "    ", "  ")
	if err != nil {
		return "", fmt.Errorf("render metadata: %w", err)
	}
	kib := uint(spec.Memory >> 10)

	d := libvirtxml.Domain{
		Type:          "qemu",
		Name:          DomainPrefix + spec.Name,
		UUID:          spec.UUID,
		GenID:         &libvirtxml.DomainGenID{}, // libvirt picks a new one for each start from a saved state
		Title:         "",
		Metadata:      &libvirtxml.DomainMetadata{XML: "\n" + string(meta) + "\n  "},
		Memory:        &libvirtxml.DomainMemory{Value: kib, Unit: "KiB"},
		CurrentMemory: &libvirtxml.DomainCurrentMemory{Value: kib, Unit: "KiB"},
		VCPU:          &libvirtxml.DomainVCPU{Placement: "static", Value: uint(spec.CPUs)},
		SysInfo:       credentials(spec.Credentials),
		OS: &libvirtxml.DomainOS{
			Type:    &libvirtxml.DomainOSType{Arch: "x86_64", Machine: "q35", Type: "hvm"},
			Kernel:  spec.Kernel,
			Initrd:  spec.Initrd,
			Cmdline: spec.Cmdline,
		},
		Features: &libvirtxml.DomainFeatureList{
			ACPI:   &libvirtxml.DomainFeature{},
			APIC:   &libvirtxml.DomainFeatureAPIC{},
			VMPort: &libvirtxml.DomainFeatureState{State: "off"},
		},
		Clock: &libvirtxml.DomainClock{
			Offset: "utc",
			Timer: []libvirtxml.DomainTimer{
				{Name: "rtc", TickPolicy: "catchup"},
				{Name: "pit", TickPolicy: "delay"},
				{Name: "hpet", Present: "no"},
			},
		},
		OnPoweroff: "destroy",
		OnReboot:   "restart",
		OnCrash:    "destroy",
		PM: &libvirtxml.DomainPM{
			SuspendToMem:  &libvirtxml.DomainPMPolicy{Enabled: "no"},
			SuspendToDisk: &libvirtxml.DomainPMPolicy{Enabled: "no"},
		},
		Devices: &libvirtxml.DomainDeviceList{
			Disks: []libvirtxml.DomainDisk{disk(spec)},
			Controllers: []libvirtxml.DomainController{
				{Type: "usb", Model: "none"}, // else libvirt adds one
			},
			Serials: []libvirtxml.DomainSerial{{
				Source: consoleSource(spec.Console),
				Target: &libvirtxml.DomainSerialTarget{Type: "isa-serial", Port: ptr(uint(0))},
			}},
			MemBalloon: &libvirtxml.DomainMemBalloon{
				Model:             "virtio-non-transitional",
				FreePageReporting: "on",
				Address:           slot(slotBalloon),
			},
			RNGs: []libvirtxml.DomainRNG{{
				Model:   "virtio-non-transitional",
				Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
				Address: slot(slotRNG),
			}},
		},
		QEMUCommandline: network(spec, host),
		// With this capability libvirt asks QEMU for each of 400 features of the CPU, one
		// after the other, before it starts or restores a VM: 0.6 s under emulation. Without
		// it, libvirt reads them all at once.
		QEMUCapabilities: &libvirtxml.DomainQEMUCapabilities{
			Del: []libvirtxml.DomainQEMUCapabilitiesEntry{{Name: "cpu-unavailable-features"}},
		},
	}
	switch spec.Accel {
	case AccelKVM:
		d.Type = "kvm"
		d.CPU = &libvirtxml.DomainCPU{Mode: "host-passthrough", Check: "none", Migratable: "on"}
		d.Clock.Timer = append(d.Clock.Timer, libvirtxml.DomainTimer{Name: "kvmclock", Present: "yes"})
	case AccelTCG:
		d.OS.Cmdline = emulatedCmdline(spec, host)
		// All that QEMU can emulate, since images ask for x86-64-v2 and more;
		// but without "rep movsb" as the fast way to copy, for it is
		// emulated byte by byte: kernel and Go programs then write memory 1.4
		// to 1.8 times as fast.
		d.CPU = &libvirtxml.DomainCPU{
			Mode: "maximum", Check: "none", Migratable: "on",
			Features: []libvirtxml.DomainCPUFeature{{Policy: "disable", Name: "erms"}},
		}
	}
	if host.Sandbox != "" {
		d.Devices.Emulator = host.Sandbox
		if d.QEMUCommandline == nil {
			d.QEMUCommandline = &libvirtxml.DomainQEMUCommandline{}
		}
		d.QEMUCommandline.Envs = []libvirtxml.DomainQEMUCommandlineEnv{{Name: sandbox.Env, Value: confined(spec).String()}}
	}
	if spec.Kernel == "" {
		d.OS.BootDevices = []libvirtxml.DomainBootDevice{{Dev: "hd"}}
	}
	if spec.Seed != "" {
		d.Devices.Disks = append(d.Devices.Disks, seed(spec))
	}
	if host.Confinement == "apparmor" {
		// The profile that libvirt generates knows the files in this
		// definition but not the socket of the network process, which stands
		// in the QEMU arguments: QEMU could not connect. It still runs as a
		// user of its own.
		d.SecLabel = []libvirtxml.DomainSecLabel{{Type: "none", Model: "apparmor"}}
	}
	if host.testDriver() {
		// libvirt's test driver has no QEMU arguments and a domain type of its
		// own; all else of the definition it takes.
		d.Type, d.CPU, d.QEMUCommandline, d.QEMUCapabilities, d.GenID = "test", nil, nil, nil, nil
	}
	doc, err := d.Marshal()
	if err != nil {
		return "", fmt.Errorf("render domain: %w", err)
	}
	return doc + "\n", nil
}

// emulatedCmdline is the kernel's command line under emulation.
//
// Linux counts timer ticks at boot and panics ("IO-APIC + timer doesn't work!") when some
// are late, which on a busy host they are. Under KVM it leaves that out by itself.
//
// QEMU before 8.0 gives CMPXCHG16B flags that another instruction has left behind. Linux
// takes and frees memory with it; an interrupt before the next instruction that sets flags
// keeps them, and with the wrong ones the kernel panics, rarely. Programs in the VM still
// find it in CPUID: some want x86-64-v2.
func emulatedCmdline(spec Spec, host Host) string {
	options := []string{"no_timer_check"}
	if !versionAtLeast(host.QEMU, 8, 0) {
		options = append(options, "clearcpuid=cx16")
	}
	cmdline := spec.Cmdline
	for _, option := range options {
		if spec.Kernel != "" && !slices.Contains(strings.Fields(cmdline), option) {
			cmdline = strings.TrimLeft(cmdline+" "+option, " ")
		}
	}
	return cmdline
}

// disk is the VM's own disk.
//
// Cache "writeback" goes through the host's page cache and honours the guest's
// flushes: nothing that the guest has synced is lost, all overlays of one base
// image share its cached blocks, and file systems without O_DIRECT work. It
// leaves "threads" for io: native AIO needs O_DIRECT, and io_uring is switched
// off on some hosts. Discard and detect_zeroes hand back what containers free.
func disk(spec Spec) libvirtxml.DomainDisk {
	return libvirtxml.DomainDisk{
		Device: "disk",
		Model:  "virtio-non-transitional",
		Driver: &libvirtxml.DomainDiskDriver{
			Name: "qemu", Type: "qcow2",
			Cache: "writeback", IO: "threads",
			Discard: "unmap", DetectZeros: "unmap",
		},
		Source:       fileSource(spec.Disk),
		BackingStore: backing(spec.Backing),
		Target:       &libvirtxml.DomainDiskTarget{Dev: "vda", Bus: "virtio"},
		Address:      slot(slotDisk),
	}
}

// backing is the chain of images below the VM's disk. libvirt would find it by
// itself, and would hand the images to the user that QEMU runs as, for good:
// they are everybody's, and only read.
func backing(chain []string) *libvirtxml.DomainDiskBackingStore {
	if len(chain) == 0 {
		return nil
	}
	source := fileSource(chain[0])
	source.File.SecLabel = []libvirtxml.DomainDeviceSecLabel{{Model: "dac", Relabel: "no"}}
	below := backing(chain[1:])
	if below == nil {
		below = &libvirtxml.DomainDiskBackingStore{} // the end
	}
	return &libvirtxml.DomainDiskBackingStore{
		Format:       &libvirtxml.DomainDiskFormat{Type: "qcow2"},
		Source:       source,
		BackingStore: below,
	}
}

// seed is the read-only cloud-init disk. A virtio disk serves as well as a
// CD-ROM (cloud-init looks for the label) and needs no SATA driver.
func seed(spec Spec) libvirtxml.DomainDisk {
	return libvirtxml.DomainDisk{
		Device:   "disk",
		Model:    "virtio-non-transitional",
		Driver:   &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "raw", Cache: "writeback", IO: "threads"},
		Source:   fileSource(spec.Seed),
		Target:   &libvirtxml.DomainDiskTarget{Dev: "vdb", Bus: "virtio"},
		ReadOnly: &libvirtxml.DomainDiskReadOnly{},
		Address:  slot(slotSeed),
	}
}

// credentials hands the files to the guest's systemd through fw_cfg.
func credentials(files map[string]string) []libvirtxml.DomainSysInfo {
	if len(files) == 0 {
		return nil
	}
	var entries []libvirtxml.DomainSysInfoEntry
	for _, name := range slices.Sorted(maps.Keys(files)) {
		entries = append(entries, libvirtxml.DomainSysInfoEntry{Name: credentialPrefix + name, File: files[name]})
	}
	return []libvirtxml.DomainSysInfo{{FWCfg: &libvirtxml.DomainSysInfoFWCfg{Entry: entries}}}
}

// network gives QEMU the card that ends in the network process's socket.
// libvirt has no element for a stream socket as a network back end.
func network(spec Spec, host Host) *libvirtxml.DomainQEMUCommandline {
	if spec.NetSocket == "" {
		return nil
	}
	type address struct {
		Type string `json:"type"`
		Path string `json:"path"`
	}
	netdev := struct {
		Type        string  `json:"type"`
		ID          string  `json:"id"`
		Server      bool    `json:"server"`
		Addr        address `json:"addr"`
		Reconnect   int     `json:"reconnect,omitempty"`    // seconds
		ReconnectMs int     `json:"reconnect-ms,omitempty"` // replaces reconnect
	}{
		Type: "stream", ID: "net0",
		Addr: address{Type: "unix", Path: spec.NetSocket},
	}
	switch {
	case versionAtLeast(host.QEMU, 9, 2):
		netdev.ReconnectMs = 200
	case versionAtLeast(host.QEMU, 8, 0):
		netdev.Reconnect = 1
	}
	device := struct {
		Driver  string `json:"driver"`
		ID      string `json:"id"`
		Netdev  string `json:"netdev"`
		MAC     string `json:"mac,omitempty"`
		Bus     string `json:"bus"`
		Addr    string `json:"addr"`
		HostMTU int    `json:"host_mtu,omitempty"`
		ROMFile string `json:"romfile"` // empty: nothing boots from the network
	}{
		Driver: "virtio-net-pci-non-transitional", ID: "nic0", Netdev: "net0",
		MAC: spec.MAC, Bus: "pcie.0", Addr: fmt.Sprintf("%#x", slotNIC),
		HostMTU: spec.MTU,
	}
	return &libvirtxml.DomainQEMUCommandline{Args: []libvirtxml.DomainQEMUCommandlineArg{
		{Value: "-netdev"},
		{Value: compact(netdev)},
		{Value: "-device"},
		{Value: compact(device)},
	}}
}

// Reconnects reports whether the host's QEMU connects again to a network process
// that was replaced. Elsewhere it tries once, at its start, and runs on without
// a network if nobody listens; [Hypervisor.Save] and Start bring that back. In its
// sandbox it has one connection and can make none.
func Reconnects(host Host) bool { return host.Sandbox == "" && versionAtLeast(host.QEMU, 8, 0) }

// compact renders v, which holds nothing that JSON cannot.
func compact(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a struct of strings and numbers
	}
	return string(b)
}

func consoleSource(path string) *libvirtxml.DomainChardevSource {
	if path == "" {
		return &libvirtxml.DomainChardevSource{Null: &libvirtxml.DomainChardevSourceNull{}}
	}
	return &libvirtxml.DomainChardevSource{File: &libvirtxml.DomainChardevSourceFile{Path: path, Append: "on"}}
}

func fileSource(path string) *libvirtxml.DomainDiskSource {
	return &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}}
}

func slot(n uint) *libvirtxml.DomainAddress {
	return &libvirtxml.DomainAddress{PCI: &libvirtxml.DomainAddressPCI{
		Domain: ptr(uint(0)), Bus: ptr(uint(0)), Slot: ptr(n), Function: ptr(uint(0)),
	}}
}

func ptr[T any](v T) *T { return &v }

// validate finds what libvirt would refuse with a message that helps nobody,
// or take and carry out wrongly.
func (s Spec) validate() error {
	if s.Name == "" {
		return fmt.Errorf("VM has no name")
	}
	if s.UUID == "" {
		return fmt.Errorf("VM %s has no UUID", s.Name)
	}
	if s.CPUs < 1 {
		return fmt.Errorf("VM %s has %d CPUs", s.Name, s.CPUs)
	}
	if s.Memory < 1<<20 {
		return fmt.Errorf("VM %s has %d bytes of memory", s.Name, s.Memory)
	}
	if s.Accel != AccelKVM && s.Accel != AccelTCG {
		return fmt.Errorf("VM %s has the unknown accelerator %q", s.Name, s.Accel)
	}
	if s.Disk == "" {
		return fmt.Errorf("VM %s has no disk", s.Name)
	}
	if s.Kernel == "" && (s.Initrd != "" || s.Cmdline != "") {
		return fmt.Errorf("VM %s has an initrd or a command line but no kernel", s.Name)
	}
	for _, v := range []struct{ what, text string }{
		{"name", s.Name},
		{"image digest", s.Image},
		{"kernel command line", s.Cmdline},
		{"path of the disk", s.Disk},
		{"path of the kernel", s.Kernel},
		{"path of the initrd", s.Initrd},
		{"path of the seed", s.Seed},
		{"path of the network socket", s.NetSocket},
		{"path of the console log", s.Console},
	} {
		if !representable(v.text) {
			return fmt.Errorf("%s %q has bytes that libvirt's XML cannot hold; use a directory with a plain name", v.what, v.text)
		}
	}
	for _, v := range []struct{ what, path string }{
		{"disk", s.Disk},
		{"kernel", s.Kernel},
		{"initrd", s.Initrd},
		{"seed", s.Seed},
		{"network socket", s.NetSocket},
		{"console log", s.Console},
	} {
		if v.path != "" && !strings.HasPrefix(v.path, "/") {
			return fmt.Errorf("path of the %s is not absolute: %s", v.what, v.path)
		}
	}
	if len(s.NetSocket) > maxSocketPath {
		return fmt.Errorf("path of the network socket is longer than %d bytes: %s", maxSocketPath, s.NetSocket)
	}
	if _, err := net.ParseMAC(s.MAC); s.MAC != "" && err != nil {
		return fmt.Errorf("VM %s has the MAC address %q", s.Name, s.MAC)
	}
	for _, path := range s.Backing {
		if !strings.HasPrefix(path, "/") || !representable(path) {
			return fmt.Errorf("%q is no path of an image that libvirt's XML can hold", path)
		}
	}
	for name, path := range s.Credentials {
		if name == "" || !representable(name) || len(credentialPrefix)+len(name) > maxFWCfgName {
			return fmt.Errorf("credential %q: the name must have 1 to %d bytes", name, maxFWCfgName-len(credentialPrefix))
		}
		if !strings.HasPrefix(path, "/") || !representable(path) {
			return fmt.Errorf("credential %s: %q is no path that libvirt's XML can hold", name, path)
		}
		if strings.ContainsAny(path, unescaped) {
			return fmt.Errorf("credential %s: libvirt cannot hand QEMU a file whose path has one of %s (%s); use a directory with a plain name", name, unescaped, path)
		}
	}
	return nil
}

// representable reports whether XML 1.0 can hold the text unchanged; a line
// break would survive, but libvirt writes its configuration without care for it.
func representable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r < 0x20 || r == 0x7f || r == 0xfffe || r == 0xffff {
			return false
		}
	}
	return true
}

// versionAtLeast compares the start of a dotted version with major.minor.
func versionAtLeast(version string, major, minor int) bool {
	a, rest, _ := strings.Cut(version, ".")
	b, _, _ := strings.Cut(rest, ".")
	x, err := strconv.Atoi(a)
	if err != nil {
		return false
	}
	y, err := strconv.Atoi(b)
	if err != nil {
		y = 0
	}
	return cmp.Or(cmp.Compare(x, major), cmp.Compare(y, minor)) >= 0
}

func (h Host) testDriver() bool { return strings.HasPrefix(h.URI, "test:") }
