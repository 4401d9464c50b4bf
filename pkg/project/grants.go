package project

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/grant"
)

// readAgreed returns what the user has agreed to; fs.ErrNotExist if there is no file. With
// any other error it is grant.Nothing.
func (f paths) readAgreed(dir string) (grant.Grant, error) {
	b, err := os.ReadFile(f.agreed())
	if err != nil {
		return grant.Nothing(dir), err
	}
	return grant.Parse(dir, b)
}

// writeAgreed keeps what the user has agreed to, also over a power cut.
func (f paths) writeAgreed(g grant.Grant) error {
	b, err := g.Text()
	if err != nil {
		return err
	}
	if was, err := os.ReadFile(f.agreed()); err == nil && string(was) == string(b) {
		return nil
	}
	if err := file.Replace(f.agreed(), b, 0o600); err != nil {
		return err
	}
	if err := os.Remove(f.formerMounts()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("note what was agreed to: %w", err)
	}
	return file.Sync(f.root)
}

// formerMounts is where a devvm before agreed.json has kept directories that were agreed to.
func (f paths) formerMounts() string { return filepath.Join(f.root, "mounts.json") }

// readFormerly returns what was agreed to with a devvm before agreed.json: a policy of the
// network, which is the one that the VM has, and directories.
func (f paths) readFormerly(own, wanted grant.Grant) (grant.Grant, bool) {
	policy, err := f.readPolicy()
	if errors.Is(err, fs.ErrNotExist) {
		return grant.Grant{}, false
	}
	g := grant.First(own, wanted)
	if err != nil {
		policy = egress.Policy{}
	}
	g = g.WithPolicy(policy)
	var lines []string
	if b, err := os.ReadFile(f.formerMounts()); err == nil {
		_ = json.Unmarshal(b, &lines) // what cannot be understood grants nothing
	}
	for _, s := range wanted.Shares {
		if slices.Contains(lines, s.String()) {
			g.Shares = append(g.Shares, s)
		}
	}
	return g, true
}

// formerly is what counts as agreed to for a project of a devvm before agreed.json: the
// network that its VM has. Its size is not known, and counts as none.
func (f paths) formerly(dir string) grant.Grant {
	g := grant.Nothing(dir)
	if policy, err := f.readPolicy(); err == nil {
		g = g.WithPolicy(policy)
	}
	return g
}
