package project

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/sandbox"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/state"
)

// Paths that TestPolicies tries in a child process.
const policyEnv = "PROJECT_TEST_POLICY"

// TestPoliciesInSandbox is the process in the sandbox of TestPolicies. It prints what it can
// read and write.
func TestPoliciesInSandbox(t *testing.T) {
	kind, home, ok := strings.Cut(os.Getenv(policyEnv), " ")
	if !ok {
		t.Skip("for TestPolicies")
	}
	s, paths := policyHost(t, home)
	var p sandbox.Policy
	var err error
	switch kind {
	case "net":
		p = NetPolicy(s.Dirs, "one")
	case "supervisor":
		p, err = s.SupervisorPolicy("one")
	}
	if err == nil && kind != "control" {
		_, err = sandbox.Enter(p)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		can := ""
		if _, err := os.ReadFile(path); err == nil {
			can += "r"
		}
		if f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0); err == nil {
			f.Close()
			can += "w"
		}
		rel, err := filepath.Rel(home, path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("can %s %s\n", rel, can)
	}
}

// policyHost is a host with two projects and a home of their user.
func policyHost(t *testing.T, home string) (*Service, []string) {
	t.Helper()
	s := &Service{Env: machine.Env{Dirs: state.Dirs{
		Data: filepath.Join(home, "data"), Runtime: filepath.Join(home, "run"), Config: filepath.Join(home, "config"),
	}}}
	var paths []string
	for _, name := range []string{
		".ssh/id_test", "config/config.toml", "data/projects/one/applied.json", "data/projects/two/applied.json",
		"data/projects/two/vm/disk.qcow2", "src/one/file", "src/read-only/file", "src/two/file",
	} {
		paths = append(paths, filepath.Join(home, name))
	}
	return s, paths
}

// TestPolicies: a process in the sandbox of a project's network process or supervisor has
// the project's files and no others; out of it, it has them all.
func TestPolicies(t *testing.T) {
	if abi, err := sandbox.Supported(); err != nil {
		t.Skipf("Landlock's ABI here is %d, %v", abi, err)
	}
	home, err := os.MkdirTemp("/var/tmp", "policies") //nolint:usetesting // nothing of a policy is above it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	s, paths := policyHost(t, home)
	for _, path := range paths {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := s.Dirs.Files("one")
	record := applied.Record{Start: &applied.Start{Config: config.Default(config.Env{}), Exports: []share.Export{
		{Source: filepath.Join(home, "src/one"), Target: "/one", Writable: true},
		{Source: filepath.Join(home, "src/read-only"), Target: "/ro"},
	}}}
	if err := record.Write(f.Applied()); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteRecord(filepath.Join(home, "src/one")); err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[string]string{
		"control":    "rw rw rw rw rw rw rw rw",
		"net":        "- - - - - - - -",
		"supervisor": "- r rw - - rw r -",
	} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestPoliciesInSandbox$", "-test.v")
		cmd.Env = append(os.Environ(), policyEnv+"="+kind+" "+home)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", kind, err, out)
		}
		var got []string
		for line := range strings.Lines(string(out)) {
			if rest, ok := strings.CutPrefix(line, "can "); ok {
				_, can, _ := strings.Cut(strings.TrimSuffix(rest, "\n"), " ")
				if can == "" {
					can = "-"
				}
				got = append(got, can)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: got %q, want %q\n%s", kind, got, want, out)
		}
	}
}
