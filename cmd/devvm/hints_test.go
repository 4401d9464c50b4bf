package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/devvm/devvm/pkg/ui"
)

// TestHints follows hints: what one says is carried out, and then the command that failed works,
// or has another error. TestHintsAll sees to it that each hint is followed, or is known to be
// words that there is no command for.
func TestHints(t *testing.T) { runScripts(t, "testdata/hints", "", nil) }

// hinted is the command that failed last, and how.
type hinted struct {
	command []string
	message string // what it said; "" if it did not fail, but had advice
	advice  *regexp.Regexp
	found   []string // the match of the hint, and what is in its brackets
}

// hint PATTERN PROGRAM ARGS… runs a command that must fail with a hint that the pattern matches.
func (h *hinted) hint(ts *testscript.TestScript, _ bool, args []string) {
	h.command = args[1:]
	if err := ts.Exec(args[1], args[2:]...); err == nil {
		ts.Fatalf("unexpected success")
	}
	message, hint := said(ts.ReadFile("stderr"))
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	if h.found = pattern.FindStringSubmatch(hint); h.found == nil {
		ts.Fatalf("no hint matches %q: %q", args[0], hint)
	}
	h.message = message
}

// advise PATTERN PROGRAM ARGS… runs a command that works, or is status, and has advice that the
// pattern matches. To follow it has the advice go.
func (h *hinted) advise(ts *testscript.TestScript, _ bool, args []string) {
	h.command, h.message = args[1:], ""
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	_ = ts.Exec(args[1], args[2:]...)
	text := ts.ReadFile("stdout") + ts.ReadFile("stderr")
	if h.found = pattern.FindStringSubmatch(text); h.found == nil {
		ts.Fatalf("no advice matches %q: %q", args[0], text)
	}
	h.advice = pattern
}

// said takes an error and its hint from what a command wrote.
func said(stderr string) (message, hint string) {
	for line := range strings.Lines(stderr) {
		if rest, ok := strings.CutPrefix(line, "hint: "); ok {
			hint += rest
		} else if strings.HasPrefix(line, "devvm: ") {
			message = line
		}
	}
	return message, strings.TrimSuffix(hint, "\n")
}

// follow [PROGRAM ARGS…] carries out what the hint said, or what was in its first brackets, and
// then the command that failed, which must work or have another error.
func (h *hinted) follow(ts *testscript.TestScript, _ bool, args []string) {
	h.carryOut(ts, args)
	err := ts.Exec(h.command[0], h.command[1:]...)
	if h.message == "" {
		if text := ts.ReadFile("stdout") + ts.ReadFile("stderr"); h.advice.MatchString(text) {
			ts.Fatalf("the advice was followed, and %q says the same: %s", h.command, text)
		}
		return
	}
	if err == nil {
		return
	}
	if message, _ := said(ts.ReadFile("stderr")); message == h.message {
		ts.Fatalf("the hint was followed, and %q fails as before: %s", h.command, message)
	}
}

// instead [PROGRAM ARGS…] carries out a hint that says what to run in place of what failed.
func (h *hinted) instead(ts *testscript.TestScript, _ bool, args []string) { h.carryOut(ts, args) }

func (h *hinted) carryOut(ts *testscript.TestScript, args []string) {
	if len(args) == 0 {
		if len(h.found) < 2 {
			ts.Fatalf("the pattern of the hint has no brackets, and no command is given")
		}
		args = []string{"sh", "-c", h.found[1]}
	}
	ts.Check(ts.Exec(args[0], args[1:]...))
}

// Each hint in the code, each Next of status, and each note and warning that names a command or
// a key of devvm.toml, is followed by a script, or is in testdata/hints.txt, which says why
// there is nothing to carry out. Those of devvm.toml are pkg/config's, which has a test of its own.
func TestHintsAll(t *testing.T) {
	var patterns []*regexp.Regexp
	for _, dir := range []string{"hints", "script"} {
		files, err := filepath.Glob("testdata/" + dir + "/*.txtar")
		if err != nil || len(files) == 0 {
			t.Fatal(files, err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			open := "" // the hint that nothing has followed yet
			for line := range strings.Lines(string(b) + "hint: the end\n") {
				if word, _, _ := strings.Cut(strings.TrimSpace(line), " "); word == "follow" || word == "instead" {
					open = ""
				}
				if !strings.HasPrefix(line, "hint") && !strings.HasPrefix(line, "advise") {
					continue
				}
				if open != "" {
					t.Errorf("%s: a hint is not carried out: %s", file, open)
				}
				open = ""
				if m := regexp.MustCompile(`^(?:hint|advise) '([^']+)'`).FindStringSubmatch(line); m != nil {
					patterns, open = append(patterns, regexp.MustCompile(m[1])), line
				}
			}
		}
	}
	b, err := os.ReadFile("testdata/hints.txt")
	if err != nil {
		t.Fatal(err)
	}
	words := map[string]bool{} // whether the code has it
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimRight(line, "\n"); line != "" && (!strings.HasPrefix(line, "# ") || strings.HasPrefix(line, "# QEMU")) {
			words[line] = false
		}
	}
	hints := hintsOf(t, "../..")
	if len(hints) < 100 {
		t.Fatalf("%d hints in the code: are they looked for?", len(hints))
	}
	for _, hint := range hints {
		_, known := words[hint]
		if known {
			words[hint] = true
		}
		followed := slices.ContainsFunc(patterns, func(p *regexp.Regexp) bool { return p.MatchString(hint) || hasParts(p.String(), hint) })
		switch {
		case !known && !followed:
			t.Errorf("nothing follows the hint %q: have a script of testdata/hints do so, or say in testdata/hints.txt why there is nothing to carry out", hint)
		case known && followed:
			t.Errorf("a script follows the hint %q: take it out of testdata/hints.txt", hint)
		}
	}
	for hint, there := range words {
		if !there {
			t.Errorf("testdata/hints.txt has %q, which is no hint", hint)
		}
	}
}

