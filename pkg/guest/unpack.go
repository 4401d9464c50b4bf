package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/devvm/devvm/pkg/tree"
)

// unpackScript takes a name, a kind, the destination, and whether that must be a directory.
// Except in a stream, the source is "x" in the archive, and the last entry is "end": tar
// accepts an archive that breaks off between two files. The cleanup drops the command's mark,
// so that it is not killed with the command.
const unpackScript = `set -eu
base=$1 kind=$2 dst=$3
fail() { echo "$2" >&2; exit "$1"; }
into=
[ -z "$4" ] || [ -d "$dst" ] || fail 66 "$dst: no such directory"
if [ -d "$dst" ]; then
	case $kind in contents | stream) ;; *) dst=${dst%/}/$base into=1 ;; esac
fi
case $kind in
file | link)
	[ ! -d "$dst" ] || [ -L "$dst" ] || fail 65 "$dst: is a directory"
	case $dst in */) [ "$into" ] || fail 66 "$dst: no such directory" ;; esac
	if [ "$kind" = file ] && [ -L "$dst" ]; then dst=$(readlink -f -- "$dst"); fi
	[ ! -d "$dst" ] || fail 65 "$dst: is a directory" ;;
stream) [ -d "$dst" ] || fail 66 "$dst: no such directory" ;;
*) [ -d "$dst" ] || { [ ! -e "$dst" ] && [ ! -L "$dst" ]; } || fail 65 "$dst: is not a directory" ;;
esac
beside=$dst
[ -d "$dst" ] || beside=$(dirname -- "$dst")
[ -d "$beside" ] || fail 66 "$beside: no such directory"
tmp=$(mktemp -d "$beside/.devvm-cp-XXXXXXXX")
trap 'trap "" HUP INT TERM; unset ` + markName + `; rm -rf -- "$tmp"' EXIT
trap 'exit 143' HUP INT TERM
if [ "$kind" = stream ]; then
	tar --extract --file=- --directory="$tmp" --preserve-permissions --numeric-owner --delay-directory-restore
	from=$tmp
else
	tar --extract --file=- --directory="$tmp" --preserve-permissions --no-same-owner --delay-directory-restore
	[ -f "$tmp/end" ] || fail 65 'the copy broke off'
	from=$tmp/x
fi
if [ -d "$dst" ]; then
	find "$from" -mindepth 1 -maxdepth 1 -exec cp --archive --link --force --target-directory="$dst" -- {} + 2>/dev/null ||
		find "$from" -mindepth 1 -maxdepth 1 -exec cp --archive --force --target-directory="$dst" -- {} +
else
	mv --force --no-target-directory -- "$from" "$dst"
fi`

// Unpack unpacks a tar archive into a directory of the guest, owners included.
func (c *Client) Unpack(ctx context.Context, dir string, r io.Reader) error {
	return c.unpack(ctx, dir, "", kindStream, false, func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	})
}

// unpack runs unpackScript with the output of send as its input.
func (c *Client) unpack(ctx context.Context, to, base, kind string, into bool, send func(io.Writer) error) error {
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := send(w)
		_ = w.CloseWithError(err)
		sent <- err
	}()
	var said beginning
	must := ""
	if into {
		must = "1"
	}
	argv := []string{"sh", "-c", unpackScript, "unpack", base, kind, remote(to), must}
	code, err := c.Run(ctx, Command{Argv: argv, Env: []string{"LC_ALL=C.UTF-8"}, Stdin: r, Stdout: &said, Stderr: &said})
	_ = r.CloseWithError(errEnded)
	var sendErr error
	if kind == kindStream { // do not wait: the reader may block for ever
		select {
		case sendErr = <-sent:
		default:
		}
	} else {
		sendErr = <-sent
	}
	if sendErr != nil && !errors.Is(sendErr, errEnded) && ctx.Err() == nil {
		return sendErr
	}
	return failure(code, err, said.String(), to)
}

// errEnded says that the guest has stopped reading.
var errEnded = errors.New("the VM takes no more")

