// Package disk makes and examines the qcow2 disks of VMs.
//
// It runs qemu-img and knows nothing of VMs, images or projects; it imports no
// other package of devvm. A disk appears under its name complete or not at all, with
// mode 0600, and no call replaces a disk that exists. Callers see to it that two calls do
// not make the same disk at once.
//
// A disk is qcow2 by what this package says, never by a look at its content: QEMU's tools
// take a disk whose first bytes are damaged for a raw one that lies on nothing.
//
// Errors wrap [ErrNoTool] without qemu-img, [ErrInUse] while a VM runs on the
// disk, [ErrDamaged] for one that is no qcow2 disk (any more), and the operating system's
// own (fs.ErrNotExist, fs.ErrExist, syscall.ENOSPC) where those are the cause.
package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrNoTool says that qemu-img is missing.
	ErrNoTool = errors.New("qemu-img is not installed (Debian and Ubuntu: package qemu-utils; Fedora and Arch: qemu-img)")
	// ErrInUse says that a VM runs on the disk.
	ErrInUse = errors.New("the disk is in use")
	// ErrDamaged says that qemu-img cannot make sense of the disk.
	ErrDamaged = errors.New("the disk is damaged")
)

// Info is what qemu-img knows of a disk.
type Info struct {
	Format      string // "qcow2", "raw"
	VirtualSize int64  // bytes that the guest sees
	Backing     string // path of the disk below this one; may be empty
	Data        string // file that holds the content, if it is not this one
}

// Create makes an empty qcow2 disk of size bytes.
func Create(ctx context.Context, path string, size int64) error {
	err := appear(path, func(tmp string) error {
		return qemuImg(ctx, nil, "create", "-q", "-f", "qcow2", tmp, strconv.FormatInt(size, 10))
	})
	if err != nil {
		return fmt.Errorf("create disk %s: %w", path, err)
	}
	return nil
}

// CreateOverlay makes a qcow2 disk of size bytes whose unwritten blocks are
// those of the disk backing. Size 0 means backing's size; less than that is an
// error.
func CreateOverlay(ctx context.Context, path, backing string, size int64) error {
	err := createOverlay(ctx, path, backing, size)
	if err != nil {
		return fmt.Errorf("create disk %s: %w", path, err)
	}
	return nil
}

func createOverlay(ctx context.Context, path, backing string, size int64) error {
	if !filepath.IsAbs(backing) {
		return fmt.Errorf("backing disk %s: not an absolute path", backing)
	}
	below, err := Stat(ctx, backing)
	if err != nil {
		return err
	}
	if size == 0 {
		size = below.VirtualSize
	}
	if size < below.VirtualSize {
		return fmt.Errorf("%d bytes are less than the %d of the image", size, below.VirtualSize)
	}
	return appear(path, func(tmp string) error {
		return qemuImg(ctx, nil, "create", "-q", "-f", "qcow2", "-b", backing, "-F", below.Format, tmp, strconv.FormatInt(size, 10))
	})
}

// Convert writes a copy of the disk src, which is qcow2 or raw, as a qcow2 disk.
//
// A disk that refers to other files is an error: src may be somebody else's
// image, and would bring any file of this host that it names into the VM.
func Convert(ctx context.Context, src, dst string) error {
	if err := convert(ctx, src, dst); err != nil {
		return fmt.Errorf("convert disk %s: %w", src, err)
	}
	return nil
}

func convert(ctx context.Context, src, dst string) error {
	info, err := stat(ctx, src, "") // somebody else's: what it is, is the question
	switch {
	case err != nil:
		return err
	case info.Format != "qcow2" && info.Format != "raw":
		return fmt.Errorf("its format is %s, not qcow2 or raw", info.Format)
	case info.Backing != "":
		return fmt.Errorf("it is not complete: its backing file is %s", info.Backing)
	case info.Data != "":
		return fmt.Errorf("its content is in another file, %s", info.Data)
	}
	return appear(dst, func(tmp string) error {
		return qemuImg(ctx, nil, "convert", "-q", "-f", info.Format, "-O", "qcow2", src, tmp)
	})
}

// Grow makes the qcow2 disk size bytes large. A disk of that size is left as it
// is; a larger one is an error, since its end would be lost.
func Grow(ctx context.Context, path string, size int64) error {
	err := grow(ctx, path, size)
	if err != nil {
		return fmt.Errorf("grow disk %s: %w", path, err)
	}
	return nil
}

func grow(ctx context.Context, path string, size int64) error {
	info, err := Stat(ctx, path)
	switch {
	case err != nil:
		return err
	case size == info.VirtualSize:
		return nil
	case size < info.VirtualSize:
		return fmt.Errorf("it has %d bytes, more than %d: disks only grow", info.VirtualSize, size)
	}
	return qemuImg(ctx, nil, "resize", "-q", "-f", "qcow2", path, strconv.FormatInt(size, 10))
}

