package guesttest

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// sftp serves the scratch directory as the guest's root.
func (s *Server) sftp(ch ssh.Channel) {
	root, err := os.OpenRoot(s.opts.Dir)
	if err != nil {
		return
	}
	defer func() { _ = root.Close() }()
	files := rootedFiles{root}
	server := sftp.NewRequestServer(ch, sftp.Handlers{FileGet: files, FilePut: files, FileCmd: files, FileList: files},
		sftp.WithStartDirectory("/root"))
	if err := server.Serve(); err != nil && !errors.Is(err, io.EOF) {
		s.log.Debug("sftp", "err", err)
	}
	_ = server.Close()
	exitStatus(ch, 0)
}

// rootedFiles serves the files under a directory and no others.
type rootedFiles struct{ root *os.Root }

func local(path string) string { return "./" + strings.TrimPrefix(path, "/") }

// Fileread implements [sftp.FileReader].
func (f rootedFiles) Fileread(r *sftp.Request) (io.ReaderAt, error) {
	return f.root.Open(local(r.Filepath))
}

// Filewrite implements [sftp.FileWriter].
func (f rootedFiles) Filewrite(r *sftp.Request) (io.WriterAt, error) {
	flags, want := os.O_WRONLY, r.Pflags()
	if want.Creat {
		flags |= os.O_CREATE
	}
	if want.Trunc {
		flags |= os.O_TRUNC
	}
	if want.Excl {
		flags |= os.O_EXCL
	}
	return f.root.OpenFile(local(r.Filepath), flags, 0o644)
}

// Filecmd implements [sftp.FileCmder].
func (f rootedFiles) Filecmd(r *sftp.Request) error {
	name := local(r.Filepath)
	switch r.Method {
	case "Setstat":
		flags, attrs := r.AttrFlags(), r.Attributes()
		if flags.Size {
			file, err := f.root.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer func() { _ = file.Close() }()
			if err := file.Truncate(int64(attrs.Size)); err != nil {
				return err
			}
		}
		if flags.Permissions {
			if err := f.root.Chmod(name, attrs.FileMode().Perm()); err != nil {
				return err
			}
		}
		if flags.Acmodtime {
			return f.root.Chtimes(name, time.Unix(int64(attrs.Atime), 0), time.Unix(int64(attrs.Mtime), 0))
		}
		return nil
	case "Rename":
		return f.root.Rename(name, local(r.Target))
	case "Rmdir", "Remove":
		return f.root.Remove(name)
	case "Mkdir":
		return f.root.Mkdir(name, 0o755)
	case "Symlink":
		return f.root.Symlink(r.Filepath, local(r.Target))
	}
	return sftp.ErrSSHFxOpUnsupported
}

// PosixRename implements [sftp.PosixRenameFileCmder].
func (f rootedFiles) PosixRename(r *sftp.Request) error {
	return f.root.Rename(local(r.Filepath), local(r.Target))
}

// Filelist implements [sftp.FileLister].
func (f rootedFiles) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	if r.Method == "Stat" {
		info, err := f.root.Stat(local(r.Filepath))
		return infos{info}, err
	}
	dir, err := f.root.Open(local(r.Filepath))
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	list, err := dir.Readdir(-1)
	return infos(list), err
}

// Lstat implements [sftp.LstatFileLister].
func (f rootedFiles) Lstat(r *sftp.Request) (sftp.ListerAt, error) {
	info, err := f.root.Lstat(local(r.Filepath))
	return infos{info}, err
}

// Readlink implements [sftp.ReadlinkFileLister].
func (f rootedFiles) Readlink(path string) (string, error) { return f.root.Readlink(local(path)) }

// infos is a list of files.
type infos []fs.FileInfo

// ListAt implements [sftp.ListerAt].
func (l infos) ListAt(to []fs.FileInfo, offset int64) (int, error) {
	if offset >= int64(len(l)) {
		return 0, io.EOF
	}
	n := copy(to, l[offset:])
	if n < len(to) {
		return n, io.EOF
	}
	return n, nil
}
