//go:build vmtest

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestVMSandbox is that a VM's processes are in their sandboxes. What these let through is
// pkg/vm's test of the same name and pkg/project's TestPolicies.
func TestVMSandbox(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("QEMU runs as a user of its own")
	}
	runVMScripts(t, "sandbox")
}

var (
	noNewPrivileges = regexp.MustCompile(`(?m)^NoNewPrivs:\t1$`)
	filters         = regexp.MustCompile(`(?m)^Seccomp_filters:\t(\d+)$`)
)

// cmdConfined: confined fails unless each thread of the VM's processes has given up
// system calls; QEMU twice, once by itself.
func cmdConfined(ts *testscript.TestScript, _ bool, _ []string) {
	name := projectName(ts)
	for kind, least := range map[string]string{"devvm net": "1", "devvm supervisor": "1", "qemu-system": "2"} {
		pids := vmProcesses(kind, name)
		if len(pids) != 1 {
			ts.Fatalf("%d processes are %s", len(pids), kind)
		}
		threads, err := filepath.Glob("/proc/" + pids[0] + "/task/*/status")
		ts.Check(err)
		for _, path := range threads {
			b, err := os.ReadFile(path)
			if err != nil {
				continue // it has ended
			}
			if m := filters.FindSubmatch(b); !noNewPrivileges.Match(b) || m == nil || string(m[1]) < least {
				ts.Fatalf("%s: a thread is not confined:\n%s", kind, string(b))
			}
		}
	}
}
