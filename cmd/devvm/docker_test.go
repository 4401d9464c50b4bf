package main

import (
	"os"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/ui"
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

// The word docker is the command's name only where it is no flag's value.
func TestDockerFlags(t *testing.T) {
	for line, want := range map[string]string{
		"docker --version":                       "docker -- --version",
		"docker ps --all":                        "docker ps --all",
		"docker -n --version":                    "docker -n -- --version",
		"docker -C dir --version":                "docker -C dir -- --version",
		"docker docker --version":                "docker docker --version",
		"docker --help":                          "docker --help",
		"docker -v":                              "docker -- -v",
		"docker":                                 "docker",
		"-v docker --version":                    "-v docker -- --version",
		"-C docker docker --version":             "-C docker docker -- --version",
		"-Cdocker docker --version":              "-Cdocker docker -- --version",
		"--directory docker docker --version":    "--directory docker docker -- --version",
		"--directory=docker docker --version":    "--directory=docker docker -- --version",
		"--project docker docker -C docker -H x": "--project docker docker -C docker -- -H x",
		"-C docker status --version":             "-C docker status --version",
		"-C docker":                              "-C docker",
		"--nope docker docker --version":         "--nope docker docker -- --version",
		"snapshot create docker --version":       "snapshot create docker --version",
	} {
		root := newApp(&ui.Streams{}, os.Getenv, nil).newRootCmd()
		if got := strings.Join(dockerFlags(root, strings.Fields(line)), " "); got != want {
			t.Errorf("devvm %s: %s, want %s", line, got, want)
		}
	}
}
