package background

import (
	"bytes"
	"os"
	"sync"
)

// maxLog is how large a log may become, in bytes. The guest has a say in what is logged.
const maxLog = 8 << 20

// Log appends to a file and keeps it small: of one that is full the first half goes, up
// to the end of a line. It is safe for concurrent use.
type Log struct {
	f  *os.File
	mu sync.Mutex
}

// NewLog returns the log in a file that is open to be read and appended to, such as the
// standard error of a process that [Start] has started. What is no regular file just takes
// what is written.
func NewLog(f *os.File) *Log { return &Log{f: f} }

// Write implements io.Writer.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	info, err := l.f.Stat()
	if err != nil {
		return 0, err
	}
	if info.Mode().IsRegular() && info.Size()+int64(len(b)) > maxLog {
		_ = l.cut(info.Size()) // better a long log than none
	}
	return l.f.Write(b)
}

// cut keeps the end of a log of the given size.
func (l *Log) cut(size int64) error {
	kept := make([]byte, min(size, maxLog/2))
	if _, err := l.f.ReadAt(kept, size-int64(len(kept))); err != nil {
		return err
	}
	_, kept, _ = bytes.Cut(kept, []byte("\n"))
	if err := l.f.Truncate(0); err != nil {
		return err
	}
	_, err := l.f.Write(kept)
	return err
}