// failure turns the end of a script into an error.
func failure(code int, err error, said, path string) error {
	said = strings.TrimSpace(said)
	switch {
	case err != nil:
		return fmt.Errorf("copy: vm:%s: %w", path, err)
	case code == 0:
		return nil
	case code == codeMissing:
		return &missing{"vm:" + strings.TrimPrefix(said, "./")}
	case code == codeRefused:
		return errors.New("vm:" + strings.TrimPrefix(said, "./"))
	case said == "":
		return fmt.Errorf("copy: vm:%s: exit code %d", path, code)
	}
	return fmt.Errorf("copy: vm:%s: %s", path, said)
}

// missing is an fs.ErrNotExist with its own message.
type missing struct{ text string }

func (m *missing) Error() string { return m.text }

func (m *missing) Unwrap() error { return fs.ErrNotExist }

// beginning keeps the first 4 KiB of a command's output.
type beginning struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (t *beginning) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if room := 4<<10 - t.buf.Len(); room > 0 {
		t.buf.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

func (t *beginning) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}

// unpacker makes files on this host from the archive that the guest sends.
type unpacker struct {
	Copy
	to      string    // the destination, for messages
	into    *tree.Dir // the destination, if it is an existing directory
	parent  *tree.Dir // else its parent
	name    string    // and its name there
	staging *tree.Dir // in into or parent
	stage   string    // its name there
	cursor  *tree.Cursor
	dirs    []attributes
	kept    int // memory that dirs takes, in bytes
	kind    string
	done    int64
	total   int64
}

// attributes are a directory's, set after everything else is done.
type attributes struct {
	rel  string // below the destination
	mode fs.FileMode
	time time.Time
}

// mostKept bounds the memory for an archive's directories, in bytes.
const mostKept = 64 << 20

// begin decides where a source of the given kind goes.
func (u *unpacker) begin(kind string) error {
	u.kind, u.to = kind, u.Local
	at, err := u.find(u.Local)
	if err != nil {
		return err
	}
	into := at.Dir != nil
	if u.Into && !into {
		at.Close()
		return &missing{u.Local + ": no such directory"}
	}
	if into && kind != kindContents {
		at.Close()
		base := path.Base(u.Remote)
		if contents(base) {
			return fmt.Errorf("vm:%s: the VM does not send a directory", u.Remote)
		}
		u.to = filepath.Join(u.Local, base)
		if at, err = u.find(u.Local + "/" + base); err != nil {
			return err
		}
	}
	u.into, u.parent, u.name = at.Dir, at.Parent, at.Name // until clean
	switch {
	case kind == kindDirectory || kind == kindContents:
		if at.Exists && u.into == nil {
			return fmt.Errorf("%s: is not a directory", u.to)
		}
	case u.into != nil:
		return fmt.Errorf("%s: is a directory", u.to)
	case !into && strings.HasSuffix(u.Local, "/"):
		return &missing{u.Local + ": no such directory"}
	}
	if u.stage, u.staging, err = u.beside().MkdirTemp(".devvm-cp-"); err != nil {
		return err
	}
	u.cursor = tree.NewCursor(u.staging)
	return nil
}

// find finds a destination. It follows links, as cp does. A link that leads nowhere is itself
// the destination. So is a link that may not be followed, if the source is a link too.
func (u *unpacker) find(name string) (*tree.Place, error) {
	at, err := u.Untrusted.Find(name, true)
	_, refused := errors.AsType[*tree.LinkError](err)
	if refused && u.kind == kindLink {
		return u.Untrusted.Find(name, false)
	}
	if err != nil || at.Exists {
		return at, err
	}
	at.Close()
	return u.Untrusted.Find(strings.TrimRight(name, "/"), false)
}

// beside is the directory that holds the staging directory.
func (u *unpacker) beside() *tree.Dir {
	if u.into != nil {
		return u.into
	}
	return u.parent
}

// clean removes everything that is not installed.
func (u *unpacker) clean() {
	if u.cursor != nil {
		u.cursor.Close()
	}
	if u.staging != nil {
		_ = u.staging.Empty()
		_ = u.beside().Rmdir(u.stage)
	}
	u.staging.Close()
	u.into.Close()
	u.parent.Close()
}

