package machine

import (
	"fmt"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// roomNeeded is how many bytes must be free for a new VM: for the first growth of its disk and,
// for a fork, the copy of its memory.
const roomNeeded = 2 << 30

// CheckRoomForVM returns an error if there is too little room for a new VM.
func (e *Env) CheckRoomForVM() error { return e.checkRoom(e.Dirs.Data, roomNeeded, "a new VM") }

// CheckRoomToNuke is CheckRoomForVM before the present VM is set aside: its disk stays, and what
// an earlier nuke kept goes.
func (e *Env) CheckRoomToNuke(f state.Files) error {
	goes := f.Undo
	if f.LeavesUndo() {
		goes = f.VM
	}
	err := e.checkRoom(e.Dirs.Data, roomNeeded-file.Used(goes), "a new VM, next to the one kept for devvm nuke --undo,")
	if err == nil {
		return nil
	}
	return &ui.Error{
		Msg:  "nothing was replaced: " + err.Error(),
		Hint: ui.Hint(err) + "\nor, to keep nothing of the VM: devvm rm; devvm up",
		Kind: unix.ENOSPC,
	}
}

// free is how many bytes can be written into a directory.
func (e *Env) free(dir string) (int64, error) {
	if e.Free != nil {
		return e.Free(dir)
	}
	return file.Free(dir)
}

// roomToRun is how many bytes must be free beside a VM's disk for it to run: a write that finds
// no room pauses the VM, and with less the next write would pause it again.
const roomToRun = 32 << 20

// CheckRoomToRun returns an error if the VM's first write would pause it.
func (e *Env) CheckRoomToRun(f state.Files) error {
	return e.checkRoom(f.Root, roomToRun, "a running VM")
}

// ErrFull returns the error that there is no room for what a VM writes, or nil if there is.
func (e *Env) ErrFull(f state.Files) error {
	free, err := e.free(f.VM)
	if err != nil || free >= roomToRun {
		return nil //nolint:nilerr // then the disk is not known to be full
	}
	return &ui.Error{
		Code: ui.ExitNotRunning,
		Msg:  fmt.Sprintf("the VM is paused: the host's disk is full (%s are free in %s)", ui.Size(free), f.VM),
		Hint: "make room, and it resumes by itself: devvm df shows what devvm takes, devvm prune frees what nothing uses",
		Kind: unix.ENOSPC,
	}
}

// CheckRoomForMemory returns an error if the memory of a running VM might not fit into dir with
// some room left. What a failed snapshot has written, QEMU keeps for the next one.
func (e *Env) CheckRoomForMemory(dir string, dom vm.Domain) error {
	need := dom.Memory
	if p, err := procfs.NewProc(dom.PID); err == nil { // pages that the guest never used are not written
		if stat, err := p.Stat(); err == nil {
			need = min(need, int64(stat.ResidentMemory()))
		}
	}
	return e.checkRoom(dir, need+roomToRun, "the VM's memory")
}

// checkRoom returns an error if less than need bytes are free in dir, or in its parent if dir
// does not exist yet.
func (e *Env) checkRoom(dir string, need int64, what string) error {
	free, err := e.free(dir)
	if err != nil || free >= need {
		return nil //nolint:nilerr // what fails next says why
	}
	return &ui.Error{
		Msg:  fmt.Sprintf("only %s are free in %s; %s needs %s", ui.Size(free), dir, what, ui.Size(need)),
		Hint: "see what takes the space with: devvm df, and free what nothing uses with: devvm prune",
		Err:  unix.ENOSPC,
	}
}
