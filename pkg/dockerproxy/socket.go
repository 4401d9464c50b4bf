package dockerproxy

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// transient says that an error of accept concerns one connection or passes.
func transient(err error) bool {
	for _, e := range []syscall.Errno{
		unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EINTR, unix.EAGAIN,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
