package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// CopyTo copies a file, a symbolic link or a directory with all that is in it
// from this host into the guest. remote is the name that the copy gets, not a
// directory to put it in; what is there already is overwritten file by file.
// Modes and modification times are kept, owners are the guest's user. Anything
// else than files, links and directories is an error.
func (c *Client) CopyTo(ctx context.Context, local, remote string) error {
	return c.withSFTP(ctx, func(s *sftp.Client) error {
		return copyTo(ctx, s, local, remote)
	})
}

// CopyFrom copies out of the guest as [Client.CopyTo] copies into it. Whatever
// the guest answers, nothing outside local is written.
func (c *Client) CopyFrom(ctx context.Context, remote, local string) error {
	return c.withSFTP(ctx, func(s *sftp.Client) error {
		dir, base := filepath.Split(filepath.Clean(local))
		if dir == "" {
			dir = "."
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer func() { _ = root.Close() }()
		return copyFrom(ctx, s, remote, root, base)
	})
}

// WriteFile writes all that r yields to a file in the guest, which is there
// completely under its name, with that mode, or not at all.
func (c *Client) WriteFile(ctx context.Context, remote string, r io.Reader, mode fs.FileMode) error {
	return c.withSFTP(ctx, func(s *sftp.Client) error {
		fresh := path.Join(path.Dir(remote), ".devvm-new-"+path.Base(remote))
		err := func() (err error) {
			f, err := s.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, f.Close()) }()
			// The mode before the content, which may be secret.
			if err := s.Chmod(fresh, mode.Perm()); err != nil {
				return err
			}
			_, err = f.ReadFrom(r)
			return err
		}()
		if err == nil {
			err = s.PosixRename(fresh, remote)
		}
		if err != nil {
			_ = s.Remove(fresh)
			return fmt.Errorf("write %s: %w", remote, err)
		}
		return nil
	})
}

// ReadFile copies the content of a file in the guest to w.
func (c *Client) ReadFile(ctx context.Context, remote string, w io.Writer) error {
	out, _ := outputs(w, nil)
	defer out.stopped.Store(true)
	return c.withSFTP(ctx, func(s *sftp.Client) error {
		f, err := s.Open(remote)
		if err != nil {
			return fmt.Errorf("read %s: %w", remote, err)
		}
		defer func() { _ = f.Close() }()
		if _, err := f.WriteTo(out); err != nil {
			return fmt.Errorf("read %s: %w", remote, err)
		}
		return nil
	})
}

// withSFTP runs f with an SFTP session that ends when f or ctx does.
func (c *Client) withSFTP(ctx context.Context, f func(*sftp.Client) error) error {
	ch, reqs, err := c.open(ctx, "session", nil)
	if err != nil {
		return fmt.Errorf("SFTP with the VM: %w", err)
	}
	go ssh.DiscardRequests(reqs)
	go func() { _, _ = io.Copy(io.Discard, ch.Stderr()) }()
	defer context.AfterFunc(ctx, func() { _ = ch.Close() })()

	// Not waited for when ctx ends: the link may be stuck.
	result := make(chan error, 1)
	go func() {
		result <- func() error {
			defer func() { _ = ch.Close() }()
			ok, err := ch.SendRequest("subsystem", true, ssh.Marshal(struct{ Name string }{"sftp"}))
			if err != nil {
				return c.lost()
			}
			if !ok {
				return fmt.Errorf("%w: no SFTP server", ErrRefused)
			}
			s, err := sftp.NewClientPipe(ch, ch, sftp.UseConcurrentWrites(true))
			if err != nil {
				return err
			}
			defer func() { _ = s.Close() }()
			return f(s)
		}()
	}()
	select {
	case err = <-result:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	} else if c.link.broken.Load() && !errors.Is(err, ErrUnreachable) {
		err = fmt.Errorf("%w: %w", c.lost(), err)
	}
	return fmt.Errorf("SFTP with the VM: %w", err)
}

func copyTo(ctx context.Context, s *sftp.Client, local, remote string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := os.Lstat(local)
	if err != nil {
		return err
	}
	switch info.Mode().Type() {
	case fs.ModeSymlink:
		target, err := os.Readlink(local)
		if err != nil {
			return err
		}
		if have, err := s.Lstat(remote); err == nil && !have.IsDir() {
			_ = s.Remove(remote)
		}
		if err := s.Symlink(target, remote); err != nil {
			return fmt.Errorf("link %s: %w", remote, err)
		}
		return nil
	case fs.ModeDir:
		if err := s.Mkdir(remote); err != nil {
			if have, statErr := s.Stat(remote); statErr != nil || !have.IsDir() {
				return fmt.Errorf("make directory %s: %w", remote, err)
			}
		}
		entries, err := os.ReadDir(local)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := copyTo(ctx, s, filepath.Join(local, e.Name()), path.Join(remote, e.Name())); err != nil {
				return err
			}
		}
	case 0:
		if err := putFile(s, local, remote); err != nil {
			return fmt.Errorf("copy %s to %s: %w", local, remote, err)
		}
	default:
		return fmt.Errorf("copy %s: neither a file nor a directory nor a link", local)
	}
	if err := s.Chmod(remote, info.Mode().Perm()); err != nil {
		return fmt.Errorf("set the mode of %s: %w", remote, err)
	}
	if err := s.Chtimes(remote, info.ModTime(), info.ModTime()); err != nil {
		return fmt.Errorf("set the time of %s: %w", remote, err)
	}
	return nil
}

func putFile(s *sftp.Client, local, remote string) (err error) {
	from, err := os.Open(local)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := s.OpenFile(remote, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	_, err = to.ReadFrom(from)
	return err
}

// copyFrom copies to name in root. The root keeps what is written inside, even
// if the guest reports a link first and then a directory of the same name.
func copyFrom(ctx context.Context, s *sftp.Client, remote string, root *os.Root, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	info, err := s.Lstat(remote)
	if err != nil {
		return fmt.Errorf("copy %s: %w", remote, err)
	}
	switch info.Mode().Type() {
	case fs.ModeSymlink:
		target, err := s.ReadLink(remote)
		if err != nil {
			return fmt.Errorf("copy %s: %w", remote, err)
		}
		if have, err := root.Lstat(name); err == nil && !have.IsDir() {
			_ = root.Remove(name)
		}
		return root.Symlink(target, name)
	case fs.ModeDir:
		if err := root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		dir, err := root.OpenRoot(name)
		if err != nil {
			return err
		}
		defer func() { _ = dir.Close() }()
		entries, err := s.ReadDirContext(ctx, remote)
		if err != nil {
			return fmt.Errorf("copy %s: %w", remote, err)
		}
		for _, e := range entries {
			if n := e.Name(); n == "" || n == "." || n == ".." || strings.ContainsAny(n, "/\x00") {
				return fmt.Errorf("copy %s: the VM lists %q, which is no file name", remote, n)
			}
			if err := copyFrom(ctx, s, path.Join(remote, e.Name()), dir, e.Name()); err != nil {
				return err
			}
		}
	case 0:
		if err := getFile(s, remote, root, name); err != nil {
			return fmt.Errorf("copy %s: %w", remote, err)
		}
	default:
		return fmt.Errorf("copy %s: neither a file nor a directory nor a link", remote)
	}
	if err := root.Chmod(name, info.Mode().Perm()); err != nil {
		return err
	}
	return root.Chtimes(name, info.ModTime(), info.ModTime())
}

func getFile(s *sftp.Client, remote string, root *os.Root, name string) (err error) {
	from, err := s.Open(remote)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	to, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	_, err = from.WriteTo(to)
	return err
}
