package ui

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestWriteError(t *testing.T) {
	for _, c := range []struct {
		name, text, json string
		err              error
		code             int
	}{
		{name: "nil"},
		{name: "remote exit code", err: fmt.Errorf("exec: %w", Exit(42)), code: 42},
		{
			name: "plain", err: errors.New("boom"), code: 1,
			text: "devvm: boom\n",
			json: `{"type":"error","code":1,"message":"boom"}` + "\n",
		},
		{
			name: "hint", code: 5,
			err:  fmt.Errorf("up: %w", &Error{Msg: "libvirt is not installed", Hint: "sudo apt install libvirt-daemon-system\ndevvm doctor", Code: ExitHost}),
			text: "devvm: up: libvirt is not installed\nhint: sudo apt install libvirt-daemon-system\nhint: devvm doctor\n",
			json: `{"type":"error","code":5,"message":"up: libvirt is not installed","hint":"sudo apt install libvirt-daemon-system\ndevvm doctor"}` + "\n",
		},
		{
			name: "cause and hints in a chain", code: 1,
			err:  &Error{Msg: "start the VM", Hint: "devvm logs", Err: &Error{Msg: "no <space>", Hint: "df -h", Err: io.ErrShortWrite}},
			text: "devvm: start the VM: no <space>: short write\nhint: devvm logs\nhint: df -h\n",
			json: `{"type":"error","code":1,"message":"start the VM: no <space>: short write","hint":"devvm logs\ndf -h"}` + "\n",
		},
		{
			name: "cancelled", err: fmt.Errorf("wait for the engine: %w", context.Canceled), code: 130,
			text: "devvm: cancelled\n",
			json: `{"type":"error","code":130,"message":"wait for the engine: context canceled"}` + "\n",
		},
		{
			name: "timed out", err: fmt.Errorf("wait for the engine: %w", context.DeadlineExceeded), code: 1,
			text: "devvm: wait for the engine: context deadline exceeded\n",
			json: `{"type":"error","code":1,"message":"wait for the engine: context deadline exceeded"}` + "\n",
		},
		{
			name: "lines of a log", err: &Error{Msg: "provisioning failed; its last lines:\n  a\tb\n  c\rd"}, code: 1,
			text: "devvm: provisioning failed; its last lines:\n  a    b\n  c\\rd\n",
			json: `{"type":"error","code":1,"message":"provisioning failed; its last lines:\n  a\tb\n  c\rd"}` + "\n",
		},
		{
			name: "hostile name", err: &Error{Msg: "no directory \x1b[2Jx\u202e\xff", Hint: "cd /tmp/\x07"}, code: 1,
			text: "devvm: no directory \\x1b[2Jx\\u202e\\xff\nhint: cd /tmp/\\a\n",
			json: "{\"type\":\"error\",\"code\":1,\"message\":\"no directory \\u001b[2Jx\u202e\\ufffd\",\"hint\":\"cd /tmp/\\u0007\"}\n",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _, out, errs := Test()
			if got := ExitCode(c.err); got != c.code {
				t.Errorf("exit code %d, want %d", got, c.code)
			}
			s.WriteError(c.err)
			if diff := cmp.Diff(c.text, errs.String()); diff != "" {
				t.Error(diff)
			}
			if out.String() != "" {
				t.Errorf("stdout: %q", out)
			}
			s.WriteErrorJSON(c.err)
			if diff := cmp.Diff(c.json, out.String()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Output to a narrow terminal is broken between words and continues below its own text.
func TestNarrowErr(t *testing.T) {
	long := "the path /a/path/that/is/one/word/and/stays/whole is said in many words"
	for name, c := range map[string]struct {
		show func(s *Streams)
		want string
	}{
		"error": {
			func(s *Streams) {
				s.WriteError(&Error{Msg: long + "; its last lines:\n  an indented line of more than forty columns\nlast", Hint: "do this and that, and then run: devvm up\ndevvm doctor"})
			},
			"devvm: the path\n       /a/path/that/is/one/word/and/stays/whole\n       is said in many words; its last\n       lines:\n" +
				"  an indented line of more than forty\n  columns\nlast\n" +
				"hint: do this and that, and then run:\n      devvm up\nhint: devvm doctor\n",
		},
		"question": {
			func(s *Streams) {
				_, _ = s.Confirm(t.Context(), "This is lost with it, and cannot be had again:\n  - one thing, and another thing beside it\nGo ahead, whatever becomes of it?")
			},
			"This is lost with it, and cannot be had\nagain:\n  - one thing, and another thing beside\n  it\nGo ahead, whatever becomes of it? [y/N] \n",
		},
		"note":    {func(s *Streams) { s.Note("%s\x1b", "one two three four five six seven eight") }, "note: one two three four five six seven\n      eight\\x1b\n"},
		"warning": {func(s *Streams) { s.Warning("one two three four five six seven") }, "warning: one two three four five six\n         seven\n"},
		"lines":   {func(s *Streams) { fmt.Fprintln(s.ErrLines(3), "one two three four five six seven eight nine") }, "one two three four five six seven eight\n   nine\n"},
		"progress": {
			func(s *Streams) {
				p := s.Progress(t.Context(), FormatText)
				p.Note("one two three four five six seven eight nine")
				p.Warn("one two three four five six seven eight nine")
				p.Close()
			},
			"one two three four five six seven eight\n  nine\nwarning: one two three four five six\n         seven eight nine\n",
		},
	} {
		s, _, _, errs := Test()
		s.InTerminal, s.ErrTerminal, s.ErrColumns = true, true, 40
		c.show(s)
		if diff := cmp.Diff(c.want, errs.String()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		s.Color = true
		errs.Reset()
		c.show(s)
		if diff := cmp.Diff(c.want, dropSequences(errs.String())); diff != "" {
			t.Errorf("%s in colours: %s", name, diff)
		}
	}
}

func TestErrorUnwraps(t *testing.T) {
	if err := error(&Error{Err: io.EOF}); !errors.Is(err, io.EOF) || err.Error() != "EOF" {
		t.Errorf("%v", err)
	}
	if got := Exit(7).Error(); got != "exit code 7" {
		t.Error(got)
	}
}

func TestConfirm(t *testing.T) {
	for in, want := range map[string]bool{
		"y\n": true, "Y\r\n": true, " yes \n": true, "YES": true,
		"n\n": false, "\n": false, "": false, "yep\n": false, "sure\n": false,
		strings.Repeat("y", 5000): false,
	} {
		s, stdin, out, errs := Test()
		s.InTerminal, s.ErrTerminal = true, true
		_, _ = io.WriteString(stdin, in)
		got, err := s.Confirm(t.Context(), "Delete 3 containers?")
		if err != nil || got != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
		if !strings.HasPrefix(errs.String(), "Delete 3 containers? [y/N] ") || out.String() != "" {
			t.Errorf("asked %q, %q", errs, out)
		}
	}
}

func TestConfirmLeavesTheRest(t *testing.T) {
	s, stdin, _, _ := Test()
	s.InTerminal, s.ErrTerminal = true, true
	_, _ = io.WriteString(stdin, "y\nthe rest")
	if ok, err := s.Confirm(t.Context(), "?"); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if stdin.String() != "the rest" {
		t.Errorf("left %q", stdin)
	}
}

func TestConfirmWithoutTerminal(t *testing.T) {
	s, stdin, _, errs := Test()
	_, _ = io.WriteString(stdin, "y\n")
	ok, err := s.Confirm(t.Context(), "Delete 3 containers?")
	if ok || ExitCode(err) != ExitUsage || !strings.Contains(Hint(err), "--yes") || !strings.Contains(err.Error(), "Delete 3 containers?") {
		t.Errorf("%v, %v, hint %q", ok, err, Hint(err))
	}
	if errs.String() != "" {
		t.Errorf("asked all the same: %q", errs)
	}
}

func TestConfirmCancelled(t *testing.T) {
	s, _, _, errs := Test()
	r, w := io.Pipe()
	defer w.Close()
	s.In, s.InTerminal, s.ErrTerminal = r, true, true
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ok, err := s.Confirm(ctx, "?")
	if ok || ExitCode(err) != ExitCancelled {
		t.Errorf("%v, %v", ok, err)
	}
	if !strings.HasSuffix(errs.String(), "\n") {
		t.Errorf("the prompt's line is not ended: %q", errs)
	}
}

func TestTable(t *testing.T) {
	s, _, out, _ := Test()
	tab := s.Table("NAME", "STATE", "DIRECTORY")
	tab.Row("app-1a2b3c4d", "running", "/home/jö/app")
	tab.Row("ünïcode-00000000", "", "/tmp/a\tb\nc")
	if err := tab.Flush(); err != nil {
		t.Fatal(err)
	}
	want := `NAME              STATE    DIRECTORY
app-1a2b3c4d      running  /home/jö/app
ünïcode-00000000  -        /tmp/a\tb\nc
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestJSON(t *testing.T) {
	s, _, out, _ := Test()
	if err := s.JSON(map[string]any{"b": 1, "a": "<&>"}); err != nil {
		t.Fatal(err)
	}
	if err := s.JSONLine([]int{1}); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "{\n  \"a\": \"<&>\",\n  \"b\": 1\n}\n[1]\n"; got != want {
		t.Errorf("got %q", got)
	}
	if err := s.JSON(func() {}); err == nil {
		t.Error("a function is no JSON")
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[int64]string{
		0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1 MiB", 512 << 20: "512 MiB",
		4 << 30: "4 GiB", 4e9: "3.7 GiB", 1<<40 - 1: "1 TiB", 3 << 40: "3 TiB", -1024: "-1 KiB", 1<<63 - 1: "8192 PiB", -1 << 63: "-8192 PiB",
	} {
		if got := Size(in); got != want {
			t.Errorf("Size(%d) = %q, want %q", in, got, want)
		}
	}
}

func TestDuration(t *testing.T) {
	for in, want := range map[time.Duration]string{
		0: "0ms", 1499 * time.Microsecond: "1ms", 380 * time.Millisecond: "380ms", 999 * time.Millisecond: "999ms",
		999600 * time.Microsecond: "1.0s", 12345 * time.Millisecond: "12.3s", 59940 * time.Millisecond: "59.9s",
		59960 * time.Millisecond: "1m00s", 65 * time.Second: "1m05s", 3599600 * time.Millisecond: "1h00m",
		3*time.Hour + 12*time.Minute: "3h12m", 47*time.Hour + 59*time.Minute + 40*time.Second: "2d0h", 125 * time.Hour: "5d5h",
		-2 * time.Second: "-2.0s", -1 << 63: "-106751d23h",
	} {
		if got := Duration(in); got != want {
			t.Errorf("Duration(%d) = %q, want %q", in, got, want)
		}
	}
}

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "",
		"plain":                  "plain",
		"Käse 日本 🐳 a\u0301":      "Käse 日本 🐳 a\u0301",
		"a\nb\tc\x00\x7f":        `a\nb\tc\x00\x7f`,
		"\x1b[31m":               `\x1b[31m`,
		"\x9b2J":                 `\x9b2J`,
		"\u009b2J":               `\u009b2J`,
		"\xff\xfe":               `\xff\xfe`,
		"\ufffd":                 "\ufffd",
		"evil\u202egnp.exe":      `evil\u202egnp.exe`,
		"\u2066x\u2069\u200f":    `\u2066x\u2069\u200f`,
		"back\\slash \"quoted\"": "back\\slash \"quoted\"",
	} {
		if got := Escape(in); got != want {
			t.Errorf("Escape(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain\r\n":            "plain",
		"\x1b[1;31mred\x1b[0m": "red",
		"\x1b]0;title\x07text": "text",

		"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\": "link",

		"\x1bPdcs\x1b\\x":    "x",
		"\x1b(Bx\x1b=y\x1bM": "xy",
		"10%\r20%\r100%":     "100%",
		"a\tb":               "a    b",
		"bell\a":             `bell\a`,
		"cut \x1b":           "cut ",
		"cut \x1b[12":        "cut ",
		"cut \x1b]0;":        "cut ",
		"é\x1b[K\xff":        `é\xff`,
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"\x1b[1mx\x1b[0m", "\x1b]0;x\x07y", "a\rb", "\xff\x1b", "\x1b\x1b[["} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, got := range []string{Clean(s), Escape(s)} {
			if !utf8.ValidString(got) {
				t.Errorf("%q is not UTF-8", got)
			}
			for _, r := range got {
				if unsafe(r) {
					t.Errorf("%q from %q", got, s)
				}
			}
		}
	})
}

func TestEnvironment(t *testing.T) {
	for _, c := range []struct {
		env                  map[string]string
		dumb, color, unicode bool
	}{
		{env: nil, dumb: true},
		{env: map[string]string{"TERM": "xterm"}, color: true},
		{env: map[string]string{"TERM": "xterm", "LANG": "C.UTF-8"}, color: true, unicode: true},
		{env: map[string]string{"TERM": "xterm", "LANG": "C.utf8", "NO_COLOR": "1"}, unicode: true},
		{env: map[string]string{"TERM": "xterm", "LANG": "C.utf8", "LC_ALL": "POSIX"}, color: true},
		{env: map[string]string{"TERM": "dumb", "LC_CTYPE": "en_US.UTF-8"}, dumb: true, unicode: true},
	} {
		s := &Streams{ErrTerminal: true}
		s.environment(func(k string) string { return c.env[k] })
		if s.Dumb != c.dumb || s.Color != c.color || s.Unicode != c.unicode {
			t.Errorf("%v: %+v", c.env, s)
		}
	}
}

func TestSystem(t *testing.T) {
	s := System(func(string) string { return "" })
	if s.In == nil || s.Out == nil || s.Err == nil {
		t.Errorf("%+v", s)
	}
}

func TestScreenHoldsNoEndlessLine(t *testing.T) {
	v := newTerminal(t, 80, 24)
	s := v.streams(utf8Terminal)
	p := s.Progress(t.Context(), FormatText)
	defer p.Close()
	p.Start("x", "phase")
	if n, err := s.Err.Write(bytes.Repeat([]byte("x"), 2*maxPartialLine)); err != nil || n != 2*maxPartialLine {
		t.Errorf("%d, %v", n, err)
	}
	if sc := s.Err.(*screen); len(sc.partial) != 0 {
		t.Errorf("holds back %d bytes", len(sc.partial))
	}
}
