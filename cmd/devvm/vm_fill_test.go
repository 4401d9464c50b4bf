//go:build vmtest

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fillVerb is a verb of TestVMFills.
type fillVerb struct {
	args   []string
	before [][]string // verbs that lead to where it begins
	// goesOn is a verb whose bytes the VM writes: it waits for room, and ends well.
	goesOn bool
}

var fillVerbs = []fillVerb{
	{args: []string{"up"}, before: [][]string{{"down"}}},
	{args: []string{"up"}, before: [][]string{{"suspend"}}},
	{args: []string{"up"}, before: [][]string{{"rm", "--yes"}}},
	{args: []string{"down"}},
	{args: []string{"suspend"}},
	{args: []string{"snapshot", "create"}},
	{args: []string{"snapshot", "restore", "kept", "--yes"}, before: [][]string{{"snapshot", "create", "kept"}}},
	{args: []string{"nuke", "--yes"}},
	{args: []string{"nuke", "--undo", "--yes"}, before: [][]string{{"nuke", "--yes"}}},
	{args: []string{"template", "build"}, before: [][]string{{"rm", "--yes"}, {"prune"}}},
	{args: []string{"image", "import", "exported", "--name", "other"}},
	{args: []string{"exec", "--", "sh", "-c", "dd if=/dev/urandom of=/var/big bs=1M count=300 status=none && sync && rm /var/big && sync && fstrim /"}, goesOn: true},
	{args: []string{"docker", "--", "load", "-i", "big.tar"}, before: [][]string{{"exec", "--", "sh", "-c", "docker rmi -f big; fstrim /"}}, goesOn: true},
}

// fillRooms are what is left of the host's disk, in bytes: from the beginning of a verb, or,
// if less than nothing, from a random moment of it.
var fillRooms = []int64{-1, 0, 1 << 20, 64 << 20}

// TestVMFills is TestFullDisk with real VMs: the host's disk, one of its own, fills before or in
// the middle of a verb. That ends and says what to do, or goes on when there is room. The second
// up after that converges at the latest, a file in a volume is as it was, and rm gives all room
// back. DEVVM_TEST_SMALL is the disk, make fills mounts it.
func TestVMFills(t *testing.T) {
	small := os.Getenv("DEVVM_TEST_SMALL")
	if small == "" {
		t.Skip("takes an hour, and a disk of its own: make fills, as root")
	}
	f := &filler{survivor: newSurvivor(t, filepath.Join(small, "data")), disk: small}
	t.Cleanup(func() { t.Log(f.summary()) })
	f.ready("at the beginning")
	f.must("image", "export", "debian-13", filepath.Join(f.dir, "exported"))
	f.must("exec", "--", "sh", "-c", archive)
	f.must("rm", "--yes")
	f.must("prune")
	f.token = ""
	empty := f.free()
	f.ready("once more")
	for _, verb := range fillVerbs {
		for _, room := range fillRooms {
			f.round(verb, room)
		}
	}
	f.gone()
	f.must("prune")
	if missing := empty - f.free(); missing > 1<<20 {
		t.Errorf("%d bytes are not given back", missing)
	}
}

// archive makes an image of 200 MB that docker load takes, in the project's directory.
const archive = `cd "$(mktemp -d)" && mkdir root && head -c 200000000 /dev/urandom >root/big && tar -C root -c . | docker import - big &&
	docker save -o "$OLDPWD/big.tar" big && docker rmi big && rm -r root`

type filler struct {
	*survivor
	disk string

	rounds, failed int
	longestVerb    time.Duration
}

func (f *filler) summary() string {
	return fmt.Sprintf("fills: seed %d: %d rounds, %d verbs failed; %d lost, %d orphans, %d without an end; the second up was needed %d times; the longest verb took %s, the longest up %s",
		f.seed, f.rounds, f.failed, f.lost, f.orphans, f.endless, f.again, f.longestVerb.Round(time.Second), f.longestUp.Round(time.Second))
}

func (f *filler) must(args ...string) {
	f.Helper()
	if out, err := f.run(args...); err != nil {
		f.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func (f *filler) free() int64 {
	f.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(f.disk, &st); err != nil {
		f.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

func (f *filler) round(verb fillVerb, room int64) {
	f.Helper()
	f.rounds++
	name := strings.Join(verb.args[:min(2, len(verb.args))], " ")
	for _, args := range verb.before {
		if out, err := f.run(args...); err != nil && !strings.Contains(out, "there is a snapshot named") { // of an earlier round
			f.Fatalf("%v before %s: %v\n%s", args, name, err, out)
		}
		if args[0] == "rm" {
			f.token = ""
		}
	}
	ballast := filepath.Join(f.disk, "ballast")
	what := fmt.Sprintf("round %d: %s with %d bytes", f.rounds, name, room)
	if room >= 0 {
		fill(f.T, ballast, room)
	}
	cmd := f.devvm(verb.args...)
	start := time.Now()
	if err := cmd.Start(); err != nil {
		f.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if room < 0 {
		after := time.Duration(f.random.Float64() * float64(f.usual(name)))
		what = fmt.Sprintf("round %d: %s, full after %s", f.rounds, name, after.Round(time.Millisecond))
		select {
		case <-time.After(after):
		case err := <-ended:
			if err == nil {
				f.took[name] = time.Since(start)
			}
			ended <- err
		}
		fill(f.T, ballast, 0)
	}
	patience := verbPatience
	if verb.goesOn {
		patience = 20 * time.Second // long enough to meet the end of the disk
	}
	var err error
	select {
	case err = <-ended:
	case <-time.After(patience):
		if !verb.goesOn {
			f.endless++
			_ = cmd.Process.Signal(syscall.SIGQUIT)
			f.Fatalf("%s: hangs: %s", what, cmd.Stderr)
		}
		if err := os.Remove(ballast); err != nil {
			f.Fatal(err)
		}
		what += "; room again"
		select {
		case err = <-ended:
		case <-time.After(verbPatience):
			f.endless++
			_ = cmd.Process.Signal(syscall.SIGQUIT)
			f.Fatalf("%s: hangs: %s", what, cmd.Stderr)
		}
	}
	f.longestVerb = max(f.longestVerb, time.Since(start))
	said := fmt.Sprint(cmd.Stderr)
	what += fmt.Sprintf("; it ended after %s: %v", time.Since(start).Round(time.Millisecond), err)
	if err != nil {
		f.failed++
		what += ": " + strings.TrimSpace(said)
	}
	switch {
	case strings.Contains(said, "panic:") || strings.Contains(said, "goroutine "):
		f.Errorf("%s: panics", what)
	case err != nil && verb.goesOn:
		f.Errorf("%s: it does not go on", what)
	case err != nil && !strings.Contains(said, "hint: "):
		f.Errorf("%s: no next step", what)
	}
	if err := os.Remove(ballast); err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.Fatal(err)
	}
	f.ready(what)
	f.check(what, verb.args)
	if verb.args[0] == "image" {
		_, _ = f.run("image", "rm", "other")
		if left, _ := filepath.Glob(filepath.Join(f.disk, "data", "devvm", "images", ".tmp-*")); len(left) > 0 {
			f.Errorf("%s: left: %v", what, left)
		}
	}
	f.Logf("%s", what)
}
