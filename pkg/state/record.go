package state

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/ui"
)

// Record is the content of project.json: the directory that the files belong to, if no domain says
// so. Dir is bytes, since a path need not be UTF-8.
type Record struct {
	Dir   []byte `json:"dir"`
	DirID string `json:"id,omitempty"` // see DirIDOf
	// Adopts is the name of the project whose VM this one is taking over, see Move. From is that
	// project's directory. Same says that it is this one, under its old name.
	Adopts string `json:"adopts,omitempty"`
	From   []byte `json:"from,omitempty"`
	Same   bool   `json:"same,omitempty"`
}

// DirIDOf returns an ID that a directory keeps when it is renamed, and that a copy of it does not
// have: its inode number, and its birth time if the file system has it (statx(2)). It returns "" if
// there is no directory. A link to a directory does not count.
func DirIDOf(dir string) string {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return ""
	}
	return fmt.Sprintf("%d %d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec)
}

// IsUnique reports whether an ID from DirIDOf has a birth time. Without one, a later directory may
// get the same inode number.
func IsUnique(id string) bool { return id != "" && !strings.HasSuffix(id, " 0.000000000") }

// WriteRecord records the directory among the project's files.
func (f Files) WriteRecord(dir string) error {
	return f.write(Record{Dir: []byte(dir), DirID: DirIDOf(dir)})
}

// NoteDir is WriteRecord, unless the VM was made for another directory that was at this path
// before: that directory may still claim its VM.
func (f Files) NoteDir(dir string) error {
	if f.IsReplaced(dir) {
		return nil
	}
	return f.WriteRecord(dir)
}

// IsReplaced reports whether a directory is known not to be the one that the VM was made for.
func (f Files) IsReplaced(dir string) bool {
	_, id := f.Recorded()
	now := DirIDOf(dir)
	return f.IsUsed() && IsUnique(id) && now != "" && now != id
}

// WriteAdopts records that the project is taking over another project's VM.
func (f Files) WriteAdopts(dir string, from Project, same bool) error {
	return f.write(Record{Dir: []byte(dir), DirID: DirIDOf(dir), Adopts: from.Name, From: []byte(from.Dir), Same: same})
}

func (f Files) write(r Record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write %s: %w", f.Record, err)
	}
	return file.Replace(f.Record, b, 0o600)
}

// Adopts returns the name of the project whose VM this one is taking over, or "".
func (f Files) Adopts() string {
	r, err := f.ReadRecord()
	if err != nil {
		return ""
	}
	return r.Adopts
}

// RecordedDir returns the recorded directory, or "".
func (f Files) RecordedDir() string {
	dir, _ := f.Recorded()
	return dir
}

// Recorded returns the recorded directory, and the ID that it had.
func (f Files) Recorded() (dir, id string) {
	r, err := f.ReadRecord()
	if err != nil {
		return "", ""
	}
	return string(r.Dir), r.DirID
}

// ReadRecord reads the record.
func (f Files) ReadRecord() (Record, error) {
	var r Record
	b, err := os.ReadFile(f.Record)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

// Adopter returns the directory of the project that has begun to take over this one's VM.
func (f Files) Adopter() (dir string, ok bool) {
	all, _ := os.ReadDir(filepath.Dir(f.Root))
	for _, e := range all {
		path := filepath.Join(filepath.Dir(f.Root), e.Name(), filepath.Base(f.Record))
		r, err := Files{Record: path}.ReadRecord()
		if err == nil && r.Adopts == filepath.Base(f.Root) && path != f.Record {
			return string(r.Dir), true
		}
	}
	return "", false
}

// checkMoved returns an error for most verbs if a part of the project is elsewhere, because a move
// was interrupted. rm is allowed, since what it leaves is complete.
func (f Files) checkMoved(verb string) error {
	if verb == "move" || verb == "rm" {
		return nil
	}
	if verb != "up" && f.Adopts() != "" { // up completes it
		return ErrAdopts()
	}
	if dir, ok := f.Adopter(); ok {
		return ErrLeaves(dir)
	}
	return nil
}

// ErrAdopts says that a project has taken over a part of another one's VM.
func ErrAdopts() error {
	return &ui.Error{
		Msg:  "this directory was taking over the VM of another one when devvm move was interrupted",
		Hint: "finish that with: devvm move",
	}
}

// ErrLeaves says that a part of a project's VM is with that of another directory.
func ErrLeaves(dir string) error {
	to := Identify(dir).Name
	return &ui.Error{
		Msg:  fmt.Sprintf("%s was taking over the VM of this project when devvm move was interrupted", dir),
		Hint: fmt.Sprintf("finish that with: devvm move --project %s (or, if that directory is gone: devvm rm --project %s)", to, to),
	}
}

// KeepsDir reports whether a project's directory is still where it was. same means that the
// recorded directory is known to have moved: then a directory with another ID at the old path is
// a different one.
func (f Files) KeepsDir(dir string, same bool) bool {
	_, id := f.Recorded()
	return Exists(dir) && !(same && DirIDOf(dir) != id)
}
