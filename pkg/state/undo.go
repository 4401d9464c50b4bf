package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// LeavesUndo reports whether a nuke removes the VM and keeps an earlier undo, because the VM holds
// nothing that anybody could want back.
func (f Files) LeavesUndo() bool {
	return !Exists(f.Disk()) || f.IsBegun() || !f.IsUsed() && Exists(f.Undo)
}

// SetAside makes the VM's files the undo. After each step the VM and the undo are either complete
// or gone, so that the next run can go on.
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

// Swap exchanges the VM's files with the undo, in one system call, so that an undo can be undone.
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

// RemoveAll removes one of devvm's directory trees.
func RemoveAll(path string) error {
	err := os.RemoveAll(path)
	if errors.Is(err, fs.ErrPermission) { // a directory without permissions
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
