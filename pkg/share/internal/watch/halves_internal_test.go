package watch

import (
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// What moves within the tree is not told as removed, even where a batch that took long
// ends between the two halves of the move. What moves out is, one batch later.
func TestHalves(t *testing.T) {
	top := t.TempDir()
	if err := os.WriteFile(filepath.Join(top, "new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	const root = 1
	w := &watcher{
		Options: Options{Root: top, Log: slog.New(slog.DiscardHandler), Budget: NewBudget("", 0)},
		dirs:    map[int]*dir{root: {wd: root}}, moved: map[uint32]origin{},
	}
	half := func(bits, cookie uint32, name string) {
		b := make([]byte, unix.SizeofInotifyEvent, 64)
		binary.NativeEndian.PutUint32(b, root)
		binary.NativeEndian.PutUint32(b[4:], bits)
		binary.NativeEndian.PutUint32(b[8:], cookie)
		binary.NativeEndian.PutUint32(b[12:], 16)
		w.take(append(b, append([]byte(name), make([]byte, 16-len(name))...)...))
	}
	for _, step := range []struct {
		what string
		do   func()
		want []Event
	}{
		{"the first halves of two", func() {
			half(unix.IN_MOVED_FROM, 7, "old")
			half(unix.IN_MOVED_FROM, 8, "out")
			w.endBatch(false)
		}, nil},
		{"the second half of one", func() {
			half(unix.IN_MOVED_TO, 7, "new")
			w.endBatch(false)
		}, []Event{{Op: Rename, Path: "old", To: "new"}, {Op: Remove, Path: "out"}}},
		{"a half, and it is quiet", func() {
			half(unix.IN_MOVED_FROM, 9, "old")
			w.endBatch(true)
		}, []Event{{Op: Remove, Path: "old"}}},
	} {
		step.do()
		var got []Event
		w.tell(func(e []Event) { got = append(got, e...) })
		if !slices.Equal(got, step.want) {
			t.Errorf("%s: got %v, want %v", step.what, got, step.want)
		}
	}
}