// hasParts tells whether a pattern has all that a hint says, but for what is filled in.
func hasParts(pattern, hint string) bool {
	plain := strings.NewReplacer(`\`, "", "(", "", ")", "", "^", "", "$", "").Replace(pattern)
	hint = strings.NewReplacer("(", "", ")", "").Replace(hint)
	long := false
	for _, part := range regexp.MustCompile(`…|%(?:\[\d\])?[a-z]`).Split(hint, -1) {
		part = strings.TrimSpace(part)
		long = long || len(part) > 5
		if !strings.Contains(plain, part) {
			return false
		}
	}
	return long
}

// advises matches a note that says what to run or write.
var advises = regexp.MustCompile(`devvm [a-z]|devvm\.toml|--[a-z]|docker [a-z]+ [a-z]+`)

// hintsOf finds the texts of the hints in the code: values of fields, variables and constants of
// such names, and what is noted.
func hintsOf(t *testing.T, root string) []string {
	t.Helper()
	var all []string
	is := func(e ast.Expr) bool {
		switch e := e.(type) {
		case *ast.Ident:
			return strings.EqualFold(e.Name, "hint") || strings.HasPrefix(e.Name, "Advice") || e.Name == "Next"
		case *ast.SelectorExpr:
			return e.Sel.Name == "Hint" || e.Sel.Name == "Next"
		}
		return false
	}
	text := func(e ast.Expr) string {
		var parts []string
		ast.Inspect(e, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				if s, err := strconv.Unquote(lit.Value); err == nil {
					parts = append(parts, s)
				}
			}
			return true
		})
		return strings.ReplaceAll(strings.TrimSpace(strings.Join(parts, "…")), "\n", " ")
	}
	add := func(e ast.Expr) {
		if text := text(e); text != "" && !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "testdata" || strings.HasSuffix(path, "pkg/config")):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.KeyValueExpr:
				if is(n.Key) {
					add(n.Value)
				}
			case *ast.ValueSpec:
				for i, name := range n.Names {
					if is(name) && i < len(n.Values) {
						add(n.Values[i])
					}
				}
			case *ast.CallExpr:
				called, ok := n.Fun.(*ast.SelectorExpr)
				if ok && len(n.Args) > 0 && slices.Contains([]string{"Note", "Warn", "Warning"}, called.Sel.Name) && advises.MatchString(text(n.Args[0])) {
					add(n.Args[0])
				}
			case *ast.AssignStmt:
				for i, left := range n.Lhs {
					if is(left) && i < len(n.Rhs) {
						add(n.Rhs[i])
					}
				}
			case *ast.CompositeLit: // of a table whose rows have no names
				list, ok := n.Type.(*ast.ArrayType)
				if !ok {
					break
				}
				row, ok := list.Elt.(*ast.StructType)
				if !ok {
					break
				}
				for i, field := range row.Fields.List {
					if !slices.ContainsFunc(field.Names, func(name *ast.Ident) bool { return is(name) }) {
						continue
					}
					for _, elt := range n.Elts {
						if c, ok := elt.(*ast.CompositeLit); ok && i < len(c.Elts) {
							add(c.Elts[i])
						}
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// What a near miss names is there.
func TestNearMisses(t *testing.T) {
	root := newApp(&ui.Streams{}, os.Getenv, nil).newRootCmd()
	for typed, right := range nearMisses {
		for _, m := range regexp.MustCompile(`devvm ((?:[a-z-]+ ?)+)`).FindAllStringSubmatch(right, -1) {
			cmd, rest, err := root.Find(strings.Fields(m[1]))
			if err != nil || cmd == root || cmd.HasSubCommands() {
				t.Errorf("%s: %q is no command: %v", typed, m[0], err)
				continue
			}
			for _, word := range rest {
				if cmd.Name() != "docker" && strings.HasPrefix(word, "--") && cmd.Flags().Lookup(word[2:]) == nil && cmd.InheritedFlags().Lookup(word[2:]) == nil {
					t.Errorf("%s: %q has no %s", typed, m[0], word)
				}
			}
		}
	}
}
