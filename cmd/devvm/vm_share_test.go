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
	"checkout":    cmdCheckout,
	"both-append": cmdBothAppend,
	"clock-skew":  cmdClockSkew,
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
	after := took
	took = nil
	for range min(rounds, 100) {
		ask("what nobody changed", "round0.txt", "404")
	}
	fmt.Fprintf(ts.Stdout(), "%d requests, each right after a change: %s; %d without one: %s; not up to date: %v\n", len(after), spread(after), len(took), spread(took), stale)
	took = after
	// At rest there is none; a VM that is short of CPU may take longer than a connection waits.
	if n := stale["a new file"] + stale["a file edited in place"] + stale["a replaced file"] + stale["a removed file"]; n > len(took)/20 {
		ts.Fatalf("%d of %d requests were answered with what was there before: %v", n, len(took), stale)
	}
}

// spread says how long things took.
func spread(took []time.Duration) string {
	slices.Sort(took)
	return fmt.Sprintf("median %v, worst %v", took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
}

// cmdCheckout: checkout DIR URL ROUNDS replaces 300 files of a directory that the container
// web serves at URL, as a git checkout does, and asks for one at once, which must be the new
// one. Then it writes all of them in place, and asks the container at once how large they are.
func cmdCheckout(ts *testscript.TestScript, _ bool, args []string) {
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
		return string(b)
	}
	const files = 300
	var took []time.Duration
	stale := 0
	for round := range rounds {
		content := strings.Repeat("x", round) + fmt.Sprint(round)
		for i := range files {
			name := filepath.Join(dir, fmt.Sprint(i%10), fmt.Sprint(i))
			if round == 0 {
				ts.Check(os.MkdirAll(filepath.Dir(name), 0o755))
			} else {
				ts.Check(os.Remove(name))
			}
			ts.Check(os.WriteFile(name, []byte(content), 0o644))
		}
		for _, i := range []int{files - 1, round % files} {
			start := time.Now()
			got := get(fmt.Sprintf("%d/%d", i%10, i))
			took = append(took, time.Since(start))
			if got != content {
				stale++
			}
		}
	}
	fmt.Fprintf(ts.Stdout(), "%d requests, each right after %d files were replaced: %s; %d not up to date\n", len(took), files, spread(took), stale)
	took, stale = nil, 0
	for round := range rounds {
		content := strings.Repeat("y", 1000+round)
		for i := range files {
			ts.Check(os.WriteFile(filepath.Join(dir, fmt.Sprint(i%10), fmt.Sprint(i)), []byte(content), 0o644))
		}
		start := time.Now()
		ts.Check(ts.Exec("docker", "exec", "web", "sh", "-c", "stat -c %s /w/*/*"))
		took = append(took, time.Since(start))
		for size := range strings.FieldsSeq(ts.ReadFile("stdout")) {
			if size != fmt.Sprint(len(content)) {
				stale++
			}
		}
	}
	fmt.Fprintf(ts.Stdout(), "%d looks at %d files, each right after all were written in place: %s; %d sizes not up to date\n", len(took), files, spread(took), stale)
}

// cmdBothAppend: both-append kept|anew SECONDS appends numbered lines to a file, ten a
// second, and so does a container of the image box, which keeps the file open or opens it
// for each line. It says how many lines each has lost.
func cmdBothAppend(ts *testscript.TestScript, _ bool, args []string) {
	seconds, err := strconv.Atoi(args[1])
	ts.Check(err)
	script := "exec 3>>log; n() { echo \"vm $i\" >&3; }"
	if args[0] == "anew" {
		script = "n() { echo \"vm $i\" >>log; }"
	}
	script += "; i=0; while [ ! -e stop ]; do n; i=$((i+1)); sleep 0.1; done; echo $i >count"
	for _, name := range []string{"log", "stop", "count"} {
		_ = os.Remove(ts.MkAbs(name))
	}
	ts.Check(os.WriteFile(ts.MkAbs("log"), nil, 0o644))
	ts.Check(ts.Exec("docker", "run", "-d", "--name", "appender", "-v", ts.MkAbs(".")+":/w", "-w", "/w", "box", "sh", "-c", script))
	f, err := os.OpenFile(ts.MkAbs("log"), os.O_WRONLY|os.O_APPEND, 0)
	ts.Check(err)
	defer f.Close()
	host := 0
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end); host++ {
		<-tick.C
		_, err := fmt.Fprintln(f, "host", host)
		ts.Check(err)
	}
	ts.Check(os.WriteFile(ts.MkAbs("stop"), nil, 0o644))
	ts.Check(ts.Exec("docker", "wait", "appender"))
	ts.Check(ts.Exec("docker", "rm", "appender"))
	count, err := os.ReadFile(ts.MkAbs("count"))
	ts.Check(err)
	vm, err := strconv.Atoi(strings.TrimSpace(string(count)))
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs("log"))
	ts.Check(err)
	have := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		have[strings.TrimSuffix(line, "\n")] = true
	}
	lost := func(who string, n int) string {
		missing := 0
		for i := range n {
			if !have[fmt.Sprint(who, " ", i)] {
				missing++
			}
		}
		return fmt.Sprintf("of %d lines of the %s's %d are lost (%.1f %%)", n, who, missing, 100*float64(missing)/float64(max(n, 1)))
	}
	fmt.Fprintf(ts.Stdout(), "%s, %d s: %s, %s; %d NUL bytes\n", args[0], seconds, lost("host", host), lost("vm", vm), strings.Count(string(b), "\x00"))
}

// cmdClockSkew: clock-skew SECONDS has the VM look at a file that the host writes all the
// time. The file must never be of the VM's future.
func cmdClockSkew(ts *testscript.TestScript, _ bool, args []string) {
	const look = `use Time::HiRes qw(stat time); my ($least, $n, $end) = (9e9, 0, time + shift);
		while (time < $end) { open my $f, "<", "skew"; my @s = stat $f; my $age = time - $s[9]; $n++; $least = $age if $age < $least }
		printf "%d looks, the youngest file was %.1f ms old\n", $n, 1000 * $least`
	cmd := exec.Command("env", "devvm", "exec", "--", "perl", "-e", look, args[0])
	cmd.Dir, cmd.Env = ts.MkAbs("."), append(os.Environ(), "PATH="+ts.Getenv("PATH"))
	for _, name := range []string{"HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	ts.Check(os.WriteFile(ts.MkAbs("skew"), nil, 0o644))
	out := make(chan string, 1)
	go func() {
		b, err := cmd.Output()
		if err != nil {
			b = append(b, err.Error()...)
		}
		out <- string(b)
	}()
	for i := 0; ; i++ {
		select {
		case said := <-out:
			fmt.Fprint(ts.Stdout(), said)
			var n int
			var age float64
			if _, err := fmt.Sscanf(said, "%d looks, the youngest file was %f ms old", &n, &age); err != nil || age < 0 {
				ts.Fatalf("a file of the future: %s", said)
			}
			return
		case <-time.After(5 * time.Millisecond):
			ts.Check(os.WriteFile(ts.MkAbs("skew"), []byte(fmt.Sprint(i)), 0o644))
		}
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
