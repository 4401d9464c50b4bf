package supervisor

import "runtime/debug"

// memoryLimit is what the supervisor's heap and stacks are kept below, as far as the
// garbage collector can. Everything that the VM can make it hold is bounded by itself;
// this is for the garbage between two collections.
const memoryLimit = 32 << 20

// LimitMemory tells the Go runtime that this process is a supervisor and nothing else: it
// relays bytes, and makes little garbage but under attack.
func LimitMemory() {
	debug.SetMemoryLimit(memoryLimit)
	debug.SetGCPercent(50)
}
