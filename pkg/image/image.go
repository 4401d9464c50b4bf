// Package image keeps the base images that VMs are made from: it builds them
// from the recipes in images/, imports and exports them, finds, removes and
// prunes them.
//
// An image is a directory named by its digest that holds disk.qcow2, for
// direct kernel boot also kernel and initrd, and manifest.json. It is complete
// and read-only from the instant it has its name: everything is made in a
// directory beside it, which is renamed into place, so that an interrupted
// build or import leaves nothing that could be taken for an image. What a
// killed one left behind is swept by the next.
//
// The package runs mmdebstrap and tar and makes disks by pkg/disk; it knows
// nothing of VMs or projects (who uses an image is asked through a function that
// the caller passes) and must not import pkg/vm, pkg/project or pkg/config.
//
// It fails with errors that callers can tell apart: those below, *ToolError for
// a missing program, *SpaceError for a full disk and *CommandError, with the
// last lines of its output, for a program that failed. Nothing that is in the
// store already is changed by a failure.
package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Errors that callers tell apart.
var (
	ErrNotFound         = errors.New("no such image")
	ErrAmbiguous        = errors.New("more than one image matches")
	ErrInUse            = errors.New("a VM, a disk kept by nuke or a template uses it")
	ErrDamaged          = errors.New("the image is damaged")
	ErrExists           = errors.New("the image exists already, under another name")
	ErrChecksum         = errors.New("checksum does not match")
	ErrNotAChecksum     = errors.New("not a SHA-256 checksum (64 hexadecimal digits)")
	ErrDirChecksum      = errors.New("a directory has no checksum; its manifest has those of its files")
	ErrNoChecksum       = errors.New("a URL needs the checksum that its file must have (sha256)")
	ErrBadName          = errors.New("not a name of letters, digits, '.', '_' and '-'")
	ErrNoName           = errors.New("it has no name that could be an image's")
	ErrNoUserNamespaces = errors.New("user namespaces with subordinate ids do not work for this user")
)

// Roles of an image's files, the keys of Manifest.Files.
const (
	RoleDisk   = "disk"
	RoleKernel = "kernel"
	RoleInitrd = "initrd"
)

// fileNames are the only names that files of an image have.
var fileNames = map[string]string{
	RoleDisk:   "disk.qcow2",
	RoleKernel: "kernel",
	RoleInitrd: "initrd",
}

const manifestName = "manifest.json"

// File is one file of an image.
type File struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"` // hex
	Size   int64  `json:"size"`   // bytes
}

// Manifest says what an image is and how it was made.
type Manifest struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`           // hex SHA-256 over the files' and the command line
	Recipe string `json:"recipe,omitempty"` // RecipeDigest at the build; "" if imported from elsewhere
	Source string `json:"source,omitempty"` // path or URL that it was imported from
	Stock  bool   `json:"stock,omitempty"`  // the untrimmed variant
	Mounts bool   `json:"mounts,omitempty"` // a VM of it mounts what its firmware tells it to
	Forks  bool   `json:"forks,omitempty"`  // a VM of it can be sealed, and others started from its memory
	// Management says that a VM of it has its sshd and its mounts at usernet.Management, out
	// of the way of containers' ports.
	Management bool              `json:"management,omitempty"`
	CloudInit  bool              `json:"cloud_init,omitempty"` // a user's cloud image: set up by Seed, not by credentials
	Created    time.Time         `json:"created"`
	Arch       string            `json:"arch"`             // Debian's name: amd64
	Engine     string            `json:"engine,omitempty"` // version of Docker Engine, "" if unknown
	Packages   map[string]string `json:"packages,omitempty"`
	Cmdline    string            `json:"cmdline,omitempty"` // kernel's, for direct boot
	Files      map[string]File   `json:"files"`             // by role
	DiskSize   int64             `json:"disk_size"`         // virtual, bytes: no project's disk can be smaller
}

// Image is an image in a store.
type Image struct {
	Manifest
	Dir string `json:"dir"`
}

// Disk is the path of the disk, which only ever serves as a backing file.
func (i Image) Disk() string { return i.path(RoleDisk) }

// Kernel is the path of the kernel, or "" if the image starts from its disk by
// the machine's firmware.
func (i Image) Kernel() string { return i.path(RoleKernel) }

// Initrd is the path of the initial RAM disk, or "" as for Kernel.
func (i Image) Initrd() string { return i.path(RoleInitrd) }

// Size is what the image takes on the host's disk, in bytes.
func (i Image) Size() int64 {
	var n int64
	for _, f := range i.Files {
		n += f.Size
	}
	return n
}

func (i Image) path(role string) string {
	f, ok := i.Files[role]
	if !ok {
		return ""
	}
	return filepath.Join(i.Dir, f.Name)
}

// digest is the identity of an image: what decides how a VM of it starts.
func (m Manifest) digest() string {
	h := sha256.New()
	for _, role := range slices.Sorted(maps.Keys(m.Files)) {
		fmt.Fprintf(h, "%s %s\n", role, m.Files[role].SHA256)
	}
	fmt.Fprintf(h, "cmdline %s\n", m.Cmdline)
	return hex.EncodeToString(h.Sum(nil))
}

// check tells whether a manifest that came from outside is one of an image
// that this version can hold.
func (m Manifest) check() error {
	if !validName(m.Name) {
		return fmt.Errorf("manifest: name %q: want letters, digits, '.', '_' and '-'", m.Name)
	}
	if _, ok := m.Files[RoleDisk]; !ok {
		return errors.New("manifest: no disk")
	}
	_, kernel := m.Files[RoleKernel]
	_, initrd := m.Files[RoleInitrd]
	if kernel != initrd {
		return errors.New("manifest: kernel and initrd go together")
	}
	for role, f := range m.Files {
		if want := fileNames[role]; want == "" || f.Name != want {
			return fmt.Errorf("manifest: %s: unexpected file %q", role, f.Name)
		}
		if !validDigest(f.SHA256) || f.Size <= 0 {
			return fmt.Errorf("manifest: %s: bad sha256 or size", role)
		}
	}
	if strings.ContainsAny(m.Cmdline, "\n\x00") {
		return errors.New("manifest: cmdline has more than one line")
	}
	if got := m.digest(); m.Digest != got {
		return fmt.Errorf("manifest: digest %s, its files make %s: %w", m.Digest, got, ErrChecksum)
	}
	return nil
}

// validName tells whether s can name an image without being taken for a path,
// an option or, when it is long enough, for a digest.
func validName(s string) bool {
	if s == "" || len(s) > 64 || s[0] == '-' || s[0] == '.' || validDigest(s) {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
	}) < 0
}

func validDigest(s string) bool {
	return len(s) == 2*sha256.Size && strings.Trim(s, "0123456789abcdef") == ""
}

// sum reads r to its end and describes it.
func sum(name string, r io.Reader) (File, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return File{}, fmt.Errorf("read %s: %w", name, err)
	}
	return File{Name: name, SHA256: hex.EncodeToString(h.Sum(nil)), Size: n}, nil
}
