package ui

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Exit codes of devvm. `ssh`, `exec` and `docker` pass on the remote command's code.
const (
	ExitOK         = 0
	ExitError      = 1
	ExitUsage      = 2   // wrong flags or arguments, or devvm.toml
	ExitNoVM       = 3   // no VM for this project
	ExitNotRunning = 4   // the VM exists but is not running
	ExitHost       = 5   // the host is not ready: devvm doctor
	ExitBusy       = 6   // another devvm command is running for this project
	ExitCancelled  = 130 // Ctrl-C
)

// Error is an error for the user: what happened, and the command to run next.
type Error struct {
	Msg  string // what happened and what it means, without a full stop
	Hint string // what to do now; may have several lines or be empty
	Code int    // exit code; 0 means ExitError
	Err  error  // the cause, shown after Msg; may be nil
	Kind error  // for [errors.Is], not shown to users; may be nil
}

// Error returns the message and the cause, without the hint.
func (e *Error) Error() string {
	switch {
	case e.Err == nil:
		return e.Msg
	case e.Msg == "":
		return e.Err.Error()
	default:
		return e.Msg + ": " + e.Err.Error()
	}
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is the error's kind.
func (e *Error) Is(target error) bool { return e.Kind != nil && e.Kind == target }

// Exit carries the exit code of a remote command. It has no message, because the command has
// shown its own.
type Exit int

// Error names the code, for logs; users never see it.
func (e Exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// ExitCode returns the exit code for err.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	if exit, ok := errors.AsType[Exit](err); ok {
		return int(exit)
	}
	if e, ok := errors.AsType[*Error](err); ok && e.Code != 0 {
		return e.Code
	}
	if errors.Is(err, context.Canceled) {
		return ExitCancelled
	}
	return ExitError
}

// Hint returns the hints of err's chain, outermost first, each once.
func Hint(err error) string {
	var hints []string
	for {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			break
		}
		if h := strings.TrimSpace(e.Hint); h != "" && !slices.Contains(hints, h) {
			hints = append(hints, h)
		}
		err = e.Err
	}
	return strings.Join(hints, "\n")
}

// WriteError shows err as text: "devvm: what happened", then a line "hint: what to do" for each
// line of the hint. It writes nothing for nil and [Exit], and only "devvm: cancelled" if the
// user cancelled.
func (s *Streams) WriteError(err error) {
	if err == nil {
		return
	}
	if _, ok := errors.AsType[Exit](err); ok {
		return
	}
	msg, hint := err.Error(), Hint(err)
	if ExitCode(err) == ExitCancelled && (hint == "" || errors.Is(err, context.Canceled)) {
		msg, hint = "cancelled", "" // the interrupted operation needs no repair
	}
	var b strings.Builder
	msg, more, _ := strings.Cut(escapeLines(msg), "\n")
	b.WriteString(s.labelled(red, "devvm:", msg))
	if more != "" {
		b.WriteString(wrapLines(more, s.ErrColumns, 0) + "\n")
	}
	if hint != "" {
		for line := range strings.SplitSeq(hint, "\n") {
			b.WriteString(s.labelled(bold, "hint:", Escape(line)))
		}
	}
	_, _ = io.WriteString(s.Err, b.String())
}

// WriteErrorJSON writes err to Out as one line of JSON:
// {"type":"error","code":2,"message":"…","hint":"…"}. It writes nothing for
// nil and for [Exit].
func (s *Streams) WriteErrorJSON(err error) {
	if err == nil {
		return
	}
	if _, ok := errors.AsType[Exit](err); ok {
		return
	}
	_ = writeJSONLine(s.Out, struct {
		Type    string `json:"type"`
		Code    int    `json:"code"`
		Message string `json:"message"`
		Hint    string `json:"hint,omitempty"`
	}{"error", ExitCode(err), err.Error(), Hint(err)})
}

// JSON writes v to Out as one indented JSON document.
func (s *Streams) JSON(v any) error {
	e := json.NewEncoder(s.Out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

// JSONLine writes v to Out as one line of JSON.
func (s *Streams) JSONLine(v any) error { return writeJSONLine(s.Out, v) }

func writeJSONLine(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}
