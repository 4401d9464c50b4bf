package vm

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// QEMU's migration stream (https://www.qemu.org/docs/master/devel/migration/main.html;
// migration/savevm.c and ram.c) holds the VM's memory first, page by page, and then its
// devices. All numbers are big-endian.
const (
	streamMagic   = "QEVM"
	streamVersion = 3

	sectionStart         = 0x01
	sectionPart          = 0x02
	sectionEnd           = 0x03
	sectionSub           = 0x05
	sectionConfiguration = 0x07
	sectionFooter        = 0x7e

	ramVersion = 4 // of the section "ram"

	// Flags in the low bits of a page's address.
	pageMask     = 0xfff
	pageZero     = 0x02 // all bytes are the one that follows
	pageSizes    = 0x04 // not a page: the names and sizes of all blocks of memory
	pageData     = 0x08
	pageEnd      = 0x10 // not a page: the section's end
	pageContinue = 0x20 // of the same block as the page before

	mainMemory = "pc.ram"
	// lowMemory is where firmware lies, which QEMU may have put there before it loads
	// the stream; all above is zero then.
	lowMemory = 1 << 20
)

// errStream says that a migration stream has something that is not known here.
var errStream = errors.New("a migration stream of an unknown kind")

// dropZeroes rewrites a memory file without the pages that hold nothing. QEMU writes
// them all, and each that it finds in the file it looks at in the new VM, whose memory
// holds nothing yet: that costs a fork time by the size of its memory, not by what is in
// it, and some hosts have to find a page for each look. If the file cannot be rewritten,
// it stays as it is.
func dropZeroes(ctx context.Context, path string) (err error) {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	if _, err := readMemoryHead(in); err != nil {
		return err
	}
	start, err := in.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return err
	}
	next := path + ".new"
	out, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(next)
		}
	}()
	defer out.Close()
	if _, err := io.CopyN(out, in, start); err != nil {
		return err
	}
	if err := sparseStream(out, contextReader{ctx, in}); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// contextReader fails when its context ends.
type contextReader struct {
	ctx context.Context //nolint:containedctx // lives as long as one call
	r   io.Reader
}

func (r contextReader) Read(b []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(b)
}

// sparseStream copies a migration stream, but for the pages of the VM's memory that hold
// zeroes alone. The error wraps errStream if it meets anything that it does not know.
func sparseStream(out io.Writer, in io.Reader) error {
	s := stream{in: bufio.NewReaderSize(in, 64<<10), out: bufio.NewWriterSize(out, 64<<10)}
	if string(s.pass(4)) != streamMagic || s.pass32() != streamVersion {
		return s.unknown("it does not begin as one")
	}
	for s.err == nil {
		kind := s.pass(1)[0]
		switch kind {
		case sectionConfiguration:
			s.passLong()
			for s.peek() == sectionSub {
				s.configuration()
			}
			continue
		case sectionStart:
			id := s.pass32()
			name, _, version := s.passString(), s.pass32(), s.pass32()
			if name != "ram" || version != ramVersion {
				return s.unknown("section %q, version %d", name, version)
			}
			s.ram = id
		case sectionPart, sectionEnd:
			if id := s.pass32(); id != s.ram {
				return s.unknown("section %d", id)
			}
		default:
			return s.unknown("a section of type %#x", kind)
		}
		s.pages()
		if s.peek() == sectionFooter {
			s.pass(5)
		}
		if kind == sectionEnd {
			s.rest()
			break
		}
	}
	if s.err == nil {
		s.err = s.out.Flush()
	}
	return s.err
}

// stream is one run of sparseStream. After the first error its methods do nothing.
type stream struct {
	in   *bufio.Reader
	out  *bufio.Writer
	ram  uint32 // number of the section with memory
	from string // block of the page that was read last
	to   string // block of the page that was written last
	err  error
}

func (s *stream) unknown(format string, args ...any) error {
	if s.err == nil {
		s.err = fmt.Errorf("%w: %s", errStream, fmt.Sprintf(format, args...))
	}
	return s.err
}

