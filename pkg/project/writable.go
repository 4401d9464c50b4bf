package project

import (
	"slices"

	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/tree"
)

// Writable are the directories of this host in which a VM may have made what is there: the
// project's own, and those of all other projects with what their VMs can write by now. What
// a record that cannot be read would say is not known, so that then it is all of the host.
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
