package guest_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/guest/guesttest"
)

func TestRunStreams(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		c := h.connect(t)
		t.Run("binary both ways", func(t *testing.T) {
			data := make([]byte, 300<<10)
			_, _ = rand.Read(data)
			var out, errOut bytes.Buffer
			code, err := c.Run(t.Context(), guest.Command{
				Argv: []string{"sh", "-c", "tee /dev/stderr"}, Stdin: bytes.NewReader(data), Stdout: &out, Stderr: &errOut,
			})
			if code != 0 || err != nil {
				t.Fatal(code, err)
			}
			if !bytes.Equal(out.Bytes(), data) || !bytes.Equal(errOut.Bytes(), data) {
				t.Errorf("%d bytes in, %d and %d out", len(data), out.Len(), errOut.Len())
			}
		})
		t.Run("no stdin is an empty one", func(t *testing.T) {
			var out bytes.Buffer
			code, err := c.Run(t.Context(), guest.Command{Argv: []string{"cat"}, Stdout: &out})
			if code != 0 || err != nil || out.Len() != 0 {
				t.Error(code, err, out.String())
			}
		})
		t.Run("one writer for both", func(t *testing.T) {
			var out bytes.Buffer
			code, err := c.Run(t.Context(), guest.Command{
				Line: "for i in 1 2 3 4 5 6 7 8 9; do echo o; echo e >&2; done", Stdout: &out, Stderr: &out,
			})
			if code != 0 || err != nil || strings.Count(out.String(), "o\n") != 9 || strings.Count(out.String(), "e\n") != 9 {
				t.Errorf("%d %v %q", code, err, out.String())
			}
		})
		t.Run("a blocked stdin does not hold up the end", func(t *testing.T) {
			r, w := io.Pipe()
			defer func() { _ = w.Close() }()
			code, err := c.Run(t.Context(), guest.Command{Line: "exit 3", Stdin: r})
			if code != 3 || err != nil {
				t.Error(code, err)
			}
		})
		t.Run("a command that does not read", func(t *testing.T) {
			code, err := c.Run(t.Context(), guest.Command{Line: "exit 0", Stdin: bytes.NewReader(make([]byte, 5<<20))})
			if code != 0 || err != nil {
				t.Error(code, err)
			}
		})
		t.Run("a reader that goes away", func(t *testing.T) {
			code, err := c.Run(t.Context(), guest.Command{Argv: []string{"yes"}, Stdout: &limited{n: 100}})
			if code != -1 || !errors.Is(err, errLimit) {
				t.Error(code, err)
			}
		})
		t.Run("many at once", func(t *testing.T) {
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() {
					var out bytes.Buffer
					code, err := c.Run(t.Context(), guest.Command{Argv: []string{"cat"}, Stdin: strings.NewReader("x"), Stdout: &out})
					if code != 0 || err != nil || out.String() != "x" {
						t.Error(code, err, out.String())
					}
				})
			}
			all.Wait()
		})
	})
}

var errLimit = errors.New("enough")

type limited struct{ n int }

func (l *limited) Write(p []byte) (int, error) {
	if l.n -= len(p); l.n < 0 {
		return 0, errLimit
	}
	return len(p), nil
}

func TestRunExitCodes(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		c := h.connect(t)
		for _, tt := range []struct {
			cmd  guest.Command
			want int
		}{
			{guest.Command{Argv: []string{"true"}}, 0},
			{guest.Command{Argv: []string{"false"}}, 1},
			{guest.Command{Line: "exit 255"}, 255},
			{guest.Command{Line: "kill -KILL $$"}, 128 + 9},
			{guest.Command{Line: "kill -TERM $$"}, 128 + 15},
			{guest.Command{Line: "kill -SEGV $$"}, 128 + 11},
			{guest.Command{Argv: []string{"sh", "-c", "kill -INT $$"}}, 128 + 2},
			{guest.Command{Argv: []string{"/no/such/program"}}, 127},
			{guest.Command{Argv: []string{"-no-such-program"}}, 127},
			{guest.Command{Argv: []string{"true"}, Dir: "/no/such/directory"}, 126},
			{guest.Command{Argv: []string{"true"}, User: "nobody-by-that-name"}, 126},
		} {
			code, err := c.Run(t.Context(), tt.cmd)
			if code != tt.want || err != nil {
				t.Errorf("%+v: code %d, want %d, err %v", tt.cmd, code, tt.want, err)
			}
		}
		for name, cmd := range map[string]guest.Command{
			"NUL in an argument": {Argv: []string{"echo", "a\x00b"}},
			"NUL in the line":    {Line: "echo a\x00b"},
			"bad name":           {Argv: []string{"env"}, Env: []string{"A-B=1"}},
			"no value":           {Argv: []string{"env"}, Env: []string{"A"}},
			"two commands":       {Argv: []string{"env"}, Line: "env"},
			"bad user":           {Argv: []string{"env"}, User: "$(id)"},
			"user of a shell":    {User: "root"},
		} {
			if code, err := c.Run(t.Context(), cmd); err == nil || code != -1 {
				t.Errorf("%s: %d %v", name, code, err)
			}
		}
	})
}

