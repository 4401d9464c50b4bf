package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestPictures: the pictures are what the recording makes, and no larger than a README's should be.
func TestPictures(t *testing.T) {
	cast, err := os.ReadFile("session.cast")
	if err != nil {
		t.Fatal(err)
	}
	pictures, err := draw(cast)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range pictures {
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not the picture of session.cast; make picture draws it", name)
		}
		if len(got) > 100_000 {
			t.Errorf("%s has %d bytes", name, len(got))
		}
	}
}

// cast is a recording of these bytes in a terminal of 20 columns and 4 rows.
func cast(said string) []byte {
	return []byte(`{"version": 2, "width": 20, "height": 4}` + "\n" + `[0.1, "i", "typed"]` + "\n" + `[0.2, "o", "` + said + `"]` + "\n")
}

func TestDraw(t *testing.T) {
	tests := []struct {
		name, said string
		want       []string // the text elements
	}{
		{"lines", `$ a  b\r\n\r\nc  \r\n`, []string{"$ a  b", "c"}},
		{"markup", `<a> & \"b\"`, []string{`<a> & "b"`}},
		{"styles", `$ \u001b[1mup\u001b[m: \u001b[31mred\u001b[m`, []string{"$", "up", ":", "red"}},
		{"written over", `boot: 1s\r\u001b[Kboot: done\r\ngone\r\u001b[J$`, []string{"boot: done", "$"}},
		{"a question to the terminal", `\u001b[6n$`, []string{"$"}},
		{"wide", `日本 x`, []string{"日本 x"}},
		{"wrapped", strings.Repeat("x", 25), []string{strings.Repeat("x", 20), "xxxxx"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			pictures, err := draw(cast(test.said))
			if err != nil {
				t.Fatal(err)
			}
			for _, theme := range themes {
				if got := texts(t, pictures[theme.file]); !slices.Equal(got, test.want) {
					t.Errorf("%s: got %q, want %q", theme.file, got, test.want)
				}
			}
		})
	}
}

func TestDrawRefuses(t *testing.T) {
	for name, recording := range map[string][]byte{
		"empty":       nil,
		"no JSON":     []byte("$ devvm up\n"),
		"version":     []byte(`{"version": 1, "width": 80, "height": 24}`),
		"no event":    []byte(`{"version": 2, "width": 80, "height": 24}` + "\n[1]\n{}"),
		"scrolled":    cast(`1\r\n2\r\n3\r\n4\r\n5`),
		"full screen": cast(`\u001b[?1049h1`),
		"underlined":  cast(`\u001b[4m1`),
		"reversed":    cast(`\u001b[7m1`),
		"256 colours": cast(`\u001b[38;5;200m1`),
		"background":  cast(`\u001b[41m1`),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := draw(recording); err == nil {
				t.Error("no error")
			}
		})
	}
}

// texts are what the text elements of an SVG say.
func texts(t *testing.T, svg []byte) []string {
	t.Helper()
	var all []string
	in := false
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			in = token.Name.Local == "text"
		case xml.EndElement:
			in = false
		case xml.CharData:
			if in {
				all = append(all, string(token))
			}
		}
	}
}
