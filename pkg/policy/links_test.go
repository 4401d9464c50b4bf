package policy

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

var (
	fence   = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
	link    = regexp.MustCompile(`(?:\]\(|\bsrc(?:set)?=")([^()\s"]+)[)"]`)
	named   = regexp.MustCompile("`((?:pkg|cmd|images|examples|\\.ci)/[A-Za-z0-9_./-]+)")
	heading = regexp.MustCompile(`(?m)^#+ +(.+?) *#*$`)
)

// TestLinks: every relative link of the documents leads to a file and a heading that exist, and
// every file of the source that they name is there.
func TestLinks(t *testing.T) {
	top := filepath.Join("..", "..")
	seen := 0
	for _, pattern := range []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "examples/*.md", "examples/*/*.md"} {
		files, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %q, %v", pattern, files, err)
		}
		for _, name := range files {
			for _, target := range links(t, name) {
				seen++
				if err := follow(t, name, target); err != nil {
					t.Errorf("%s: %s: %v", name, target, err)
				}
			}
			for _, m := range named.FindAllStringSubmatch(prose(t, name), -1) {
				seen++
				if _, err := os.Stat(filepath.Join(top, m[1])); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
	if seen < 50 {
		t.Errorf("only %d links were read", seen)
	}
}

// links are the relative links of a document.
func links(t *testing.T, name string) []string {
	t.Helper()
	var relative []string
	for _, m := range link.FindAllStringSubmatch(prose(t, name), -1) {
		if !strings.Contains(m[1], "://") {
			relative = append(relative, m[1])
		}
	}
	return relative
}

func follow(t *testing.T, from, target string) error {
	t.Helper()
	path, anchor, _ := strings.Cut(target, "#")
	file := from
	if path != "" {
		file = filepath.Join(filepath.Dir(from), filepath.FromSlash(path))
	}
	if _, err := os.Stat(file); err != nil {
		return err
	}
	if anchor != "" && !anchors(prose(t, file))[anchor] {
		return fmt.Errorf("%s has no such heading", file)
	}
	return nil
}

// prose is a document without its code blocks.
func prose(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return fence.ReplaceAllString(string(text), "")
}

// anchors are those that GitHub gives to a document's headings: letters, digits, hyphens and
// underscores stay, a space becomes a hyphen, and a heading that repeats gets a number.
func anchors(text string) map[string]bool {
	found := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		slug := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, link.ReplaceAllString(m[1], ""))
		anchor := slug
		for n := 1; found[anchor]; n++ {
			anchor = fmt.Sprintf("%s-%d", slug, n)
		}
		found[anchor] = true
	}
	return found
}

// TestAnchors is the control of TestLinks: what must not be found is not.
func TestAnchors(t *testing.T) {
	found := anchors("# devvm.toml\n## `bind_guard` and [a link](x.md)\n## Twice\n## Twice\nno # heading\n")
	for _, anchor := range []string{"devvmtoml", "bind_guard-and-a-link", "twice", "twice-1"} {
		if !found[anchor] {
			t.Errorf("no %s in %v", anchor, found)
		}
	}
	if len(found) != 4 {
		t.Errorf("%v", found)
	}
	name := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(name, []byte("# Here\n[a](b.md) [c](#here) [d](#there)\n```\n[not](this.md)\n```\n[web](https://example.org/x.md)\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := links(t, name)
	if strings.Join(got, " ") != "b.md #here #there" {
		t.Fatalf("%q", got)
	}
	for target, want := range map[string]bool{"b.md": false, "#here": true, "#there": false} {
		if err := follow(t, name, target); (err == nil) != want {
			t.Errorf("%s: %v", target, err)
		}
	}
}
