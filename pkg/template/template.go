// Package template keeps saved VMs that the VMs of projects are forked from.
//
// A template is a directory with the disk of a VM, its memory as the hypervisor
// has saved it, and a manifest. Everything that makes saved memory valid is its
// [Shape], and a shape's hash is its key: what has another key is another template,
// so that an upgrade of anything makes a new one by itself. Files are read-only from
// the moment a template is there, and it is there whole or not at all.
//
// The package knows nothing of VMs or projects: who uses a template is asked through
// a function that the caller passes. It imports no package of devvm but file.
//
// Errors wrap [ErrNotFound], [ErrInUse], [ErrDamaged] or the operating system's own.
package template

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/devvm/devvm/pkg/file"
)

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("no such template")
	ErrInUse    = errors.New("the template's disk is in use")
	// ErrDamaged says that what should be a template is none.
	ErrDamaged = errors.New("the template is damaged")
)

// Version of what a template is; a change of what VMs are made of, or of how they
// are sealed, counts it up.
const Version = 2

// Shape is everything that a saved memory depends on.
type Shape struct {
	Image     string `json:"image"` // digest
	CPUs      int    `json:"cpus"`
	Memory    int64  `json:"memory"` // bytes
	Disk      int64  `json:"disk"`   // bytes that the guest sees
	Accel     string `json:"accel"`
	CPU       string `json:"cpu"`                 // the host's, where the guest sees it
	Kernel    string `json:"kernel"`              // of the host
	QEMU      string `json:"qemu"`                // version
	Libvirt   string `json:"libvirt"`             // version
	URI       string `json:"uri"`                 // of the hypervisor
	Daemon    string `json:"daemon"`              // Docker's daemon.json, which the engine has read
	Zone      string `json:"zone"`                // time zone
	MTU       int    `json:"mtu"`                 // bytes
	Version   int    `json:"version"`             // of this package, set by Key
	Provision string `json:"provision,omitempty"` // hash of what was done to it; "" for nothing
}

// Key names the shape.
func (s Shape) Key() string {
	s.Version = Version
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings and numbers
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// Manifest says what a template is.
type Manifest struct {
	Shape
	Key     string    `json:"key"`
	Parent  string    `json:"parent,omitempty"` // ID of the template that it is a fork of
	Created time.Time `json:"created"`
	// Head is the hex SHA-256 of the memory file's first headBytes, which say
	// what the rest is; the sizes say that the rest is there.
	Head       string `json:"head"`
	MemorySize int64  `json:"memory_size"` // bytes
	DiskSize   int64  `json:"disk_size"`   // bytes of the file
}

// Template is a template in a store.
type Template struct {
	Manifest
	ID  string // its directory's name
	Dir string
}

// Disk is the path of its disk.
func (t Template) Disk() string { return filepath.Join(t.Dir, diskName) }

// Memory is the path of its memory.
func (t Template) Memory() string { return filepath.Join(t.Dir, memoryName) }

// Used is what its files take on this host, in bytes.
func (t Template) Used() int64 {
	return file.Used(t.Disk()) + file.Used(t.Memory()) + file.Used(t.spare())
}

// spare is the path of a copy of its memory.
func (t Template) spare() string { return filepath.Join(t.Dir, spareName) }

// Warm tells whether it can be forked from: a template whose memory was dropped is
// kept for the disks that lie on its own.
func (t Template) Warm() bool { return file.Used(t.Memory()) > 0 }

const (
	diskName     = "disk.qcow2"
	memoryName   = "memory"
	spareName    = "spare"
	manifestName = "manifest.json"
	headBytes    = 1 << 20
)

// check compares the files with the manifest.
func (t Template) check() error {
	disk, err := os.Stat(t.Disk())
	if err != nil {
		return err
	}
	if disk.Size() != t.DiskSize {
		return fmt.Errorf("its disk has %d bytes, not %d", disk.Size(), t.DiskSize)
	}
	memory, head, err := examine(t.Memory())
	if err != nil {
		return err
	}
	if memory != t.MemorySize || head != t.Head {
		return fmt.Errorf("its memory has %d bytes, not %d, or begins otherwise", memory, t.MemorySize)
	}
	return nil
}

// examine returns the size of a file and the sum of its beginning.
func examine(path string) (size int64, head string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, "", err
	}
	sum := sha256.New()
	if _, err := io.CopyN(sum, f, headBytes); err != nil && !errors.Is(err, io.EOF) {
		return 0, "", err
	}
	return info.Size(), hex.EncodeToString(sum.Sum(nil)), nil
}
