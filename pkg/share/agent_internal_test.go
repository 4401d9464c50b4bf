package share

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"testing"
)

// FuzzAgent has the agent say anything. Each order takes one line, ".", and nothing else
// is one.
func FuzzAgent(f *testing.F) {
	for _, said := range []string{"", ".\n", ".\n.\n", "..\n", "\n", ".", ".\r\n", ".\n\x00", strings.Repeat("x", 5000), strings.Repeat(".\n", 3000), strings.Repeat("\n", 3000)} {
		f.Add([]byte(said))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		e := &export{Export: Export{Target: "/x"}}
		answers := bufio.NewReader(bytes.NewReader(said))
		done := 0
		for e.order(io.Discard, answers, []string{"modify", "f"}) == nil {
			done++
		}
		want := 0
		for rest := said; bytes.HasPrefix(rest, []byte(".\n")); rest = rest[2:] {
			want++
		}
		if done != want {
			t.Errorf("%d orders are done, %d were answered", done, want)
		}
	})
}
