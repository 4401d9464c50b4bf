package project

import (
	"fmt"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/mounts"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

// Which directories a VM has stands in devvm.toml, and devvm.toml is in the first of
// them: the VM can write it. So each up settles what the VM has from then on, after
// the user has agreed to what is outside the project's directory, and writes it where
// the VM cannot; the supervisor reads it there.

// shares is what devvm.toml asks for, and a note if the project's directory is
// not to be had.
func (s *Service) shares(p state.Project, cfg config.Config) ([]share.Export, string, error) {
	table, note, err := s.host(p.Dir).Table(cfg)
	if err != nil {
		return nil, "", err
	}
	if !machine.FitsCredential(table) {
		return nil, "", &ui.Error{
			Code: ui.ExitUsage,
			Msg:  fmt.Sprintf("%s: the paths of all mounts together are too long for a VM", cfg.Origin("mounts")),
			Hint: "share a directory above some of them",
		}
	}
	return table, note, nil
}

// host is what the mounts of a project go by.
func (s *Service) host(dir string) mounts.Host {
	return mounts.Host{
		Project: dir,
		Home:    s.Home,
		Private: []string{s.Dirs.Data, s.Dirs.Runtime, s.Dirs.Short, s.Dirs.Config, s.Dirs.Cache},
	}
}
