package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/doctor"
)

const module = "github.com/devvm/devvm"

// source is one Go file of the repository.
type source struct {
	path string // slash-separated, from the top of the repository
	test bool
	*ast.File
}

// sources parses each Go file, whatever its build tags say.
func sources(t *testing.T) []source {
	t.Helper()
	top := filepath.Join("..", "..")
	var files []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && name != top):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(name) != ".go":
			return nil
		}
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, name)
		if err != nil {
			return err
		}
		files = append(files, source{path: filepath.ToSlash(rel), test: strings.HasSuffix(name, "_test.go"), File: f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestPackageDoc(t *testing.T) {
	docs := map[string][]string{} // directory → files with a package doc
	for _, f := range sources(t) {
		if f.test {
			if f.Doc != nil {
				t.Errorf("%s: a package doc belongs to the package, not to its tests", f.path)
			}
			continue
		}
		dir := path.Dir(f.path)
		if _, ok := docs[dir]; !ok {
			docs[dir] = nil
		}
		if f.Doc == nil {
			continue
		}
		docs[dir] = append(docs[dir], f.path)
		want := "Package " + f.Name.Name + " "
		if f.Name.Name == "main" {
			want = "Command " + path.Base(dir) + " "
		}
		if !strings.HasPrefix(f.Doc.Text(), want) {
			t.Errorf("%s: the package doc must begin with %q", f.path, want)
		}
	}
	for dir, files := range docs {
		if len(files) != 1 {
			t.Errorf("%s: want one package doc, have %d: %q", dir, len(files), files)
		}
	}
}

// The same rules stand in .golangci.yml; this is the part that needs no linter.
var imports = []struct {
	prefix string   // import path, and all below it
	only   []string // directories that may, with all below them
	why    string
}{
	{"github.com/digitalocean/go-libvirt", []string{"pkg/vm"}, "only pkg/vm speaks libvirt"},
	{"libvirt.org/go/libvirtxml", []string{"pkg/vm"}, "only pkg/vm writes domain XML"},
	{"golang.org/x/crypto/ssh", []string{"pkg/guest"}, "only pkg/guest speaks SSH"},
	{"gvisor.dev/gvisor", []string{"pkg/usernet"}, "only pkg/usernet holds a TCP/IP stack"},
	{"github.com/spf13", []string{"cmd/devvm"}, "only cmd/devvm knows of flags and commands"},
	{"C", nil, "devvm is one static binary"},
	{module + "/pkg/policy", nil, "it has no code"},
}

// mayImport says which others of ours each package may import, for its own code and that
// below it. Tests and fakes may try any together.
var mayImport = map[string][]string{
	"pkg/aide":          nil,
	"pkg/applied":       {"pkg/config", "pkg/file", "pkg/grant", "pkg/share"},
	"pkg/audit":         nil,
	"pkg/background":    {"pkg/lock"},
	"pkg/condition":     nil,
	"pkg/config":        {"pkg/egress", "pkg/shell", "pkg/trust"},
	"pkg/daemon":        {"pkg/background", "pkg/egress", "pkg/lock", "pkg/ports", "pkg/share", "pkg/state", "pkg/supervisor", "pkg/vm", "pkg/vmnet"},
	"pkg/disk":          nil,
	"pkg/dockercontext": nil,
	"pkg/dockerproxy":   {"pkg/relay"},
	"pkg/doctor":        {"pkg/shell", "pkg/trust", "pkg/ui", "pkg/vm"},
	"pkg/egress":        nil,
	"pkg/engine":        nil,
	"pkg/file":          nil,
	"pkg/grant":         {"pkg/config", "pkg/egress", "pkg/mounts"},
	"pkg/guard":         {"pkg/mounts", "pkg/share", "pkg/shell"},
	"pkg/guest":         {"pkg/file", "pkg/shell", "pkg/tree"},
	"pkg/image":         {"pkg/file", "images", "pkg/disk", "pkg/lock"},
	"pkg/lock":          nil,
	"pkg/machine": {
		"pkg/applied", "pkg/background", "pkg/config", "pkg/daemon", "pkg/disk", "pkg/egress", "pkg/engine", "pkg/file", "pkg/guest", "pkg/image", "pkg/share", "pkg/state",
		"pkg/subnet", "pkg/supervisor", "pkg/template", "pkg/ui", "pkg/vm", "pkg/vmnet",
	},
	"pkg/mounts": {"pkg/config", "pkg/share", "pkg/ui", "pkg/vmnet"},
	"pkg/policy": nil,
	"pkg/ports":  {"pkg/file", "pkg/relay"},
	"pkg/project": {
		"pkg/aide", "pkg/applied", "pkg/file",
		"pkg/audit", "pkg/background", "pkg/config", "pkg/daemon", "pkg/disk", "pkg/egress", "pkg/engine", "pkg/grant", "pkg/guard", "pkg/guest", "pkg/image", "pkg/lock",
		"pkg/machine", "pkg/mounts", "pkg/ports", "pkg/sandbox", "pkg/share", "pkg/shell", "pkg/state", "pkg/subnet", "pkg/supervisor", "pkg/template", "pkg/tree", "pkg/trust", "pkg/ui", "pkg/usernet", "pkg/vm", "pkg/vmnet",
	},
	"pkg/relay":      nil,
	"pkg/sandbox":    nil,
	"pkg/share":      nil,
	"pkg/shell":      nil,
	"pkg/state":      {"pkg/background", "pkg/file", "pkg/lock", "pkg/shell", "pkg/trust", "pkg/ui"},
	"pkg/subnet":     nil,
	"pkg/supervisor": {"pkg/background", "pkg/dockerproxy", "pkg/engine", "pkg/guard", "pkg/guest", "pkg/mounts", "pkg/ports", "pkg/share", "pkg/shell"},
	"pkg/template":   {"pkg/file", "pkg/lock"},
	"pkg/trust":      {"pkg/file", "pkg/shell"},
	"pkg/tree":       nil,
	"pkg/ui":         nil,
	"pkg/usernet":    {"pkg/background", "pkg/egress", "pkg/vmnet"},
	"pkg/vm":         {"pkg/file", "pkg/sandbox"},
	"pkg/vmnet":      {"pkg/egress"},
}

func below(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }

func TestImports(t *testing.T) {
	for _, f := range sources(t) {
		dir := path.Dir(f.path)
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			for _, rule := range imports {
				allowed := slices.ContainsFunc(rule.only, func(only string) bool { return below(dir, only) })
				if below(imported, rule.prefix) && !allowed {
					t.Errorf("%s imports %s: %s", f.path, imported, rule.why)
				}
			}
			if ours, ok := strings.CutPrefix(imported, module+"/"); ok && below(dir, "pkg") && !f.test && !isFake(dir) {
				own := strings.Join(strings.SplitN(dir, "/", 3)[:2], "/")
				others, known := mayImport[own]
				if !known || !below(ours, own) && !slices.Contains(others, ours) {
					t.Errorf("%s imports %s: mayImport does not say so of %s", f.path, ours, own)
				}
			}
			// Fakes are for tests, and for the fakes of other packages.
			if isFake(imported) && !f.test && !isFake(dir) {
				t.Errorf("%s imports %s: it is for tests", f.path, imported)
			}
		}
	}
}

// isFake tells by the name whether a package of ours holds fakes: vmtest, guesttest.
func isFake(name string) bool {
	return (strings.HasPrefix(name, module+"/") || strings.HasPrefix(name, "pkg/")) && strings.HasSuffix(name, "test")
}

func TestPackageNames(t *testing.T) {
	bad := regexp.MustCompile(`util|common|helper|misc|^lib$`)
	for _, f := range sources(t) {
		if bad.MatchString(f.Name.Name) {
			t.Errorf("%s: package %s: a package is a noun that says what it is about", f.path, f.Name.Name)
		}
	}
}

func TestNothingLeftOpen(t *testing.T) {
	// Spelled apart, so that this file passes.
	bad := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|X` + `XX)\b`)
	for _, f := range sources(t) {
		for _, group := range f.Comments {
			if found := bad.FindString(group.Text()); found != "" {
				t.Errorf("%s: a comment says %s: do it, or open an issue", f.path, found)
			}
		}
	}
}

// TestHostSetup compares the packages that .ci/host-setup installs with those that
// `devvm doctor` asks for.
func TestHostSetup(t *testing.T) {
	script, err := os.ReadFile(filepath.Join("..", "..", ".ci", "host-setup"))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []doctor.OS{{ID: "debian", Version: "12"}, {ID: "debian", Version: "13"}, {ID: "ubuntu", Version: "24.04"}} {
		for _, root := range []bool{false, true} {
			for _, p := range doctor.Packages(o, root) {
				if !regexp.MustCompile(`(?m)(^|")` + regexp.QuoteMeta(p.Name) + `\|`).Match(script) {
					t.Errorf("%s %s: .ci/host-setup does not know %s", o.ID, o.Version, p.Name)
				}
			}
		}
	}
}

