package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/devvm/devvm/pkg/state"
)

// console waits for a line in what a file gains from now on.
type console struct {
	*os.File
	marker string
	seen   []byte
}

// follow opens the console's log at its end; the file is made if need be.
func follow(path, marker string) (*console, error) {
	// QEMU appends to the file as its own user; it makes it if there is none.
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("open console log: %w", err)
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		f.Close()
		return nil, fmt.Errorf("open console log: %w", err)
	}
	return &console{File: f, marker: marker}, nil
}

// shows tells whether the line has come.
func (c *console) shows() bool {
	fresh, err := io.ReadAll(c)
	if err != nil {
		return false
	}
	c.seen = append(c.seen, fresh...)
	return bytes.Contains(c.seen, []byte(c.marker))
}

// kernelMarker is what the guest prints on its console when its kernel runs.
const kernelMarker = "devvm: kernel up"

// see is where more can be read, in brackets; "" if the log has nothing: on a full disk none is
// written.
func see(log, where string) string {
	if info, err := os.Stat(log); err != nil || info.Size() == 0 {
		return ""
	}
	return " (" + where + ")"
}

// SeeConsole is see for what the guest says.
func SeeConsole(f state.Files) string {
	return see(f.Console(), "what the guest says: devvm logs --console")
}
