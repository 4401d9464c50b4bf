// Package file replaces files whole, and tells what files take of a disk and what is free.
//
// It imports no other package of devvm, and fails as the operating system does.
package file

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrDirectory says that there is a directory where a file is to be.
var ErrDirectory = errors.New("a directory is in its place")

// Replace writes a file with the mode. It is there completely or, on an error or after a
// power cut, as it was before: Replace waits until file and name are on the disk. A file
// that is so already is left alone.
func Replace(path string, content []byte, mode fs.FileMode) error {
	if same(path, content, mode) {
		return nil
	}
	if err := replace(path, content, mode); err != nil {
		if info, serr := os.Lstat(path); serr == nil && info.IsDir() {
			err = &fs.PathError{Op: "replace", Path: path, Err: ErrDirectory}
		}
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// same tells whether the file is as Replace would leave it.
func same(path string, content []byte, mode fs.FileMode) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != mode || info.Size() != int64(len(content)) {
		return false
	}
	has, err := os.ReadFile(path)
	return err == nil && bytes.Equal(has, content)
}

func replace(path string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return Sync(filepath.Dir(path))
}

// SetMode sets the mode of a file or directory and waits until it is on the disk.
func SetMode(path string, mode fs.FileMode) error {
	if err := os.Chmod(path, mode); err != nil {
		return err
	}
	return Sync(path)
}

// Sync waits until a file, or what is in a directory by which name, is on the disk.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Glob lists the paths in dir that match pattern. Unlike with [filepath.Glob], dir is a path as it
// is: a '[' in the user's name for a directory means itself.
func Glob(dir, pattern string) ([]string, error) {
	paths, err := fs.Glob(os.DirFS(dir), pattern)
	for i, p := range paths {
		paths[i] = filepath.Join(dir, p)
	}
	return paths, err
}

// Used is how many bytes of the disk a file, or all files below a directory, take; 0 if
// there is none. A sparse file takes less than its size.
func Used(path string) int64 {
	var sum int64
	_ = filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && d.Type().IsRegular() && unix.Lstat(path, &st) == nil {
			sum += st.Blocks * 512 // stat(2): st_blocks counts 512-byte units
		}
		return nil // one that vanishes meanwhile takes nothing
	})
	return sum
}

// Free is how many bytes this user can still write into a directory, which need not
// exist yet: it will be made in the nearest one above it that does.
func Free(dir string) (int64, error) {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	for at := dir; errors.Is(err, unix.ENOENT) && filepath.Dir(at) != at; {
		at = filepath.Dir(at)
		err = unix.Statfs(at, &st)
	}
	if err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}
