package project

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
	"github.com/devvm/devvm/pkg/usernet"
)

// shared is what a project's VM has of the host, as kept in shares.json.
type shared struct {
	Exports []share.Export `json:"exports"`
	Durable bool           `json:"durable,omitempty"`
	Ignore  []string       `json:"ignore,omitempty"`
	Had     bool           `json:"had,omitempty"` // there were exports once
}

// fitsCredential tells whether a VM can be told of all these.
func fitsCredential(exports []share.Export) bool {
	return len(credentialOf(exports)) < credentialSizes[credentialShare]
}

// isToldShares tells whether a VM is told by its firmware what to mount.
func isToldShares(f state.Files) bool {
	return state.Exists(filepath.Join(f.Credentials(), credentialShare))
}

// credentialOf tells a VM what to mount.
func credentialOf(exports []share.Export) []byte {
	return supervisor.Share{Address: usernet.Gateway, Exports: exports}.Credential()
}

// checkShares finds directories that a suspended VM has mounted and that are gone: without
// them nobody could serve the others.
func (b *boot) checkShares() error {
	has, err := readShares(b.files)
	if err != nil {
		return err
	}
	for _, e := range has.Exports {
		if !state.Exists(e.Source) {
			return &ui.Error{
				Msg:  fmt.Sprintf("the suspended VM has %s of this host, and that is gone", e.Source),
				Hint: "make the directory again and run devvm up, or begin afresh: devvm nuke",
			}
		}
	}
	return nil
}

// sharing says what of the host a VM is to have.
type sharing interface {
	// Wanted is what the configuration asks for.
	Wanted() (shared, error)
	// Granted is Wanted, if the user has agreed to all of it, with notes for the user.
	Granted() (shared, []string, error)
}

// wantedShares is what the configuration asks for.
func (b *boot) wantedShares() (shared, error) {
	if b.sharing == nil {
		return shared{Exports: []share.Export{}}, nil
	}
	return b.sharing.Wanted()
}

// settleShares writes down what the VM has from now on.
func (b *boot) settleShares() error {
	all := shared{Exports: []share.Export{}}
	if b.sharing != nil {
		var notes []string
		var err error
		if all, notes, err = b.sharing.Granted(); err != nil {
			return err
		}
		for _, note := range notes {
			b.progress.Note("%s", note)
		}
	}
	before, err := readShares(b.files)
	all.Had = err != nil || before.Had || len(all.Exports) > 0 // what is not known may have been
	text, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("write %s: %w", b.files.Shares(), err)
	}
	return file.Replace(b.files.Shares(), text, 0o600)
}

// readShares returns what settleShares has written last.
func readShares(f state.Files) (shared, error) {
	var all shared
	b, err := os.ReadFile(f.Shares())
	if errors.Is(err, fs.ErrNotExist) { // a VM of an older devvm
		return all, nil
	}
	if err != nil {
		return all, fmt.Errorf("read what the VM has of the host: %w", err)
	}
	if err := json.Unmarshal(b, &all); err != nil {
		return shared{}, &ui.Error{
			Msg:  "what the VM has of the host is not known: " + f.Shares() + " is damaged",
			Hint: "settle it again by devvm.toml: devvm up",
			Err:  err,
		}
	}
	return all, nil
}

// mendShares settles what a VM that runs or is suspended has of the host, if the file that
// says so is damaged: by devvm.toml, as when the VM started.
func (b *boot) mendShares() error {
	_, err := readShares(b.files)
	if err == nil {
		return nil
	}
	b.progress.Warn("%v: settling it by %s", err, config.FileName)
	return b.settleShares()
}
