package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// A file of tree says itself what must be in it: a seed, its size, and then the bytes
// that the seed makes. So anyone can check it, the host too.
const header = 16

func content(seed uint64, size int) []byte {
	b := make([]byte, max(size, header))
	binary.LittleEndian.PutUint64(b, seed)
	binary.LittleEndian.PutUint64(b[8:], uint64(len(b)))
	random := rand.NewChaCha8([32]byte(append(b[:16:16], b[:16]...)))
	_, _ = random.Read(b[header:])
	return b
}

// check compares a file with what its header says, and returns its seed.
func check(path string) (seed uint64, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	if len(b) < header {
		return 0, fmt.Errorf("%s: %d bytes only", path, len(b))
	}
	seed = binary.LittleEndian.Uint64(b)
	want := content(seed, len(b))
	for i := range want {
		if b[i] != want[i] {
			return 0, fmt.Errorf("%s: byte %d of %d is %#x, not %#x", path, i, len(b), b[i], want[i])
		}
	}
	return seed, nil
}

// verify checks all files below dir and counts them.
func verify(dir string) (count int, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		count++
		_, err = check(path)
		return err
	})
	return count, err
}

// worker knows which files it has made, and what is in each. Workers share the
// directories, not the files.
type worker struct {
	*rand.Rand
	id    int
	top   string
	dirs  []string
	files map[string]uint64 // path → seed
	names []string          // of files
	next  int
}

// tree has workers make, change, rename, link and remove files below dir at once. At the
// end it compares what is there with what must be there.
func tree(ctx context.Context, dir string, length time.Duration, seed uint64, workers int, out io.Writer) error {
	dirs := []string{dir}
	for i := range 8 {
		dirs = append(dirs, filepath.Join(dirs[i/2], fmt.Sprintf("d%d", i)))
	}
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	all := make([]*worker, workers)
	ops := make([]int, workers)
	var g errgroup.Group
	for i := range all {
		w := &worker{Rand: rand.New(rand.NewPCG(seed, uint64(i))), id: i, top: dir, dirs: dirs, files: map[string]uint64{}}
		all[i] = w
		g.Go(func() error {
			for ; ctx.Err() == nil; ops[w.id]++ {
				if err := w.step(); err != nil {
					return fmt.Errorf("seed %d, worker %d, operation %d: %w", seed, w.id, ops[w.id], err)
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	files, sum := 0, 0
	for i, w := range all {
		sum += ops[i]
		files += len(w.files)
		for path, seed := range w.files {
			if got, err := check(path); err != nil {
				return err
			} else if got != seed {
				return fmt.Errorf("%s has the content of another file", path)
			}
		}
	}
	count, err := verify(dir)
	if err != nil {
		return err
	}
	if count != files {
		return fmt.Errorf("%d files are there, %d should be", count, files)
	}
	_, err = fmt.Fprintf(out, "seed %d: %d operations, %d files are whole\n", seed, sum, files)
	return err
}

// fresh is a path that no worker has.
func (w *worker) fresh() string {
	w.next++
	return filepath.Join(w.dirs[w.IntN(len(w.dirs))], fmt.Sprintf("w%d-%d", w.id, w.next))
}

// any is one of the worker's files.
func (w *worker) any() string { return w.names[w.IntN(len(w.names))] }

func (w *worker) add(path string, seed uint64) {
	if _, ok := w.files[path]; !ok {
		w.names = append(w.names, path)
	}
	w.files[path] = seed
}

func (w *worker) drop(path string) {
	delete(w.files, path)
	w.names = slices.DeleteFunc(w.names, func(s string) bool { return s == path })
}

// write makes path anew or writes over it, in pieces.
func (w *worker) write(path string) error {
	seed := w.Uint64()
	size := w.IntN(8 << 10)
	if w.IntN(20) == 0 {
		size = w.IntN(1 << 20)
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return err
	}
	b := content(seed, size)
	for rest := b; len(rest) > 0 && err == nil; {
		n := min(len(rest), 1+w.IntN(100<<10))
		_, err = f.Write(rest[:n])
		rest = rest[n:]
	}
	if w.IntN(8) == 0 && err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	w.add(path, seed)
	return nil
}

func (w *worker) step() error {
	if len(w.names) < 5 {
		return w.write(w.fresh())
	}
	switch op := w.IntN(16); {
	case op < 3 && len(w.names) < 300:
		return w.write(w.fresh())
	case op < 5:
		path := w.any()
		if fi, err := os.Stat(path); err != nil {
			return err
		} else if links(fi) > 1 {
			return nil // the other name would change too
		}
		return w.write(path)
	case op < 9:
		path := w.any()
		got, err := check(path)
		if err == nil && got != w.files[path] {
			err = fmt.Errorf("%s has the content of another file", path)
		}
		return err
	case op < 11: // to a new name, or over a file
		from, to := w.any(), w.fresh()
		if w.IntN(2) == 0 {
			to = w.any()
		}
		if from == to {
			return nil
		}
		same := w.files[from] == w.files[to] // perhaps two links of one file: a rename does nothing
		if err := os.Rename(from, to); err != nil {
			return err
		}
		if !same {
			w.add(to, w.files[from])
			w.drop(from)
		} else if _, err := os.Lstat(from); err != nil {
			return fmt.Errorf("a rename to another link of the file has removed it: %w", err)
		}
		return nil
	case op < 12:
		from, to := w.any(), w.fresh()
		if err := os.Link(from, to); err != nil {
			return err
		}
		w.add(to, w.files[from])
		return nil
	case op < 13: // as programs save
		path := w.any()
		tmp := w.fresh()
		if err := w.write(tmp); err != nil {
			return err
		}
		if err := os.Rename(tmp, path); err != nil {
			return err
		}
		w.add(path, w.files[tmp])
		w.drop(tmp)
		return nil
	case op < 14: // removed while it is open
		path := w.any()
		want := content(w.files[path], 0)[:8]
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := os.Remove(path); err != nil {
			return err
		}
		w.drop(path)
		got := make([]byte, 8)
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			return fmt.Errorf("%s, removed while open, has %x, not %x: %w", path, got, want, err)
		}
		return nil
	case op < 15: // a directory of its own, moved and removed
		a, b := w.fresh(), w.fresh()
		if err := os.Mkdir(a, 0o755); err != nil {
			return err
		}
		if err := os.Symlink("x", filepath.Join(a, "l")); err != nil {
			return err
		}
		if err := os.Rename(a, b); err != nil {
			return err
		}
		return os.RemoveAll(b)
	default: // files that come and go elsewhere must not hide others
		dir := w.dirs[w.IntN(len(w.dirs))]
		names, err := list(dir)
		if err != nil {
			return err
		}
		for path := range w.files {
			if filepath.Dir(path) == dir && !names[filepath.Base(path)] {
				return fmt.Errorf("%s is not listed", path)
			}
		}
		return nil
	}
}
