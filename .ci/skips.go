// Skips fails a CI run by a test that it has skipped, unless .ci/skips.txt allows that:
//
//	go run .ci/skips.go REPORT...
//
// A report is what `go test -json` has printed (https://pkg.go.dev/cmd/test2json). A test that has
// passed in one of them, as another user or without the race detector, was not skipped.
package main

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
)

//go:embed skips.txt
var list string

type event struct{ Action, Package, Test, Output string }

type test struct{ pkg, name string }

func main() {
	skipped := map[test]string{} // and the reason, the last line that it has printed
	passed := map[test]bool{}
	for _, report := range os.Args[1:] {
		if err := read(report, skipped, passed); err != nil {
			fmt.Fprintln(os.Stderr, "skips:", err)
			os.Exit(1)
		}
	}
	if len(passed) == 0 {
		fmt.Fprintln(os.Stderr, "skips: no test has passed in these reports:", os.Args[1:])
		os.Exit(1)
	}
	var allowed, found []string
	for t, reason := range skipped {
		line := t.pkg + " " + t.name + ": " + reason
		switch {
		case passed[t]:
		case t.allowed():
			allowed = append(allowed, "skipped, as .ci/skips.txt allows: "+line)
		default:
			found = append(found, "SKIPPED: "+line)
		}
	}
	slices.Sort(allowed)
	slices.Sort(found)
	for _, line := range append(allowed, found...) {
		fmt.Println(line)
	}
	if len(found) > 0 {
		fmt.Fprintln(os.Stderr, "skips: let CI run these tests, or name them in .ci/skips.txt with the reason")
		os.Exit(1)
	}
}

func read(report string, skipped map[test]string, passed map[test]bool) error {
	f, err := os.Open(report)
	if err != nil {
		return err
	}
	defer f.Close()
	said := map[test]string{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Test == "" {
			continue // the compiler's own words
		}
		t := test{strings.TrimPrefix(e.Package, "github.com/devvm/devvm/"), e.Test}
		switch e.Action {
		case "output":
			if text := strings.TrimSpace(e.Output); !strings.HasPrefix(text, "--- ") {
				said[t] = text
			}
		case "skip":
			skipped[t] = said[t]
		case "pass":
			passed[t] = true
		}
	}
	return lines.Err()
}

// allowed tells whether a line of the list is about this test.
func (t test) allowed() bool {
	for line := range strings.Lines(list) {
		words := strings.Fields(line)
		if len(words) < 2 || words[0] != t.pkg {
			continue
		}
		if ok, _ := path.Match(words[1], t.name); ok {
			return true
		}
	}
	return false
}
