package project

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

// record is the content of project.json: which directory the files belong to
// when no domain says it. Dir is bytes, since a path need not be UTF-8.
type record struct {
	Dir   []byte `json:"dir"`
	Being string `json:"being,omitempty"` // see beingOf
	// Adopts is the name of the project whose VM this one is taking over, see Move; From is its
	// directory, and Same says that this is the same directory.
	Adopts string `json:"adopts,omitempty"`
	From   []byte `json:"from,omitempty"`
	Same   bool   `json:"same,omitempty"`
}

// beingOf is what a directory keeps when it is renamed, and a copy of it does not have: its
// number, and when it was made, where the file system knows (statx(2)). It is "" if there is none.
// A link to a directory is not the directory.
func beingOf(dir string) string {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return ""
	}
	return fmt.Sprintf("%d %d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec)
}

// isSure tells whether what beingOf has returned is of one directory alone: numbers are given again.
func isSure(being string) bool { return being != "" && !strings.HasSuffix(being, " 0.000000000") }

// writeRecord notes the directory beside the project's files.
func (f paths) writeRecord(dir string) error {
	return f.write(record{Dir: []byte(dir), Being: beingOf(dir)})
}

// noteDir is writeRecord, unless the VM was made for another directory, which has gone from this
// path: that one may come for its VM.
func (f paths) noteDir(dir string) error {
	if f.isReplaced(dir) {
		return nil
	}
	return f.writeRecord(dir)
}

// isReplaced tells whether a directory is known not to be the one that the VM was made for.
func (f paths) isReplaced(dir string) bool {
	_, being := f.recorded()
	now := beingOf(dir)
	return f.isUsed() && isSure(being) && now != "" && now != being
}

// writeAdopts notes that the project is taking over another one's VM.
func (f paths) writeAdopts(dir string, from Project, same bool) error {
	return f.write(record{Dir: []byte(dir), Being: beingOf(dir), Adopts: from.Name, From: []byte(from.Dir), Same: same})
}

func (f paths) write(r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write %s: %w", f.record, err)
	}
	return file.Replace(f.record, b, 0o600)
}

// adopts is the name of the project whose VM this one is taking over; "": none.
func (f paths) adopts() string {
	r, err := f.read()
	if err != nil {
		return ""
	}
	return r.Adopts
}

// readRecord returns the directory noted, or "".
func (f paths) readRecord() string {
	dir, _ := f.recorded()
	return dir
}

// recorded returns the directory noted, and its being then.
func (f paths) recorded() (dir, being string) {
	r, err := f.read()
	if err != nil {
		return "", ""
	}
	return string(r.Dir), r.Being
}

func (f paths) read() (record, error) {
	var r record
	b, err := os.ReadFile(f.record)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

// adopter returns the directory of the project that has begun to take over this one's VM.
func (f paths) adopter() (dir string, ok bool) {
	all, _ := filepath.Glob(filepath.Join(filepath.Dir(f.root), "*", filepath.Base(f.record)))
	for _, path := range all {
		r, err := paths{record: path}.read()
		if err == nil && r.Adopts == filepath.Base(f.root) && path != f.record {
			return string(r.Dir), true
		}
	}
	return "", false
}

// checkMoved keeps other verbs away from a project of which a part is elsewhere, because a move
// was interrupted. What rm leaves is whole.
func (f paths) checkMoved(verb string) error {
	if verb == "move" || verb == "rm" {
		return nil
	}
	if verb != "up" && f.adopts() != "" { // up completes it
		return errAdopts()
	}
	if dir, ok := f.adopter(); ok {
		return errLeaves(dir)
	}
	return nil
}

// errAdopts says that a project has taken over a part of another one's VM.
func errAdopts() error {
	return &ui.Error{
		Msg:  "this directory has begun to take over the VM of another one, and was interrupted",
		Hint: "complete that with: devvm move",
	}
}

// errLeaves says that a part of a project's VM is with that of another directory.
func errLeaves(dir string) error {
	to := identify(dir).Name
	return &ui.Error{
		Msg:  fmt.Sprintf("%s has begun to take over the VM of this project, and was interrupted", dir),
		Hint: fmt.Sprintf("complete that with: devvm move --project %s (or, if that directory is gone: devvm rm --project %s)", to, to),
	}
}

// keepsDir tells whether a project's directory is still where it was. Same says that the directory
// of the record is known to be elsewhere: what is in its place is another.
func (f paths) keepsDir(dir string, same bool) bool {
	_, being := f.recorded()
	return exists(dir) && !(same && beingOf(dir) != being)
}
