// Package mounts is which directory of the host is where in a project's VM, and which paths of
// the VM are its own.
//
// A [Table] has the directories, and leads from a path of the host to one of the VM and back.
// [Host] makes it of a configuration. The VM's own paths are in paths.go, one row each: what may
// be mounted there, and what a container that binds one of them means by it.
//
// All but host.go is pure: only there is anything looked up on the host. Errors are for users
// (*ui.Error): devvm.toml asks for what cannot be had.
package mounts

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/ui"
)

// Table is what a VM has of the host. No two directories have the same target, and one whose
// target is below another's comes after it, or it would be hidden.
type Table []share.Export

// OnHost is the path on the host of what a VM has at a path. It is not ok if that is not of the
// host.
func (t Table) OnHost(guest string) (at string, ok bool) {
	best := -1
	for _, e := range t {
		if Within(e.Target, guest) && len(e.Target) > best {
			best, at = len(e.Target), path.Join(e.Source, strings.TrimPrefix(guest, e.Target))
		}
	}
	return at, best >= 0
}

// InVM is the path in the VM of what is at a path on the host, given without symbolic links. It
// is not ok if the VM does not have it. If another mount covers that path in the VM, it is still
// the answer.
func (t Table) InVM(host string) (at string, ok bool) {
	best := -1
	for _, e := range t {
		if Within(e.Source, host) && len(e.Source) > best {
			best, at = len(e.Source), path.Join(e.Target, strings.TrimPrefix(host, e.Source))
		}
	}
	return at, best >= 0
}

// order sorts a table. It is an error if two directories have the same target.
func (t Table) order(cfg config.Config) error {
	slices.SortStableFunc(t, func(a, b share.Export) int { return strings.Compare(a.Target, b.Target) })
	for i := range t {
		if i > 0 && t[i].Target == t[i-1].Target {
			return &ui.Error{
				Code: ui.ExitUsage,
				Msg:  fmt.Sprintf("%s: two directories would be at %s in the VM", cfg.Origin("mounts"), t[i].Target),
				Hint: "give one of them another target",
			}
		}
	}
	return nil
}

// Within tells whether a path is a directory or below it, by their names alone. Both are absolute;
// nothing is within "".
func Within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}
