package project

import (
	"fmt"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// roomNeeded is what must be free for a new VM: its disk's first growth and, for a
// fork, the copy of its memory.
const roomNeeded = 2 << 30

// checkRoom refuses to make a VM where the next write could fail.
func (b *boot) checkRoom() error { return checkRoom(b.Dirs.Data, roomNeeded, "a new VM") }

// checkRoomForMemory refuses to write a running VM's memory into dir if it may not
// find room there.
func checkRoomForMemory(dir string, dom vm.Domain) error {
	need := dom.Memory
	if p, err := procfs.NewProc(dom.PID); err == nil { // pages that the guest never used are not written
		if stat, err := p.Stat(); err == nil {
			need = min(need, int64(stat.ResidentMemory()))
		}
	}
	return checkRoom(dir, need, "the VM's memory")
}

// checkRoom refuses to write where less than need bytes are free. A dir that does not
// exist yet will be made where its parent is.
func checkRoom(dir string, need int64, what string) error {
	free, err := file.Free(dir)
	if err != nil || free >= need {
		return nil //nolint:nilerr // what fails next says why
	}
	return &ui.Error{
		Msg:  fmt.Sprintf("only %s are free in %s; %s needs %s", ui.Size(free), dir, what, ui.Size(need)),
		Hint: "see what takes the room with: devvm df, and give back what nothing uses with: devvm prune",
		Err:  unix.ENOSPC,
	}
}