// nasty are words that careless quoting breaks.
var nasty = []string{
	"plain", "", " ", "two words", "tab\tnew\nline", `back\slash`, `trailing\`, "'", `"`, `'"'"'`, "''",
	"$HOME", "${HOME}", "$(id)", "`id`", "!x", "*", "?", "[a]", "~", "~root", "{a,b}", "a=b", "#c", "-n", "--",
	";", "&", "|", "<", ">", "(", ")", "\\\n", "ünïcödé", "\xff\xfe", "\x01\x7f", "%s%n", strings.Repeat("long ", 2000),
}

func TestRunQuoting(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		c := h.connect(t)
		show := func(cmd guest.Command) []string {
			t.Helper()
			var out, errOut bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errOut
			code, err := c.Run(t.Context(), cmd)
			if code != 0 || err != nil || errOut.Len() > 0 {
				t.Fatalf("%d %v %s", code, err, &errOut)
			}
			words := strings.Split(out.String(), "\x00")
			return words[:len(words)-1]
		}
		got := show(guest.Command{Argv: append([]string{"printf", "%s\\0"}, nasty...)})
		if diff := cmp.Diff(nasty, got); diff != "" {
			t.Errorf("arguments (-want +got):\n%s", diff)
		}

		dir := filepath.Join(t.TempDir(), "it's a \"dir\" $HOME `x` \n\\ *")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		cmd, want := guest.Command{Dir: dir}, []string{dir}
		script := `printf '%s\0' "$PWD"`
		for i, value := range nasty {
			cmd.Env = append(cmd.Env, fmt.Sprintf("_%d=%s", i, value))
			script += fmt.Sprintf(` "$_%d"`, i)
			want = append(want, value)
		}
		cmd.Argv = []string{"sh", "-c", script}
		if diff := cmp.Diff(want, show(cmd)); diff != "" {
			t.Errorf("environment and directory (-want +got):\n%s", diff)
		}
		got = show(guest.Command{Line: `a=1; printf '%s\0' "$a" "$B" "$PWD"`, Env: []string{"B=2"}, Dir: dir})
		if diff := cmp.Diff([]string{"1", "2", dir}, got); diff != "" {
			t.Errorf("line (-want +got):\n%s", diff)
		}
	})
}

func TestRunAsUser(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		c := h.connect(t)
		run := func(cmd guest.Command) string {
			t.Helper()
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			code, err := c.Run(t.Context(), cmd)
			if code != 0 || err != nil {
				t.Fatalf("%+v: %d %v %s", cmd, code, err, &out)
			}
			return strings.TrimSpace(out.String())
		}
		show := []string{"sh", "-c", `echo "$(id -u):$(id -g) $HOME $*"`, "sh", "*"}
		me, err := user.Current()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{me.Username, me.Uid} {
			if got, want := run(guest.Command{Argv: show, User: name}), fmt.Sprintf("%s:%s %s *", me.Uid, me.Gid, me.HomeDir); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if os.Getuid() != 0 {
			t.Skip("only root can become somebody else")
		}
		for user, want := range map[string]string{
			"nobody":     "65534:65534 /nonexistent *",
			"65534":      "65534:65534 /nonexistent *",
			"nobody:0":   "65534:0 /nonexistent *",
			"54321":      "54321:0 / *",
			"54321:8765": "54321:8765 / *",
			"root":       "0:0 " + me.HomeDir + " *",
		} {
			if got := run(guest.Command{Argv: show, User: user}); got != want {
				t.Errorf("%s: %q, want %q", user, got, want)
			}
		}
		if got := run(guest.Command{Argv: show, User: "nobody", Env: []string{"HOME=/tmp", "become=", "uid=0", "IFS=="}}); got != "65534:65534 /tmp *" {
			t.Error(got)
		}
		if got := run(guest.Command{Argv: []string{"sh", "-c", `id -G; echo x >"$(tty)"`}, User: "nobody", TTY: &guest.Terminal{}}); got != "65534\r\nx" {
			t.Errorf("on a terminal: %q", got)
		}
	})
}

func TestQuote(t *testing.T) {
	for _, tt := range []struct {
		words []string
		want  string
	}{
		{nil, ""},
		{[]string{""}, "''"},
		{[]string{"ls", "-l", "/a/b.c"}, "ls -l /a/b.c"},
		{[]string{"a b", "c"}, "'a b' c"},
		{[]string{"it's"}, `'it'\''s'`},
		{[]string{"a=b", "~", "é"}, "'a=b' '~' 'é'"},
	} {
		got, err := guest.Quote(tt.words...)
		if got != tt.want || err != nil {
			t.Errorf("Quote(%q) = %q, %v, want %q", tt.words, got, err, tt.want)
		}
	}
	for _, shell := range []string{"sh", "bash", "dash", "busybox"} {
		path, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		line, err := guest.Quote(append([]string{"printf", "%s\\0"}, nasty...)...)
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"-c", line}
		if shell == "busybox" {
			args = append([]string{"sh"}, args...)
		}
		out, err := exec.CommandContext(t.Context(), path, args...).Output()
		if err != nil {
			t.Fatal(shell, err)
		}
		if diff := cmp.Diff(strings.Join(nasty, "\x00")+"\x00", string(out)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", shell, diff)
		}
	}
}

