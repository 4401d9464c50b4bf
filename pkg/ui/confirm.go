package ui

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Confirm asks a question on Err and waits for y or yes on In. Anything else, including the end
// of input, means no. Without a terminal it refuses with an [Error] whose hint is the flag
// --yes. No progress display may be running.
func (s *Streams) Confirm(ctx context.Context, question string) (bool, error) {
	if !s.Interactive() {
		return false, &Error{
			Msg:  "this needs confirmation, and there is no terminal to ask on: " + question,
			Hint: "to go ahead without being asked, add --yes",
			Code: ExitUsage,
		}
	}
	if _, err := io.WriteString(s.Err, wrapLines(escapeLines(question)+" [y/N] ", s.ErrColumns, 0)); err != nil {
		return false, fmt.Errorf("ask: %w", err)
	}
	type answer struct {
		line string
		err  error
	}
	// A read from a terminal cannot be interrupted. If ctx ends first, this goroutine waits for
	// input until the process ends.
	ch := make(chan answer, 1)
	go func() {
		line, err := readLine(s.In)
		ch <- answer{line, err}
	}()
	select {
	case <-ctx.Done():
		_, _ = io.WriteString(s.Err, "\n")
		return false, ctx.Err()
	case a := <-ch:
		if a.err != nil {
			_, _ = io.WriteString(s.Err, "\n")
			if !errors.Is(a.err, io.EOF) {
				return false, fmt.Errorf("read the answer: %w", a.err)
			}
		}
		switch strings.ToLower(strings.TrimSpace(a.line)) {
		case "y", "yes":
			return true, nil
		}
		return false, nil
	}
}

// readLine reads up to the end of the line and not a byte further, because the rest of the
// input may be meant for another program.
func readLine(r io.Reader) (string, error) {
	var line []byte
	b := make([]byte, 1)
	for len(line) < 1024 {
		n, err := r.Read(b)
		if n == 1 {
			if b[0] == '\n' {
				return string(line), nil
			}
			line = append(line, b[0])
		}
		if err != nil {
			return string(line), err
		}
	}
	return string(line), nil
}
