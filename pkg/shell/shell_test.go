package shell

import (
	"os/exec"
	"testing"
)

func TestQuote(t *testing.T) {
	for word, want := range map[string]string{
		"":                  "''",
		"plain-1.2/a:b@c,+": "plain-1.2/a:b@c,+",
		"~":                 "'~'",
		"a b":               "'a b'",
		"it's":              `'it'\''s'`,
		"$x`y`\\":           "'$x`y`\\'",
		"ü":                 "'ü'",
		"a=b":               "'a=b'",
		"line\nline":        "'line\nline'",
	} {
		got := Quote(word)
		if got != want {
			t.Errorf("%q: %s", word, got)
		}
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf %s "+got).Output()
		if err != nil || string(out) != word {
			t.Errorf("%q: sh reads %q, %v", word, out, err)
		}
	}
}

func TestFish(t *testing.T) {
	for word, want := range map[string]string{"": "''", "a b": "'a b'", `it's \n`: `'it\'s \\n'`} {
		if got := quoteFish(word); got != want {
			t.Errorf("%q: %s", word, got)
		}
	}
}

func TestVariables(t *testing.T) {
	for got, want := range map[string]string{
		Export("zsh", "A", "it's"):  `export A='it'\''s'`,
		Export("fish", "A", "it's"): `set -gx A 'it\'s';`,
		Unset("bash", "A"):          "unset A",
		Unset("fish", "A"):          "set -e A;",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestDetect(t *testing.T) {
	login := func(path string) func(string) string { return func(string) string { return path } }
	for path, want := range map[string]string{"/usr/bin/fish": "fish", "/opt/odd": "sh", "": "sh"} {
		if got := Detect(login(path), -1); got != want || !Known(got) {
			t.Errorf("%q: %s", path, got)
		}
	}
	if Known("odd") {
		t.Error("odd is known")
	}
}