func TestRunCancelled(t *testing.T) {
	for name, tt := range map[string]struct {
		line, flag string
		least      time.Duration
	}{
		"it ends":      {`trap 'echo TERM >"$FLAG"; exit 1' TERM; echo ready; while :; do sleep 0.05; done`, "TERM\n", 0},
		"it refuses":   {`trap '' TERM; echo ready; while :; do sleep 0.05; done`, "", 2 * time.Second},
		"a descendant": {`trap 'echo TERM >"$FLAG"' TERM; setsid sh -c 'echo ready; while :; do sleep 0.05; done'; exit 1`, "TERM\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			servers := bothServers
			if tt.least > 0 { // once is slow enough
				servers = ownServer
			}
			servers(t, func(t *testing.T, h *host) {
				c := h.connect(t)
				if code, err := c.Run(t.Context(), guest.Command{Line: "true"}); code != 0 || err != nil {
					t.Fatal(code, err)
				}
				before := runtime.NumGoroutine()
				flag := filepath.Join(t.TempDir(), "flag")
				ctx, cancel := context.WithCancel(t.Context())
				r, w := io.Pipe()
				go func() {
					_, _ = r.Read(make([]byte, 1))
					cancel()
					_, _ = io.Copy(io.Discard, r)
				}()
				start := time.Now()
				code, err := c.Run(ctx, guest.Command{Line: tt.line, Env: []string{"FLAG=" + flag}, Stdout: w})
				_ = w.Close()
				if code != -1 || !errors.Is(err, context.Canceled) {
					t.Error(code, err)
				}
				if d := time.Since(start); d < tt.least || d > 20*time.Second {
					t.Errorf("took %s", d)
				}
				if data, _ := os.ReadFile(flag); string(data) != tt.flag {
					t.Errorf("flag %q, want %q", data, tt.flag)
				}
				settled(t, before)
			})
		})
	}
}

