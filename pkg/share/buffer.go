package share

import "sync"

// bigBuffer is the size from which buffers are reused.
const bigBuffer = 64 << 10

var buffers = sync.Pool{New: func() any {
	b := make([]byte, maxRecord)
	return &b
}}

// buffer returns size bytes, at most maxRecord, with arbitrary content, and a function that
// gives them back.
func buffer(size int) ([]byte, func()) {
	if size < bigBuffer {
		return make([]byte, size), func() {}
	}
	b := buffers.Get().(*[]byte)
	return (*b)[:size], func() { buffers.Put(b) }
}

// cost is how much of maxPending a buffer of that size uses.
func cost(size int) int64 {
	if size < bigBuffer {
		return int64(size)
	}
	return maxRecord
}
