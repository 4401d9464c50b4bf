package state

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Project is a directory that has, or may have, a VM.
type Project struct {
	Name string // <slug of the directory's name>-<8 hex digits of the path's hash>
	UUID string // of its libvirt domain, derived from Dir
	Dir  string // canonical path
}

// New returns the project of a directory. Its identity is the canonical path: two directories of
// the same name are two projects, and a symbolic link to a directory is the same project.
func New(dir string) (Project, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return Project{}, fmt.Errorf("project directory: %w", err)
	}
	resolved, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return Project{}, fmt.Errorf("project directory: %w", err)
	}
	info, err := os.Stat(resolved)
	if err != nil {
		return Project{}, fmt.Errorf("project directory: %w", err)
	}
	if !info.IsDir() {
		return Project{}, fmt.Errorf("project directory: %s is not a directory", resolved)
	}
	return Identify(resolved), nil
}

// Identify derives name and UUID from a canonical path. It looks at no files.
func Identify(dir string) Project {
	sum := sha256.Sum256([]byte(dir))
	return Project{
		Name: Slug(filepath.Base(dir)) + "-" + hex.EncodeToString(sum[:4]),
		UUID: uuid(sum),
		Dir:  dir,
	}
}

// uuid shapes a hash into an RFC 9562 version 8 UUID (vendor specific content).
func uuid(sum [sha256.Size]byte) string {
	b := sum[:16]
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// longestSlug keeps names short: for the paths of sockets, and to read.
const longestSlug = 24

// Slug reduces a directory's name to what host names, libvirt and file systems
// all take: a-z, 0-9 and single hyphens.
func Slug(base string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(base) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() == longestSlug {
			break
		}
	}
	if s := strings.Trim(b.String(), "-"); s != "" {
		return s
	}
	return "project"
}
