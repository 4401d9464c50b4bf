package project

import (
	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/mounts"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/supervisor"
)

// guardOptions are the options of a project's supervisor for containers that bind paths that the VM
// does not have.
func (s *Service) guardOptions(f state.Files) supervisor.Guard {
	dir := f.RecordedDir()
	return supervisor.Guard{
		Dir: dir,
		Off: func() (bool, error) {
			cfg, err := s.agreedConfig(f)
			return !cfg.BindGuard, err
		},
		Unfit: s.host(dir).Unfit,
	}
}

// GuestDir returns where the project's VM has a directory of this host, or "" if it does not have
// it, as far as is known here.
func (s *Service) GuestDir(p state.Project, dir string) string {
	record, err := applied.Read(s.Dirs.Files(p.Name).Applied())
	if err != nil {
		return "" // up says so
	}
	return mounts.Table(record.Exports()).GuestDir(dir)
}

// SharedDirs are the directories of this host that the project's VM has.
func (s *Service) SharedDirs(p state.Project) []string {
	all, err := applied.Read(s.Dirs.Files(p.Name).Applied())
	if err != nil {
		return nil // up says so
	}
	dirs := make([]string, len(all.Exports()))
	for i, e := range all.Exports() {
		dirs[i] = e.Source
	}
	return dirs
}
