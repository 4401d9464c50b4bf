package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// LeavesUndo tells whether a nuke removes the VM, and leaves an undo that there is: the VM holds
// nothing that could be wanted back.
func (f Files) LeavesUndo() bool {
	return !Exists(f.Disk()) || f.IsBegun() || !f.IsUsed() && Exists(f.Undo)
}

// SetAside makes the VM's files the undo. Each step leaves a state from which
// the next run goes on: a VM, or its undo, is always whole.
func (f Files) SetAside() error {
	if f.LeavesUndo() {
		return f.RemoveVM()
	}
	if err := f.removeWhole(f.Undo); err != nil {
		return err
	}
	if err := f.markVacant(); err != nil {
		return err
	}
	if err := os.Rename(f.VM, f.Undo); err != nil {
		return fmt.Errorf("keep the old disk aside: %w", err)
	}
	return nil
}

// Swap exchanges the VM's files with the undo, in one step of the kernel's, so
// that an undo can be undone.
func (f Files) Swap() error {
	var err error
	if Exists(f.Disk()) && !f.IsBegun() {
		err = unix.Renameat2(unix.AT_FDCWD, f.VM, unix.AT_FDCWD, f.Undo, unix.RENAME_EXCHANGE)
	} else if err = f.RemoveVM(); err == nil {
		err = os.Rename(f.Undo, f.VM)
	}
	if err != nil {
		return fmt.Errorf("put the old disk back: %w", err)
	}
	return Unmark(f.Vacant())
}

// RemoveAll removes a directory tree of ours.
func RemoveAll(path string) error {
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
