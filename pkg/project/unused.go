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
// the place of the disk that nuke keeps.

// markUnused says so of the VM that is about to be made.
func (f paths) markUnused() error { return file.Replace(f.unused(), nil, 0o600) }

// markUsed says that from now on the VM is the user's.
func (f paths) markUsed() error {
	if err := os.Remove(f.unused()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("note that the VM is in use: %w", err)
	}
	return nil
}

// isUsed tells whether there is a VM that may hold something of the user's.
func (f paths) isUsed() bool { return exists(f.disk()) && !exists(f.unused()) }
