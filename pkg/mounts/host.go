package mounts

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/ui"
)

// Host is what a project's mounts go by on the host.
type Host struct {
	Project string // the project's directory, without symbolic links
	Home    string // the user's
	// Private are devvm's own directories, which hold the keys of other VMs: neither they nor
	// what is above or below them can be shared. "" is none.
	Private []string
}

// Table is what a configuration asks for, and a note for the user if the project's directory
// cannot be shared.
func (h Host) Table(cfg config.Config) (t Table, note string, err error) {
	t = Table{}
	if cfg.Mount {
		if why := h.Unfit(h.Project, h.Project); why == "" {
			t = append(t, share.Export{Source: h.Project, Target: h.Project, Writable: true})
		} else {
			note = fmt.Sprintf("the VM does not have the project's directory: %s (to silence this, set mount = false in %s)", why, config.FileName)
		}
	}
	for _, m := range cfg.Mounts {
		e, err := h.export(m)
		if err != nil {
			return nil, "", &ui.Error{
				Code: ui.ExitUsage,
				Msg:  fmt.Sprintf("%s: the mount of %s: %v", cfg.Origin("mounts"), m.Source, err),
				Hint: "correct or remove it there",
			}
		}
		t = append(t, e)
	}
	if err := t.order(cfg); err != nil {
		return nil, "", err
	}
	return t, note, nil
}

// export finds out where a mount leads.
func (h Host) export(m config.Mount) (share.Export, error) {
	e := share.Export{Source: m.Source, Target: m.Target, Writable: m.Writable}
	switch {
	case m.Source == "~", strings.HasPrefix(m.Source, "~/"):
		e.Source = filepath.Join(h.Home, m.Source[1:])
	case !filepath.IsAbs(m.Source):
		e.Source = filepath.Join(h.Project, m.Source)
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
	case !Within(h.Project, e.Source): // it is the user's, who is asked about where it leads
		e.Source = resolved
	case resolved != e.Source: // it is the VM's to change
		return e, fmt.Errorf("%s is a symbolic link or below one, and devvm follows none in the project's directory", e.Source)
	}
	if why := h.Unfit(e.Source, e.Target); why != "" {
		return e, errors.New(why)
	}
	return e, nil
}

// Unfit tells why a VM cannot have a directory of the host, given without symbolic links, at a
// path; "" if it can.
func (h Host) Unfit(source, target string) string {
	if why := unfitTarget(target); why != "" {
		return why
	}
	var private []string
	for _, dir := range h.Private {
		if dir != "" {
			private = append(private, Real(dir))
		}
	}
	return unfitSource(source, private)
}

// GuestDir is where the VM has a directory of the host, whatever links lead to that; "" if it does
// not have it, or there is none.
func (t Table) GuestDir(dir string) string {
	resolved, err := filepath.Abs(dir)
	if err == nil {
		resolved, err = filepath.EvalSymlinks(resolved)
	}
	if err != nil {
		return ""
	}
	at, _ := t.InVM(resolved)
	return at
}

// Real is a path of the host without symbolic links, as far as it is there.
func Real(path string) string {
	rest := ""
	for dir := path; ; dir = filepath.Dir(dir) {
		resolved, err := filepath.EvalSymlinks(dir)
		if err == nil {
			return filepath.Join(resolved, rest)
		}
		if dir == filepath.Dir(dir) {
			return path
		}
		rest = filepath.Join(filepath.Base(dir), rest)
	}
}
