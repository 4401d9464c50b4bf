package state

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

// ReadAgreed returns what the user has agreed to; fs.ErrNotExist if there is no file. With
// any other error it is grant.Nothing.
func (f Files) ReadAgreed(dir string) (grant.Grant, error) {
	b, err := os.ReadFile(f.Agreed())
	if err != nil {
		return grant.Nothing(dir), err
	}
	return grant.Parse(dir, b)
}

// WriteAgreed keeps what the user has agreed to, also over a power cut.
func (f Files) WriteAgreed(g grant.Grant) error {
	b, err := g.Text()
	if err != nil {
		return err
	}
	if was, err := os.ReadFile(f.Agreed()); err == nil && string(was) == string(b) {
		return nil
	}
	if err := file.Replace(f.Agreed(), b, 0o600); err != nil {
		return err
	}
	if err := os.Remove(f.formerMounts()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("save what you agreed to: %w", err)
	}
	return file.Sync(f.Root)
}

// formerMounts is where a devvm before agreed.json has kept directories that were agreed to.
func (f Files) formerMounts() string { return filepath.Join(f.Root, "mounts.json") }

// ReadFormerly returns what was agreed to with a devvm before agreed.json: a policy of the
// network, which is the one that the VM has, and directories.
func (f Files) ReadFormerly(own, wanted grant.Grant) (grant.Grant, bool) {
	policy, err := f.ReadPolicy()
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

// Formerly is what counts as agreed to for a project of a devvm before agreed.json: the
// network that its VM has. Its size is not known, and counts as none.
func (f Files) Formerly(dir string) grant.Grant {
	g := grant.Nothing(dir)
	if policy, err := f.ReadPolicy(); err == nil {
		g = g.WithPolicy(policy)
	}
	return g
}
