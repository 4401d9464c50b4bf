package project

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/devvm/devvm/pkg/file"
)

// A new VM is nobody's until its engine has answered or somebody has logged in: it holds
// nothing that could be lost. So one that did not come to be is made anew, and never takes
// the place of the disk that nuke keeps. What is in doubt counts as used.

// markUnused says so of the VM that is about to be made.
func (f paths) markUnused() error { return file.Replace(f.unused(), nil, 0o600) }

// markUsed says that from now on the VM is the user's, also after a power cut.
func (f paths) markUsed() error {
	err := os.Remove(f.unused())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = file.Sync(f.vm)
	}
	if err != nil {
		return fmt.Errorf("note that the VM is in use: %w", err)
	}
	return nil
}

// isUnused tells whether there is a mark that nobody has used the VM yet.
func (f paths) isUnused() bool {
	_, err := os.Lstat(f.unused())
	return err == nil
}

// isUsed tells whether there is a VM that may hold something of the user's.
func (f paths) isUsed() bool { return exists(f.disk()) && !f.isUnused() }

// removeVM removes the VM's files, the disk first: without it they are nobody's.
func (f paths) removeVM() error {
	if err := removeAll(f.disk()); err != nil {
		return err
	}
	return removeAll(f.vm)
}
