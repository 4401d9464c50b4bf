package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"
)

// savedDomain is what libvirt would have written of a VM.
func savedDomain(t *testing.T, spec Spec) string {
	t.Helper()
	doc, err := DomainXML(spec, session)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestMemoryHead(t *testing.T) {
	for _, want := range []memoryHead{
		{running: true, domain: "<domain/>", cookie: "<cookie/>"},
		{running: false, domain: "<domain/>"},
	} {
		got, err := readMemoryHead(bytes.NewReader(append(want.bytes(0), "QEVM and so on"...)))
		if err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func TestMemoryHeadRefused(t *testing.T) {
	good := memoryHead{running: true, domain: "<domain/>", cookie: "<cookie/>"}.bytes(0)
	word := func(n int, v uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[len(memoryMagic)+4*n:], v)
		return b
	}
	for name, file := range map[string][]byte{
		"empty":                {},
		"short":                good[:50],
		"XML cut off":          good[:len(good)-3],
		"not complete":         append([]byte("LibvirtQemudPart"), good[16:]...),
		"another version":      word(0, 3),
		"no XML":               word(1, 0),
		"too much XML":         word(1, 1<<30),
		"odd state":            word(2, 7),
		"compressed":           word(3, 1),
		"cookie beyond":        word(4, 1<<20),
		"cookie inside":        word(4, 3),
		"a reserved field set": word(9, 1),
	} {
		if _, err := readMemoryHead(bytes.NewReader(file)); !errors.Is(err, ErrMemory) {
			t.Errorf("%s: %v, want ErrMemory", name, err)
		}
	}
}

// A fork's memory file is its template's, but for the names in the XML.
func TestCopyMemory(t *testing.T) {
	was, next := example(), example()
	was.Accel, next.Accel = AccelTCG, AccelTCG
	next.Name, next.UUID, next.Project = "other-99999999", "1a2b3c4d-0000-8000-8000-000000000002", "/home/who/other"
	for _, path := range []*string{&next.Disk, &next.NetSocket, &next.Console} {
		*path = strings.ReplaceAll(*path, was.Name, next.Name)
	}
	next.Backing = []string{"/t/disk.qcow2", "/i/disk.qcow2"}
	next.Credentials = map[string]string{}
	for name, path := range was.Credentials {
		next.Credentials[name] = strings.ReplaceAll(path, was.Name, next.Name)
	}
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	stream := bytes.Repeat([]byte("QEVM and what QEMU knows "), 100_000)
	head := memoryHead{running: true, domain: savedDomain(t, was), cookie: "<cookie><cpu/></cookie>"}
	if err := os.WriteFile(src, append(head.bytes(0), stream...), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := copyMemory(t.Context(), dst, src, savedDomain(t, next)); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(dst)
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(b)
	got, err := readMemoryHead(r)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasSuffix(b, stream) || r.Len() != len(stream) {
		t.Error("the stream is not the same")
	}
	if got.cookie != head.cookie || !got.running {
		t.Errorf("cookie %q, running %v", got.cookie, got.running)
	}
	if strings.Contains(got.domain, was.Name) || strings.Contains(got.domain, was.UUID) {
		t.Errorf("the fork's XML names the template:\n%s", got.domain)
	}
	var a, w libvirtxml.Domain
	if err := errors.Join(a.Unmarshal(got.domain), w.Unmarshal(savedDomain(t, next))); err != nil {
		t.Fatal(err)
	}
	x, errX := a.Marshal()
	y, errY := w.Marshal()
	if errX != nil || errY != nil || x != y {
		t.Errorf("%v, %v: the fork's XML:\n%s\nwant:\n%s", errX, errY, x, y)
	}

	// A copy becomes another domain's: its head is replaced, the rest is not touched.
	after := next
	after.Name = next.Name + "-and-a-name-that-is-longer"
	if err := os.WriteFile(dst, append(b[:len(b)-4], "mark"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := copyMemory(t.Context(), dst, src, savedDomain(t, after)); err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile(dst); err != nil || !bytes.Contains(b, []byte(after.Name)) || !bytes.HasSuffix(b, []byte("mark")) {
		t.Errorf("the copy was not used again (%v)", err)
	}
	// What is no whole copy is replaced by one.
	for _, left := range [][]byte{nil, b[:len(b)-1], bytes.Repeat([]byte("x"), len(b)), append(head.bytes(0), make([]byte, len(b)-len(head.bytes(0)))...)} {
		if err := os.WriteFile(dst, left, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := copyMemory(t.Context(), dst, src, savedDomain(t, next)); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(dst); err != nil || !bytes.Contains(b, []byte(next.Name)) || !bytes.HasSuffix(b, stream) {
			t.Errorf("what was left instead of a copy was used (%v)", err)
		}
	}
	// That of a cancelled one is not left half-made.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := copyMemory(ctx, dst+"2", src, savedDomain(t, next)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := os.Stat(dst + "2"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

// A fork has its own sandbox, whatever its template had: none, or one that names the
// template's files.
func TestAdoptSandbox(t *testing.T) {
	next := example()
	next.Disk, next.NetSocket = "/next/disk.qcow2", "/next/net.sock"
	for _, from := range []Host{session, confinedHost} {
		for _, to := range []Host{session, confinedHost} {
			saved, err := DomainXML(example(), from)
			if err != nil {
				t.Fatal(err)
			}
			want, err := DomainXML(next, to)
			if err != nil {
				t.Fatal(err)
			}
			got, err := adopt(saved, want)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(got, example().Disk) || strings.Contains(got, example().NetSocket) {
				t.Errorf("it has the template's files:\n%s", got)
			}
			if has, should := strings.Contains(got, "<emulator>"+to.Sandbox+"</emulator>"), to.Sandbox != ""; has != should {
				t.Errorf("from %q to %q: sandbox %v", from.Sandbox, to.Sandbox, has)
			}
			if has, should := strings.Contains(got, "DEVVM_QEMU"), to.Sandbox != ""; has != should {
				t.Errorf("from %q to %q: policy %v", from.Sandbox, to.Sandbox, has)
			}
		}
	}
}

func TestAdoptOtherShape(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"cpus":        func(s *Spec) { s.CPUs++ },
		"memory":      func(s *Spec) { s.Memory *= 2 },
		"accelerator": func(s *Spec) { s.Accel = AccelTCG },
		"disks":       func(s *Spec) { s.Seed = "/s/seed.img" },
		"credentials": func(s *Spec) { s.Credentials = nil },
	} {
		next := example()
		change(&next)
		if _, err := adopt(savedDomain(t, example()), savedDomain(t, next)); !errors.Is(err, ErrMemory) {
			t.Errorf("%s: %v, want ErrMemory", name, err)
		}
	}
}

func FuzzMemoryHead(f *testing.F) {
	f.Add(memoryHead{running: true, domain: "<domain/>", cookie: "<cookie/>"}.bytes(0))
	f.Add(memoryHead{domain: "<domain/>"}.bytes(0))
	f.Add([]byte(memoryMagic))
	f.Fuzz(func(t *testing.T, file []byte) {
		head, err := readMemoryHead(bytes.NewReader(file))
		if err != nil {
			if !errors.Is(err, ErrMemory) {
				t.Errorf("%v is not ErrMemory", err)
			}
			return
		}
		again, err := readMemoryHead(bytes.NewReader(head.bytes(0)))
		if err != nil || again != head {
			t.Errorf("%+v becomes %+v, %v", head, again, err)
		}
	})
}
