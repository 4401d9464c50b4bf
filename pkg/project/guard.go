package project

import (
	"path/filepath"

	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/supervisor"
)

// guardOptions say what a project's supervisor does with containers that bind what the
// VM does not have.
func (s *Service) guardOptions(f state.Files) supervisor.Guard {
	dir := f.RecordedDir()
	return supervisor.Guard{
		Dir: dir,
		Off: func() (bool, error) {
			cfg, err := s.agreedConfig(f)
			return !cfg.BindGuard, err
		},
		Unfit: func(source, target string) string {
			return s.unfit(share.Export{Source: source, Target: target})
		},
	}
}

// GuestDir is where the project's VM has a directory of this host; "": nowhere, as far
// as is known here.
func (s *Service) GuestDir(p state.Project, dir string) string {
	resolved, err := filepath.EvalSymlinks(dir)
	if err == nil {
		resolved, err = filepath.Abs(resolved)
	}
	all, readErr := applied.Read(s.Dirs.Files(p.Name).Applied())
	if err != nil || readErr != nil {
		return ""
	}
	at, best := "", -1
	for _, e := range all.Exports() {
		rel, err := filepath.Rel(e.Source, resolved)
		if err == nil && within(e.Source, resolved) && len(e.Source) > best {
			at, best = filepath.Join(e.Target, rel), len(e.Source)
		}
	}
	return at
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
