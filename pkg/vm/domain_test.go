package vm

import (
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirtxml"
)

var update = flag.Bool("update", false, "write the golden files")

var (
	session = Host{URI: uriSession, Libvirt: "9.0.0", QEMU: "7.2.22", QEMUUser: -1, QEMUGroup: -1}
	// The same with a sandbox for QEMU.
	confinedHost = Host{URI: uriSession, Libvirt: "11.3.0", QEMU: "10.0.3", QEMUUser: -1, QEMUGroup: -1, Sandbox: "/home/who/.local/share/devvm/sandbox/1a2b3c4d/qemu-system-x86_64"}

	system = Host{URI: uriSystem, Libvirt: "11.3.0", QEMU: "10.0.3", QEMUUser: 64055, QEMUGroup: 994, Confinement: "apparmor"}
)

func example() Spec {
	return Spec{
		Name:      "app-1a2b3c4d",
		UUID:      "1a2b3c4d-0000-8000-8000-000000000001",
		Project:   "/home/who/app",
		Image:     "72d7c44a6e56",
		CPUs:      4,
		Memory:    4 << 30,
		Accel:     AccelKVM,
		Disk:      "/home/who/.local/share/devvm/projects/app-1a2b3c4d/vm/disk.qcow2",
		Backing:   []string{"/home/who/.local/share/devvm/images/72d7c44a6e56/disk.qcow2"},
		Kernel:    "/home/who/.local/share/devvm/images/72d7c44a6e56/kernel",
		Initrd:    "/home/who/.local/share/devvm/images/72d7c44a6e56/initrd",
		Cmdline:   "console=ttyS0 root=/dev/vda rw quiet",
		NetSocket: "/run/user/1000/devvm/net/app-1a2b3c4d.sock",
		MAC:       "52:54:00:12:34:56",
		MTU:       4000,
		Console:   "/home/who/.local/share/devvm/projects/app-1a2b3c4d/vm/console.log",
		Credentials: map[string]string{
			"devvm.hostname": "/home/who/.local/share/devvm/projects/app-1a2b3c4d/vm/credentials/devvm.hostname",
			"devvm.host_key": "/home/who/.local/share/devvm/projects/app-1a2b3c4d/vm/credentials/devvm.host_key",
		},
	}
}

func TestDomainXML(t *testing.T) {
	for name, c := range map[string]struct {
		host   Host
		change func(*Spec)
	}{
		"session-kvm":      {session, func(*Spec) {}},
		"session-tcg":      {session, func(s *Spec) { s.Accel = AccelTCG }},
		"system-apparmor":  {system, func(*Spec) {}},
		"qemu-8":           {Host{URI: uriSession, QEMU: "8.2.2"}, func(*Spec) {}},
		"qemu-8-tcg":       {Host{URI: uriSession, QEMU: "8.2.2"}, func(s *Spec) { s.Accel = AccelTCG }},
		"firmware-seed":    {session, func(s *Spec) { s.Kernel, s.Initrd, s.Cmdline, s.Seed = "", "", "", "/s/seed.img" }},
		"two-images":       {system, func(s *Spec) { s.Backing = []string{"/templates/t/disk.qcow2", "/images/i/disk.qcow2"} }},
		"no-network":       {session, func(s *Spec) { s.NetSocket, s.Console, s.Credentials, s.Backing = "", "", nil, nil }},
		"sandbox":          {confinedHost, func(*Spec) {}},
		"sandbox-offline":  {confinedHost, func(s *Spec) { s.NetSocket, s.Console, s.Credentials, s.Backing = "", "", nil, nil }},
		"test-driver":      {Host{URI: uriTest}, func(*Spec) {}},
		"awkward":          {session, awkward},
		"one-cpu-odd-size": {session, func(s *Spec) { s.CPUs, s.Memory = 1, 1000_000_000 }},
	} {
		t.Run(name, func(t *testing.T) {
			spec := example()
			c.change(&spec)
			got, err := DomainXML(spec, c.host)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".xml")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("DomainXML (-want +got):\n%s\n(go test -update writes it)", diff)
			}

			// What was written is read.
			d, err := parseDomain(got)
			if err != nil {
				t.Fatal(err)
			}
			accel := spec.Accel
			if c.host.testDriver() {
				accel = AccelTCG
			}
			wantDomain := Domain{
				Name: spec.Name, UUID: spec.UUID, Project: spec.Project, Image: spec.Image,
				CPUs: spec.CPUs, Memory: spec.Memory &^ 1023, Accel: accel, Disk: spec.Disk,
			}
			if diff := cmp.Diff(wantDomain, d); diff != "" {
				t.Errorf("read back (-want +got):\n%s", diff)
			}
			// libvirt has no place for what the library has no field for.
			var again libvirtxml.Domain
			if err := again.Unmarshal(got); err != nil {
				t.Fatal(err)
			}
			if doc, err := again.Marshal(); err != nil || doc+"\n" != got {
				t.Errorf("it changes when read and written (%v):\n%s", err, cmp.Diff(got, doc+"\n"))
			}
		})
	}
}

