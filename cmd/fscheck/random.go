package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

type randomOptions struct {
	length time.Duration
	seed   uint64
	direct bool
	size   int
}

// exerciser does to a file and to its model in memory the same.
type exerciser struct {
	randomOptions
	*rand.Rand
	path  string
	f     *os.File
	model []byte
	log   []string // the last operations
	ops   int
	skip  map[string]bool // what this file system does not have
}

const block = 4096 // of direct reads and writes

// random reads, writes, maps and truncates a file at random, and compares each byte with
// what it must be. At the end the file is there, for others to compare.
func random(ctx context.Context, path string, o randomOptions, out io.Writer) error {
	x := &exerciser{randomOptions: o, Rand: rand.New(rand.NewPCG(o.seed, 0)), path: path, skip: map[string]bool{}}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := x.reopen(); err != nil {
		return err
	}
	defer func() { x.f.Close() }()
	for end := time.Now().Add(o.length); time.Now().Before(end) && ctx.Err() == nil; x.ops++ {
		if err := x.step(); err != nil {
			for _, line := range x.log {
				fmt.Fprintln(out, line)
			}
			return fmt.Errorf("seed %d, operation %d: %w", o.seed, x.ops, err)
		}
	}
	if err := x.reopen(); err != nil {
		return err
	}
	if err := x.read(0, len(x.model), x.f.ReadAt); err != nil {
		return fmt.Errorf("seed %d, at the end: %w", o.seed, err)
	}
	_, err := fmt.Fprintf(out, "seed %d: %d operations, no difference\n", o.seed, x.ops)
	return err
}

// reopen closes the file, if it is open, and opens it.
func (x *exerciser) reopen() error {
	if x.f != nil {
		if err := x.f.Close(); err != nil {
			return err
		}
	}
	flags := os.O_RDWR | os.O_CREATE
	if x.direct {
		flags |= unix.O_DIRECT
	}
	f, err := os.OpenFile(x.path, flags, 0o644)
	if err != nil {
		return err
	}
	x.f = f
	return nil
}

// span is a random range that ends within limit, in whole blocks if it must be.
func (x *exerciser) span(limit int) (at, n int) {
	if limit == 0 {
		return 0, 0
	}
	at = x.IntN(limit)
	n = 1 + x.IntN(min(limit-at, 64<<10))
	if x.direct {
		at = at / block * block
		n = min((n+block-1)/block*block, (limit-at)/block*block)
	}
	return at, n
}

func (x *exerciser) note(format string, args ...any) {
	x.log = append(x.log, fmt.Sprintf("%d ", x.ops)+fmt.Sprintf(format, args...)+fmt.Sprintf(" (size %d)", len(x.model)))
	if len(x.log) > 60 {
		x.log = x.log[1:]
	}
}

// grow makes the model n bytes long at least.
func (x *exerciser) grow(n int) {
	if n > len(x.model) {
		x.model = append(x.model, make([]byte, n-len(x.model))...)
	}
}

func (x *exerciser) step() error {
	switch op := x.IntN(20); {
	case op < 5:
		at, n := x.span(len(x.model))
		x.note("read %d+%d", at, n)
		return x.read(at, n, x.f.ReadAt)
	case op < 10:
		at, n := x.span(x.size)
		x.note("write %d+%d", at, n)
		data := x.bytes(n)
		x.grow(at + n)
		copy(x.model[at:], data)
		_, err := x.f.WriteAt(data, int64(at))
		return err
	case op < 12 && !x.direct:
		at, n := x.span(len(x.model))
		x.note("map and read %d+%d", at, n)
		return x.mapped(at, n, func(b []byte) error { return x.compare(at, b) })
	case op < 14 && !x.direct:
		at, n := x.span(len(x.model))
		x.note("map and write %d+%d", at, n)
		return x.mapped(at, n, func(b []byte) error {
			data := x.bytes(n)
			copy(x.model[at:], data)
			copy(b, data)
			return nil
		})
	case op < 15:
		n := x.IntN(x.size)
		if x.direct {
			n = n / block * block
		}
		x.note("truncate to %d", n)
		x.grow(n)
		x.model = x.model[:n:n]
		if x.IntN(2) == 0 {
			return unix.Truncate(x.path, int64(n))
		}
		return x.f.Truncate(int64(n))
	case op < 16:
		return x.other()
	case op < 17:
		x.note("fsync")
		return x.f.Sync()
	case op < 18:
		x.note("close and open")
		return x.reopen()
	case op < 19:
		x.note("forget the cache")
		if err := x.f.Sync(); err != nil {
			return err
		}
		return unix.Fadvise(int(x.f.Fd()), 0, 0, unix.FADV_DONTNEED)
	default:
		x.note("stat")
		fi, err := os.Stat(x.path)
		if err == nil && fi.Size() != int64(len(x.model)) {
			err = fmt.Errorf("%s has %d bytes, not %d", x.path, fi.Size(), len(x.model))
		}
		return err
	}
}

