package background

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// A log that is followed goes on in the file that takes its place, and in one that was
// shortened.
func TestGoOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write := func(text string, flags int) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|flags, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteString(text)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	write("first\n", 0)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { f.Close() }()
	for _, step := range []struct {
		change func()
		want   string
	}{
		{func() {}, "first\n"},
		{func() {}, ""},
		{func() { write("more\n", os.O_APPEND) }, "more\n"},
		{func() {
			if err := os.Rename(path, path+".0"); err != nil {
				t.Fatal(err)
			}
		}, ""},
		{func() { write("the next one's\n", 0) }, "the next one's\n"},
		{func() { write("left\n", os.O_TRUNC) }, ""},
		{func() { write("after\n", os.O_APPEND) }, "after\n"},
	} {
		step.change()
		next, err := goOn(f, path)
		if err != nil {
			t.Fatal(err)
		}
		if next != f {
			f.Close()
			f = next
		}
		if got, err := io.ReadAll(f); err != nil || string(got) != step.want {
			t.Errorf("%q, %v, not %q", got, err, step.want)
		}
	}
}
