package main

import (
	"strings"
	"testing"
)

func TestNamesHere(t *testing.T) {
	for line, want := range map[string]bool{
		"ps": false, "build -t x -": false, "run -v /a:/b x": false, "run --rm x .hidden": false, "": false,
		"build .": true, "compose up": true, "run -v .:/src x": true, "run -v ./a:/b x": true, "build -f ../Dockerfile -": true, "run --volume=./a:/b x": true,
	} {
		if got := namesHere(strings.Fields(line)); got != want {
			t.Errorf("docker %s: %v", line, got)
		}
	}
}