// unpack unpacks the whole archive into staging, where its first entry becomes "x".
func (u *unpacker) unpack(r *tar.Reader) error {
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) && u.kind != "" {
			return nil
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		if !filepath.IsLocal(name) {
			return fmt.Errorf("vm:%s: the VM sends %q, which leads elsewhere", u.Remote, h.Name)
		}
		if u.kind == "" {
			kind := map[byte]string{tar.TypeReg: kindFile, tar.TypeSymlink: kindLink, tar.TypeDir: kindDirectory}[h.Typeflag]
			switch {
			case kind == "":
				return fmt.Errorf("vm:%s: neither a file nor a directory nor a link", u.Remote)
			case kind == kindDirectory && contents(u.Remote):
				kind = kindContents
			case kind == kindFile:
				u.total = h.Size
			}
			if err := u.begin(kind); err != nil {
				return err
			}
		}
		if u.kind == kindFile || u.kind == kindLink {
			name = "."
		}
		if err := u.add(r, h, name); err != nil {
			return err
		}
	}
}

func (u *unpacker) add(r io.Reader, h *tar.Header, rel string) error {
	mode := fs.FileMode(h.Mode).Perm()
	fail := func(err error) error {
		if p, ok := errors.AsType[*fs.PathError](err); ok { // the message names the final place
			err = p.Err
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", filepath.Join(u.to, rel), err)
		}
		return err
	}
	dir, name := path.Split(path.Join("x", rel))
	in, err := u.cursor.To(path.Clean(dir))
	if err != nil {
		return fail(err)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if u.kept += len(rel) + 64; u.kept > mostKept {
			return fail(errors.New("the VM sends too many directories"))
		}
		u.dirs = append(u.dirs, attributes{rel, mode, h.ModTime})
		return fail(in.Mkdir(name))
	case tar.TypeSymlink:
		return fail(in.Symlink(h.Linkname, name))
	case tar.TypeReg:
		for record := range h.PAXRecords { // unrequested holes of any size
			if strings.HasPrefix(record, "GNU.sparse.") {
				return fail(errors.New("the VM sends a sparse file"))
			}
		}
		f, err := in.Create(name)
		if err != nil {
			return fail(err)
		}
		_, err = io.Copy(f, io.TeeReader(r, u))
		if err == nil {
			err = errors.Join(f.Chmod(mode), tree.Chtimes(f, h.ModTime))
		}
		return fail(errors.Join(err, f.Close()))
	}
	u.warn("vm:%s is neither a file nor a directory nor a link, and left out", path.Join(u.Remote, rel))
	return nil
}

// Write implements io.Writer. It counts bytes.
func (u *unpacker) Write(b []byte) (int, error) {
	if u.done += int64(len(b)); u.Advance != nil {
		u.Advance(u.done, u.total)
	}
	return len(b), nil
}

// install moves the complete copy to its destination.
func (u *unpacker) install() error {
	u.cursor.Close()
	existed := u.into != nil
	if existed {
		from, err := u.staging.Dir("x")
		if err != nil {
			return err
		}
		err = merge(from, u.into)
		from.Close()
		if err != nil {
			return err
		}
	} else {
		if err := u.staging.Move("x", u.parent, u.name); err != nil {
			return err
		}
		if len(u.dirs) == 0 {
			return nil
		}
	}
	top := u.into
	if !existed {
		var err error
		if top, err = u.parent.Dir(u.name); err != nil {
			return err
		}
		defer top.Close()
	}
	cursor := tree.NewCursor(top)
	defer cursor.Close()
	for i := len(u.dirs) - 1; i >= 0; i-- { // children first: a parent's mode may bar the way
		d := u.dirs[i]
		if d.rel == "." && existed {
			continue
		}
		at, err := cursor.To(d.rel)
		if err == nil {
			err = errors.Join(at.Chtimes(d.time), at.Chmod(d.mode))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// merge moves everything in one directory to another.
func merge(from, to *tree.Dir) error {
	names, err := from.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := mergeOne(from, to, name); err != nil {
			return err
		}
	}
	return nil
}

func mergeOne(from, to *tree.Dir, name string) error {
	have, err := to.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return from.Move(name, to, name)
	}
	if err != nil {
		return err
	}
	e, err := from.Stat(name)
	switch {
	case err != nil:
		return err
	case e.IsDir() && !have.IsDir():
		return fmt.Errorf("%s: is not a directory", to.Join(name))
	case !e.IsDir() && have.IsDir():
		return fmt.Errorf("%s: is a directory", to.Join(name))
	case !e.IsDir():
		return from.Move(name, to, name)
	}
	source, err := from.Dir(name)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := to.Dir(name)
	if err != nil {
		return err
	}
	defer target.Close()
	return merge(source, target)
}
