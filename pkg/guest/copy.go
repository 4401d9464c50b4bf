package guest

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/tree"
)

// Files are copied as a tar archive through one command in the guest. SFTP asks the guest about
// each file, which costs much more under emulation. A copy is unpacked beside its destination
// first, so the destination is either complete or absent.
//
// The guest can write to directories of this host, even while a copy runs. So every operation
// on this host happens below directories that are held open (pkg/tree), and metadata comes from
// the file that was opened.

// Copy says what to copy between this host and the guest, with the rules of cp and `docker cp`:
// a source goes into a destination directory that exists, a source that ends in "/." stands for
// the directory's contents, and directories are merged.
type Copy struct {
	Local  string // path on this host
	Remote string // path in the guest; if not absolute, relative to the user's home
	// Into says that the destination must be an existing directory, as it must when there are
	// several sources.
	Into bool
	// Follow copies the target of a source that is a link. Links below the source stay links.
	Follow bool
	// Untrusted are directories of this host that a guest can write to. No link in them is
	// followed, not even one that the user names.
	Untrusted tree.Untrusted
	// Advance, if set, is called with the bytes copied and the total, 0 if that is unknown.
	Advance func(done, total int64)
	// Warn, if set, is called for each file that is left out.
	Warn func(text string)
}

func (o Copy) warn(format string, args ...any) {
	if o.Warn != nil {
		o.Warn(fmt.Sprintf(format, args...))
	}
}

// Exit codes of the scripts.
const (
	codeRefused = 65
	codeMissing = 66
)

// Kinds of sources. kindContents is everything inside a directory, kindStream an archive from
// elsewhere.
const (
	kindFile      = "file"
	kindLink      = "link"
	kindDirectory = "directory"
	kindContents  = "contents"
	kindStream    = "stream"
)

// remote makes a guest's path that no program takes for an option.
func remote(p string) string {
	if !path.IsAbs(p) {
		return "./" + p
	}
	return p
}

// contents reports whether a path stands for the contents of a directory.
func contents(p string) bool {
	base := path.Base(p)
	return base == "." || base == ".." || base == "/"
}

// CopyTo copies from this host to the guest. It keeps modes and modification times. The files
// belong to the guest's user, without set-user-ID and set-group-ID.
func (c *Client) CopyTo(ctx context.Context, o Copy) error {
	source, kind, err := o.source()
	if err != nil {
		return err
	}
	defer source.Close()
	p := packer{Copy: o, ctx: ctx}
	if o.Advance != nil {
		p.total = size(source)
	}
	return c.unpack(ctx, o.Remote, filepath.Base(o.Local), kind, o.Into, func(w io.Writer) error {
		return p.pack(tar.NewWriter(w), source)
	})
}

// source finds the source of a copy to the guest.
func (o *Copy) source() (at *tree.Place, kind string, err error) {
	at, err = o.Untrusted.Find(o.Local, o.Follow)
	if err != nil {
		return nil, "", err
	}
	inside := contents(o.Local)
	switch {
	case !at.Exists:
		err = &fs.PathError{Op: "lstat", Path: o.Local, Err: unix.ENOENT}
	case at.Dir != nil && inside:
		kind = kindContents
	case at.Dir != nil:
		kind = kindDirectory
	case inside || strings.HasSuffix(o.Local, "/"):
		err = &fs.PathError{Op: "lstat", Path: o.Local, Err: unix.ENOTDIR}
	case at.Info.IsLink():
		kind = kindLink
	case at.Info.IsRegular():
		kind = kindFile
	default:
		err = fmt.Errorf("%s: neither a file nor a directory nor a link", o.Local)
	}
	if err != nil {
		at.Close()
		return nil, "", err
	}
	return at, kind, nil
}

// CheckRemote returns an error if Remote is not a directory.
func (c *Client) CheckRemote(ctx context.Context, o Copy) error {
	code, err := c.Run(ctx, Command{Argv: []string{"test", "-d", remote(o.Remote)}})
	if code == 1 && err == nil {
		return &missing{"vm:" + o.Remote + ": no such directory"}
	}
	return failure(code, err, "", o.Remote)
}

// CheckLocal returns an error if Local is not a directory.
func (o Copy) CheckLocal() error {
	at, err := o.Untrusted.Find(o.Local, true)
	if err != nil {
		return err
	}
	defer at.Close()
	if at.Dir == nil {
		return &missing{o.Local + ": no such directory"}
	}
	return nil
}

// CopyFrom copies from the guest to this host. It keeps modes and modification times. The files
// belong to this process's user. Whatever the guest answers, only the destination is written.
func (c *Client) CopyFrom(ctx context.Context, o Copy) error {
	r, w := io.Pipe()
	var said beginning
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		follow := ""
		if o.Follow || contents(o.Remote) || strings.HasSuffix(o.Remote, "/") {
			follow = "1"
		}
		argv := []string{"sh", "-c", packScript, "pack", remote(o.Remote), follow, ""}
		code, err := c.Run(ctx, Command{Argv: argv, Env: []string{"LC_ALL=C.UTF-8"}, Stdout: w, Stderr: &said})
		text := said.String()
		if code == 1 && err == nil { // tar: files changed while it read them
			o.warn("%s", strings.TrimSpace(text))
			code = 0
		}
		err = failure(code, err, text, o.Remote)
		_ = w.CloseWithError(err)
		ended <- err
	}()
	u := unpacker{Copy: o}
	err := u.unpack(tar.NewReader(r))
	if err == nil { // drain what follows the end of the archive
		_, err = io.Copy(io.Discard, r)
	}
	if err != nil {
		_ = r.CloseWithError(err)
		cancel()
	}
	if runErr := <-ended; runErr != nil && (err == nil || !errors.Is(runErr, err) && !errors.Is(runErr, context.Canceled)) {
		err = runErr
	}
	if err == nil {
		err = u.install()
	}
	u.clean()
	return err
}
