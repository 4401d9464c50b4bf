package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/disk"
)

// maxManifest is more than any manifest has, in bytes.
const maxManifest = 4 << 20

// ImportOptions say how to import.
type ImportOptions struct {
	Name   string // name of the image; "" takes the exported image's, or that of a disk's file
	SHA256 string // hex checksum that the source file must have; required for a URL
	// Progress is told now and then how many of how many bytes have been
	// read; total is -1 if it is not known. It may be nil.
	Progress func(done, total int64)
}

// Export writes an image to the new file path: a tar that Import takes on any
// host.
func (s *Store) Export(ctx context.Context, ref, path string) error {
	img, err := s.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	if err := export(ctx, img, path); err != nil {
		return fmt.Errorf("export image %s: %w", ref, err)
	}
	return nil
}

func export(ctx context.Context, img Image, path string) error {
	if _, err := os.Lstat(path); err == nil {
		return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil { // not of a file that has another name
		return &fs.PathError{Op: "create", Path: path, Err: err}
	}
	// A file without a name is gone when this process is killed.
	out, err := os.OpenFile(filepath.Dir(path), os.O_WRONLY|unix.O_TMPFILE, 0o644)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) { // not every file system has them
		return exportNamed(ctx, img, path)
	}
	if err != nil {
		return err
	}
	defer out.Close()
	if err := writeTar(ctx, img, out); err != nil {
		return err
	}
	if err := errors.Join(out.Chmod(0o644), out.Sync()); err != nil {
		return err
	}
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", out.Fd()), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &fs.PathError{Op: "create", Path: path, Err: err}
	}
	return nil
}

// exportNamed is export by way of a file that has another name until it is whole.
func exportNamed(ctx context.Context, img Image, path string) error {
	out, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	err = writeTar(ctx, img, out)
	if err == nil {
		err = errors.Join(out.Chmod(0o644), out.Sync())
	}
	err = errors.Join(err, out.Close())
	if err == nil {
		err = os.Rename(out.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(out.Name()))
	}
	return nil
}

// writeTar puts the manifest first, so that whoever reads knows what follows.
func writeTar(ctx context.Context, img Image, w io.Writer) error {
	names := []string{manifestName}
	for _, role := range []string{RoleKernel, RoleInitrd, RoleDisk} {
		if f, ok := img.Files[role]; ok {
			names = append(names, f.Name)
		}
	}
	tw := tar.NewWriter(w)
	for _, name := range names {
		if err := writeTarFile(ctx, tw, filepath.Join(img.Dir, name), img.Created); err != nil {
			return err
		}
	}
	return tw.Close()
}

func writeTarFile(ctx context.Context, tw *tar.Writer, path string, at time.Time) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: filepath.Base(path), Mode: 0o644, Size: info.Size(), ModTime: at, Format: tar.FormatPAX}
	if err := tw.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(tw, contextReader{ctx, f})
	return err
}

// Import brings an image into the store: one that Export wrote (the tar, or a
// directory with its files), or a disk in qcow2 or raw format that starts by
// itself and sets itself up with cloud-init, as distributions publish them. src
// is a path, or an http or https URL. Nothing from the source is in the store
// before all of it has been checked.
func (s *Store) Import(ctx context.Context, src string, opts ImportOptions) (Image, error) {
	img, err := s.importFrom(ctx, src, opts)
	if err != nil {
		return img, fmt.Errorf("import image from %s: %w", src, err)
	}
	return img, nil
}