// other does what not all file systems have.
func (x *exerciser) other() error {
	at, n := x.span(len(x.model))
	if n == 0 {
		return nil
	}
	what, err := "", error(nil)
	switch x.IntN(3) {
	case 0:
		if what = "punch a hole"; !x.skip[what] {
			err = unix.Fallocate(int(x.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(at), int64(n))
			if err == nil {
				clear(x.model[at : at+n])
			}
		}
	case 1:
		if what = "allocate"; !x.skip[what] {
			err = unix.Fallocate(int(x.f.Fd()), 0, int64(at), int64(n))
		}
	default:
		what = "copy_file_range"
		to := x.IntN(x.size - n + 1)
		if x.direct {
			to = to / block * block
		}
		if x.skip[what] || to < at+n && at < to+n {
			return nil
		}
		src, dst := int64(at), int64(to)
		var done int
		done, err = unix.CopyFileRange(int(x.f.Fd()), &src, int(x.f.Fd()), &dst, n, 0)
		if err == nil {
			x.grow(to + done)
			copy(x.model[to:to+done], x.model[at:at+done])
		}
	}
	x.note("%s %d+%d: %v", what, at, n, err)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		x.skip[what] = true
		return nil
	}
	return err
}

// bytes are n random ones, where direct writes can take them from.
func (x *exerciser) bytes(n int) []byte {
	b := aligned(n)
	for i := range b {
		b[i] = byte(x.Uint32())
	}
	return b
}

func (x *exerciser) read(at, n int, read func([]byte, int64) (int, error)) error {
	b := aligned(n)
	got, err := read(b, int64(at))
	if got != n {
		return fmt.Errorf("read %d of %d bytes at %d: %w", got, n, at, err)
	}
	return x.compare(at, b)
}

func (x *exerciser) compare(at int, b []byte) error {
	want := x.model[at : at+len(b)]
	if bytes.Equal(b, want) {
		return nil
	}
	first, last, count := -1, 0, 0
	for i := range b {
		if b[i] != want[i] {
			if first < 0 {
				first = i
			}
			last = i
			count++
		}
	}
	return fmt.Errorf("%d wrong bytes from %d to %d; the first is %#x, not %#x", count, at+first, at+last, b[first], want[first])
}

// mapped maps the pages that hold a range and has f do something to the range.
func (x *exerciser) mapped(at, n int, f func([]byte) error) error {
	if n == 0 {
		return nil
	}
	start := at / os.Getpagesize() * os.Getpagesize()
	b, err := unix.Mmap(int(x.f.Fd()), int64(start), at+n-start, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	err = f(b[at-start:])
	if x.IntN(2) == 0 {
		err = errors.Join(err, unix.Msync(b, unix.MS_SYNC))
	}
	return errors.Join(err, unix.Munmap(b))
}

// aligned is memory that direct reads and writes can use.
func aligned(n int) []byte {
	b := make([]byte, n+block)
	skip := int(-addressOf(b) & (block - 1))
	return b[skip : skip+n : skip+n]
}
