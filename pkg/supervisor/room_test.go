package supervisor_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/guest/guesttest"
	"github.com/devvm/devvm/pkg/supervisor"
)

// A disk with blocks of 4 KiB, as stat(1) describes it.
const (
	roomyDisk = "4096 10000000 5000000 1000000 900000"
	fullDisk  = "4096 10000000 0 1000000 900000"
	fullFiles = "4096 10000000 5000000 1000000 0"
)

// disk is the file system of a fake VM.
type disk struct {
	stat    string // a file with what stat says
	reserve string // a directory
}

func (d *disk) set(t *testing.T, stat string) {
	t.Helper()
	if err := os.WriteFile(d.stat+".new", []byte(stat+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(d.stat+".new", d.stat); err != nil {
		t.Fatal(err)
	}
}

// parts is how many parts of the reserve there are.
func (d *disk) parts() int {
	whole, _ := filepath.Glob(filepath.Join(d.reserve, "*", "whole"))
	return len(whole)
}

func (d *disk) until(t *testing.T, parts int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); d.parts() != parts; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d parts of the reserve, want %d", d.parts(), parts)
		}
	}
}

// startDisk is start with a VM whose disk the test fills.
func startDisk(t *testing.T, stat string, more ...string) (*fixture, *disk) {
	t.Helper()
	d := &disk{stat: filepath.Join(t.TempDir(), "stat")}
	d.set(t, stat)
	f := start(t, func(g *guesttest.Options, o *supervisor.Options) {
		d.reserve = filepath.Join(g.Dir, "reserve")
		fake := strings.NewReplacer("stat -f -c", "cat "+d.stat+"; true", "date -u -s", "false").Replace
		first := strings.NewReplacer(more...).Replace
		g.Rewrite = func(line string) string { return fake(first(line)) }
	})
	return f, d
}

// TestReserve: a disk that is full is said to be, in status and in the engine's own errors,
// and a part of the reserve is given up for each call that finds it so.
func TestReserve(t *testing.T) {
	t.Parallel()
	f, d := startDisk(t, roomyDisk)
	f.until(t, supervisor.StateReady, 0)
	d.until(t, guest.ReserveParts)
	st, err := f.client.Look(t.Context())
	if err != nil || st.Room == nil || st.Room.Full() || st.Room.Disk != 40960000000 || st.Room.DiskFree != 20480000000 || st.Room.Memory <= 0 {
		t.Fatalf("%+v, %v", st.Room, err)
	}
	fail := func(words string) string {
		t.Helper()
		_, answer := f.ask(t, http.MethodPost, "/test/fail?message="+url.QueryEscape(words), "")
		return answer
	}
	const enospc = "write /var/lib/docker/x: no space left on device"
	if answer := fail(enospc); strings.Contains(answer, "devvm") || d.parts() != guest.ReserveParts {
		t.Errorf("another disk's error: %s, %d parts", answer, d.parts())
	}

	d.set(t, fullDisk)
	if answer := fail("no such image"); strings.Contains(answer, "devvm") || d.parts() != guest.ReserveParts {
		t.Errorf("an error of another kind: %s, %d parts", answer, d.parts())
	}
	for left := guest.ReserveParts - 1; left >= 0; left-- {
		answer := fail(enospc)
		for _, want := range []string{enospc, `the disk of the VM of project \"app\" has no room left`, "docker system prune", "devvm.toml"} {
			if !strings.Contains(answer, want) {
				t.Errorf("%q is not in %s", want, answer)
			}
		}
		if d.parts() != left {
			t.Errorf("%d parts, want %d", d.parts(), left)
		}
	}
	if answer := fail(enospc); !strings.Contains(answer, "There is no reserve left") {
		t.Errorf("with no reserve: %s", answer)
	}
	if st, err := f.client.Look(t.Context()); err != nil || st.Room == nil || !st.Room.Full() || st.Room.Reserve != 0 {
		t.Errorf("%+v, %v", st.Room, err)
	}

	// Room again: the reserve comes back, at the next look.
	d.set(t, roomyDisk)
	for deadline := time.Now().Add(20 * time.Second); d.parts() < guest.ReserveParts && time.Now().Before(deadline); {
		_, _ = f.client.Look(t.Context())
	}
	d.until(t, guest.ReserveParts)

	// The number of files, and what removes things.
	d.set(t, fullFiles)
	if answer := fail(enospc); !strings.Contains(answer, "can hold no more files") || d.parts() != guest.ReserveParts-1 {
		t.Errorf("%s, %d parts", answer, d.parts())
	}
	_, _ = f.ask(t, http.MethodPost, "/containers/prune", "")
	d.until(t, guest.ReserveParts-2)
}

