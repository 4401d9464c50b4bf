package project

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/devvm/devvm/pkg/tree"
)

// Writable are the directories of this host in which a VM may have made what is there: the
// project's own, and those of all other projects with what their VMs can write by now. What
// a record that cannot be read would say is not known, so that then it is all of the host.
func (s *Service) Writable(p Project) tree.Untrusted {
	dirs := []string{p.Dir}
	all := func(what string, err error) {
		s.Log.Warn("which directories the VMs can write is not known: no symbolic link of this host is followed", "read", what, "error", err)
		dirs = append(dirs, "/")
	}
	names, err := s.Dirs.projects()
	if err != nil {
		all("projects", err)
	}
	for _, name := range names {
		f := s.Dirs.paths(name)
		dir, err := f.directory()
		if err == nil && dir != "" {
			dirs = append(dirs, dir)
		}
		has, shareErr := f.readShares()
		if err := errors.Join(err, shareErr); err != nil {
			all(name, err)
		}
		for _, e := range has.Exports {
			if e.Writable {
				dirs = append(dirs, e.Source)
			}
		}
	}
	slices.Sort(dirs)
	return tree.NewUntrusted(slices.Compact(dirs)...)
}

// directory is readRecord that tells a record which is not there, for which it returns "",
// from one that cannot be read.
func (f paths) directory() (string, error) {
	var r record
	b, err := os.ReadFile(f.record)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err == nil && !filepath.IsAbs(string(r.Dir)) {
		err = errors.New("it names no directory")
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", f.record, err)
	}
	return string(r.Dir), nil
}
