package dockerproxy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
)

// Edit is another value for a string in a call's body.
type Edit struct {
	// Path leads to the string: names of fields, keys of maps, indices of lists.
	Path []string
	To   string
	// Optional says that the text may pass as it is where it has no such string.
	Optional bool
}

// edit returns a JSON text with other strings in it. Every other byte stays, so that fields
// which only newer clients and engines know survive.
func edit(text []byte, edits []Edit) ([]byte, error) {
	l := locator{text: text, decoder: json.NewDecoder(bytes.NewReader(text)), edits: edits, spans: make([]span, len(edits))}
	l.decoder.UseNumber() // one that is out of range is no business of ours
	all := make([]int, len(edits))
	for i := range edits {
		all[i] = i
	}
	if err := l.walk(all, 0); err != nil {
		return nil, err
	}
	for i, s := range l.spans {
		if s.end == 0 && !edits[i].Optional {
			return nil, fmt.Errorf("%s is not a string of the request", strings.Join(edits[i].Path, "."))
		}
	}
	slices.SortFunc(all, func(a, b int) int { return cmp.Compare(l.spans[a].start, l.spans[b].start) })
	var out []byte
	rest := 0
	for _, i := range all {
		if l.spans[i].end == 0 {
			continue
		}
		to, err := json.Marshal(edits[i].To)
		if err != nil {
			return nil, err
		}
		out = append(append(out, text[rest:l.spans[i].start]...), to...)
		rest = l.spans[i].end
	}
	return append(out, text[rest:]...), nil
}

// span is where a string is in a text, quotes included.
type span struct{ start, end int }

// locator finds where the strings of edits are.
type locator struct {
	text    []byte
	decoder *json.Decoder
	edits   []Edit
	spans   []span
}

// walk takes the next value. It is where the first depth elements of these edits' paths lead.
func (l *locator) walk(these []int, depth int) error {
	if len(these) == 0 {
		var skipped json.RawMessage
		return l.decoder.Decode(&skipped)
	}
	before := int(l.decoder.InputOffset())
	token, err := l.decoder.Token()
	if err != nil {
		return err
	}
	switch token := token.(type) {
	case string:
		end := int(l.decoder.InputOffset())
		for _, i := range these {
			if len(l.edits[i].Path) != depth {
				continue
			}
			if l.spans[i].end > 0 {
				// The engine decides which one counts, and that may not be the one that was judged.
				return fmt.Errorf("%s appears twice in the request", strings.Join(l.edits[i].Path, "."))
			}
			l.spans[i] = span{before + bytes.IndexByte(l.text[before:end], '"'), end}
		}
	case json.Delim:
		for n := 0; l.decoder.More(); n++ {
			name := strconv.Itoa(n)
			if token == '{' {
				key, err := l.decoder.Token()
				if err != nil {
					return err
				}
				name, _ = key.(string)
			}
			if err := l.walk(l.into(these, depth, name), depth+1); err != nil {
				return err
			}
		}
		_, err = l.decoder.Token()
	}
	return err
}

// into are those of some edits whose paths go on with a name.
func (l *locator) into(these []int, depth int, name string) []int {
	var on []int
	for _, i := range these {
		if path := l.edits[i].Path; len(path) > depth && isSame(path[depth], name) {
			on = append(on, i)
		}
	}
	return on
}

// isSame tells whether an element of a path is what a request has under a name. Engines read
// names of fields in any case, as encoding/json does, and the keys of PortBindings as ports:
// "80" and "80/TCP" are 80/tcp.
func isSame(element, name string) bool {
	if element == name || isField(element) && strings.EqualFold(element, name) {
		return true
	}
	if !strings.Contains(element, "/") {
		return false
	}
	port, err := network.ParsePort(name)
	return err == nil && port.String() == element
}

// isField tells whether an element of a path is the name of a field, which are all capitalized.
func isField(name string) bool { return name != "" && 'A' <= name[0] && name[0] <= 'Z' }

var contentLength = regexp.MustCompile(`(?im)^content-length:.*(?:\n[ \t].*)*`)

// reframe gives a request another body. head is empty if it is on its way already.
func reframe(req *http.Request, head, body []byte) ([]byte, error) {
	n := req.ContentLength
	switch {
	case n < 0:
		return fmt.Appendf(slices.Clone(head), "%x\r\n%s\r\n0\r\n\r\n", len(body), body), nil
	case int64(len(body)) <= n: // blanks after JSON mean nothing, and the head stays as it is
		return slices.Concat(head, body, bytes.Repeat([]byte(" "), int(n)-len(body))), nil
	case len(head) == 0:
		return nil, errors.New("the request has to become longer, and its length has been sent: send it without Expect")
	}
	line := fmt.Appendf(nil, "Content-Length: %d\r", len(body))
	return slices.Concat(contentLength.ReplaceAllLiteral(head, line), body), nil
}
