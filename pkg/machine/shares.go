package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vmnet"
)

// Shares is what a project's VM has of the host, as kept in shares.json.
type Shares struct {
	Exports    []share.Export `json:"exports"`
	Durable    bool           `json:"durable,omitempty"`
	Ignore     []string       `json:"ignore,omitempty"`
	HadExports bool           `json:"hadExports,omitempty"` // there were exports once
}

// FitsCredential tells whether a VM can be told of all these.
func FitsCredential(exports []share.Export) bool {
	return len(credentialOf(exports)) < credentialSizes[credentialShare]
}

// MountsByFirmware tells whether a VM is told by its firmware what to mount.
func MountsByFirmware(f state.Files) bool {
	return state.Exists(filepath.Join(f.Credentials(), credentialShare))
}

// credentialOf tells a VM what to mount.
func credentialOf(exports []share.Export) []byte {
	return supervisor.Share{Address: vmnet.Gateway, Exports: exports}.Credential()
}

// checkShares finds directories that a suspended VM has mounted and that are gone: without
// them nobody could serve the others.
func (m *Machine) checkShares() error {
	has, err := ReadShares(m.Files)
	if err != nil {
		return err
	}
	for _, e := range has.Exports {
		if !state.Exists(e.Source) {
			return &ui.Error{
				Msg:  fmt.Sprintf("the suspended VM uses %s of this host, which is gone", e.Source),
				Hint: "make the directory again and run devvm up, or start over: devvm nuke",
			}
		}
	}
	return nil
}

// Sharing says what of the host a VM is to have.
type Sharing interface {
	// Wanted is what the configuration asks for.
	Wanted() (Shares, error)
	// Granted is Wanted, if the user has agreed to all of it, with notes for the user.
	Granted() (Shares, []string, error)
}

// wantedShares is what the configuration asks for.
func (m *Machine) wantedShares() (Shares, error) {
	if m.Sharing == nil {
		return Shares{Exports: []share.Export{}}, nil
	}
	return m.Sharing.Wanted()
}

// writeShares writes down what the VM has from now on.
func (m *Machine) writeShares() error {
	all := Shares{Exports: []share.Export{}}
	if m.Sharing != nil {
		var notes []string
		var err error
		if all, notes, err = m.Sharing.Granted(); err != nil {
			return err
		}
		for _, note := range notes {
			m.Progress.Note("%s", note)
		}
	}
	before, err := ReadShares(m.Files)
	all.HadExports = err != nil || before.HadExports || len(all.Exports) > 0 // what is not known may have been
	text, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("write %s: %w", m.Files.Shares(), err)
	}
	return file.Replace(m.Files.Shares(), text, 0o600)
}

// ReadShares returns what writeShares has written last.
func ReadShares(f state.Files) (Shares, error) {
	var all Shares
	b, err := os.ReadFile(f.Shares())
	if errors.Is(err, fs.ErrNotExist) { // a VM of an older devvm
		return all, nil
	}
	if err != nil {
		return all, fmt.Errorf("read which files of the host the VM has: %w", err)
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return Shares{}, &ui.Error{
			Msg:  "devvm does not know which files of the host the VM has: " + f.Shares() + " is damaged",
			Hint: "take them from devvm.toml again: devvm up",
			Err:  err,
		}
	}
	return all, nil
}

// MendShares settles what a VM that runs or is suspended has of the host, if the file that
// says so is damaged: by devvm.toml, as when the VM started.
func (m *Machine) MendShares() error {
	_, err := ReadShares(m.Files)
	if err == nil {
		return nil
	}
	m.Progress.Warn("%v: taking them from %s", err, config.FileName)
	return m.writeShares()
}
