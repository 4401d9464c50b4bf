//go:build vmtest

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// shareCommands are the commands of scripts about the host's files in a VM.
var shareCommands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"share-probe": cmdShareProbe,
	"live-reload": cmdLiveReload,
	"move-about":  cmdMoveAbout,
	"causality":   cmdCausality,
}

// cmdCausality: causality DIR URL ROUNDS changes files of a directory that a container
// serves at URL, and asks for each at once, by a new connection. The container must have
// what the host had before the request.
func cmdCausality(ts *testscript.TestScript, _ bool, args []string) {
	dir, url := ts.MkAbs(args[0]), args[1]
	rounds, err := strconv.Atoi(args[2])
	ts.Check(err)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	get := func(name string) string {
		resp, err := client.Get(url + "/" + name)
		ts.Check(err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		ts.Check(err)
		if resp.StatusCode != http.StatusOK {
			return fmt.Sprint(resp.StatusCode)
		}
		return string(b)
	}
	var took []time.Duration
	stale := map[string]int{}
	ask := func(what, name, want string) {
		start := time.Now()
		got := get(name)
		took = append(took, time.Since(start))
		if got != want {
			stale[what]++
		}
	}
	write := func(name, content string) { ts.Check(os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644)) }
	for i := range rounds {
		name := fmt.Sprintf("round%d.txt", i)
		get(name) // and the VM's kernel knows that there is none
		write(name, "new")
		ask("a new file", name, "new")
		write(name, "edited in place")
		ask("a file edited in place", name, "edited in place")
		write(name+".tmp", "replaced")
		ts.Check(os.Rename(filepath.Join(dir, name+".tmp"), filepath.Join(dir, name)))
		ask("a replaced file", name, "replaced")
		ts.Check(os.Remove(filepath.Join(dir, name)))
		ask("a removed file", name, "404")
	}
	slices.Sort(took)
	fmt.Fprintf(ts.Stdout(), "%d requests, each right after a change: median %v, worst %v; not up to date: %v\n", len(took), took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond), stale)
	// At rest there is none; a VM that is short of CPU may take longer than a connection waits.
	if n := stale["a new file"] + stale["a file edited in place"] + stale["a replaced file"] + stale["a removed file"]; n > len(took)/20 {
		ts.Fatalf("%d of %d requests were answered with what was there before: %v", n, len(took), stale)
	}
}

// cmdShareProbe: share-probe puts shareprobe into the current directory.
func cmdShareProbe(ts *testscript.TestScript, _ bool, _ []string) {
	self, err := os.Executable()
	ts.Check(err)
	from, err := os.Open(self)
	ts.Check(err)
	defer from.Close()
	to, err := os.OpenFile(ts.MkAbs("shareprobe"), os.O_CREATE|os.O_WRONLY, 0o755)
	ts.Check(err)
	_, err = io.Copy(to, from)
	ts.Check(errors.Join(err, to.Close()))
}

// cmdMoveAbout: move-about DIR SECONDS makes, removes and moves directories in a directory
// at random.
func cmdMoveAbout(ts *testscript.TestScript, _ bool, args []string) {
	length, err := strconv.Atoi(args[1])
	ts.Check(err)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	name := func() string {
		name := ts.MkAbs(args[0])
		for range 1 + r.IntN(2) {
			name = filepath.Join(name, string(rune('a'+r.IntN(3))))
		}
		return name
	}
	changes := 0
	for end := time.Now().Add(time.Duration(length) * time.Second); time.Now().Before(end); {
		var err error
		switch n := r.IntN(200); {
		case n == 0:
			err = os.RemoveAll(name())
		case n < 40:
			err = os.Mkdir(name(), 0o755)
		case n < 60:
			err = os.Remove(name())
		default:
			err = os.Rename(name(), name())
		}
		if err == nil {
			changes++
		}
		if r.IntN(20) == 0 { // the VM meets the directories, too
			time.Sleep(10 * time.Millisecond)
		}
	}
	fmt.Fprintf(ts.Stdout(), "%d changes, seed %d\n", changes, seed)
}

// liveReload is how soon a change must be told, in the middle of some.
const liveReload = 300 * time.Millisecond

// cmdLiveReload: live-reload DIR has a container of the image box watch a directory that
// is a repository with the branches one and two and a file f, and does to it what editors
// and git do.
func cmdLiveReload(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	// env finds the client in the script's PATH, where this process does not look.
	cmd := exec.Command("env", "docker", "run", "--rm", "-v", ts.MkAbs(".")+":/w", "box", "/w/shareprobe", "watch", "/w/"+args[0])
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+ts.Getenv("DOCKER_HOST"), "DOCKER_CONFIG="+ts.Getenv("DOCKER_CONFIG"), "PATH="+ts.Getenv("PATH"))
	cmd.Stderr = ts.Stderr()
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	// told waits for one of some events.
	told := func(limit time.Duration, events ...string) error {
		late := time.After(limit)
		var came []string
		for {
			select {
			case line, ok := <-lines:
				if slices.Contains(events, line) {
					return nil
				}
				if came = append(came, line); !ok {
					return fmt.Errorf("the watcher has ended; it said %q", came)
				}
			case <-late:
				return fmt.Errorf("none of %q came, but %q", events, came)
			}
		}
	}
	quiet := func() {
		for told(700*time.Millisecond, "nothing") == nil {
		}
	}
	ts.Check(told(time.Minute, "watching"))
	// The agent starts when it likes.
	for began := false; !began; {
		ts.Check(os.WriteFile(filepath.Join(dir, "begin"), []byte(fmt.Sprint(time.Now())), 0o600))
		began = told(time.Second, "create begin", "modify begin") == nil
	}
	run := func(argv ...string) error {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", argv, err, out)
		}
		return nil
	}
	f := filepath.Join(dir, "f")
	branch := 0
	for _, edit := range []struct {
		name   string
		do     func(text string) error
		events []string
	}{
		{"a write", func(text string) error { return os.WriteFile(f, []byte(text), 0o600) }, []string{"close f"}},
		{"vim: the file is renamed, written anew, the old one removed", func(text string) error {
			return errors.Join(os.Rename(f, f+"~"), os.WriteFile(f, []byte(text), 0o600), os.Remove(f+"~"))
		}, []string{"create f", "to f", "close f"}},
		{"an IDE: a new file is put over it", func(text string) error {
			return errors.Join(os.WriteFile(f+".tmp", []byte(text), 0o600), os.Rename(f+".tmp", f))
		}, []string{"to f"}},
		{"git checkout of another branch", func(string) error {
			branch++
			return run("git", "checkout", "-q", "-f", []string{"one", "two"}[branch%2])
		}, []string{"create f", "to f", "close f"}},
	} {
		var took []time.Duration
		for round := range 9 {
			quiet()
			ts.Check(edit.do(strings.Repeat("x", round+1)))
			done := time.Now()
			if err := told(10*time.Second, edit.events...); err != nil {
				ts.Fatalf("%s: %v", edit.name, err)
			}
			took = append(took, time.Since(done))
		}
		slices.Sort(took)
		fmt.Fprintf(ts.Stdout(), "%s: %v, at most %v\n", edit.name, took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
		if took[len(took)/2] > liveReload {
			ts.Fatalf("%s: it takes %v until a container hears of it", edit.name, took[len(took)/2])
		}
	}
}
