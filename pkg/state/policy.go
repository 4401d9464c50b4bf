package state

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/file"
)

// The policy that a VM's network process enforces is kept in egress.json, from where the
// process takes it when it starts. It is one that the user has agreed to.

// ReadPolicy returns the policy that the network process has, or starts with; fs.ErrNotExist
// if there never was any. A file that cannot be understood allows nothing.
func (f Files) ReadPolicy() (egress.Policy, error) {
	b, err := os.ReadFile(f.Egress())
	if err != nil {
		return egress.Policy{}, err
	}
	var p egress.Policy
	if json.Unmarshal(b, &p) != nil {
		p = egress.Policy{}
	}
	return p, nil
}

// WritePolicy keeps the policy that the network process is to have.
func (f Files) WritePolicy(p egress.Policy) error {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", f.Egress(), err)
	}
	return file.Replace(f.Egress(), append(b, '\n'), 0o600)
}
