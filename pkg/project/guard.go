package project

import (
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/supervisor"
)

// guardOptions say what a project's supervisor does with containers that bind what the
// VM does not have.
func (s *Service) guardOptions(f paths) supervisor.Guard {
	dir := f.readRecord()
	return supervisor.Guard{
		Dir: dir,
		Off: func() (bool, error) {
			cfg, err := s.Config(dir)
			return !cfg.BindGuard, err
		},
		Unfit: func(source, target string) string {
			return s.unfit(share.Export{Source: source, Target: target})
		},
	}
}
