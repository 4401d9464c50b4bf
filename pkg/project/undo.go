package project

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// leavesUndo tells whether a nuke removes the VM, and leaves an undo that there is: the VM holds
// nothing that could be wanted back.
func (f paths) leavesUndo() bool {
	return !exists(f.disk()) || f.isBegun() || !f.isUsed() && exists(f.undo)
}

// setAside makes the VM's files the undo. Each step leaves a state from which
// the next run goes on: a VM, or its undo, is always whole.
func (f paths) setAside() error {
	if f.leavesUndo() {
		return f.removeVM()
	}
	if err := f.removeWhole(f.undo); err != nil {
		return err
	}
	if err := f.markVacant(); err != nil {
		return err
	}
	if err := os.Rename(f.vm, f.undo); err != nil {
		return fmt.Errorf("keep the old disk aside: %w", err)
	}
	return nil
}

// swap exchanges the VM's files with the undo, in one step of the kernel's, so
// that an undo can be undone.
func (f paths) swap() error {
	var err error
	if exists(f.disk()) && !f.isBegun() {
		err = unix.Renameat2(unix.AT_FDCWD, f.vm, unix.AT_FDCWD, f.undo, unix.RENAME_EXCHANGE)
	} else if err = f.removeVM(); err == nil {
		err = os.Rename(f.undo, f.vm)
	}
	if err != nil {
		return fmt.Errorf("put the old disk back: %w", err)
	}
	return unmark(f.vacant())
}

// removeAll removes a directory tree of ours.
func removeAll(path string) error {
	err := os.RemoveAll(path)
	if errors.Is(err, fs.ErrPermission) { // a directory of ours that lets nobody in
		_ = filepath.WalkDir(path, func(at string, d fs.DirEntry, _ error) error {
			if d != nil && d.IsDir() {
				_ = os.Chmod(at, 0o700)
			}
			return nil
		})
		err = os.RemoveAll(path)
	}
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}
