package share_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCore: the core (RPC and NFS) uses nothing of what tells the VM of the host's changes. It
// knows that as an observer, and share.go puts both together.
func TestCore(t *testing.T) {
	beyond := []string{"mirror.go", "ahead.go", "phantom.go", "fresh.go", "agent.go", "tuning.go"}
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parser.ParseFile(fset, name, source, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	// Without what the package imports there are errors, but each name of its own is found.
	found := types.Info{Uses: map[*ast.Ident]types.Object{}}
	config := types.Config{Error: func(error) {}}
	_, _ = config.Check("share", fset, files, &found)
	own := 0
	for id, object := range found.Uses {
		if object.Pkg() == nil || object.Pkg().Path() != "share" || !object.Pos().IsValid() {
			continue
		}
		own++
		at, of := fset.Position(id.Pos()), fset.Position(object.Pos())
		if slices.Contains(beyond, of.Filename) && !slices.Contains(append(beyond, "share.go"), at.Filename) {
			t.Errorf("%s:%d: %s is of %s", at.Filename, at.Line, id.Name, of.Filename)
		}
	}
	if own < 3000 {
		t.Errorf("only %d uses of the package's own names were found", own)
	}
}