// licences are the ones that we link with, by the words that tell them.
var licences = []struct {
	id    string
	words []string
}{
	{"Apache-2.0", []string{"Apache License", "Version 2.0"}},
	{"MPL-2.0", []string{"Mozilla Public License", "2.0"}},
	{"MIT", []string{"Permission is hereby granted, free of charge", "the above copyright notice and this permission notice"}},
	{"BSD", []string{"Redistribution and use in source and binary forms", "provided that the following conditions are met"}},
	{"ISC", []string{"Permission to use, copy, modify", "distribute this software for any purpose"}},
	{"Unlicense", []string{"This is free and unencumbered software released into the public domain"}},
}

// licence names the licence of a text, or returns "".
func licence(text string) string {
	quoted := func(word string) bool { return word == ">" } // as blackfriday's is, in its text
	text = strings.Join(slices.DeleteFunc(strings.Fields(text), quoted), " ")
	for _, l := range licences {
		if !slices.ContainsFunc(l.words, func(w string) bool { return !strings.Contains(strings.ToLower(text), strings.ToLower(w)) }) {
			return l.id
		}
	}
	return ""
}

func TestLicences(t *testing.T) {
	type goModule struct {
		Path, Version, Dir string
		Main               bool
	}
	// A cached result of this test must not outlive a change of the dependencies.
	if _, err := os.ReadFile(filepath.Join("..", "..", "go.mod")); err != nil {
		t.Fatal(err)
	}
	// What the binary and the tests link, not what go.sum has heard of.
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-test", "-tags=vmtest", "-json=Module", "./...")
	cmd.Dir = filepath.Join("..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	linked := map[string]goModule{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct{ Module *goModule }
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if p.Module != nil && !p.Module.Main {
			linked[p.Module.Path] = *p.Module
		}
	}
	if len(linked) < 10 {
		t.Fatalf("go list found %d modules only", len(linked))
	}
	for _, m := range linked {
		var found []string
		entries, err := os.ReadDir(m.Dir)
		if err != nil {
			t.Errorf("%s@%s: %v", m.Path, m.Version, err)
			continue
		}
		for _, e := range entries {
			name := strings.ToUpper(e.Name())
			if e.IsDir() || !strings.HasPrefix(name, "LICENSE") && !strings.HasPrefix(name, "LICENCE") && !strings.HasPrefix(name, "COPYING") && name != "UNLICENSE" {
				continue
			}
			text, err := os.ReadFile(filepath.Join(m.Dir, e.Name()))
			if err != nil {
				t.Error(err)
				continue
			}
			found = append(found, licence(string(text)))
		}
		if !slices.ContainsFunc(found, func(id string) bool { return id != "" }) {
			t.Errorf("%s@%s: its licence is not one of those that we accept (found %q)", m.Path, m.Version, found)
			continue
		}
		t.Logf("%-60s %s", m.Path, strings.Join(found, " "))
	}
}

// TestAdvice: which group opens a device or a socket depends on the host, so only doctor,
// which looks, tells people to join one. All else tells them to run devvm doctor.
func TestAdvice(t *testing.T) {
	top := filepath.Join("..", "..")
	var files []string
	for _, pattern := range []string{"*.md", "Makefile", ".ci/*", "docs/*", "examples/*/*", "cmd/*/*.go", "pkg/*/*.go"} {
		found, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	advice := regexp.MustCompile(`usermod -aG|gpasswd -a|adduser .*(kvm|libvirt)|chmod (666|777) /`)
	seen := 0
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil || strings.HasSuffix(name, "_test.go") {
			continue // a directory
		}
		seen++
		for n, line := range strings.Split(string(text), "\n") {
			// What the tests' scripts run for a user of their own is no advice.
			run := strings.HasSuffix(line, `usermod -aG kvm "$user"`)
			if advice.MatchString(line) && !run && filepath.Base(filepath.Dir(name)) != "doctor" {
				t.Errorf("%s:%d: %s", name, n+1, strings.TrimSpace(line))
			}
		}
	}
	if seen < 100 {
		t.Errorf("only %d files were read", seen)
	}
}
