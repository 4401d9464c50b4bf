package share_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// The agent is told to list a directory in which names are asked for.
func TestAgentLists(t *testing.T) {
	dir := realTemp(t)
	s, c := mirrored(t, dir)
	told := make(chan []string, 100)
	s.agent(t, func(words []string) { told <- words })
	for n := 0; ; n++ { // the agent is there when it likes
		if n == 100 {
			t.Fatal("the agent is told of no directory")
		}
		name := fmt.Sprintf("d%d", n)
		for f := range 20 {
			put(t, filepath.Join(dir, fmt.Sprintf("%s/f%02d", name, f)), "1")
		}
		hour := time.Now().Add(-time.Hour)
		if err := os.Chtimes(filepath.Join(dir, name), hour, hour); err != nil {
			t.Fatal(err)
		}
		h := c.must(name)
		for f := range 3 {
			c.lookup(h, fmt.Sprintf("f%02d", f))
		}
		for late := time.After(200 * time.Millisecond); ; {
			select {
			case words := <-told:
				if i := slices.Index(words, "list"); i >= 0 {
					if words[i+1][0] != 'd' {
						t.Errorf("told: %q", words)
					}
					return
				}
				continue
			case <-late:
			}
			break
		}
	}
}
