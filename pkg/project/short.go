package project

import (
	"context"
	"fmt"

	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

// ShortOfRoom says that the VM's disk is full or nearly full, and what to do. It returns "" if it is
// not, or if that is unknown.
func (s *Service) ShortOfRoom(ctx context.Context, p state.Project) string {
	st, err := s.Daemons(p).Supervisor().Look(ctx)
	if err != nil || st.Room == nil {
		return ""
	}
	r := st.Room
	switch problem := machine.DiskProblem(st); {
	case problem != "":
		return problem + ": " + machine.AdviceFull
	case r.DiskFree < r.Disk/20:
		return fmt.Sprintf("the VM's disk has only %s left: %s", ui.Size(r.DiskFree), machine.AdviceFull)
	case r.InodesFree < r.Inodes/20:
		return fmt.Sprintf("the VM's disk can hold only %d more files: %s", r.InodesFree, machine.AdviceFull)
	}
	return ""
}
