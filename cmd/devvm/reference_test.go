package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
)

// docs/commands.md and the man pages in docs/man say what --help says; -update writes them.
func TestReference(t *testing.T) {
	docs := filepath.Join("..", "..", "docs")
	want := manPages(t)
	want["commands.md"] = commandsPage(testRoot())
	if *update {
		if err := os.RemoveAll(filepath.Join(docs, "man")); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(docs, "man"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range want {
			if err := os.WriteFile(filepath.Join(docs, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, text := range want {
		got, err := os.ReadFile(filepath.Join(docs, name))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(text, string(got)); diff != "" {
			t.Errorf("docs/%s is stale (-update writes it):\n%s", name, diff)
		}
	}
	pages, err := filepath.Glob(filepath.Join(docs, "man", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		if _, ok := want[filepath.Join("man", filepath.Base(page))]; !ok {
			t.Errorf("%s describes no command (-update removes it)", page)
		}
	}
}

// manPages are the man pages by their path in docs.
func manPages(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	root := testRoot()
	root.DisableAutoGenTag = true // it has the date
	for _, cmd := range visible(root) {
		if cmd.Name() == "help" { // which has no page: cobra refers to none
			continue
		}
		cmd.Flags().VisitAll(nameValue)
		var page bytes.Buffer
		if err := doc.GenMan(cmd, &doc.GenManHeader{Section: "1", Date: &time.Time{}, Source: "devvm", Manual: "devvm"}, &page); err != nil {
			t.Fatal(err)
		}
		// Without a date, which would change and mean nothing.
		head, text, found := strings.Cut(page.String(), `"Jan 0001"`)
		if !found {
			t.Fatalf("%s: no date in %q", cmd.CommandPath(), head)
		}
		text = manWords.Replace(text)
		pages[filepath.Join("man", strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1")] = head + `""` + text
	}
	return pages
}

// manWords replaces what cobra writes of flags without a value, and a heading of its own.
var manWords = strings.NewReplacer("[=false]", "", "[=0]", "", "OPTIONS INHERITED FROM PARENT COMMANDS", "OPTIONS OF ALL COMMANDS")

// nameValue has a man page say what a flag's value is, where it would show an empty default.
func nameValue(f *pflag.Flag) {
	if f.DefValue == "" && f.NoOptDefVal == "" {
		f.DefValue, _ = pflag.UnquoteUsage(f)
	}
}

// commandsPage is docs/commands.md.
func commandsPage(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("<!-- Made from the commands' own help by `go test ./cmd/devvm -run TestReference -update`; a test compares the two. -->\n")
	b.WriteString("# Commands\n\nThe same text as `devvm COMMAND --help` and, after `make install`, `man devvm-COMMAND`.\n")
	b.WriteString("[Every day](everyday.md) says which ones you need first, [devvm in scripts](scripting.md) has exit codes and JSON.\n")
	for _, g := range root.Groups() {
		fmt.Fprintf(&b, "\n## %s\n\n| | |\n|---|---|\n", strings.TrimSuffix(g.Title, ":"))
		for _, cmd := range root.Commands() {
			if cmd.GroupID == g.ID {
				fmt.Fprintf(&b, "| [`%s`](#%s) | %s |\n", cmd.Name(), strings.ReplaceAll(cmd.CommandPath(), " ", "-"), cmd.Short)
			}
		}
	}
	b.WriteString("\n## Flags of all commands\n\n" + block("", root.PersistentFlags().FlagUsagesWrapped(helpColumns)))
	for _, cmd := range visible(root)[1:] {
		section(&b, cmd)
	}
	return b.String()
}

// section describes one command.
func section(b *strings.Builder, cmd *cobra.Command) {
	level := "##"
	if cmd.Parent().HasParent() {
		level = "###"
	}
	about := cmd.Long
	if about == "" {
		about = cmd.Short + "."
	}
	fmt.Fprintf(b, "\n%s %s\n\n%s\n\n%s", level, cmd.CommandPath(), about, block("", cmd.UseLine()))
	if len(cmd.Aliases) > 0 {
		fmt.Fprintf(b, "\nAlso: `%s`\n", strings.Join(cmd.Aliases, "`, `"))
	}
	if flags := cmd.NonInheritedFlags(); flags.HasAvailableFlags() {
		b.WriteString("\n" + block("", flags.FlagUsagesWrapped(helpColumns)))
	}
	b.WriteString("\nExamples:\n\n" + block("sh", cmd.Example))
}

// block is text in a block of code, without the indent that all its lines share.
func block(language, text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	indent := len(lines[0])
	for _, line := range lines {
		if line != "" {
			indent = min(indent, len(line)-len(strings.TrimLeft(line, " ")))
		}
	}
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], strings.Repeat(" ", indent))
	}
	return "```" + language + "\n" + strings.Join(lines, "\n") + "\n```\n"
}
