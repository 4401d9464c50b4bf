package state

import (
	"os"

	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/grant"
)

// ReadAgreed returns what the user has agreed to; fs.ErrNotExist if there is no file. With
// any other error it is grant.Nothing.
func (f Files) ReadAgreed(dir string) (grant.Grant, error) {
	b, err := os.ReadFile(f.Agreed())
	if err != nil {
		return grant.Nothing(dir), err
	}
	return grant.Parse(dir, b)
}

// WriteAgreed keeps what the user has agreed to, also over a power cut.
func (f Files) WriteAgreed(g grant.Grant) error {
	b, err := g.Text()
	if err != nil {
		return err
	}
	if was, err := os.ReadFile(f.Agreed()); err == nil && string(was) == string(b) {
		return nil
	}
	return file.Replace(f.Agreed(), b, 0o600)
}
