package config

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/template"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite docs/devvm.toml.md and the golden files")

// The reference is made from the same table as the code.
func TestReference(t *testing.T) {
	tmpl, err := template.New("reference.md.tmpl").Funcs(template.FuncMap{
		"anchor": func(s string) string { return strings.ReplaceAll(s, ".", "") },
		"code": func(k Key) string {
			heading, _ := splitKey(k.Name)
			if k.Name == "docker.daemon" {
				heading = k.Name
			}
			if heading == "" {
				return k.Example
			}
			return "[" + heading + "]\n" + k.Example
		},
		"asked": func(k Key) string {
			if k.Consent == ConsentReach {
				return "`devvm up` asks about more than your own file says, or than you agreed to last."
			}
			return "`devvm up` asks about more than you agreed to last. The first one accepts what it finds."
		},
		"example": func() string {
			return `cpus = 2
memory = "3GiB"

[docker.daemon]
log-level = "info"

[provision]
packages = ["git"]`
		},
	}).ParseFiles("testdata/reference.md.tmpl")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tmpl.Execute(&b, Keys()); err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join("..", "..", "docs", "devvm.toml.md"), b.String())

	// Every code block in it is valid.
	for i, block := range strings.Split(b.String(), "```toml\n")[1:] {
		text, _, ok := strings.Cut(block, "\n```")
		if !ok {
			t.Fatalf("block %d does not end", i)
		}
		if _, err := apply(Default(bigHost), "reference", text, bigHost, true); err != nil {
			t.Errorf("%v in\n%s", err, text)
		}
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s is out of date; go test ./pkg/config -update\n%s", path, diff)
	}
}

func TestExample(t *testing.T) {
	example := Example()
	golden(t, "testdata/example.toml", example)
	if _, err := apply(Default(bigHost), "example", example, bigHost, false); err != nil {
		t.Error(err)
	}
	// With the comment signs removed it is valid too, and names every key.
	text := uncomment(example)
	c, err := apply(Default(bigHost), "example", text, bigHost, false)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	for _, k := range Keys() {
		if got := c.Origin(k.Name) != "default"; got == k.UserOnly {
			t.Errorf("%s: in the example: %v", k.Name, got)
		}
		if k.Brief == "" || k.Doc == "" || k.Type == "" || k.Default == "" || k.Applies == AppliesUnset || k.Example == "" {
			t.Errorf("%s is not documented", k.Name)
		}
	}
	// For simple keys, the example shows the default on a large host.
	d := Default(bigHost)
	if c.Image != d.Image || c.CPUs != d.CPUs || c.Memory != d.Memory || c.Disk != d.Disk || c.NetworkMode != d.NetworkMode {
		t.Errorf("the example does not show the defaults: %+v", c)
	}
	for i, line := range strings.Split(example, "\n") {
		if len(line) > 100 {
			t.Errorf("line %d is longer than 100 bytes", i+1)
		}
	}
}

func TestTemplate(t *testing.T) {
	for _, cpus := range []int{1, 2, bigHost.CPUs} { // the template of init works on a small host too
		host := bigHost
		host.CPUs = cpus
		for _, text := range []string{Template(cpus), uncomment(Template(cpus))} {
			if _, err := apply(Default(host), "template", text, host, false); err != nil {
				t.Errorf("%d CPUs: %v in\n%s", cpus, err, text)
			}
		}
	}
}

func uncomment(text string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(text, "\n") {
		if !strings.HasPrefix(line, "# ") {
			line = strings.TrimPrefix(line, "#")
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}
