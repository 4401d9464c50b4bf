// Package guard decides whether a VM has what a container is to bind from it, and finds
// the words that say how it gets it. Docker makes a directory of what is missing, so that
// a path which only the host has would be an empty directory in the container.
//
// It is pure: what is at a path, here and in the VM, comes from the caller. Which paths are the
// VM's own stands in package mounts. It knows nothing of HTTP, SSH or devvm.toml's reader, and
// cannot fail: what it does not understand it lets pass, for the engine to judge.
package guard

import (
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/devvm/devvm/pkg/mounts"
	"github.com/devvm/devvm/pkg/share"
)

// Bind is a path that a container is to have from the VM.
type Bind struct {
	Path     string // absolute and clean
	ReadOnly bool
}

// Binds are the paths of the VM that a container's Binds and Mounts name, each once.
// Named volumes, tmpfs and what is malformed are not among them.
func Binds(host container.HostConfig) []Bind {
	var list []Bind
	add := func(b Bind) {
		i := slices.IndexFunc(list, func(o Bind) bool { return o.Path == b.Path })
		if i < 0 {
			list = append(list, b)
		} else if !b.ReadOnly {
			list[i].ReadOnly = false
		}
	}
	for _, s := range host.Binds {
		if b, ok := parse(s); ok {
			add(b)
		}
	}
	for _, m := range host.Mounts {
		switch m.Type {
		case mount.TypeBind:
			if path.IsAbs(m.Source) {
				add(Bind{Path: path.Clean(m.Source), ReadOnly: m.ReadOnly})
			}
		case mount.TypeVolume:
			if m.VolumeOptions == nil || m.VolumeOptions.DriverConfig == nil {
				continue
			}
			if b, ok := Volume(*m.VolumeOptions.DriverConfig); ok {
				b.ReadOnly = b.ReadOnly || m.ReadOnly
				add(b)
			}
		}
	}
	return list
}

// Cut takes "source:target[:options]" apart behind the source, as the engine does (moby's
// volume/mounts/linux_parser.go). It is not ok if the source is no path: a target alone is an
// anonymous volume, and a source that is not absolute the name of a volume.
func Cut(spec string) (source, rest string, ok bool) {
	parts := strings.Split(spec, ":")
	if len(parts) < 2 || len(parts) > 3 || !path.IsAbs(parts[0]) || !path.IsAbs(parts[1]) {
		return "", "", false
	}
	return parts[0], spec[len(parts[0]):], true
}

func parse(spec string) (Bind, bool) {
	source, rest, ok := Cut(spec)
	if !ok {
		return Bind{}, false
	}
	b := Bind{Path: path.Clean(source)}
	if parts := strings.Split(rest, ":"); len(parts) == 3 {
		b.ReadOnly = slices.Contains(strings.Split(parts[2], ","), "ro")
	}
	return b, true
}

// Volume is the path that a volume of the driver "local" is bound to, if it is:
// options type=none, o=bind, device=PATH.
func Volume(driver mount.Driver) (Bind, bool) {
	device := driver.Options["device"]
	if driver.Name != "" && driver.Name != "local" || !path.IsAbs(device) {
		return Bind{}, false
	}
	words := strings.Split(driver.Options["o"], ",")
	if !slices.Contains(words, "bind") && !slices.Contains(words, "rbind") {
		return Bind{}, false
	}
	return Bind{Path: path.Clean(device), ReadOnly: slices.Contains(words, "ro")}, true
}

// Kind is what is at a path, links followed.
type Kind string

// The kinds.
const (
	Unknown   Kind = ""          // it could not be found out
	Missing   Kind = "missing"   // nothing
	Empty     Kind = "empty"     // a directory without entries; only said of the VM
	Sockets   Kind = "sockets"   // a directory that holds sockets and nothing else; only said of the host
	Directory Kind = "directory" // any other directory
	File      Kind = "file"
	Socket    Kind = "socket"
	Other     Kind = "other"
)

// Found is what is at the path of a bind.
type Found struct {
	Host Kind
	Real string // the path on the host without links; "" unless there is something
	VM   Kind
}

// Guard judges the binds of one project.
type Guard struct {
	Dir    string // the project's directory, which holds its devvm.toml
	Shares mounts.Table
	// Unfit tells why a directory of the host cannot be shared at a path of the VM; ""
	// if it can. nil: all can.
	Unfit func(source, target string) string
}

// Serves tells from what the host has alone that the VM serves a bind: it is on a share
// and no link leads out of that. resolved is where it is on the host without links, as far
// as it is there. What is missing on a share is the engine's business: it makes it
// there, as on a host.
func (g Guard) Serves(b Bind, resolved string) bool {
	_, shared := g.Shares.OnHost(b.Path)
	_, stays := g.Shares.InVM(resolved)
	return shared && stays
}

// verdict on one bind that the host's files alone do not decide.
type verdict int

const (
	pass    verdict = iota
	missing         // not in the VM
	hollow          // in the VM only as an empty directory, and the host has it
	leading         // in the VM only as the way to what is shared
	foreign         // in the VM as one of its own, where the host's is meant
)

func (g Guard) judge(b Bind, f Found) verdict {
	onHost := f.Host != Missing && f.Host != Unknown
	kind, by := mounts.Own(b.Path)
	switch {
	case f.VM == Missing:
		return missing
	case f.VM == Unknown || !onHost || b.Path == "/":
		return pass
	case kind == mounts.Temporary && b.Path == by:
		return foreign
	case f.VM == Empty && kind != mounts.Kernel:
		return hollow
	case f.VM == Directory && kind != mounts.Kernel && kind != mounts.System && g.leads(b.Path):
		return leading
	}
	return pass
}

// leads tells whether something is shared below a path of the VM.
func (g Guard) leads(p string) bool {
	return slices.ContainsFunc(g.Shares, func(e share.Export) bool { return e.Target != p && mounts.Within(p, e.Target) })
}