// TestExplainInTime: a VM that takes long to say what room it has holds up no client, however
// many there are. What it said last counts for as long as it can be true.
func TestExplainInTime(t *testing.T) {
	t.Parallel()
	hang := filepath.Join(t.TempDir(), "hang")
	f, d := startDisk(t, roomyDisk, "stat -f -c", "while test -e "+hang+"; do sleep 0.1; done; stat -f -c")
	f.until(t, supervisor.StateReady, 0)
	d.until(t, guest.ReserveParts)
	fail := func() (answers []string) {
		t.Helper()
		var wait sync.WaitGroup
		answers = make([]string, 6)
		start := time.Now()
		for i := range answers {
			wait.Go(func() {
				_, answers[i] = f.ask(t, http.MethodPost, "/test/fail?message="+url.QueryEscape("write: no space left on device"), "")
			})
		}
		wait.Wait()
		if took := time.Since(start); took < time.Second || took > 8*time.Second {
			t.Errorf("%d errors took %s", len(answers), took)
		}
		return answers
	}
	stall := func() {
		t.Helper()
		if err := os.WriteFile(hang, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stall()
	for _, answer := range fail() {
		if strings.Contains(answer, "devvm") || !strings.Contains(answer, "no space left on device") {
			t.Errorf("the error has changed: %s", answer)
		}
	}
	if err := os.Remove(hang); err != nil {
		t.Fatal(err)
	}
	d.set(t, fullDisk)
	for deadline := time.Now().Add(20 * time.Second); ; {
		if st, err := f.client.Look(t.Context()); err == nil && st.Room != nil && st.Room.Full() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody knows that the disk is full")
		}
	}
	stall()
	defer os.Remove(hang)
	for _, answer := range fail() {
		if !strings.Contains(answer, "has no room left") {
			t.Errorf("it was full a moment ago: %s", answer)
		}
	}
}

// TestProgress: an answer that ends for want of room passes as it is. Status tells, and the next
// call finds some.
func TestProgress(t *testing.T) {
	t.Parallel()
	f, d := startDisk(t, roomyDisk)
	f.until(t, supervisor.StateReady, 0)
	d.until(t, guest.ReserveParts)
	for _, words := range []string{"no such image", "write /var/lib/docker/x: no space left on device"} {
		short := strings.Contains(words, "no space left")
		if short {
			d.set(t, fullDisk)
		}
		code, answer := f.ask(t, http.MethodPost, "/test/progress?message="+url.QueryEscape(words), "")
		if want := `{"status":"Downloading"}` + "\r\n" + `{"error":"` + words + `","errorDetail":{"message":"` + words + `"}}` + "\n"; code != http.StatusOK || answer != want {
			t.Errorf("%d %s, want %s", code, answer, want)
		}
		if !short {
			if st, err := f.client.Status(t.Context()); err != nil || !st.ShortAt.IsZero() {
				t.Errorf("%q: %+v, %v", words, st, err)
			}
			continue
		}
		if err := f.client.Watch(t.Context(), func(s supervisor.Status) bool { return s.ShortAt.IsZero() }); err != nil {
			t.Error(err)
		}
		d.until(t, guest.ReserveParts-1)
	}
}

// TestRevive: an engine that a full disk has ended is started again, with some room.
func TestRevive(t *testing.T) {
	t.Parallel()
	failed := filepath.Join(t.TempDir(), "failed")
	if err := os.WriteFile(failed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d := &disk{stat: filepath.Join(t.TempDir(), "stat")}
	d.set(t, fullDisk)
	f := start(t, func(g *guesttest.Options, o *supervisor.Options) {
		d.reserve = filepath.Join(g.Dir, "reserve")
		part := filepath.Join(d.reserve, "1")
		if err := os.MkdirAll(part, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(part, "whole"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		g.Rewrite = strings.NewReplacer(
			"stat -f -c", "if test -e "+part+"; then cat "+d.stat+"; else echo '"+roomyDisk+"'; fi; true",
			"date -u -s", "false",
			"systemctl is-failed -q docker.service", "test -e "+failed,
			"journalctl -b", "echo no space left on device; true -b",
			"systemctl show", "echo",
			"systemctl reset-failed containerd.service docker.service", "true",
			"systemctl start --no-block docker.service", "rm "+failed,
		).Replace
		ping := o.Ping
		o.Ping = func(ctx context.Context) error {
			if _, err := os.Stat(failed); err == nil {
				return errors.New("connection refused")
			}
			return ping(ctx)
		}
	})
	err := f.client.Watch(t.Context(), func(s supervisor.Status) bool {
		if s.EngineFailed != "" {
			t.Errorf("given up: %+v", s)
		}
		return s.State != supervisor.StateReady
	})
	if err != nil {
		t.Error(err)
	}
}
