package project

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/grant"
	"github.com/devvm/devvm/pkg/mounts"
	"github.com/devvm/devvm/pkg/state"
)

// outer returns what was agreed to for each other project whose VM can write in this one's
// directory, and a sentence about each. A file that a VM wrote is not the user's agreement:
// otherwise root in a VM with little access could write a devvm.toml in a subdirectory, for a VM
// with full access. Records that cannot be read count as those of such a project, with no access.
func (s *Service) outer(p state.Project) ([]grant.Grant, []string, error) {
	names, err := s.Dirs.Projects()
	if err != nil {
		return nil, nil, err
	}
	above := lineage(p.Dir)
	var out []grant.Grant
	var why []string
	for _, name := range names {
		f := s.Dirs.Files(name)
		dir, r, err := recorded(f)
		switch {
		case name == p.Name || s.IsTemplate(dir):
			continue
		case err != nil:
			out = append(out, grant.Nothing())
			why = append(why, fmt.Sprintf("The records of project %s cannot be read, so its VM may be able to write here (to remove it: devvm rm --project %s).", name, name))
			continue
		}
		for _, d := range writable(dir, r) {
			if !mounts.Within(d, p.Dir) && !isOneOf(d, above) {
				continue
			}
			agreed := grant.Nothing()
			if r.Agreed != nil {
				agreed = *r.Agreed
			}
			out = append(out, agreed)
			where := "is inside that of project " + name
			if d != dir {
				where = fmt.Sprintf("is inside %s, which project %s has", d, name)
			}
			sentence := fmt.Sprintf("This directory %s, whose VM can write here.", where)
			if r.Agreed == nil {
				sentence += " devvm cannot read what you agreed to for that project."
			}
			why = append(why, sentence)
			break
		}
	}
	return out, why, nil
}

// recorded returns the project's directory and the settings in force for its VM, or no directory if
// the project never had a VM.
func recorded(f state.Files) (dir string, r applied.Record, err error) {
	r, err = applied.Read(f.Applied())
	if !state.Exists(f.Record) && err == nil && r.Start == nil {
		return "", r, nil
	}
	if dir, _ = f.Recorded(); dir == "" {
		return "", r, fmt.Errorf("read %s: it names no directory", f.Record)
	}
	return dir, r, err
}

// writable returns the directories of the host that a project's VM can write, by its record.
func writable(dir string, r applied.Record) []string {
	if dir == "" {
		return nil
	}
	all := []string{dir} // whether mounted now or not
	for _, e := range r.Exports() {
		if e.Writable {
			all = append(all, e.Source)
		}
	}
	return all
}

// lineage returns the states of a directory and of those above it.
func lineage(dir string) []fs.FileInfo {
	var all []fs.FileInfo
	for d := dir; ; d = filepath.Dir(d) {
		if info, err := os.Lstat(d); err == nil {
			all = append(all, info)
		}
		if d == filepath.Dir(d) {
			return all
		}
	}
}

// isOneOf reports whether a directory is one of the others under another name, for example because
// it is mounted twice.
func isOneOf(dir string, others []fs.FileInfo) bool {
	info, err := os.Lstat(dir)
	if err != nil {
		return false
	}
	for _, o := range others {
		if os.SameFile(info, o) {
			return true
		}
	}
	return false
}
