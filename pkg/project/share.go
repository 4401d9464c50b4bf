package project

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vmnet"
)

// Which directories a VM has stands in devvm.toml, and devvm.toml is in the first of
// them: the VM can write it. So each up settles what the VM has from then on, after
// the user has agreed to what is outside the project's directory, and writes it where
// the VM cannot; the supervisor reads it there.

// shares works out what devvm.toml asks for, and a note if the project's directory is
// not to be had.
func (s *Service) shares(p state.Project, cfg config.Config) ([]share.Export, string, error) {
	exports := []share.Export{}
	note := ""
	if cfg.Mount {
		e := share.Export{Source: p.Dir, Target: p.Dir, Writable: true}
		if why := s.unfit(e); why == "" {
			exports = append(exports, e)
		} else {
			note = fmt.Sprintf("the VM does not have the project's directory: %s (to silence this, set mount = false in %s)", why, config.FileName)
		}
	}
	for _, m := range cfg.Mounts {
		e, err := s.export(p, m)
		if err != nil {
			return nil, "", &ui.Error{
				Code: ui.ExitUsage,
				Msg:  fmt.Sprintf("%s: the mount of %s: %v", cfg.Origin("mounts"), m.Source, err),
				Hint: "correct or remove it there",
			}
		}
		exports = append(exports, e)
	}
	// One below another comes after it, or it would be hidden.
	slices.SortStableFunc(exports, func(a, b share.Export) int { return strings.Compare(a.Target, b.Target) })
	for i, e := range exports[min(1, len(exports)):] {
		if e.Target == exports[i].Target {
			return nil, "", &ui.Error{
				Code: ui.ExitUsage,
				Msg:  fmt.Sprintf("%s: two directories would be at %s in the VM", cfg.Origin("mounts"), e.Target),
				Hint: "give one of them another target",
			}
		}
	}
	if !machine.FitsCredential(exports) {
		return nil, "", &ui.Error{
			Code: ui.ExitUsage,
			Msg:  fmt.Sprintf("%s: the paths of all mounts together are too long for a VM", cfg.Origin("mounts")),
			Hint: "share a directory above some of them",
		}
	}
	return exports, note, nil
}

// export resolves one mount.
func (s *Service) export(p state.Project, m config.Mount) (share.Export, error) {
	e := share.Export{Source: m.Source, Target: m.Target, Writable: m.Writable}
	switch {
	case m.Source == "~", strings.HasPrefix(m.Source, "~/"):
		e.Source = filepath.Join(s.Home, m.Source[1:])
	case !filepath.IsAbs(m.Source):
		e.Source = filepath.Join(p.Dir, m.Source)
	}
	e.Source = filepath.Clean(e.Source)
	if e.Target == "" {
		e.Target = e.Source // by the path that the user calls it, links and all
	}
	resolved, err := filepath.EvalSymlinks(e.Source)
	info, serr := os.Stat(e.Source)
	switch err := cmp.Or(err, serr); {
	case errors.Is(err, fs.ErrNotExist) && strings.Contains(m.Source, "$"):
		return e, fmt.Errorf("there is no %s (variables are not expanded; ~/ is your home)", e.Source)
	case errors.Is(err, fs.ErrNotExist):
		return e, fmt.Errorf("there is no %s", e.Source)
	case err != nil:
		return e, err
	case !info.IsDir():
		return e, fmt.Errorf("%s is not a directory", e.Source)
	case !within(p.Dir, e.Source): // it is the user's, who is asked about where it leads
		e.Source = resolved
	case resolved != e.Source: // it is the VM's to change
		return e, fmt.Errorf("%s is a symbolic link or below one, and devvm follows none in the project's directory", e.Source)
	}
	if why := s.unfit(e); why != "" {
		return e, errors.New(why)
	}
	return e, nil
}

// systemPaths are the VM's own: nothing is mounted on them or above them, and in those
// that are marked nothing is mounted below them either.
var systemPaths = map[string]bool{
	"/bin": true, "/boot": true, "/dev": true, "/etc": true, "/lib": true, "/lib64": true,
	"/proc": true, "/sbin": true, "/sys": true, "/usr/bin": true, "/usr/lib": true, "/usr/sbin": true,
	"/run/devvm": true, "/run/systemd": true, "/run/containerd": true, "/run/docker": true,
	"/var/lib/docker": true, "/var/lib/containerd": true, "/var/lib/devvm": true,
	"/root": false, "/run": false, "/tmp": false, "/usr": false, "/var": false, "/var/log": false,
}

// longestSource is how long Linux lets the source of a mount be, in bytes (fsconfig(2)).
const longestSource = 255

// unfit tells why a directory cannot be had; "" if it can.
func (s *Service) unfit(e share.Export) string {
	if strings.ContainsFunc(e.Target, unicode.IsControl) {
		return "its path contains a control character"
	}
	if most := longestSource - len(vmnet.Gateway.String()+":"); len(e.Target) > most {
		return fmt.Sprintf("its path is %d bytes long; the VM's kernel mounts %d at most", len(e.Target), most)
	}
	for path, all := range systemPaths {
		if within(e.Target, path) || all && within(path, e.Target) {
			return fmt.Sprintf("%s would hide the VM's own %s", e.Target, path)
		}
	}
	for _, dir := range []string{s.Dirs.Data, s.Dirs.Runtime, s.Dirs.Short, s.Dirs.Config, s.Dirs.Cache} {
		if dir == "" {
			continue
		}
		if resolved, err := filepath.EvalSymlinks(dir); err == nil {
			dir = resolved
		}
		if within(e.Source, dir) || within(dir, e.Source) {
			return fmt.Sprintf("%s contains devvm's own files (%s), among them the keys of other VMs", e.Source, dir)
		}
	}
	return ""
}

// within tells whether a path is a directory or below it.
func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}
