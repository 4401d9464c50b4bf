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
		dir, has, err := reaches(f)
		switch {
		case name == p.Name || s.IsTemplate(dir):
			continue
		case err != nil:
			out = append(out, grant.Nothing())
			why = append(why, fmt.Sprintf("The records of project %s cannot be read, so its VM may be able to write here (to remove it: devvm rm --project %s).", name, name))
			continue
		}
		for _, d := range has {
			if !mounts.Within(d, p.Dir) && !isOneOf(d, above) {
				continue
			}
			r, _ := applied.Read(f.Applied()) // reaches has read it
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

// reaches returns the project's directory and those of the host that its VM can write, as
// recorded: none if it never had a VM.
func reaches(f state.Files) (dir string, writable []string, err error) {
	all, err := applied.Read(f.Applied())
	if !state.Exists(f.Record) && err == nil && all.Start == nil {
		return "", nil, nil
	}
	if dir, _ = f.Recorded(); dir == "" {
		return "", nil, fmt.Errorf("read %s: it names no directory", f.Record)
	}
	if err != nil {
		return dir, nil, err
	}
	writable = []string{dir} // whether mounted now or not
	for _, e := range all.Exports() {
		if e.Writable {
			writable = append(writable, e.Source)
		}
	}
	return dir, writable, nil
}

// lineage are the states of a directory and of those above it.
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

// isOneOf tells whether a directory is one of others by another name, as where it is mounted
// a second time.
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
