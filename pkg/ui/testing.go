package ui

import (
	"bytes"
	"sync"
)

// Buffer is a bytes.Buffer that is safe for concurrent use.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends to the buffer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// Read reads from the front of the buffer.
func (b *Buffer) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Read(p)
}

// String returns the contents of the buffer.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Reset empties the buffer.
func (b *Buffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Reset()
}

// Test returns streams for tests that are buffers, not terminals. A test that sets InTerminal
// and ErrTerminal plays the user at a terminal.
func Test() (s *Streams, in, out, err *Buffer) {
	in, out, err = new(Buffer), new(Buffer), new(Buffer)
	return &Streams{In: in, Out: out, Err: &screen{out: err}, Dumb: true, Unicode: true}, in, out, err
}
