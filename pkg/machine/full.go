package machine

import (
	"github.com/devvm/devvm/pkg/supervisor"
)

// AdviceFull is what to do when the VM's own disk is full.
const AdviceFull = "set a larger disk in devvm.toml, then: devvm down; devvm up; or remove what is not needed: docker system prune, devvm ssh"

// DiskProblem says that the VM's disk is full, or "" if it is not, or if that is unknown.
func DiskProblem(st supervisor.Status) string {
	switch r := st.Room; {
	case r == nil || !r.Full():
		return ""
	case r.Files():
		return "the VM's disk can hold no more files"
	}
	return "the VM's disk is full"
}