// read returns the next n bytes, zeroes after an error.
func (s *stream) read(n int) []byte {
	b := make([]byte, n)
	if s.err == nil {
		_, s.err = io.ReadFull(s.in, b)
	}
	if s.err != nil {
		clear(b)
	}
	return b
}

func (s *stream) write(b []byte) {
	if s.err == nil {
		_, s.err = s.out.Write(b)
	}
}

// pass copies the next n bytes and returns them.
func (s *stream) pass(n int) []byte {
	b := s.read(n)
	s.write(b)
	return b
}

func (s *stream) pass32() uint32 { return binary.BigEndian.Uint32(s.pass(4)) }
func (s *stream) pass64() uint64 { return binary.BigEndian.Uint64(s.pass(8)) }

// passString copies a string with its length in one byte.
func (s *stream) passString() string { return string(s.pass(int(s.pass(1)[0]))) }

// passLong copies a string with its length in four bytes.
func (s *stream) passLong() {
	n := s.pass32()
	if n > 1<<10 {
		_ = s.unknown("a name of %d bytes", n)
		return
	}
	s.pass(int(n))
}

// peek returns the next byte, which stays; 0 at the end.
func (s *stream) peek() byte {
	b, err := s.in.Peek(1)
	if err != nil || s.err != nil {
		return 0
	}
	return b[0]
}

// rest copies all that is left.
func (s *stream) rest() {
	if s.err == nil {
		_, s.err = io.Copy(s.out, s.in)
	}
}

// configuration copies a part of what QEMU says of its own settings.
func (s *stream) configuration() {
	s.pass(1)
	name := s.passString()
	s.pass32()
	switch strings.TrimPrefix(name, "configuration/") {
	case "target-page-bits":
		if bits := s.pass32(); 1<<bits != pageMask+1 {
			_ = s.unknown("pages of 2^%d bytes", bits)
		}
	case "capabilities":
		n := s.pass32()
		if n > 0 { // each may change what follows
			_ = s.unknown("%d capabilities", n)
		}
	default:
		_ = s.unknown("%q", name)
	}
}

// pages copies the pages of one section.
func (s *stream) pages() {
	s.to = "" // named anew in each section
	for s.err == nil {
		word := binary.BigEndian.Uint64(s.read(8))
		address, flags := word&^pageMask, word&pageMask
		switch flags {
		case pageEnd:
			s.write(binary.BigEndian.AppendUint64(nil, word))
			return
		case pageSizes:
			s.write(binary.BigEndian.AppendUint64(nil, word))
			s.sizes(address)
		case pageZero, pageZero | pageContinue, pageData, pageData | pageContinue:
			if flags&pageContinue == 0 {
				s.from = string(s.read(int(s.read(1)[0])))
			}
			s.page(address, flags&^pageContinue)
		default:
			_ = s.unknown("a page with the flags %#x", flags)
		}
	}
}

// sizes copies the names and sizes of the blocks, which make up the total.
func (s *stream) sizes(total uint64) {
	for total > 0 && s.err == nil {
		s.passString()
		size := s.pass64()
		if size == 0 || size > total {
			_ = s.unknown("a block of %d bytes", size)
			return
		}
		total -= size
	}
}

// page copies one page, if it is worth it.
func (s *stream) page(address, kind uint64) {
	if s.from == "" {
		_ = s.unknown("a page of no block")
		return
	}
	size := 1
	if kind == pageData {
		size = pageMask + 1
	}
	content := s.read(size)
	if kind == pageZero && content[0] == 0 && s.from == mainMemory && address >= lowMemory {
		return
	}
	if s.from == s.to {
		s.write(binary.BigEndian.AppendUint64(nil, address|kind|pageContinue))
	} else {
		s.write(binary.BigEndian.AppendUint64(nil, address|kind))
		s.write(append([]byte{byte(len(s.from))}, s.from...))
		s.to = s.from
	}
	s.write(content)
}
