package share

import (
	"context"

	"golang.org/x/sys/unix"
)

// observer is told what the server does with one export for the VM. The mirror is one: it tells
// the VM what the host changes. The core of this package, RPC and NFS, knows nothing else of it.
type observer interface {
	// asked: a call asks for a name in a directory.
	asked(c *call, dir *object) wait
	// askedAgain: a call asks for the state of a file that the VM knows.
	askedAgain(c *call, n *node) wait
	// listed: a call was told entries of a directory.
	listed(c *call, dir *node)
	// shown: the VM was told an object's state. The caller holds the export's lock.
	shown(n *node, st *unix.Statx_t)
	// made: a name in a directory now stands for an object.
	made(dir *node, name string, st *unix.Statx_t)
	// changed: an object has another state, or other data.
	changed(o *object, wrote bool)
	// removed: a name is gone from a directory.
	removed(dir *node, name string)
	// unlinked: an object has lost one of its names, but not the last.
	unlinked(n *node)
	// renamed: an object has moved from one directory and name to another.
	renamed(from *node, old string, to *object, name string)
}

// sight is what the VM was told of an object last. The observer notes it.
type sight struct {
	size, blocks uint64
	mtime, ctime unix.StatxTimestamp
	mode         uint16
	told         int64 // when, in Unix milliseconds
}

// wait is what a call waits for before its answer; nil: nothing.
type wait func(context.Context)

// inTurn answers a call, after a wait if the first try asks for one. The answer may have changed
// by then.
func inTurn(ctx context.Context, answer func(mayWait bool) wait) {
	if wait := answer(true); wait != nil {
		wait(ctx)
		answer(false)
	}
}

// unobserved is the observer of an export that has no mirror.
type unobserved struct{}

func (unobserved) asked(*call, *object) wait              { return nil }
func (unobserved) askedAgain(*call, *node) wait           { return nil }
func (unobserved) listed(*call, *node)                    {}
func (unobserved) shown(*node, *unix.Statx_t)             {}
func (unobserved) made(*node, string, *unix.Statx_t)      {}
func (unobserved) changed(*object, bool)                  {}
func (unobserved) removed(*node, string)                  {}
func (unobserved) unlinked(*node)                         {}
func (unobserved) renamed(*node, string, *object, string) {}
