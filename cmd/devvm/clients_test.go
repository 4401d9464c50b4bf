package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestClientsDoc: each command that docs/clients.md says make clients runs is a line of a case.
func TestClientsDoc(t *testing.T) {
	cases, err := filepath.Glob(filepath.Join("testdata", "clients", "*.txtar"))
	if err != nil || len(cases) == 0 {
		t.Fatal(cases, err)
	}
	lines := map[string]bool{}
	for _, file := range cases {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			lines[strings.TrimSpace(line)] = true
		}
	}
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "clients.md"))
	if err != nil {
		t.Fatal(err)
	}
	tested, commands := false, 0
	for line := range strings.Lines(string(doc)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "```"):
			tested = line == "```sh"
		case tested:
			commands++
			if !lines[line] {
				t.Errorf("no case of testdata/clients has the line %q", line)
			}
		}
	}
	if commands == 0 {
		t.Error("the page has no tested command")
	}
}
