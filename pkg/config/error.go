package config

import "strings"

// Error says what is wrong with a configuration file, and where.
type Error struct {
	File string // path of the file; empty if the value is a default
	Line int    // from 1; 0: the whole file
	Key  string // dotted; empty if the file itself is bad
	Msg  string
	Hint string // what to write instead; may be empty
	Err  error  // the cause; may be nil
}

// Error returns "file:line: message".
func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(origin{e.File, e.Line}.String() + ": ")
	}
	b.WriteString(e.Msg)
	if e.Err != nil {
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
