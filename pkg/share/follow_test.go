package share_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// The agent follows a file that both sides write, and no other.
func TestFollow(t *testing.T) {
	dir := realTemp(t)
	s, c := mirrored(t, dir)
	var mu sync.Mutex
	var words []string
	s.agent(t, func(w []string) {
		mu.Lock()
		defer mu.Unlock()
		words = append(words, w...)
	})
	told := func(word, name string) bool {
		mu.Lock()
		defer mu.Unlock()
		for i, w := range words[:max(0, len(words)-1)] {
			if w == word && words[i+1] == name {
				return true
			}
		}
		return false
	}
	log := filepath.Join(dir, "log")
	put(t, log, "")
	put(t, filepath.Join(dir, "hosts"), "")
	h := c.must("log")
	c.must("hosts")
	appendTo := func(name string) {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fmt.Fprintln(f, "host")
	}
	until := func(word, name string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !told(word, name); { // the watch begins when it likes
			if time.Now().After(deadline) {
				t.Fatalf("the agent is not told to %s %s", word, name)
			}
			appendTo(name)
			s.share.CatchUp(t.Context())
		}
	}
	until("modify", "log")
	until("modify", "hosts")
	if told("follow", "log") {
		t.Error("the agent follows what only the host writes")
	}
	c.write(h, 0, []byte("VM\n"), nfs3.FILE_SYNC)
	until("follow", "log")
	until("modify", "hosts")
	if told("follow", "hosts") {
		t.Error("the agent follows what only the host writes")
	}
	// A directory, or nothing, under the name is no file that the VM has written.
	os.Remove(log)
	os.Mkdir(log, 0o755)
	s.share.CatchUp(t.Context())
	mu.Lock()
	defer mu.Unlock()
	if i := slices.Index(words, "mkdir"); i >= 0 && slices.Contains(words[i:], "follow") {
		t.Errorf("the agent follows a directory: %q", words[i:])
	}
}
