package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/devvm/devvm/pkg/disk"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

// Afresh is what to do when the VM's disk is gone.
func Afresh(f state.Files) string {
	way := "begin with a new VM: devvm nuke"
	if state.Exists(filepath.Join(f.Undo, DiskName)) {
		way = "go back to the previous VM: devvm nuke --undo, or " + way
	}
	return way
}

// ErrLost says that the VM's disk is gone; see [state.Files.IsLost].
func ErrLost(f state.Files, running bool) error {
	e := &ui.Error{
		Msg:  "the disk of this project's VM is gone: " + f.Disk(),
		Hint: "put it back there, or " + Afresh(f),
	}
	if running {
		e.Msg = "the VM runs, but its disk has been removed, and is lost when it stops: " + f.Disk()
		e.Hint = "copy out of the VM what you need (devvm cp, devvm exec), then " + Afresh(f)
	}
	return e
}

// errDisk explains why the VM's disk cannot be used.
func errDisk(f state.Files, err error) error {
	switch {
	case errors.Is(err, disk.ErrDamaged):
		return &ui.Error{
			Msg:  "the VM cannot start from its disk, " + f.Disk(),
			Hint: "replace it with an intact copy, or " + Afresh(f),
			Err:  err,
		}
	case errors.Is(err, fs.ErrPermission):
		return &ui.Error{
			Msg:  "the VM's disk cannot be read",
			Hint: fmt.Sprintf("give yourself access to %s and its backing files, and run the command again", f.Disk()),
			Err:  err,
		}
	case errors.Is(err, fs.ErrNotExist):
		return &ui.Error{
			Msg:  "a backing file of the VM's disk is gone",
			Hint: "bring it back, or " + Afresh(f),
			Err:  err,
		}
	}
	return err
}
