package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"github.com/devvm/devvm/pkg/file"
)

// A new VM is unused until a client of its engine changes something or somebody logs in. It holds
// nothing that could be lost, so it does not displace a disk that nuke has kept. A VM has only
// begun until its engine answers for the first time, and is not even worth keeping. There is a
// mark for each of the two, which a VM only ever loses. In doubt a VM counts as used.

// A third mark, beside the VM, says that the project has no VM on purpose: nuke has removed it, or
// its making has failed. Without that mark, a VM without a disk has lost it.

// MarkNew sets both marks for a VM that is about to be made.
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

// IsLost reports whether there was a VM whose disk is gone, though no command removed it. known
// says that libvirt has a domain for it.
func (f Files) IsLost(known bool) bool {
	if Exists(f.Disk()) || f.IsBegun() || Marked(f.Vacant()) {
		return false
	}
	keys, err := os.ReadDir(f.Keys())
	return known || Exists(f.Console()) || Exists(f.Provisioned()) || len(keys) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist)
}

// MarkAnswering notes that the VM's engine has answered.
func (f Files) MarkAnswering() error { return Unmark(f.begun()) }

// MarkUsed notes that the VM is in use from now on, also after a power cut.
func (f Files) MarkUsed() error {
	if !Marked(f.unused()) {
		return nil
	}
	return errors.Join(Unmark(f.unused()), file.Sync(f.VM))
}

// Unmark removes a mark, if it is there.
func Unmark(mark string) error {
	if err := os.RemoveAll(mark); err != nil { // even if it is a directory
		return fmt.Errorf("note that the VM is in use: %w", err)
	}
	return nil
}

// Marked reports whether a mark is set.
func Marked(mark string) bool {
	_, err := os.Lstat(mark)
	return err == nil
}

// Exists reports whether there is a file at the path.
func Exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// IsUsed reports whether there is a VM that may hold something of the user's.
func (f Files) IsUsed() bool { return Exists(f.Disk()) && !Marked(f.unused()) }

// IsBegun reports whether the VM has only begun.
func (f Files) IsBegun() bool { return Marked(f.begun()) && Marked(f.unused()) }

// RemoveVM removes the VM's files.
func (f Files) RemoveVM() error {
	if err := f.markVacant(); err != nil {
		return err
	}
	return f.removeWhole(f.VM)
}

// removeWhole removes a directory of the project. To others it vanishes at once.
func (f Files) removeWhole(dir string) error {
	if err := RemoveAll(f.Removing()); err != nil { // left by a killed run
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

// MarkStopping notes that the guest is about to be asked to power off. From then on the VM does
// not count as running, though its QEMU has not ended yet.
func (f Files) MarkStopping(pid int) error {
	return file.Replace(f.Stopping(), []byte(strconv.Itoa(pid)+"\n"), 0o600)
}

// IsStopping reports whether the running QEMU has been asked to end. The mark has the PID: that of
// an earlier QEMU does not count.
func (f Files) IsStopping(pid int) bool {
	b, err := os.ReadFile(f.Stopping())
	return err == nil && string(b) == strconv.Itoa(pid)+"\n"
}
