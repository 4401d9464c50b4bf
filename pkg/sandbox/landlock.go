package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// ErrUnsupported says that the kernel cannot confine a process to files.
var ErrUnsupported = errors.New("the kernel has no Landlock")

// minABI is the first with which a file can be moved between two directories of a policy.
const minABI = 2

// Supported returns the version of Landlock's ABI that the kernel has. The error wraps
// ErrUnsupported and says why it has none.
func Supported() (int, error) {
	abi, err := ll.LandlockGetABIVersion()
	switch {
	case err != nil:
		return 0, fmt.Errorf("%w (landlock_create_ruleset: %w)", ErrUnsupported, err)
	case abi < minABI:
		return abi, fmt.Errorf("%w that devvm can use (it has ABI %d; Linux 5.19 and later have ABI %d)", ErrUnsupported, abi, minABI)
	}
	return abi, nil
}

// Rights, by what they are for.
const (
	rightsRead   landlock.AccessFSSet = ll.AccessFSReadFile | ll.AccessFSReadDir
	rightsRun                         = rightsRead | ll.AccessFSExecute
	rightsRemove landlock.AccessFSSet = ll.AccessFSRemoveFile
	rightsDevice landlock.AccessFSSet = ll.AccessFSReadFile | ll.AccessFSWriteFile | ll.AccessFSIoctlDev
	rightsWrite                       = rightsRead | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSRefer |
		ll.AccessFSRemoveFile | ll.AccessFSRemoveDir |
		ll.AccessFSMakeReg | ll.AccessFSMakeDir | ll.AccessFSMakeSym | ll.AccessFSMakeSock | ll.AccessFSMakeFifo

	// rightsOfFile are those that a rule for a file can give.
	rightsOfFile landlock.AccessFSSet = ll.AccessFSExecute | ll.AccessFSWriteFile | ll.AccessFSReadFile |
		ll.AccessFSTruncate | ll.AccessFSIoctlDev | ll.AccessFSResolveUnix
)

// Enter confines this process, all of its threads and what it starts, to the policy, and
// tells by which version of Landlock's ABI. What is open already stays open. There is no
// way out.
func Enter(p Policy) (abi int, err error) {
	if abi, err = Supported(); err != nil {
		return abi, err
	}
	// V9 is the first that confines connections to unix sockets, the last that says
	// anything of files. An older kernel does what it can.
	config := landlock.V9.BestEffort()
	if p.TCP {
		config.HandledAccessNet = 0
	}
	var rules []landlock.Rule
	for _, part := range []struct {
		rights landlock.AccessFSSet
		paths  []string
	}{
		{rightsRead, p.Read},
		{ll.AccessFSReadFile, p.Files},
		{rightsRun, p.Run},
		{rightsWrite, p.Write},
		{rightsRemove, p.Remove},
		{rightsDevice, p.Devices},
		{ll.AccessFSResolveUnix, p.Connect},
	} {
		for _, path := range part.paths {
			info, err := os.Stat(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return abi, fmt.Errorf("confine this process: %w", err)
			}
			rights := part.rights
			if !info.IsDir() {
				rights &= rightsOfFile
			}
			if rights != 0 {
				rules = append(rules, landlock.PathAccess(rights, path).IgnoreIfMissing())
			}
		}
	}
	if err := config.Restrict(rules...); err != nil {
		return abi, fmt.Errorf("confine this process: %w", err)
	}
	return abi, nil
}
