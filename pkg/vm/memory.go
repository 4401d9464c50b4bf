package vm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"libvirt.org/go/libvirtxml"
)

// A memory file is what libvirt's QEMU driver saves of a running domain
// (virDomainSave; struct virQEMUSaveHeader in its qemu_saveimage.h): a header, the
// domain's XML, a "cookie" with more of libvirt's XML, and QEMU's migration stream.
// All numbers are little-endian on x86.

const (
	memoryMagic   = "LibvirtQemudSave"
	memoryVersion = 2
	// memoryHeader is the size of the magic and nineteen words of 32 bits, the
	// last fourteen of which are reserved.
	memoryHeader = len(memoryMagic) + 19*4
	// maxMemoryXML bounds the XML, which is some kilobytes.
	maxMemoryXML = 4 << 20
)

// ErrMemory says that a file is no saved memory, or not of a kind known here: not
// complete, compressed, of another version, or damaged.
var ErrMemory = errors.New("not a saved memory that devvm can use")

// memoryHead is all of a memory file before QEMU's own stream.
type memoryHead struct {
	running bool   // the domain ran when it was saved
	domain  string // XML
	cookie  string // XML; may be empty
}

// readMemoryHead reads a memory file up to where QEMU's stream begins.
func readMemoryHead(r io.Reader) (memoryHead, error) {
	var h memoryHead
	fixed := make([]byte, memoryHeader)
	if _, err := io.ReadFull(r, fixed); err != nil {
		return h, fmt.Errorf("%w: %w", ErrMemory, err)
	}
	if string(fixed[:len(memoryMagic)]) != memoryMagic {
		return h, fmt.Errorf("%w: it does not begin with %q", ErrMemory, memoryMagic)
	}
	var words [19]uint32
	for i := range words {
		words[i] = binary.LittleEndian.Uint32(fixed[len(memoryMagic)+4*i:])
	}
	version, length, running, format, cookie := words[0], words[1], words[2], words[3], words[4]
	switch {
	case version != memoryVersion:
		return h, fmt.Errorf("%w: version %d", ErrMemory, version)
	case format != 0:
		return h, fmt.Errorf("%w: it is compressed (format %d; see save_image_format in libvirt's qemu.conf)", ErrMemory, format)
	case length < 2 || length > maxMemoryXML:
		return h, fmt.Errorf("%w: %d bytes of XML", ErrMemory, length)
	case running > 1:
		return h, fmt.Errorf("%w: state %d", ErrMemory, running)
	case cookie >= length:
		return h, fmt.Errorf("%w: cookie at %d of %d bytes", ErrMemory, cookie, length)
	}
	for _, w := range words[5:] {
		if w != 0 {
			return h, fmt.Errorf("%w: a reserved field is set", ErrMemory)
		}
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(r, data); err != nil {
		return h, fmt.Errorf("%w: %w", ErrMemory, err)
	}
	h.running = running == 1
	domain := data
	if cookie > 0 {
		domain = data[:cookie]
		text, _, ok := bytes.Cut(data[cookie:], []byte{0})
		if !ok {
			return h, fmt.Errorf("%w: its cookie has no end", ErrMemory)
		}
		h.cookie = string(text)
	}
	text, _, ok := bytes.Cut(domain, []byte{0})
	if !ok || len(text) == 0 {
		return h, fmt.Errorf("%w: its XML has no end", ErrMemory)
	}
	h.domain = string(text)
	return h, nil
}

// bytes renders the head, as libvirt would write it, with at least size bytes:
// what is more than it needs is padding, as libvirt leaves where it replaces the XML.
func (h memoryHead) bytes(size int) []byte {
	data := append([]byte(h.domain), 0)
	var cookie, running uint32
	if h.cookie != "" {
		cookie = uint32(len(data))
		data = append(append(data, h.cookie...), 0)
	}
	if h.running {
		running = 1
	}
	if short := size - memoryHeader - len(data); short > 0 {
		data = append(data, make([]byte, short)...)
	}
	out := append(make([]byte, 0, memoryHeader+len(data)), memoryMagic...)
	for _, w := range [19]uint32{memoryVersion, uint32(len(data)), running, 0, cookie} {
		out = binary.LittleEndian.AppendUint32(out, w)
	}
	return append(out, data...)
}

// adopt returns the XML of a saved domain with what makes it another VM taken
// from the definition want: its names, its files and its network's socket. Saved
// memory fits no other machine, so one whose shape differs is an error.
func adopt(saved, want string) (string, error) {
	var from, to libvirtxml.Domain
	if err := from.Unmarshal(saved); err != nil {
		return "", fmt.Errorf("%w: parse its domain: %w", ErrMemory, err)
	}
	if err := to.Unmarshal(want); err != nil {
		return "", fmt.Errorf("parse the new domain: %w", err)
	}
	if a, b := shapeOf(&from), shapeOf(&to); a != b {
		return "", fmt.Errorf("%w: it is of another machine (%+v, not %+v)", ErrMemory, a, b)
	}
	from.Name, from.UUID, from.Title = to.Name, to.UUID, to.Title
	from.Metadata = to.Metadata
	from.GenID = to.GenID // libvirt picks a new one
	from.SysInfo = to.SysInfo
	from.OS.Kernel, from.OS.Initrd, from.OS.Cmdline = to.OS.Kernel, to.OS.Initrd, to.OS.Cmdline
	from.Devices.Emulator = to.Devices.Emulator
	from.QEMUCommandline, from.QEMUCapabilities = to.QEMUCommandline, to.QEMUCapabilities
	for i := range from.Devices.Disks {
		from.Devices.Disks[i].Source = to.Devices.Disks[i].Source
		from.Devices.Disks[i].BackingStore = to.Devices.Disks[i].BackingStore
	}
	for i := range from.Devices.Serials {
		from.Devices.Serials[i].Source = to.Devices.Serials[0].Source
	}
	for i := range from.Devices.Consoles {
		from.Devices.Consoles[i].Source = to.Devices.Serials[0].Source
	}
	doc, err := from.Marshal()
	if err != nil {
		return "", fmt.Errorf("render domain: %w", err)
	}
	return doc, nil
}

// shape is what of a machine its saved memory depends on and a definition says.
type shape struct {
	kind         string
	cpus, memory uint
	disks        int
	credentials  int
}

func shapeOf(d *libvirtxml.Domain) shape {
	s := shape{kind: d.Type}
	if d.VCPU != nil {
		s.cpus = d.VCPU.Value
	}
	if d.Memory != nil {
		s.memory = d.Memory.Value
		if strings.EqualFold(d.Memory.Unit, "b") {
			s.memory >>= 10
		}
	}
	if d.Devices != nil {
		s.disks = len(d.Devices.Disks)
	}
	for _, info := range d.SysInfo {
		if info.FWCfg != nil {
			s.credentials += len(info.FWCfg.Entry)
		}
	}
	return s
}

// checkMemory tells whether Fork can use a memory file.
func checkMemory(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	head, err := readMemoryHead(f)
	if err == nil && !head.running {
		return fmt.Errorf("%w: the VM did not run", ErrMemory)
	}
	return err
}

// copyHead is the size of the head of each copy, so that another can take its place.
const copyHead = 64 << 10

// copyMemory writes a memory file for the domain want from one that another domain
// left. If dst exists, it must be an earlier copy of src, and only its head is written
// anew. Otherwise, when ctx ends or the copy fails, there is no dst.
func copyMemory(ctx context.Context, dst, src, want string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	head, err := readMemoryHead(in)
	if err != nil {
		return err
	}
	if head.domain, err = adopt(head.domain, want); err != nil {
		return err
	}
	start, err := in.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	info, err := in.Stat()
	if err != nil {
		return err
	}
	first := head.bytes(copyHead)
	if size := int64(len(first)) + info.Size() - start; replaceHead(dst, first, size) {
		return nil
	}
	if err := os.Remove(dst); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = copyStream(ctx, out, in, first)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(dst)
	}
	return err
}

// replaceHead writes the head of a copy anew, if the file is one with a head and a
// size like that.
func replaceHead(path string, head []byte, size int64) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() != size {
		return false
	}
	if _, err := readMemoryHead(f); err != nil {
		return false
	}
	if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != int64(len(head)) {
		return false
	}
	_, err = f.WriteAt(head, 0)
	return err == nil
}

// copyStream writes the head and what follows in the source.
func copyStream(ctx context.Context, out, in *os.File, head []byte) error {
	if _, err := out.Write(head); err != nil {
		return err
	}
	for { // by copy_file_range(2), in parts so that ctx counts
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		switch _, err := io.CopyN(out, in, 64<<20); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}
