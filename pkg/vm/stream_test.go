package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// migration builds streams as QEMU writes them.
type migration struct{ bytes.Buffer }

func (m *migration) be32(v uint32) { m.Write(binary.BigEndian.AppendUint32(nil, v)) }
func (m *migration) be64(v uint64) { m.Write(binary.BigEndian.AppendUint64(nil, v)) }
func (m *migration) str(s string)  { m.WriteByte(byte(len(s))); m.WriteString(s) }

// begin writes all before the first page.
func (m *migration) begin() {
	m.WriteString("QEVM")
	m.be32(3)
	m.WriteByte(sectionConfiguration)
	m.be32(10)
	m.WriteString("pc-q35-7.2")
	m.section(sectionStart)
	const low, rom = 4 << 20, 8 << 10
	m.be64(low + rom | pageSizes)
	m.str(mainMemory)
	m.be64(low)
	m.str("pc.rom")
	m.be64(rom)
	m.end()
}

func (m *migration) section(kind byte) {
	m.WriteByte(kind)
	m.be32(3)
	if kind == sectionStart {
		m.str("ram")
		m.be32(0)
		m.be32(ramVersion)
	}
}

func (m *migration) end() {
	m.be64(pageEnd)
	m.WriteByte(sectionFooter)
	m.be32(3)
}

// page writes a page that is filled with one byte; an empty block continues the former.
func (m *migration) page(block string, address uint64, fill byte, whole bool) {
	flags := uint64(pageZero)
	content := []byte{fill}
	if whole {
		flags, content = pageData, bytes.Repeat(content, 4096)
	}
	if block == "" {
		m.be64(address | flags | pageContinue)
	} else {
		m.be64(address | flags)
		m.str(block)
	}
	m.Write(content)
}

// typical is a stream with each case that matters.
func typical() []byte {
	var m migration
	m.begin()
	m.section(sectionPart)
	m.page(mainMemory, 0, 0, false) // low: stays
	m.page("", 1<<20, 0, false)     // goes
	m.page("", 1<<20+4096, 7, true)
	m.page("", 1<<20+8192, 0, false) // goes
	m.page("", 1<<20+12288, 9, false)
	m.page("pc.rom", 0, 0, false) // not the VM's memory: stays
	m.page("", 4096, 3, true)
	m.page(mainMemory, 2<<20, 0, false) // goes, though it names the block of the next
	m.page("", 2<<20+4096, 5, true)
	m.end()
	m.section(sectionEnd)
	m.page("", 3<<20, 0, false)     // goes
	m.page("", 3<<20+4096, 6, true) // written with its name: a section begins with one
	m.end()
	m.WriteString("\x04 devices, whatever they hold")
	return m.Bytes()
}

// restored is the memory that QEMU would make of a stream, by block and address, and what
// follows; pages of zeroes are absent.
func restored(b []byte) (memory map[string]string, rest string, pages int, err error) {
	var in bytes.Buffer
	block := ""
	in.Write(b)
	memory = map[string]string{}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	take := func(n int) []byte {
		out := in.Next(n)
		if len(out) < n {
			panic("short")
		}
		return out
	}
	str := func() string { return string(take(int(take(1)[0]))) }
	take(8)
	for {
		kind := take(1)[0]
		switch kind {
		case sectionConfiguration:
			take(int(binary.BigEndian.Uint32(take(4))))
			continue
		case sectionStart:
			take(4)
			str()
			take(8)
		case sectionPart, sectionEnd:
			take(4)
		default:
			return memory, "", pages, fmt.Errorf("section %#x", kind)
		}
		for {
			word := binary.BigEndian.Uint64(take(8))
			address, flags := word&^uint64(pageMask), word&pageMask
			if flags == pageEnd {
				break
			}
			if flags == pageSizes {
				for address > 0 {
					str()
					address -= binary.BigEndian.Uint64(take(8))
				}
				continue
			}
			if flags&pageContinue == 0 {
				block = str()
			}
			size := 1
			if flags&pageData != 0 {
				size = 4096
			}
			content := string(take(size))
			if size == 1 {
				content = strings.Repeat(content, 4096)
			}
			pages++
			key := fmt.Sprintf("%s %#x", block, address)
			if content == strings.Repeat("\x00", 4096) {
				delete(memory, key)
			} else {
				memory[key] = content
			}
		}
		if in.Len() > 0 && in.Bytes()[0] == sectionFooter {
			take(5)
		}
		if kind == sectionEnd {
			return memory, in.String(), pages, nil
		}
	}
}

