package ui

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNarrowTable(t *testing.T) {
	rows := [][]string{
		{"NAME", "ADDRESSES", "STATE", "DIRECTORY"},
		{"web", "127.0.0.1:8080,[::1]:8080,127.3.4.5:8080", "open", "/home/me/projects/app"},
		{"database", "127.0.0.1:5432", "taken by another", ""},
	}
	for columns, want := range map[int]string{
		0: `
NAME      ADDRESSES                                 STATE             DIRECTORY
web       127.0.0.1:8080,[::1]:8080,127.3.4.5:8080  open              /home/me/projects/app
database  127.0.0.1:5432                            taken by another  -
`,
		200: `
NAME      ADDRESSES                                 STATE             DIRECTORY
web       127.0.0.1:8080,[::1]:8080,127.3.4.5:8080  open              /home/me/projects/app
database  127.0.0.1:5432                            taken by another  -
`,
		80: `
NAME      ADDRESSES                      STATE             DIRECTORY
web       127.0.0.1:8080,[::1]:8080,     open              /home/me/projects/app
          127.3.4.5:8080
database  127.0.0.1:5432                 taken by another  -
`,
		60: `
NAME      ADDRESSES        STATE       DIRECTORY
web       127.0.0.1:8080,  open        /home/me/projects/app
          [::1]:8080,
          127.3.4.5:8080
database  127.0.0.1:5432   taken by    -
                           another
`,
		40: `
NAME      ADDRESSES        STATE
  DIRECTORY
web       127.0.0.1:8080,  open
          [::1]:8080,
          127.3.4.5:8080
  /home/me/projects/app
database  127.0.0.1:5432   taken by
                           another
  -
`,
		5: `
NAME
  ADDRESSES
  STATE
  DIRECTORY
web
  127.0.0.1:8080,[::1]:8080,127.3.4.5:8080
  open
  /home/me/projects/app
database
  127.0.0.1:5432
  taken
    by
    another
  -
`,
	} {
		s, _, out, _ := Test()
		s.Columns = columns
		table := s.Table(rows[0]...)
		for _, row := range rows[1:] {
			table.Row(row...)
		}
		if err := table.Flush(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), out.String()); diff != "" {
			t.Errorf("%d columns:\n%s", columns, diff)
		}
	}
}

func TestFill(t *testing.T) {
	got := Fill("one two\nthree four five\n\n  as it is, as it is\nsix\n", 13)
	if want := "one two three\nfour five\n\n  as it is, as it is\nsix\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		line        string
		width, hang int
		want        string
	}{
		{"as it is", 0, 2, "as it is"},
		{"as it is", 8, 2, "as it is"},
		{"as it is", 7, 2, "as it\n  is"},
		{"dir       /a/very/long/path that goes on", 20, 10, "dir       /a/very/long/path\n          that goes\n          on"},
		{"  indented words go on", 12, 4, "  indented\n    words go\n    on"},
		{"unbreakable", 4, 2, "unbreakable"},
		{"世界 世界", 5, 0, "世界\n世界"},
		{"", 4, 2, ""},
	} {
		if got := wrap(c.line, c.width, c.hang); got != c.want {
			t.Errorf("wrap(%q, %d, %d) = %q, want %q", c.line, c.width, c.hang, got, c.want)
		}
	}
}
