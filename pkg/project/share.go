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

// devvm.toml says which directories a VM has. It is itself in the first of them, so the VM can write
// it. So each up decides what the VM has from then on, after the user has agreed to everything
// outside the project's directory. It records that where the VM cannot write, and the supervisor
// reads it there.

// shares returns the directories that devvm.toml asks for, and a note if the project's own cannot be
// shared.
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

// host describes the host to the table of mounts.
func (s *Service) host(dir string) mounts.Host {
	return mounts.Host{
		Project: dir,
		Home:    s.Home,
		Private: []string{s.Dirs.Data, s.Dirs.Runtime, s.Dirs.Short, s.Dirs.Config, s.Dirs.Cache},
	}
}
