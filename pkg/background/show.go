package background

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// followEvery is how often a followed file is looked at.
const followEvery = 200 * time.Millisecond

// ShowLog copies a log to w, all of it or its last lines, if they are not negative; to
// follow it, until ctx ends, also into the file that takes its place. Without such a log
// the error wraps [fs.ErrNotExist].
func ShowLog(ctx context.Context, path string, w io.Writer, lines int, follow bool) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	defer func() { f.Close() }()
	if lines >= 0 {
		if err := seekTail(f, lines); err != nil {
			return fmt.Errorf("read log: %w", err)
		}
	}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		if _, err := io.Copy(w, f); err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if !follow {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		next, err := goOn(f, path)
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if next != f {
			_, err := io.Copy(w, f) // what came to it last
			f.Close()
			if f = next; err != nil {
				return fmt.Errorf("read log: %w", err)
			}
		}
	}
}

// goOn returns the file in which a log goes on: another one, if libvirt has begun one, or
// the same, at its end if it was shortened.
func goOn(f *os.File, path string) (*os.File, error) {
	was, err := f.Stat()
	if err != nil {
		return f, err
	}
	now, err := os.Stat(path)
	if err != nil { // in between, or gone with the VM
		return f, nil //nolint:nilerr // it may come back
	}
	if !os.SameFile(was, now) {
		next, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return f, nil
		}
		return next, err
	}
	at, err := f.Seek(0, io.SeekCurrent)
	if err == nil && at > was.Size() {
		_, err = f.Seek(0, io.SeekEnd)
	}
	return f, err
}

// seekTail puts a file's offset where its last lines begin.
func seekTail(f *os.File, lines int) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || lines == 0 {
		return err
	}
	block := make([]byte, 64<<10)
	for start := end; start > 0; {
		n := min(start, int64(len(block)))
		start -= n
		if _, err := f.ReadAt(block[:n], start); err != nil {
			return err
		}
		for i := n - 1; i >= 0; i-- {
			if block[i] != '\n' || start+i == end-1 { // that ends the last line
				continue
			}
			if lines--; lines == 0 {
				_, err := f.Seek(start+i+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}
