package background_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/background"
)

// A log stays small whatever is written, and has whole lines, the last ones.
func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := background.NewLog(f)
	const most = 8 << 20
	words := strings.Repeat("x", 1<<10)
	largest := int64(0)
	for i := range 20 << 10 {
		if _, err := fmt.Fprintf(l, "%06d %s\n", i, words); err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		largest = max(largest, info.Size())
	}
	if largest > most || largest < most/2 {
		t.Errorf("it grew to %d bytes", largest)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
	first := 20<<10 - len(lines)
	for i, line := range lines {
		if want := fmt.Sprintf("%06d %s", first+i, words); string(line) != want {
			t.Fatalf("line %d of %d: %.20q", i, len(lines), line)
		}
	}
	// More at once than goes in.
	if _, err := l.Write(bytes.Repeat([]byte("y"), most+1)); err != nil {
		t.Error(err)
	}
	if _, err := io.WriteString(l, "after\n"); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "after\n" {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// What is no file takes what is written.
func TestLogOfAPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.WriteString(background.NewLog(w), "text"); err != nil {
		t.Error(err)
	}
	w.Close()
	if b, err := io.ReadAll(r); string(b) != "text" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}
