package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

// What a VM proposes is typed into a shell.
func TestWordsOfVM(t *testing.T) {
	words, directive := wordsOfVM("ps\tList containers\nrun\tRun\x1b[2Jit\n$(touch x)\n`x`\na b\n-x\n--rm\n;\n\x1b[31mred\nname:tag\n\n:36\n")
	want := []cobra.Completion{"ps\tList containers", "run\tRun\\x1b[2Jit", "name:tag"}
	if diff := cmp.Diff(want, words); diff != "" || directive != cobra.ShellCompDirectiveNoFileComp {
		t.Errorf("directive %d, words\n%s", directive, diff)
	}
	for said, want := range map[string]cobra.ShellCompDirective{"": 0, ":": 0, ":x\n": 0, ":1\n": 0, ":16\n": 0, ":6": 6, ":-1\n": 6} {
		if _, got := wordsOfVM(said); got != want {
			t.Errorf("%q: directive %d, want %d", said, got, want)
		}
	}
	h := &head{most: 4}
	for range 3 {
		if n, err := h.Write([]byte("abc")); n != 3 || err != nil {
			t.Fatal(n, err)
		}
	}
	if h.String() != "abca" {
		t.Errorf("%q", h)
	}
}
