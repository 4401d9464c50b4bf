package machine

import (
	"fmt"
	"path/filepath"

	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/supervisor"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vmnet"
)

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
	r, err := applied.Read(m.Files.Applied())
	if err != nil {
		return err
	}
	for _, e := range r.Exports() {
		if !state.Exists(e.Source) {
			return &ui.Error{
				Msg:  fmt.Sprintf("the suspended VM uses %s of this host, which is gone", e.Source),
				Hint: "make the directory again and run devvm up, or start over: devvm nuke",
			}
		}
	}
	return nil
}

// noteStart writes down what the VM takes on now.
func (m *Machine) noteStart() error {
	for _, note := range m.Notes {
		m.Progress.Note("%s", note)
	}
	r, err := applied.Read(m.Files.Applied())
	// What is not known may have been.
	had := err != nil || len(m.Exports) > 0
	if r.Start != nil {
		had = had || r.Start.HadExports
	} else {
		had = had || state.Exists(m.Files.Disk())
	}
	r.Start = &applied.Start{Config: m.Config, Exports: m.Exports, HadExports: had}
	return r.Write(m.Files.Applied())
}

// MendStart settles what a VM that runs or is suspended has of the host, if the record that
// says so is lost: by devvm.toml, as when the VM started.
func (m *Machine) MendStart() error {
	r, err := applied.Read(m.Files.Applied())
	if err == nil && r.Start != nil {
		return nil
	}
	m.Progress.Warn("the record of which files of the host the VM has is lost: taking them from %s", config.FileName)
	return m.noteStart()
}
