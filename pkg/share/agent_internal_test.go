package share

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// While the agent follows a file, it opens it after each write to it.
func TestAgentFollows(t *testing.T) {
	if _, err := exec.LookPath("perl"); err != nil {
		t.Skip("there is no perl")
	}
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	opens := os.NewFile(uintptr(fd), "inotify")
	defer opens.Close()
	if _, err := unix.InotifyAddWatch(fd, f.Name(), unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	opened := func(what string) {
		t.Helper()
		_ = opens.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := opens.Read(make([]byte, 4096)); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}

	cmd := exec.CommandContext(t.Context(), "sh", "-c", agentCommand, "agent", agentScript, strconv.Itoa(os.Geteuid()), dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(out)
	m := newMirror(&export{Export: Export{Target: dir}})
	if err := m.order(in, answers, []string{"follow", "log", "follow", "none", "follow", "log"}); err != nil {
		t.Fatal(err)
	}
	opened("at first")
	for range 3 {
		if _, err := f.WriteString("x"); err != nil {
			t.Fatal(err)
		}
		opened("after a write")
	}
	// It does what it is told meanwhile, and ends with its input.
	if err := m.order(in, answers, []string{"modify", "log"}); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := answers.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the agent has not ended: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// FuzzAgent has the agent say anything. Each order takes one line, ".", and nothing else
// is one.
func FuzzAgent(f *testing.F) {
	for _, said := range []string{"", ".\n", ".\n.\n", "..\n", "\n", ".", ".\r\n", ".\n\x00", strings.Repeat("x", 5000), strings.Repeat(".\n", 3000), strings.Repeat("\n", 3000)} {
		f.Add([]byte(said))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		m := newMirror(&export{Export: Export{Target: "/x"}})
		answers := bufio.NewReader(bytes.NewReader(said))
		done := 0
		for m.order(io.Discard, answers, []string{"modify", "f"}) == nil {
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
