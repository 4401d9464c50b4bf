package trust

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"unicode/utf8"

	"github.com/devvm/devvm/pkg/file"
)

// List is the file of directories that the user trusts.
type List struct{ path string }

// NewList returns the list that is stored at path. The file need not exist yet.
func NewList(path string) List { return List{path} }

type content struct {
	Dirs []string `json:"dirs"`
}

// Dirs returns the directories on the list, sorted.
func (l List) Dirs() ([]string, error) {
	b, err := os.ReadFile(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var c content
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		return nil, fmt.Errorf("read the directories that you trust (%s): %w", l.path, err)
	}
	return c.Dirs, nil
}

// Has reports whether a directory is on the list. A list that cannot be read trusts none.
func (l List) Has(dir string) bool {
	dirs, err := l.Dirs()
	return err == nil && slices.Contains(dirs, dir)
}

// Add adds a directory, by its canonical path.
func (l List) Add(dir string) error {
	if !utf8.ValidString(dir) {
		return fmt.Errorf("%q cannot be kept: its path is not UTF-8", dir)
	}
	dirs, err := l.Dirs()
	if err != nil || slices.Contains(dirs, dir) {
		return err
	}
	return l.write(append(dirs, dir))
}

// Remove removes a directory and reports whether it was on the list.
func (l List) Remove(dir string) (bool, error) {
	dirs, err := l.Dirs()
	if err != nil || !slices.Contains(dirs, dir) {
		return false, err
	}
	return true, l.write(slices.DeleteFunc(dirs, func(d string) bool { return d == dir }))
}

func (l List) write(dirs []string) error {
	slices.Sort(dirs)
	b, err := json.MarshalIndent(content{append([]string{}, dirs...)}, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(l.path), 0o700)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", l.path, err)
	}
	return file.Replace(l.path, append(b, '\n'), 0o600)
}