func (s *Store) importFrom(ctx context.Context, src string, opts ImportOptions) (Image, error) {
	if opts.Name != "" && !validName(opts.Name) {
		return Image{}, fmt.Errorf("%q: %w", opts.Name, ErrBadName)
	}
	opts.SHA256 = strings.ToLower(strings.TrimPrefix(opts.SHA256, "sha256:"))
	if opts.SHA256 != "" && !validDigest(opts.SHA256) {
		return Image{}, fmt.Errorf("%q: %w", opts.SHA256, ErrNotAChecksum)
	}
	if opts.Progress == nil {
		opts.Progress = func(int64, int64) {}
	}
	if info, err := os.Stat(src); err == nil && info.IsDir() {
		if opts.SHA256 != "" {
			return Image{}, ErrDirChecksum
		}
		return s.importFiles(ctx, src, opts, func(do fileFunc) error { return eachInDir(src, do) })
	}

	body, size, err := open(ctx, src, opts)
	if err != nil {
		return Image{}, err
	}
	defer body.Close()
	in := &source{ctx: ctx, in: body, hash: sha256.New(), total: size, progress: opts.Progress}
	buf := bufio.NewReaderSize(in, 1<<20)
	head, err := buf.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return Image{}, err
	}
	// What follows the part that is needed counts for the checksum too.
	verify := func() error {
		if _, err := io.Copy(io.Discard, buf); err != nil {
			return err
		}
		if got := hex.EncodeToString(in.hash.Sum(nil)); opts.SHA256 != "" && got != opts.SHA256 {
			return fmt.Errorf("it has sha256 %s, not %s: %w", got, opts.SHA256, ErrChecksum)
		}
		return nil
	}
	switch kind(head) {
	case "tar":
		return s.importFiles(ctx, src, opts, func(do fileFunc) error {
			if err := eachInTar(buf, do); err != nil {
				return err
			}
			return verify()
		})
	case "disk":
		return s.importDisk(ctx, src, opts, buf, size, verify)
	case "compressed":
		return Image{}, errors.New("the file is compressed; unpack it first")
	}
	return Image{}, errors.New("neither an exported image (tar) nor a disk (qcow2, or raw with a boot sector)")
}

// kind tells by its first bytes what a file is.
func kind(head []byte) string {
	switch {
	case len(head) >= 262 && string(head[257:262]) == "ustar":
		return "tar"
	case bytes.HasPrefix(head, []byte("QFI\xfb")):
		return "disk"
	case bytes.HasPrefix(head, []byte("\x1f\x8b")), bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")),
		bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")), bytes.HasPrefix(head, []byte("BZh")):
		return "compressed"
	case len(head) == 512 && head[510] == 0x55 && head[511] == 0xaa:
		return "disk"
	}
	return ""
}

// open opens a path or URL; size is -1 if it is not known.
func open(ctx context.Context, src string, opts ImportOptions) (body io.ReadCloser, size int64, err error) {
	if u, err := url.Parse(src); err == nil && (u.Scheme == "http" || u.Scheme == "https") {
		if opts.SHA256 == "" {
			return nil, 0, ErrNoChecksum
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, src, nil)
		if err != nil {
			return nil, 0, err
		}
		transport := http.DefaultTransport.(*http.Transport).Clone() // with the proxies of the environment
		transport.ResponseHeaderTimeout = time.Minute
		transport.DisableKeepAlives = true
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			return nil, 0, err
		}
		if resp.StatusCode != http.StatusOK {
			_ = resp.Body.Close()
			return nil, 0, fmt.Errorf("the server says %s", resp.Status)
		}
		return resp.Body, resp.ContentLength, nil
	}
	f, err := os.OpenFile(src, os.O_RDONLY|unix.O_NONBLOCK, 0) // not waiting for a pipe's writer
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", src)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

// source is what Import reads from: counted, hashed and ended with ctx.
type source struct {
	ctx         context.Context
	in          io.Reader
	hash        hash.Hash
	done, total int64
	progress    func(done, total int64)
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.in.Read(p)
	s.hash.Write(p[:n])
	s.done += int64(n)
	s.progress(s.done, s.total)
	return n, err
}

// fileFunc is called with each file of an exported image, manifest.json first.
type fileFunc func(name string, size int64, r io.Reader) error

func eachInTar(r io.Reader, do fileFunc) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			return fmt.Errorf("%q in the tar is not a regular file", h.Name)
		}
		if err := do(h.Name, h.Size, tr); err != nil {
			return err
		}
	}
}

func eachInDir(dir string, do fileFunc) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	names := []string{manifestName}
	for _, e := range entries {
		if e.Name() != manifestName {
			names = append(names, e.Name())
		}
	}
	for _, name := range names {
		if err := inDir(root, name, do); err != nil {
			return err
		}
	}
	return nil
}

func inDir(root *os.Root, name string, do fileFunc) error {
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%q is not a regular file", name)
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // it may be a pipe by now
	if err != nil {
		return err
	}
	defer f.Close()
	return do(name, info.Size(), f)
}