// A command that is tied to its connection ends with it, although no process is left to send it
// a signal. A command that is not tied lives on, as with OpenSSH.
func TestRunTied(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		for name, tt := range map[string]struct {
			line string
			tied bool
		}{
			"tied":         {"echo $$; exec sleep 60", true},
			"a descendant": {"setsid sleep 60 & echo $!; wait", true},
			"not tied":     {"echo $$; exec sleep 60", false},
		} {
			t.Run(name, func(t *testing.T) {
				c := h.connect(t)
				r, w := io.Pipe()
				said := make(chan string, 1)
				go func() {
					line, _ := bufio.NewReader(r).ReadString('\n')
					said <- strings.TrimSpace(line)
					_ = c.Close() // as when the process is killed
					_, _ = io.Copy(io.Discard, r)
				}()
				code, err := c.Run(t.Context(), guest.Command{Line: tt.line, Stdout: w, Tied: tt.tied})
				_ = w.Close()
				if code != -1 || !errors.Is(err, guest.ErrUnreachable) {
					t.Error(code, err)
				}
				pid, err := strconv.Atoi(<-said)
				if err != nil {
					t.Fatal(err)
				}
				if !tt.tied {
					if err := syscall.Kill(pid, 0); err != nil {
						t.Error("it has ended, too:", err)
					}
					_ = syscall.Kill(pid, syscall.SIGKILL)
					return
				}
				ends(t, pid)
			})
		}
		t.Run("output that cannot be written", func(t *testing.T) {
			c := h.connect(t)
			r, w := io.Pipe()
			more, tell := io.Pipe()
			said := make(chan string, 1)
			go func() {
				line, _ := bufio.NewReader(r).ReadString('\n')
				said <- strings.TrimSpace(line)
				_ = r.CloseWithError(errors.New("the disk is full"))
				_, _ = tell.Write([]byte("\n"))
			}()
			code, err := c.Run(t.Context(), guest.Command{Line: "echo $$; read -r _; echo more; exec sleep 60", Stdin: more, Stdout: w, Tied: true})
			if code != -1 || err == nil || !strings.Contains(err.Error(), "the disk is full") {
				t.Error(code, err)
			}
			pid, err := strconv.Atoi(<-said)
			if err != nil {
				t.Fatal(err)
			}
			ends(t, pid)
		})
		if h.name == "guesttest" { // it sends the exit code after the end of the output
			return
		}
		t.Run("what it leaves running stays, though it holds the output", func(t *testing.T) {
			c := h.connect(t)
			r, w := io.Pipe()
			ran := make(chan error, 1)
			go func() {
				_, err := c.Run(t.Context(), guest.Command{Line: `sleep 60 & echo "$! $DEVVM_COMMAND"`, Stdout: w, Tied: true})
				ran <- err
			}()
			line, _ := bufio.NewReader(r).ReadString('\n')
			pid, mark, _ := strings.Cut(strings.TrimSpace(line), " ")
			left, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			// The program that would end it is gone before Run returns.
			for deadline := time.Now().Add(20 * time.Second); tied(mark); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("what ends it is still there")
				}
			}
			if !running(left) {
				t.Error("it has ended")
			}
			_ = c.Close()
			_ = syscall.Kill(left, syscall.SIGKILL)
			<-ran
		})
		t.Run("what it leaves running stays", func(t *testing.T) {
			c := h.connect(t)
			var out bytes.Buffer
			code, err := c.Run(t.Context(), guest.Command{Line: "setsid sleep 60 >/dev/null 2>&1 </dev/null & echo $!", Stdout: &out, Tied: true})
			if code != 0 || err != nil {
				t.Fatal(code, err)
			}
			_ = c.Close()
			pid, err := strconv.Atoi(strings.TrimSpace(out.String()))
			if err != nil {
				t.Fatal(err)
			}
			if !running(pid) { // the program that could end it is gone by now
				t.Error("it has ended")
			}
			_ = syscall.Kill(pid, syscall.SIGKILL)
		})
	})
}

// ends waits for a process to end.
func ends(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); running(pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("it still runs")
		}
	}
}

// tied reports whether the program that ends a command with its connection is running.
func tied(mark string) bool {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range all {
		if line, _ := os.ReadFile(path); bytes.Contains(line, []byte("read -r released")) && bytes.Contains(line, []byte(mark)) {
			return true
		}
	}
	return false
}

// running reports whether a process exists and is not a zombie.
func running(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(b, []byte(") Z "))
}

func TestRunOnALostConnection(t *testing.T) {
	h := testServer(t)
	c := h.connect(t)
	r, w := io.Pipe()
	go func() {
		_, _ = r.Read(make([]byte, 1))
		h.server.CloseConns()
		_, _ = io.Copy(io.Discard, r)
	}()
	code, err := c.Run(t.Context(), guest.Command{Line: "echo ready; sleep 60", Stdout: w})
	if code != -1 || !errors.Is(err, guest.ErrUnreachable) {
		t.Error(code, err)
	}
	_ = w.Close()
}

