package supervisor

import "runtime/debug"

// memoryLimit is the soft limit of the supervisor's heap and stacks. Everything that the VM can
// make it hold has a limit of its own. This one is for the garbage between two collections.
const memoryLimit = 32 << 20

// LimitMemory sets up the Go runtime for a process that is only a supervisor: it relays bytes, and
// makes little garbage unless it is under attack.
func LimitMemory() {
	debug.SetMemoryLimit(memoryLimit)
	debug.SetGCPercent(50)
}
