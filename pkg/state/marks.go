package state

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

// MarkNew sets both marks for the VM that is about to be made.
func (f Files) MarkNew() error {
	err := errors.Join(file.Replace(f.unused(), nil, 0o600), file.Replace(f.begun(), nil, 0o600))
	if err != nil {
		return err
	}
	return Unmark(f.Vacant())
}

// markVacant says that the project is about to have no VM.
func (f Files) markVacant() error {
	if !Exists(f.Root) {
		return nil
	}
	return file.Replace(f.Vacant(), nil, 0o600)
}

// IsLost tells whether there was a VM whose disk is gone, though nobody was told to remove it.
// Known says that libvirt has a domain of it.
func (f Files) IsLost(known bool) bool {
	if Exists(f.Disk()) || f.IsBegun() || Marked(f.Vacant()) {
		return false
	}
	keys, err := os.ReadDir(f.Keys())
	return known || Exists(f.Console()) || Exists(f.Provisioned()) || len(keys) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist)
}

// MarkAnswering says that the VM's engine has answered.
func (f Files) MarkAnswering() error { return Unmark(f.begun()) }

// MarkUsed says that from now on the VM is the user's, also after a power cut.
func (f Files) MarkUsed() error {
	if !Marked(f.unused()) {
		return nil
	}
	return errors.Join(Unmark(f.unused()), file.Sync(f.VM))
}

// Unmark removes a mark, if it is there.
func Unmark(mark string) error {
	if err := os.RemoveAll(mark); err != nil { // whatever it is
		return fmt.Errorf("note that the VM is in use: %w", err)
	}
	return nil
}

// Marked tells whether a mark is there.
func Marked(mark string) bool {
	_, err := os.Lstat(mark)
	return err == nil
}

// Exists tells whether there is a file at the path.
func Exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// IsUsed tells whether there is a VM that may hold something of the user's.
func (f Files) IsUsed() bool { return Exists(f.Disk()) && !Marked(f.unused()) }

// IsBegun tells whether there is no more than the beginning of a VM.
func (f Files) IsBegun() bool { return Marked(f.begun()) && Marked(f.unused()) }

// RemoveVM removes the VM's files.
func (f Files) RemoveVM() error {
	if err := f.markVacant(); err != nil {
		return err
	}
	return f.removeWhole(f.VM)
}

// removeWhole removes a directory of the project's: at once, as far as others see.
func (f Files) removeWhole(dir string) error {
	if err := RemoveAll(f.Removing()); err != nil { // what a killed run has left
		return err
	}
	if err := os.Rename(dir, f.Removing()); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove: %w", err)
	}
	return RemoveAll(f.Removing())
}

// MarkStopping says that the guest is about to be asked to power off: until its QEMU has ended,
// the VM is not one that runs.
func (f Files) MarkStopping(pid int) error {
	return file.Replace(f.Stopping(), []byte(strconv.Itoa(pid)+"\n"), 0o600)
}

// IsStopping tells whether the QEMU that runs has been asked to end. A mark of another one is
// of a VM that has ended.
func (f Files) IsStopping(pid int) bool {
	b, err := os.ReadFile(f.Stopping())
	return err == nil && string(b) == strconv.Itoa(pid)+"\n"
}
