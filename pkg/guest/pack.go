package guest

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/devvm/devvm/pkg/tree"
)

// packScript takes a path, whether to follow it if it is a link, and whether the archive's
// entries start with its name. The kernel's own files (proc(5), sysfs(5)) report sizes that are
// wrong, so tar gets a copy of them.
const packScript = `set -eu
src=$1
if [ ! -e "$src" ] && [ ! -L "$src" ]; then echo "$src: no such file or directory" >&2; exit 66; fi
[ -z "$2" ] || src=$(readlink -f -- "$src")
case $(readlink -f -- "$src") in /proc/* | /sys/*) pseudo=1 ;; *) pseudo= ;; esac
if [ "$pseudo" ] && [ -f "$src" ] && [ ! -L "$src" ]; then
	tmp=$(mktemp -d) || exit 2
	trap 'trap "" HUP INT TERM; unset ` + markName + `; rm -rf -- "$tmp"' EXIT
	trap 'exit 143' HUP INT TERM
	cp --archive -- "$src" "$tmp" || exit 2
	src=$tmp/$(basename -- "$src")
fi
pack() { tar --create --file=- --format=posix --pax-option=delete=atime,delete=ctime "$@"; exit; }
if [ "$3" ]; then pack --numeric-owner --directory="$(dirname -- "$src")" -- "$(basename -- "$src")"; fi
if [ -d "$src" ] && [ ! -L "$src" ]; then pack --hard-dereference --directory="$src" -- .; fi
pack --hard-dereference --directory="$(dirname -- "$src")" -- "./$(basename -- "$src")"`

// size is the total size of the files at a place. Errors are ignored: the copy meets them again
// and reports them.
func size(at *tree.Place) int64 {
	switch {
	case at.Info.IsRegular():
		return at.Info.Size
	case at.Dir == nil:
		return 0
	}
	var below func(d *tree.Dir) int64
	below = func(d *tree.Dir) (total int64) {
		names, _ := d.Names()
		for _, name := range names {
			info, err := d.Stat(name)
			switch {
			case err != nil:
			case info.IsRegular():
				total += info.Size
			case info.IsDir():
				if sub, err := d.Dir(name); err == nil {
					total += below(sub)
					sub.Close()
				}
			}
		}
		return total
	}
	return below(at.Dir)
}

// packer makes an archive of files on this host.
type packer struct {
	Copy
	ctx         context.Context
	done, total int64
}

// pack makes an archive whose first entry is "x".
func (p *packer) pack(w *tar.Writer, source *tree.Place) error {
	var err error
	if source.Dir != nil {
		err = p.directory(w, source.Dir, "x")
	} else {
		err = p.add(w, source.Parent, source.Name, "x")
	}
	if err != nil {
		return err
	}
	if err := p.ctx.Err(); err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "end", Mode: 0o600}); err != nil {
		return err
	}
	return w.Close()
}

// directory packs a directory and everything below it.
func (p *packer) directory(w *tar.Writer, d *tree.Dir, name string) error {
	info, err := d.Self()
	if err != nil {
		return err
	}
	h := header(info, name)
	h.Typeflag = tar.TypeDir
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	names, err := d.Names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := p.add(w, d, n, name+"/"+n); err != nil {
			return err
		}
	}
	return nil
}

func header(info tree.Info, name string) *tar.Header {
	return &tar.Header{Name: name, Mode: int64(info.Mode.Perm()), ModTime: info.Time, Format: tar.FormatPAX}
}

// sizeUnsure is the largest size, in bytes, that the kernel's own files report whatever they
// contain: 0 in /proc, a page of up to 64 KiB in /sys. Files up to that size are read before
// their header is written, up to mostUnsure, because some have no end.
const (
	sizeUnsure = 64 << 10
	mostUnsure = 64 << 20
)

// add packs one entry of a directory. It looks at the entry before opening it, so that it opens
// no device, and looks again at the file that it opened.
func (p *packer) add(w *tar.Writer, in *tree.Dir, from, name string) error {
	info, err := in.Stat(from)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		d, err := in.Dir(from)
		if err != nil {
			return err
		}
		defer d.Close()
		return p.directory(w, d, name)
	case info.IsLink():
		h := header(info, name)
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = in.Readlink(from); err != nil {
			return err
		}
		return w.WriteHeader(h)
	case info.IsRegular():
		f, info, err := in.Open(from)
		if err != nil {
			return err
		}
		defer f.Close()
		h := header(info, name)
		h.Typeflag, h.Size = tar.TypeReg, info.Size
		content := io.TeeReader(f, p)
		if h.Size <= sizeUnsure {
			b, err := io.ReadAll(io.LimitReader(content, mostUnsure+1))
			if err != nil {
				return err
			}
			if len(b) > mostUnsure {
				return fmt.Errorf("%s: more is in it than the %d bytes that it says", f.Name(), h.Size)
			}
			h.Size, content = int64(len(b)), bytes.NewReader(b)
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		n, err := io.Copy(w, io.LimitReader(content, h.Size))
		if err == nil && n < h.Size {
			return fmt.Errorf("%s: became shorter while it was copied", f.Name())
		}
		return err
	}
	p.warn("%s is neither a file nor a directory nor a link, and left out", in.Join(from))
	return nil
}

// Write implements io.Writer. It counts bytes, and fails once the context has ended.
func (p *packer) Write(b []byte) (int, error) {
	if p.done += int64(len(b)); p.Advance != nil {
		p.Advance(p.done, p.total)
	}
	return len(b), p.ctx.Err()
}

// Pack writes the files at a path of the guest as a tar archive.
func (c *Client) Pack(ctx context.Context, o Copy, w io.Writer) error {
	follow, name := "", "1"
	if o.Follow {
		follow = "1"
	}
	if contents(o.Remote) {
		follow, name = "1", ""
	}
	var said beginning
	argv := []string{"sh", "-c", packScript, "pack", remote(o.Remote), follow, name}
	code, err := c.Run(ctx, Command{Argv: argv, Env: []string{"LC_ALL=C.UTF-8"}, Stdout: w, Stderr: &said})
	if code == 1 && err == nil {
		o.warn("%s", strings.TrimSpace(said.String()))
		return nil
	}
	return failure(code, err, said.String(), o.Remote)
}
