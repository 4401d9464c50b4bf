package engine

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Bounds on one answer of an engine, or on one event. Root in the VM can put anything
// in the engine's place, with answers that never end or that grow a hundredfold when
// they are decoded: three bytes ("{},") become a struct of some hundred. So an answer is
// counted while it is read.
const (
	// longAnswer is for a command, which ends: the lists of 3,000 containers.
	longAnswer = 8 << 20 // bytes
	// shortAnswer is for a supervisor, which stays: of 700 containers that run, or 20,000
	// ports.
	shortAnswer = 2 << 20
	maxItems    = 5_000     // elements of a list
	maxObjects  = 50_000    // objects and lists, at any depth
	maxValues   = 200_000   // fields and elements, at any depth
	maxEvent    = 256 << 10 // bytes of one event, or of an error
	maxHeader   = 64 << 10  // bytes
)

// ErrTooMuch says that an engine answers with more than is read.
var ErrTooMuch = errors.New("the engine's answer is longer than devvm reads")

// bounded is a transport whose answers are bounded. Every answer of an engine that
// devvm reads comes through one.
type bounded struct {
	http.RoundTripper
	bytes int // of one answer
}

// RoundTrip implements [http.RoundTripper].
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	c := count{most: b.bytes}
	switch {
	case resp.StatusCode >= http.StatusBadRequest:
		c.most = maxEvent
	case strings.HasSuffix(r.URL.Path, "/events"):
		c.most, c.stream = maxEvent, true
	}
	resp.Body = &body{resp.Body, c}
	return resp, nil
}

// body is an answer that is counted while it is read.
type body struct {
	io.ReadCloser
	count
}

// Read implements [io.Reader].
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if more := b.take(p[:n]); more != nil {
		return 0, more
	}
	return n, err
}

// count counts what a text in JSON holds, without decoding it. What is no JSON is counted
// somehow, and not decoded by anybody.
type count struct {
	most   int  // bytes
	stream bool // of values, each of which is counted by itself

	bytes, items, objects, values int
	depth                         int
	quoted, escaped               bool
}

// take counts more of the text; the error wraps [ErrTooMuch].
func (c *count) take(text []byte) error {
	for _, b := range text {
		c.bytes++
		switch {
		case c.escaped:
			c.escaped = false
		case c.quoted:
			c.escaped, c.quoted = b == '\\', b != '"'
		case b == '"':
			c.quoted = true
		case b == '{' || b == '[':
			c.depth++
			c.objects++
			c.values++
		case b == ',':
			c.values++
			if c.depth == 1 {
				c.items++
			}
		case b == '}' || b == ']':
			if c.depth--; c.depth <= 0 && c.stream {
				*c = count{most: c.most, stream: true}
			}
		}
		if err := c.check(); err != nil {
			return err
		}
	}
	return nil
}

func (c *count) check() error {
	switch {
	case c.bytes > c.most:
		return fmt.Errorf("%w: more than %d KiB", ErrTooMuch, c.most>>10)
	case c.items >= maxItems:
		return fmt.Errorf("%w: a list of more than %d", ErrTooMuch, maxItems)
	case c.objects > maxObjects, c.values > maxValues:
		return fmt.Errorf("%w: more than %d objects or %d values", ErrTooMuch, maxObjects, maxValues)
	}
	return nil
}
