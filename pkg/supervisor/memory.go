package supervisor

import "runtime/debug"

// memoryLimit is what the supervisor's heap and stacks are kept below, as far as the
// garbage collector can. Everything that the VM can make it hold is bounded by itself;
// this is for the garbage between two collections.
const memoryLimit = 36 << 20

// LimitMemory tells the Go runtime that this process is a supervisor and nothing else.
func LimitMemory() { debug.SetMemoryLimit(memoryLimit) }