func TestRunTerminal(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		resize := make(chan guest.Size)
		in, typed := io.Pipe()
		seen, out := io.Pipe()
		result := make(chan error, 1)
		go func() {
			code, err := h.connect(t).Run(t.Context(), guest.Command{
				Line:  `test -t 0 -a -t 1 -a -t 2 || exit 1; echo "$TERM"; while read -r l && [ "$l" != end ]; do stty size; done; exit 5`,
				Stdin: in, Stdout: out,
				TTY: &guest.Terminal{Term: "vt220", Size: guest.Size{Columns: 100, Rows: 30}, Resize: resize},
			})
			if err == nil && code != 5 {
				err = errors.New("wrong exit code")
			}
			_ = out.CloseWithError(err)
			result <- err
		}()
		defer time.AfterFunc(time.Minute, func() { _ = out.CloseWithError(errors.New("nothing for a minute")) }).Stop()
		lines := bufio.NewScanner(seen)
		line := func() string {
			t.Helper()
			if !lines.Scan() {
				t.Fatalf("the output ends: %v", lines.Err())
			}
			return lines.Text()
		}
		// size asks the command for the terminal's size, and skips the echo of the question.
		size := func() string {
			t.Helper()
			_, _ = io.WriteString(typed, "size\n")
			for {
				if l := line(); l != "size" {
					return l
				}
			}
		}
		if term := line(); term != "vt220" {
			t.Errorf("TERM is %q", term)
		}
		if got := size(); got != "30 100" {
			t.Errorf("its size is %q", got)
		}
		resize <- guest.Size{Columns: 81, Rows: 25}
		for size() != "25 81" { // typed input may overtake the resize
		}
		_, _ = io.WriteString(typed, "end\n")
		go func() { _, _ = io.Copy(io.Discard, seen) }()
		if err := <-result; err != nil {
			t.Error(err)
		}
	})
}

// A terminal newer than the guest's terminfo gets the name of a similar one.
func TestRunUnknownTerminal(t *testing.T) {
	for _, name := range []string{"x/xterm-256color", "s/screen-256color", "v/vt220"} {
		if _, err := os.Stat("/lib/terminfo/" + name); err != nil {
			t.Skip("this host has no ncurses-base: ", err)
		}
	}
	bothServers(t, func(t *testing.T, h *host) {
		c := h.connect(t)
		for term, want := range map[string]string{
			"vt220":               "vt220",
			"xterm-256color":      "xterm-256color",
			"xterm-nosuch":        "xterm-256color",
			"nosuch":              "xterm-256color",
			"nosuch-direct":       "xterm-256color",
			"screen.xterm-nosuch": "screen-256color",
			"dumb-nosuch":         "dumb",
			"dumb":                "dumb",
			"../x/xterm":          "xterm-256color",
			"a b'$(exit 3)":       "xterm-256color",
			".":                   "xterm-256color",
			"":                    "xterm-256color",
		} {
			var out strings.Builder
			code, err := c.Run(t.Context(), guest.Command{Line: `printf %s "$TERM"`, Stdout: &out, TTY: &guest.Terminal{Term: term}})
			if err != nil || code != 0 || out.String() != want {
				t.Errorf("TERM=%q became %q (%d, %v), want %q", term, out.String(), code, err, want)
			}
		}
		var out strings.Builder
		_, err := c.Run(t.Context(), guest.Command{Argv: []string{"sh", "-c", `printf %s "$TERM"`}, Env: []string{"TERM=mine"}, Stdout: &out, TTY: &guest.Terminal{Term: "nosuch"}})
		if err != nil || out.String() != "mine" {
			t.Errorf("TERM of one's own became %q (%v)", out.String(), err)
		}
	})
}

func TestServerHooks(t *testing.T) {
	off := make(chan struct{}, 1)
	h := testServer(t, func(o *guesttest.Options) {
		o.OnPoweroff = func() { off <- struct{}{} }
		o.Intercept = func(line string) (int, bool) { return 42, strings.HasSuffix(line, "special") }
	})
	c := h.connect(t)
	for range 200 { // a command that ends at once still gets its exit code through
		if code, err := c.Run(t.Context(), guest.Command{Line: "special"}); code != 42 || err != nil {
			t.Fatal(code, err)
		}
	}
	for _, line := range []string{"systemctl poweroff", "timeout 5 true; exec systemctl --no-block poweroff"} {
		if code, err := c.Run(t.Context(), guest.Command{Argv: []string{"sh", "-c", line}}); code != 0 || err != nil {
			t.Error(code, err)
		}
		<-off
	}
	if code, err := c.Run(t.Context(), guest.Command{Line: "fstrim --version || exit 3"}); code != 127 || err != nil {
		t.Error(code, err)
	}
	var out bytes.Buffer
	if code, err := c.Run(t.Context(), guest.Command{Line: "pwd; echo $HOME", Stdout: &out}); code != 0 || err != nil {
		t.Error(code, err)
	}
	home := filepath.Join(h.dir, "root")
	if want := home + "\n" + home + "\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
