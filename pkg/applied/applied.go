// Package applied records what is in force for a project's VM: what the user has agreed to, and
// the configuration with which the VM last started.
//
// Both are in one file, applied.json, in the user's data directory, where neither the VM nor
// the repository can write. Verbs write it under the project's lock, atomically and fsynced.
// The supervisor and other verbs read it. A file that is damaged, empty or of another version
// grants nothing ([grant.Nothing]), and says nothing about what the VM has.
package applied

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/grant"
	"github.com/devvm/devvm/pkg/share"
)

// Record is what is in force for a VM.
type Record struct {
	Agreed *grant.Grant // nil: the user was never asked
	Start  *Start       // nil: the VM has never started
}

// Start is what a VM was given at its last start.
type Start struct {
	Config  config.Config
	Exports []share.Export // directories of the host
	// HadExports says that the VM may have learned of exports, at this start or an earlier one.
	HadExports bool
}

// Exports returns the directories of the host that the VM has had since its last start.
func (r Record) Exports() []share.Export {
	if r.Start == nil {
		return nil
	}
	return r.Start.Exports
}

// version is the version of the file's format.
const version = 1

// text is a Record as JSON. A configuration is stored as the values of all its keys.
type text struct {
	Version int    `json:"version"`
	Agreed  *agree `json:"agreed,omitempty"`
	Start   *start `json:"start,omitempty"`
}

type agree struct {
	File   string         `json:"file"` // File of grant.Grant
	Values map[string]any `json:"values"`
	Shares []grant.Share  `json:"shares"`
}

type start struct {
	Values     map[string]any `json:"values"`
	Exports    []share.Export `json:"exports"`
	HadExports bool           `json:"hadExports,omitempty"`
}

// Read returns what [Record.Write] last wrote, or the zero Record if there is no file. If it
// fails, Agreed is [grant.Nothing].
func Read(path string) (Record, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Record{}, nil
	}
	var r Record
	if err == nil {
		r, err = parse(b)
	}
	if err != nil {
		nothing := grant.Nothing()
		return Record{Agreed: &nothing}, fmt.Errorf("read %s: %w", path, err)
	}
	return r, nil
}

func parse(b []byte) (Record, error) {
	var t text
	if err := json.Unmarshal(b, &t); err != nil {
		return Record{}, err
	}
	if t.Version != version {
		return Record{}, fmt.Errorf("it is of version %d, and this devvm knows version %d", t.Version, version)
	}
	var r Record
	if a := t.Agreed; a != nil {
		cfg, err := values(a.Values)
		if err != nil {
			return Record{}, err
		}
		r.Agreed = &grant.Grant{Config: cfg, Shares: a.Shares, File: a.File}
	}
	if s := t.Start; s != nil {
		cfg, err := values(s.Values)
		if err != nil {
			return Record{}, err
		}
		r.Start = &Start{cfg, s.Exports, s.HadExports}
	}
	return r, nil
}

func values(all map[string]any) (config.Config, error) {
	if all == nil {
		return config.Config{}, errors.New("values are missing")
	}
	return config.FromValues(all)
}

// Write stores a record so that it survives a power cut.
func (r Record) Write(path string) error {
	t := text{Version: version}
	if a := r.Agreed; a != nil {
		t.Agreed = &agree{a.File, a.Config.Values(), append([]grant.Share{}, a.Shares...)}
	}
	if s := r.Start; s != nil {
		t.Start = &start{s.Config.Values(), append([]share.Export{}, s.Exports...), s.HadExports}
	}
	b, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return file.Replace(path, append(b, '\n'), 0o600)
}