// importFiles takes the files of an exported image, which must be those that
// their manifest names.
func (s *Store) importFiles(ctx context.Context, src string, opts ImportOptions, each func(fileFunc) error) (Image, error) {
	out, err := s.newScratch(ctx, s.dir, tempPrefix, 0o700)
	if err != nil {
		return Image{}, err
	}
	defer out.remove(ctx)

	var m Manifest
	missing := map[string]File{}
	known := false
	err = each(func(name string, size int64, r io.Reader) error {
		if !known {
			if name != manifestName {
				return fmt.Errorf("it begins with %q, not with %s", name, manifestName)
			}
			known = true
			return s.readManifest(r, &m, missing)
		}
		want, ok := missing[name]
		if !ok {
			return fmt.Errorf("its manifest does not have %q, or has it once only", name)
		}
		delete(missing, name)
		if size != want.Size {
			return fmt.Errorf("%s has %d bytes, its manifest says %d", name, size, want.Size)
		}
		got, err := save(ctx, out.path(name), r)
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("%s has sha256 %s, its manifest says %s: %w", name, got.SHA256, want.SHA256, ErrChecksum)
		}
		return nil
	})
	if err != nil {
		return Image{}, err
	}
	for name := range missing {
		return Image{}, fmt.Errorf("%s is missing", name)
	}
	if !known {
		return Image{}, fmt.Errorf("%s is missing", manifestName)
	}
	if err := checkDisk(ctx, out.path(fileNames[RoleDisk]), &m); err != nil {
		return Image{}, err
	}
	if opts.Name != "" {
		m.Name = opts.Name
	}
	m.Source = src
	return out.commit(ctx, m)
}

func (s *Store) readManifest(r io.Reader, m *Manifest, missing map[string]File) error {
	data, err := io.ReadAll(io.LimitReader(r, maxManifest))
	if err != nil {
		return fmt.Errorf("read %s: %w", manifestName, err)
	}
	if err := json.Unmarshal(data, m); err != nil {
		return fmt.Errorf("read %s: %w", manifestName, err)
	}
	if err := m.check(); err != nil {
		return err
	}
	if m.Arch != runtime.GOARCH {
		return fmt.Errorf("the image is for %s, this host is %s", m.Arch, runtime.GOARCH)
	}
	var need int64
	for _, f := range m.Files {
		missing[f.Name] = f
		need += f.Size
	}
	return checkSpace(s.dir, need)
}

// checkDisk refuses a disk that would bring files of this host into a VM, and
// corrects its size in the manifest.
func checkDisk(ctx context.Context, path string, m *Manifest) error {
	info, err := disk.Stat(ctx, path)
	switch {
	case err != nil:
		return err
	case info.Format != "qcow2":
		return fmt.Errorf("its disk has format %s, not qcow2", info.Format)
	case info.Backing != "" || info.Data != "":
		return fmt.Errorf("its disk refers to other files: %s", info.Backing+info.Data)
	}
	m.DiskSize = info.VirtualSize
	return nil
}

// importDisk takes a disk of somebody else's.
func (s *Store) importDisk(ctx context.Context, src string, opts ImportOptions, r io.Reader, size int64, verify func() error) (Image, error) {
	m := Manifest{
		Name: opts.Name, Source: src, CloudInit: true, Created: s.now().UTC().Truncate(time.Second),
		Arch: runtime.GOARCH, Files: map[string]File{},
	}
	if m.Name == "" {
		base := path.Base(filepath.ToSlash(src))
		if u, err := url.Parse(src); err == nil && u.Scheme != "" {
			base = path.Base(u.Path)
		}
		m.Name = strings.TrimSuffix(base, path.Ext(base))
		if !validName(m.Name) {
			return Image{}, fmt.Errorf("%q: %w", m.Name, ErrNoName)
		}
	}
	if err := checkSpace(s.dir, 2*max(size, 0)); err != nil { // the copy, and what is made of it
		return Image{}, err
	}
	out, err := s.newScratch(ctx, s.dir, tempPrefix, 0o700)
	if err != nil {
		return Image{}, err
	}
	defer out.remove(ctx)
	if _, err := save(ctx, out.path("source"), r); err != nil {
		return Image{}, err
	}
	if err := verify(); err != nil {
		return Image{}, err
	}
	target := out.path(fileNames[RoleDisk])
	if err := disk.Convert(ctx, out.path("source"), target); err != nil {
		return Image{}, err
	}
	if err := os.Remove(out.path("source")); err != nil {
		return Image{}, err
	}
	if err := checkDisk(ctx, target, &m); err != nil {
		return Image{}, err
	}
	if m.Files[RoleDisk], err = sumFile(ctx, target); err != nil {
		return Image{}, err
	}
	return out.commit(ctx, m)
}

// save writes r to a new file and describes it.
func save(ctx context.Context, path string, r io.Reader) (File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return File{}, err
	}
	got, err := sum(filepath.Base(path), io.TeeReader(contextReader{ctx, r}, f))
	return got, errors.Join(err, f.Close())
}
