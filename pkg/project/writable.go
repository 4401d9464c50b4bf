package project

import (
	"slices"

	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/tree"
)

// Writable returns the directories of this host whose content a VM may have written: the project's
// own, and those that the VMs of all other projects can write by now. If a record cannot be read,
// that is the whole host.
func (s *Service) Writable(p state.Project) tree.Untrusted {
	dirs := []string{p.Dir}
	all := func(what string, err error) {
		s.Log.Warn("the directories that the VMs can write are not known, so no symbolic link on this host is followed", "read", what, "error", err)
		dirs = append(dirs, "/")
	}
	names, err := s.Dirs.Projects()
	if err != nil {
		all("projects", err)
	}
	for _, name := range names {
		dir, r, err := recorded(s.Dirs.Files(name))
		if err != nil {
			all(name, err)
		}
		dirs = append(dirs, writable(dir, r)...)
	}
	slices.Sort(dirs)
	return tree.NewUntrusted(slices.Compact(dirs)...)
}
