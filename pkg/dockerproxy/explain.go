package dockerproxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// maxFailure bounds a failure's message that is looked at, in bytes.
const maxFailure = 64 << 10

// answers passes the engine's bytes on to the client. The head of an answer is held until
// it shows whether that is a success, which may have to wait ([Verdict]), or a failure, which
// is held until it has been explained.
type answers struct {
	x     *exchange
	holds bool
	held  []byte
}

// pass takes bytes as they come.
func (a *answers) pass(b []byte) error {
	if a.holds {
		a.held = append(a.held, b...)
		return nil
	}
	_, err := a.x.client.Write(b)
	return err
}

// release passes on what is held, and holds nothing more.
func (a *answers) release() error {
	held := a.held
	a.holds, a.held = false, nil
	if len(held) == 0 {
		return nil
	}
	_, err := a.x.client.Write(held)
	return err
}

// failure says whether an answer can be explained and is the engine's own account of a failure, in a
// length that can be held.
func (a *answers) failure(resp *http.Response) bool {
	return a.x.explain != nil && resp.StatusCode >= http.StatusInternalServerError && resp.ContentLength > 0 && resp.ContentLength <= maxFailure
}

// progress says whether an answer is a list of JSON objects, one a line, that ends with the
// failure if there is one.
func progress(resp *http.Response) bool {
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return resp.StatusCode == http.StatusOK && resp.ContentLength < 0 && kind == "application/json"
}

// ending keeps the end of what is written to it.
type ending []byte

// maxEnding is enough for the line with which a failure is told.
const maxEnding = 4 << 10

// Write implements io.Writer.
func (e *ending) Write(b []byte) (int, error) {
	n := len(b)
	b = b[max(0, n-maxEnding):]
	over := max(0, len(*e)+len(b)-maxEnding)
	*e = append((*e)[:copy(*e, (*e)[over:])], b...)
	return n, nil
}

// failure is the message of the failure that the last line tells, "" if it tells none.
func (e *ending) failure() string {
	lines := bytes.TrimSpace(*e)
	var said struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(lines[bytes.LastIndexByte(lines, '\n')+1:], &said) != nil {
		return ""
	}
	return said.Error
}

// explained reads a failure and passes it on with a better message, if there is one. What
// was read beyond it is passed on after it.
func (x *exchange) explained(ctx context.Context, resp *http.Response, r *bufio.Reader, a *answers) (framed bool, err error) {
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, err // what is held passes as it is
	}
	var said struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &said) != nil || said.Message == "" {
		return true, a.release()
	}
	better := x.explain(ctx, said.Message)
	if better == said.Message {
		return true, a.release()
	}
	said.Message = better
	if body, err = json.Marshal(said); err != nil {
		return true, a.release()
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	var out bytes.Buffer
	if err := resp.Write(&out); err != nil {
		return true, a.release()
	}
	out.Write(a.held[len(a.held)-r.Buffered():])
	a.held = out.Bytes()
	return true, a.release()
}