// awkward has all that paths and command lines may hold.
func awkward(s *Spec) {
	dir := "/home/a <b> & \"c\" 'd', é=日本\u00a0%41:{}\\"
	s.Project = dir + "\xff\xfe\x00\x01\n\t]]>"
	for _, path := range []*string{&s.Disk, &s.Kernel, &s.Initrd, &s.NetSocket, &s.Console} {
		*path = dir + *path
	}
	s.Cmdline = `x="a b" y='<&>'`
	s.Seed = dir + "/seed"
	for i, path := range s.Backing {
		s.Backing[i] = dir + path
	}
	for name, path := range s.Credentials {
		s.Credentials[name] = "/home/a b é=日本\u00a0%41:{}\\" + path
	}
}

func TestDomainXMLRefuses(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*Spec)
		want   string
	}{
		"no name":              {func(s *Spec) { s.Name = "" }, "no name"},
		"no UUID":              {func(s *Spec) { s.UUID = "" }, "UUID"},
		"no CPU":               {func(s *Spec) { s.CPUs = 0 }, "0 CPUs"},
		"no memory":            {func(s *Spec) { s.Memory = 1000 }, "1000 bytes"},
		"no accelerator":       {func(s *Spec) { s.Accel = "" }, "accelerator"},
		"no disk":              {func(s *Spec) { s.Disk = "" }, "no disk"},
		"initrd alone":         {func(s *Spec) { s.Kernel = "" }, "no kernel"},
		"relative path":        {func(s *Spec) { s.Kernel = "kernel" }, "not absolute"},
		"path not UTF-8":       {func(s *Spec) { s.Disk = "/\xff" }, "cannot hold"},
		"line break":           {func(s *Spec) { s.Console = "/a\nb" }, "cannot hold"},
		"command line":         {func(s *Spec) { s.Cmdline = "a\x00b" }, "cannot hold"},
		"long credential":      {func(s *Spec) { s.Credentials = map[string]string{strings.Repeat("x", 29): "/x"} }, "28 bytes"},
		"empty credential":     {func(s *Spec) { s.Credentials = map[string]string{"": "/x"} }, "28 bytes"},
		"credential's comma":   {func(s *Spec) { s.Credentials = map[string]string{"x": "/a,b"} }, "plain name"},
		"image's path":         {func(s *Spec) { s.Backing = []string{"/a", "b"} }, "image"},
		"credential's path":    {func(s *Spec) { s.Credentials = map[string]string{"x": ""} }, "credential x"},
		"network socket":       {func(s *Spec) { s.NetSocket = "net.sock" }, "not absolute"},
		"long network socket":  {func(s *Spec) { s.NetSocket = "/" + strings.Repeat("x", 107) }, "107"},
		"a MAC that is no MAC": {func(s *Spec) { s.MAC = "52:54:00,x=y" }, "MAC"},
	} {
		spec := example()
		c.change(&spec)
		doc, err := DomainXML(spec, session)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
		if doc != "" {
			t.Errorf("%s: an error and a document", what)
		}
	}
}

// A secret's path may stand on QEMU's command line, its content may not; and
// the order of a map must not change the definition.
func TestDomainXMLIsStable(t *testing.T) {
	first, err := DomainXML(example(), session)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if again, err := DomainXML(example(), session); err != nil || again != first {
			t.Fatalf("it differs (%v):\n%s", err, cmp.Diff(first, again))
		}
	}
}

func TestParseForeign(t *testing.T) {
	for what, doc := range map[string]string{
		"no metadata":     `<domain><name>devvm-x</name></domain>`,
		"other metadata":  `<domain><name>devvm-x</name><metadata><a:vm xmlns:a="http://example.org/"><a:project>/p</a:project></a:vm></metadata></domain>`,
		"no namespace":    `<domain><name>devvm-x</name><metadata><vm><project>/p</project></vm></metadata></domain>`,
		"other name":      `<domain><name>x</name><metadata><vm xmlns="` + metadataURI + `"><project>/p</project></vm></metadata></domain>`,
		"nested metadata": `<domain><name>devvm-x</name><metadata><a><vm xmlns="` + metadataURI + `"><project>/p</project></vm></a></metadata></domain>`,
	} {
		if d, err := parseDomain(doc); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %+v, %v; want ErrForeign", what, d, err)
		}
	}
	// libvirt may choose another prefix, and others may add theirs.
	doc := `<domain><name>devvm-x</name><metadata><o:vm xmlns:o="http://example.org/"/><d:vm xmlns:d="` + metadataURI + `"><d:project>/p%FF</d:project></d:vm></metadata></domain>`
	if d, err := parseDomain(doc); err != nil || d.Project != "/p\xff" {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestVersionAtLeast(t *testing.T) {
	for version, want := range map[string]bool{
		"7.2.22": false, "8.0.0": true, "8.1": true, "10.0.3": true, "9.2.0": true, "": false, "x": false, "8": true,
	} {
		if got := Reconnects(Host{QEMU: version}); got != want {
			t.Errorf("Reconnects(%q) = %v", version, got)
		}
	}
	if versionAtLeast("9.1.9", 9, 2) || !versionAtLeast("9.2", 9, 2) || !versionAtLeast("10.0", 9, 2) {
		t.Error("versionAtLeast compares text, not numbers")
	}
	if versions := slices.Sorted(maps.Keys(map[string]int{version(9_000_000): 0, version(11_003_001): 0})); !slices.Equal(versions, []string{"11.3.1", "9.0.0"}) {
		t.Errorf("version: %v", versions)
	}
}
