package ui

import (
	"bytes"
	"io"
	"sync"

	"github.com/vbauerster/mpb/v8"
)

// maxPartialLine bounds how many bytes a writer may hold back while a display runs.
const maxPartialLine = 64 << 10

// screen is a writer that shares its terminal with a running display: whole lines go above the
// display.
type screen struct {
	mu      sync.Mutex
	out     io.Writer
	live    *mpb.Progress
	partial []byte
}

// Write writes b at once if no display runs. Otherwise it writes whole lines above the display,
// and an incomplete line when that or the display ends.
func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write(b)
}

func (s *screen) write(b []byte) (int, error) {
	if s.live == nil {
		return s.out.Write(b)
	}
	s.partial = append(s.partial, b...)
	if len(s.partial) > maxPartialLine && bytes.IndexByte(s.partial, '\n') < 0 {
		s.partial = append(s.partial, '\n')
	}
	if i := bytes.LastIndexByte(s.partial, '\n'); i >= 0 {
		if _, err := s.live.Write(s.partial[:i+1]); err != nil {
			return 0, err
		}
		s.partial = append(s.partial[:0], s.partial[i+1:]...)
	}
	return len(b), nil
}

// line writes a whole line of the display's own, even if others have an incomplete line.
func (s *screen) line(text string) {
	if s.live != nil {
		// The display erases from the cursor's column on, and echoed keys (^C) may have moved
		// the cursor.
		_, _ = s.out.Write([]byte("\r"))
		_, _ = s.live.Write([]byte(text + "\n"))
		return
	}
	_, _ = s.out.Write([]byte(text + "\n"))
}

// endLive waits for the last frame and releases the terminal.
func (s *screen) endLive() {
	if s.live == nil {
		return
	}
	s.live.Wait()
	s.live = nil
	if len(s.partial) > 0 {
		_, _ = s.out.Write(append(s.partial, '\n'))
		s.partial = nil
	}
}
