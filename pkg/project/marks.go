package project

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"github.com/devvm/devvm/pkg/file"
)

// A new VM is nobody's until a client of its engine has changed something or somebody has
// logged in: it holds nothing that could be lost, and does not take the place of a disk
// that nuke keeps. Until its engine has answered for the first time, it is not even worth
// keeping. There is a mark for each, which is only ever removed; what is in doubt counts
// as used.

// A third mark, beside the VM, says that there is none on purpose: nuke has taken it away, or
// one did not come to be. Without it, a VM whose disk is not there has lost it.

// markNew sets both marks for the VM that is about to be made.
func (f paths) markNew() error {
	err := errors.Join(file.Replace(f.unused(), nil, 0o600), file.Replace(f.begun(), nil, 0o600))
	if err != nil {
		return err
	}
	return unmark(f.vacant())
}

// markVacant says that the project is about to have no VM.
func (f paths) markVacant() error {
	if !exists(f.root) {
		return nil
	}
	return file.Replace(f.vacant(), nil, 0o600)
}

// isLost tells whether there was a VM whose disk is gone, though nobody was told to remove it.
// Known says that libvirt has a domain of it.
func (f paths) isLost(known bool) bool {
	if exists(f.disk()) || f.isBegun() || marked(f.vacant()) {
		return false
	}
	keys, err := os.ReadDir(f.keys())
	return known || exists(f.console()) || exists(f.provisioned()) || len(keys) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist)
}

// markAnswering says that the VM's engine has answered.
func (f paths) markAnswering() error { return unmark(f.begun()) }

// markUsed says that from now on the VM is the user's, also after a power cut.
func (f paths) markUsed() error {
	if !marked(f.unused()) {
		return nil
	}
	return errors.Join(unmark(f.unused()), file.Sync(f.vm))
}

func unmark(mark string) error {
	if err := os.RemoveAll(mark); err != nil { // whatever it is
		return fmt.Errorf("note that the VM is in use: %w", err)
	}
	return nil
}

func marked(mark string) bool {
	_, err := os.Lstat(mark)
	return err == nil
}

// exists tells whether there is a file at the path.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// isUsed tells whether there is a VM that may hold something of the user's.
func (f paths) isUsed() bool { return exists(f.disk()) && !marked(f.unused()) }

// isBegun tells whether there is no more than the beginning of a VM.
func (f paths) isBegun() bool { return marked(f.begun()) && marked(f.unused()) }

// removeVM removes the VM's files.
func (f paths) removeVM() error {
	if err := f.markVacant(); err != nil {
		return err
	}
	return f.removeWhole(f.vm)
}

// removeWhole removes a directory of the project's: at once, as far as others see.
func (f paths) removeWhole(dir string) error {
	if err := removeAll(f.removing()); err != nil { // what a killed run has left
		return err
	}
	if err := os.Rename(dir, f.removing()); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove: %w", err)
	}
	return removeAll(f.removing())
}

// markStopping says that the guest is about to be asked to power off: until its QEMU has ended,
// the VM is not one that runs.
func (f paths) markStopping(pid int) error {
	return file.Replace(f.stopping(), []byte(strconv.Itoa(pid)+"\n"), 0o600)
}

// isStopping tells whether the QEMU that runs has been asked to end. A mark of another one is
// of a VM that has ended.
func (f paths) isStopping(pid int) bool {
	b, err := os.ReadFile(f.stopping())
	return err == nil && string(b) == strconv.Itoa(pid)+"\n"
}
