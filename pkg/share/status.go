package share

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share/internal/nfs3"
)

// nfs3error is an NFS error that has no errno.
type nfs3error nfs3.Nfsstat3

func (e nfs3error) Error() string { return nfs3.Nfsstat3_name[nfs3.Nfsstat3(e)] }

// statuses maps errnos to NFS's errors.
var statuses = map[unix.Errno]nfs3.Nfsstat3{
	unix.EPERM: nfs3.ERR_PERM, unix.ENOENT: nfs3.ERR_NOENT, unix.EIO: nfs3.ERR_IO,
	unix.ENXIO: nfs3.ERR_NXIO, unix.EACCES: nfs3.ERR_ACCES, unix.EEXIST: nfs3.ERR_EXIST,
	unix.EXDEV: nfs3.ERR_XDEV, unix.ENODEV: nfs3.ERR_NODEV, unix.ENOTDIR: nfs3.ERR_NOTDIR,
	unix.EISDIR: nfs3.ERR_ISDIR, unix.EINVAL: nfs3.ERR_INVAL, unix.EFBIG: nfs3.ERR_FBIG,
	unix.ENOSPC: nfs3.ERR_NOSPC, unix.EROFS: nfs3.ERR_ROFS, unix.EMLINK: nfs3.ERR_MLINK,
	unix.ENAMETOOLONG: nfs3.ERR_NAMETOOLONG, unix.ENOTEMPTY: nfs3.ERR_NOTEMPTY,
	unix.EDQUOT: nfs3.ERR_DQUOT, unix.ESTALE: nfs3.ERR_STALE, unix.EOPNOTSUPP: nfs3.ERR_NOTSUPP,
	// A link where a directory was, a moment ago.
	unix.ELOOP: nfs3.ERR_NOTDIR,
	// A program that runs, a file that is leased, a directory that is mounted on.
	unix.ETXTBSY: nfs3.ERR_ACCES, unix.EBUSY: nfs3.ERR_ACCES,
	// The VM asks again, later.
	unix.EMFILE: nfs3.ERR_JUKEBOX, unix.ENFILE: nfs3.ERR_JUKEBOX, unix.ENOMEM: nfs3.ERR_JUKEBOX,
	unix.EWOULDBLOCK: nfs3.ERR_JUKEBOX,
}

// statusOf returns the NFS status for an error.
func statusOf(err error) nfs3.Nfsstat3 {
	if err == nil {
		return nfs3.OK
	}
	if own, ok := errors.AsType[nfs3error](err); ok {
		return nfs3.Nfsstat3(own)
	}
	if number, ok := errors.AsType[unix.Errno](err); ok {
		if status, ok := statuses[number]; ok {
			return status
		}
	}
	return nfs3.ERR_IO
}
