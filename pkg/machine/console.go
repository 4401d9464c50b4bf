package machine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/devvm/devvm/pkg/state"
)

// console waits for a line to be appended to a file.
type console struct {
	*os.File
	marker string
	seen   []byte
}

// follow opens the console's log at its end. It creates the file if necessary.
func follow(path, marker string) (*console, error) {
	// QEMU appends to the file, as its own user, and would create it.
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

// shows reports whether the line has come.
func (c *console) shows() bool {
	fresh, err := io.ReadAll(c)
	if err != nil {
		return false
	}
	c.seen = append(c.seen, fresh...)
	return bytes.Contains(c.seen, []byte(c.marker))
}

// kernelMarker is the line that the guest prints on its console once its kernel runs.
const kernelMarker = "devvm: kernel up"

// see names the log to read, in brackets, or returns "" if the log is empty: on a full disk
// nothing is written.
func see(log, where string) string {
	if info, err := os.Stat(log); err != nil || info.Size() == 0 {
		return ""
	}
	return " (" + where + ")"
}

// SeeConsole names the log of the guest's console, in brackets, or returns "" if it is empty.
func SeeConsole(f state.Files) string {
	return see(f.Console(), "what the guest says: devvm logs --console")
}
