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

// FitsCredential reports whether the list of exports fits into the VM's credential.
func FitsCredential(exports []share.Export) bool {
	return len(credentialOf(exports)) < credentialSizes[credentialShare]
}

// MountsByFirmware reports whether a VM is told what to mount by a credential.
func MountsByFirmware(f state.Files) bool {
	return state.Exists(filepath.Join(f.Credentials(), credentialShare))
}

// credentialOf is the credential that tells a VM what to mount.
func credentialOf(exports []share.Export) []byte {
	return supervisor.Share{Address: vmnet.Gateway, Exports: exports}.Credential()
}

// checkShares returns an error if a directory that a suspended VM has mounted is gone: without
// it the others could not be served either.
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

// noteStart records the settings that the VM starts with.
func (m *Machine) noteStart() error {
	for _, note := range m.Notes {
		m.Progress.Note("%s", note)
	}
	r, err := applied.Read(m.Files.Applied())
	// If the record cannot be read, there may have been exports.
	had := err != nil || len(m.Exports) > 0
	if r.Start != nil {
		had = had || r.Start.HadExports
	} else {
		had = had || state.Exists(m.Files.Disk())
	}
	r.Start = &applied.Start{Config: m.Config, Exports: m.Exports, HadExports: had}
	return r.Write(m.Files.Applied())
}

// MendStart restores the lost record of what a running or suspended VM has of the host, from
// devvm.toml, as when the VM started.
func (m *Machine) MendStart() error {
	r, err := applied.Read(m.Files.Applied())
	if err == nil && r.Start != nil {
		return nil
	}
	m.Progress.Warn("the record of which files of the host the VM has is lost: taking them from %s", config.FileName)
	return m.noteStart()
}
