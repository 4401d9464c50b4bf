package main

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mattn/go-runewidth"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/audit"
	"github.com/devvm/devvm/pkg/doctor"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

var update = flag.Bool("update", false, "write the golden files, and the table of docs/scripting.md")

// tooWide are the lines that a terminal of so many columns breaks within words.
func tooWide(text string, columns int) []string {
	var all []string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if runewidth.StringWidth(line) > columns && len(strings.Fields(line)) > 1 {
			all = append(all, line)
		}
	}
	return all
}

// narrow COLUMNS [NAME] checks that nothing on the script's terminal is broken within a word: a line that
// is wider is one word, such as a path, behind a label. With a name it compares what was shown with testdata/narrow/terminal/NAME.txt.
func cmdNarrow(ts *testscript.TestScript, _ bool, args []string) {
	text := ts.ReadFile("ttyout")
	if len(args) == 0 || len(args) > 2 || args[0] != "80" || strings.TrimSpace(text) == "" {
		ts.Fatalf("usage: narrow 80 [NAME], after something was shown: %q", text)
	}
	for _, line := range tooWide(text, 80) {
		if words := strings.Fields(line); len(words) == 2 && strings.HasPrefix(words[1], "/") { // "dir /a/long/path"
			continue
		}
		ts.Fatalf("wider than a terminal: %q", line)
	}
	if len(args) == 2 {
		compareTerminal(ts, args[1], text)
	}
}

// varies matches what of a text is another at each run.
var varies = regexp.MustCompile(`-[0-9a-f]{8}\b|\b127\.\d+\.\d+\.\d+\b|\b[\d.]+ [KMG]?i?B\b`)

func compareTerminal(ts *testscript.TestScript, name, text string) {
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r", ""), ts.Getenv("WORK"), "$WORK")
	text = varies.ReplaceAllString(text, "…")
	file := filepath.Join(narrowDir, name+".txt")
	if *update {
		ts.Check(os.WriteFile(file, []byte(text), 0o600))
	}
	want, err := os.ReadFile(file)
	ts.Check(err)
	if diff := cmp.Diff(string(want), text); diff != "" {
		ts.Fatalf("%s (-update writes it):\n%s", file, diff)
	}
}

// narrowDir has what commands show on a terminal. Scripts run elsewhere, so it is absolute.
var narrowDir, _ = filepath.Abs("testdata/narrow/terminal")

// Help fits into 80 columns.
func TestNarrowHelp(t *testing.T) {
	streams, _, out, _ := ui.Test()
	root := newApp(streams, os.Getenv, nil).newRootCmd()
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Hidden {
			return
		}
		before := len(out.String())
		if err := cmd.Help(); err != nil {
			t.Fatal(err)
		}
		for _, line := range tooWide(out.String()[before:], 80) {
			t.Errorf("%s: %q", cmd.CommandPath(), line)
		}
		for _, below := range cmd.Commands() {
			walk(below)
		}
	}
	walk(root)
}

// What commands show is broken between words where the terminal is narrow.
func TestNarrow(t *testing.T) {
	at := netip.MustParseAddrPort
	report := ports.Report{Address: netip.MustParseAddr("127.77.201.14"), Most: 256, More: 3, Ports: []ports.Port{
		{Container: "shop-frontend-1", Port: 8080, Protocol: "tcp", State: ports.StateOpen, Connections: 3, Sent: 12 << 20, Received: 3 << 30, Addresses: []ports.Bound{
			{Address: at("127.0.0.1:8080"), State: ports.StateOpen}, {Address: at("[::1]:8080"), State: ports.StateOpen}, {Address: at("127.77.201.14:8080"), State: ports.StateOpen, Exposed: true},
		}},
		{Container: "shop-db-1", Port: 5432, Protocol: "tcp", State: "taken", Problem: "127.0.0.1:5432 is in use by postgres (pid 4711); the port is open on the project's own address, 127.77.201.14:5432"},
	}}
	status := project.Status{
		Project: "shop-1a2b3c4d", Dir: "/home/somebody/src/customers/a-long-name-of-a-customer/projects/shop", State: vm.StateRunning, Healthy: true, Engine: "26.1.5", Latency: 3,
		CPUs: 2, Memory: 4 << 30, Accel: vm.AccelTCG, DiskUsed: 3 << 30, UndoUsed: 1 << 30, Socket: "/run/user/1000/devvm/shop-1a2b3c4d/docker.sock",
		Problem: "provisioning failed, or has not finished (devvm logs --provision): there is no /home/somebody/.local/share/devvm/projects/shop-1a2b3c4d/vm/provisioned", Next: "devvm up",
		Supervisor: &supervisor.Status{
			Ports: 4, PortsPublished: 4, PortsNotOpen: 1, Alone: true, Room: &supervisor.Room{Room: guest.Room{Memory: 4 << 30, MemoryFree: 1 << 30, Disk: 60 << 30, DiskFree: 7 << 30, Inodes: 4 << 20, InodesFree: 3 << 20}},
			Files: []supervisor.Files{{Path: "/home/somebody/src/customers/shop", Writable: true, Transport: "nfs", Why: "the host offers no virtiofs here, which would be faster for many small files"}},
		},
	}
	verdict := audit.Report{User: "somebody", Findings: []audit.Finding{
		{Name: "listening sockets", Status: audit.OK, What: "12 sockets of devvm's listen, all on this host's loopback or on a unix socket of the user's"},
		{Name: "firewall", Status: audit.Unknown, What: "the rules cannot be read by this user", Meaning: "whether they are as before the first VM is not known; run the audit as root to compare them", Fix: "sudo devvm audit", Details: []string{"nft: operation not permitted, and neither iptables-save nor ip6tables-save is there"}},
	}}
	findings := []doctor.Finding{{Name: "user namespaces", Result: doctor.Result{Status: doctor.Warn, What: "this user may not make user namespaces: kernel.apparmor_restrict_unprivileged_userns is 1", Meaning: "an image cannot be built without root, only imported", Fix: "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"}}}
	for name, show := range map[string]func(*app) error{
		"ports":  func(a *app) error { return a.showPorts(report) },
		"status": func(a *app) error { showStatus(a.Lines(10), status); return nil },
		"audit":  func(a *app) error { return a.showAudit(verdict) },
		"doctor": func(a *app) error { a.showFindings(findings); return nil },
	} {
		streams, _, out, _ := ui.Test()
		streams.Columns = 80
		if err := show(newApp(streams, os.Getenv, nil)); err != nil {
			t.Fatal(err)
		}
		for _, line := range tooWide(out.String(), 80) {
			words := strings.Fields(line)
			if last := words[len(words)-1]; runewidth.StringWidth(last) < 40 && !strings.HasPrefix(words[0], "sudo") {
				t.Errorf("%s: %q", name, line)
			}
		}
		file := "testdata/narrow/" + name + ".txt"
		if *update {
			if err := os.WriteFile(file, []byte(out.String()), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), out.String()); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}