// Stat examines a qcow2 disk, which may be in use.
func Stat(ctx context.Context, path string) (Info, error) {
	info, err := stat(ctx, path, "qcow2")
	if err != nil {
		return Info{}, fmt.Errorf("examine disk %s: %w", path, err)
	}
	return info, nil
}

// stat examines a disk of the format; "": of the one that it seems to have.
func stat(ctx context.Context, path, format string) (Info, error) {
	if !filepath.IsAbs(path) {
		return Info{}, errNotAbsolute // QEMU reads "a:b" as a protocol
	}
	if err := openable(path); err != nil { // qemu-img says so in words alone
		return Info{}, err
	}
	args := []string{"info", "--force-share", "--output=json"}
	if format != "" {
		args = append(args, "-f", format)
	}
	var out bytes.Buffer
	err := qemuImg(ctx, &out, append(args, path)...)
	if said := (*complaintError)(nil); errors.As(err, &said) && said.cause == nil {
		return Info{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return Info{}, err
	}
	var answer struct {
		Format      string `json:"format"`
		VirtualSize int64  `json:"virtual-size"`
		Backing     string `json:"backing-filename"`
		FullBacking string `json:"full-backing-filename"`
		Specific    struct {
			Data struct {
				File string `json:"data-file"`
			} `json:"data"`
		} `json:"format-specific"`
	}
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
		return Info{}, fmt.Errorf("read qemu-img's answer: %w", err)
	}
	info := Info{
		Format:      answer.Format,
		VirtualSize: answer.VirtualSize,
		Backing:     answer.FullBacking,
		Data:        answer.Specific.Data.File,
	}
	if info.Backing == "" {
		info.Backing = answer.Backing
	}
	return info, nil
}

// openable tells why a file cannot be read.
func openable(path string) error {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

var errNotAbsolute = errors.New("not an absolute path")

// appear lets write make a file under another name and gives it its own when it
// is complete.
func appear(path string, write func(tmp string) error) error {
	if !filepath.IsAbs(path) {
		return errNotAbsolute
	}
	// Early, before the work; the rename below decides.
	if _, err := os.Lstat(path); err == nil {
		return fs.ErrExist
	}
	// The name is fixed, so that what a killed run has left is found; and
	// removed first, so that a qemu-img that outlived such a run writes to a
	// file without a name and not to ours.
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := create(tmp)
	if err == nil {
		err = write(tmp)
	}
	if err == nil {
		err = sync(tmp) // or a power failure could leave the name and not the content
	}
	if err == nil {
		err = rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp) // qemu-img removes some failures itself
	}
	return err
}

// create makes an empty file that nobody else can read: qemu-img writes to a file that
// is there and leaves its mode, and would give a new one 0644.
func create(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// rename moves a file to a name that is free.
func rename(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // not on this file system
		return os.Rename(from, to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// qemuImg runs the program and makes an error of its complaint.
func qemuImg(ctx context.Context, stdout *bytes.Buffer, args ...string) error {
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if stdout != nil {
		cmd.Stdout = stdout
	}
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, exec.ErrNotFound):
		return ErrNoTool
	}
	return complaint(stderr.String(), err)
}

// complaint reduces qemu-img's output to its first sentence and finds the cause.
func complaint(stderr string, err error) error {
	text, _, _ := strings.Cut(strings.TrimSpace(stderr), "\n")
	text = strings.TrimPrefix(text, "qemu-img: ")
	if text == "" {
		return fmt.Errorf("qemu-img: %w", err)
	}
	var cause error
	switch {
	case strings.Contains(stderr, "No space left on device"):
		cause = syscall.ENOSPC
	case strings.Contains(stderr, "Disk quota exceeded"):
		cause = syscall.EDQUOT
	case strings.Contains(stderr, "No such file or directory"):
		cause = fs.ErrNotExist
	case strings.Contains(stderr, "Permission denied"):
		cause = fs.ErrPermission
	case strings.Contains(stderr, "Cannot allocate memory"):
		cause = syscall.ENOMEM
	case strings.Contains(stderr, "Too many open files"):
		cause = syscall.EMFILE
	case strings.Contains(stderr, "Input/output error"):
		cause = syscall.EIO
	case strings.Contains(stderr, "Failed to get \"write\" lock"), strings.Contains(stderr, "Failed to get shared \"write\" lock"):
		cause = ErrInUse
	}
	return &complaintError{text: text, cause: cause}
}

// complaintError shows qemu-img's words and unwraps to their cause, if it is known.
type complaintError struct {
	text  string
	cause error
}

func (e *complaintError) Error() string { return e.text }
func (e *complaintError) Unwrap() error { return e.cause }