func TestSparseStream(t *testing.T) {
	var out bytes.Buffer
	if err := sparseStream(&out, bytes.NewReader(typical())); err != nil {
		t.Fatal(err)
	}
	want, wantRest, before, err := restored(typical())
	if err != nil {
		t.Fatal(err)
	}
	got, rest, after, err := restored(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(got, want) || rest != wantRest {
		t.Errorf("another memory: %d pages and %q, want %d and %q", len(got), rest, len(want), wantRest)
	}
	if before-after != 4 {
		t.Errorf("%d of %d pages are left, want 4 fewer", after, before)
	}
	var again bytes.Buffer
	if err := sparseStream(&again, bytes.NewReader(out.Bytes())); err != nil || !bytes.Equal(again.Bytes(), out.Bytes()) {
		t.Errorf("a second run changes it again: %v", err)
	}
}

func TestSparseStreamRefused(t *testing.T) {
	good := typical()
	at := bytes.Index(good, []byte("ram"))
	for name, b := range map[string][]byte{
		"empty":             {},
		"another format":    []byte("QEVX----"),
		"cut off":           good[:len(good)/2],
		"another section":   bytes.Replace(good, []byte("ram"), []byte("rom"), 1),
		"another version":   append(bytes.Clone(good[:at+10]), append([]byte{5}, good[at+11:]...)...),
		"a flag":            bytes.Replace(good, binary.BigEndian.AppendUint64(nil, 1<<20+8192|pageZero|pageContinue), binary.BigEndian.AppendUint64(nil, 1<<20+8192|0x40|pageContinue), 1),
		"a page of nothing": append(bytes.Clone(good[:bytes.Index(good, []byte{sectionFooter})+5]), "\x02\x00\x00\x00\x03\x00\x00\x00\x00\x00\x10\x00\x22\x00"...),
	} {
		if err := sparseStream(io.Discard, bytes.NewReader(b)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A file that cannot be rewritten stays, and nothing is left beside it.
func TestDropZeroes(t *testing.T) {
	head := memoryHead{running: true, domain: "<domain/>"}.bytes(0)
	for name, stream := range map[string][]byte{"good": typical(), "bad": []byte("QEVM of another kind")} {
		dir := t.TempDir()
		path := filepath.Join(dir, "memory")
		before := append(bytes.Clone(head), stream...)
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
		err := dropZeroes(t.Context(), path)
		after, rerr := os.ReadFile(path)
		if rerr != nil {
			t.Fatal(rerr)
		}
		entries, _ := os.ReadDir(dir)
		switch {
		case len(entries) != 1:
			t.Errorf("%s: %v", name, entries)
		case name == "good" && (err != nil || len(after) >= len(before) || !bytes.HasPrefix(after, head)):
			t.Errorf("%s: %v, %d bytes of %d", name, err, len(after), len(before))
		case name == "bad" && (!errors.Is(err, errStream) || !bytes.Equal(after, before)):
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	path := filepath.Join(t.TempDir(), "memory")
	if err := os.WriteFile(path, append(bytes.Clone(head), typical()...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := dropZeroes(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// FuzzSparseStream: what is accepted restores to the same memory.
func FuzzSparseStream(f *testing.F) {
	f.Add(typical())
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		if sparseStream(&out, bytes.NewReader(b)) != nil {
			return
		}
		want, wantRest, _, err := restored(b)
		if err != nil {
			return // the model knows less
		}
		got, rest, _, err := restored(out.Bytes())
		if err != nil || rest != wantRest || !maps.Equal(got, want) {
			t.Errorf("another memory (%v)", err)
		}
	})
}
