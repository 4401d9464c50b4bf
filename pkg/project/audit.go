package project

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/devvm/devvm/pkg/audit"
	"github.com/devvm/devvm/pkg/ports"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

// hostFile is the file with the fingerprint of the host from before the first VM of this boot.
func hostFile(d state.Dirs) string { return filepath.Join(d.Data, "host.json") }

// rememberHost keeps the fingerprint of the host before the first VM, for audit. If that fails,
// up goes on.
func (s *Service) rememberHost(ctx context.Context) {
	err := os.MkdirAll(s.Dirs.Data, s.Dirs.Passable())
	if err == nil {
		err = audit.Remember(ctx, audit.System(), hostFile(s.Dirs))
	}
	if err != nil {
		s.Log.Warn("save the state of the host, for devvm audit", "err", err)
	}
}

// Audit checks whether devvm keeps its promises to the host. since is the path of a fingerprint to
// compare with; "": the one that up has kept.
func (s *Service) Audit(ctx context.Context, since string) (audit.Report, error) {
	h := audit.System()
	o := audit.Options{
		Version:   s.Version,
		Program:   s.Exe,
		Dirs:      auditDirs(s.Dirs),
		Dir:       func(project string) string { return s.Dirs.Files(project).RecordedDir() },
		Exposures: s.auditExposures,
	}
	before, err := s.hostBefore(h, since)
	switch {
	case err == nil:
		o.Before = &before
		o.When = "before devvm's first VM of this boot"
		if since != "" {
			o.When = "of " + since
		}
	case since != "":
		return audit.Report{}, &ui.Error{Code: ui.ExitUsage, Err: err, Hint: "make one before devvm runs: devvm audit --save FILE"}
	default:
		o.NoBefore = err.Error()
	}
	return audit.Run(ctx, h, o)
}

// auditExposures lists what this user has exposed, in all projects.
func (s *Service) auditExposures(context.Context) ([]audit.Exposure, error) {
	names, err := s.Dirs.Projects()
	if err != nil {
		return nil, err
	}
	var out []audit.Exposure
	for _, name := range names {
		all, err := ports.ReadExposures(s.Dirs.Files(name).Exposures())
		if err != nil {
			return nil, err
		}
		for _, x := range all {
			out = append(out, audit.Exposure{Project: name, Port: x.Port, To: x.To.String(), Until: x.Until})
		}
	}
	return out, nil
}

// SaveHost writes the fingerprint of the host as it is now.
func (s *Service) SaveHost(ctx context.Context, path string) error {
	f, err := audit.Take(ctx, audit.System())
	if err != nil {
		return err
	}
	return f.Save(path)
}

// Why there is nothing to compare with.
var (
	errNoHost    = errors.New("no fingerprint of the host was taken before: devvm up takes one before the first VM of a boot")
	errOtherBoot = errors.New("the fingerprint of the host is of an earlier boot; the next devvm up takes another")
	errOtherHost = errors.New("the fingerprint of the host is of another network namespace; the next devvm up takes another")
)

// hostBefore reads the fingerprint to compare with.
func (s *Service) hostBefore(h audit.Host, since string) (audit.Fingerprint, error) {
	path := since
	if path == "" {
		path = hostFile(s.Dirs)
	}
	f, err := audit.Load(path)
	boot, namespace := audit.Identity(h)
	switch {
	case since == "" && errors.Is(err, fs.ErrNotExist):
		return f, errNoHost
	case err != nil:
		return f, err
	case f.Boot != boot:
		return f, errOtherBoot
	case f.Namespace != namespace:
		return f, errOtherHost
	}
	return f, nil
}

// auditDirs returns the directories that audit walks.
func auditDirs(d state.Dirs) audit.Dirs {
	a := audit.Dirs{
		Data: d.Data, Runtime: []string{d.Runtime}, Config: d.Config, Shared: d.Shared,
		Saves: filepath.Join(filepath.Dir(d.Config), "libvirt", "qemu", "save"),
	}
	if d.Short != "" {
		a.Runtime = append(a.Runtime, d.Short)
	}
	if d.Shared {
		a.Saves = "/var/lib/libvirt/qemu/save"
	}
	return a
}
