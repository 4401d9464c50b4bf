package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

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
