package project

import (
	"context"
	"errors"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// Up gives the project a running VM whose engine answers on docker.sock. It keeps what exists
// already, and completes what an earlier run left half done.
func (s *Service) Up(ctx context.Context, p state.Project, plan Plan, pr *ui.Progress) error {
	f := s.Dirs.Files(p.Name)
	if err := s.checkPlan(ctx, p, plan); err != nil { // before anything is made
		return err
	}
	s.rememberHost(ctx)
	s.sweep(ctx)
	lock, err := f.Acquire(ctx, "up", func(who string) {
		pr.Note("waiting for another devvm (%s) of this project", who)
	})
	if err != nil {
		return err
	}
	defer lock.Close()
	hv, err := s.Open(ctx)
	if err != nil {
		return err
	}
	defer hv.Close()
	return s.up(ctx, hv, p, plan, &machine.Steps{Progress: pr})
}

// checkPlan returns why a plan is not possible for the VM as it is.
func (s *Service) checkPlan(ctx context.Context, p state.Project, plan Plan) error {
	f := s.Dirs.Files(p.Name)
	if err := s.checkAgreed(p, plan); err != nil {
		return err
	}
	if !state.Exists(f.Provisioned()) {
		if err := plan.config.CheckProvision(); err != nil {
			return err
		}
	}
	if state.Exists(f.Disk()) && !f.IsBegun() {
		return nil
	}
	return s.checkImage(ctx, plan.config)
}

// checkImage returns what is wrong with the image or the disk size of a VM that is still to be made.
// An image that is still to be built counts as good.
func (s *Service) checkImage(ctx context.Context, cfg config.Config) error {
	img, err := s.Images.Resolve(ctx, cfg.Image)
	switch {
	case err == nil:
		return cfg.CheckDisk(img.DiskSize)
	case errors.Is(err, image.ErrNotFound) && image.RecipeDigest(cfg.Image) != "":
		return nil
	}
	return machine.ExplainImage(cfg, err)
}

// up is Up under the project's lock.
func (s *Service) up(ctx context.Context, hv vm.Hypervisor, p state.Project, plan Plan, pr *machine.Steps) error {
	if err := s.finishMove(ctx, hv, p, pr.Progress); err != nil {
		return err
	}
	dom, err := s.find(ctx, hv, p)
	if err != nil && !errors.Is(err, vm.ErrNotFound) {
		return err
	}
	if f := s.Dirs.Files(p.Name); f.IsLost(err == nil) {
		return machine.ErrLost(f, dom.State == vm.StateRunning)
	}
	if above, ok := s.above(p); ok && err != nil {
		pr.Note("%s gets its own VM; to use the one of the directory above: --project %s", p.Dir, above.Dir)
	}
	if err != nil {
		if former, ok := s.former(p); ok {
			pr.Note("%s gets a new VM; to %s", p.Dir, takeOverHint(former))
		}
	}
	if s.Replaced(p) {
		pr.Note("this VM was made for another directory at %s, which was renamed or removed; if it was renamed, run devvm move there to keep the VM", p.Dir)
	}
	return s.upFrom(ctx, hv, p, plan, dom, pr)
}

// upFrom is up for a VM as it was found, or, with the zero Domain, for none.
func (s *Service) upFrom(ctx context.Context, hv vm.Hypervisor, p state.Project, plan Plan, dom vm.Domain, pr *machine.Steps) error {
	f := s.Dirs.Files(p.Name)
	if err := s.keepAgreed(p, plan); err != nil {
		return err
	}
	if err := s.MakeDirs(f); err != nil {
		return err
	}
	host, err := hv.Host(ctx)
	if err != nil {
		return err
	}
	if dom, err = s.outlast(ctx, hv, p, dom, pr.Progress); err != nil {
		return err
	}
	if isStopping(f, dom) {
		if dom, err = s.finishDown(ctx, hv, p, dom, pr.Progress); err != nil {
			return err
		}
	}
	m := &machine.Machine{
		Env: &s.Env, Hypervisor: hv, Host: host, Project: p, Config: plan.config, Files: f, Progress: pr, Accel: dom.Accel,
		Exports: plan.exports, Cold: s.Cold,
	}
	if plan.note != "" {
		m.Notes = append(m.Notes, plan.note)
	}
	m.Notes = append(m.Notes, s.gitNotes(p, plan.exports)...)
	if dom, err = s.discardBegun(ctx, m, dom); err != nil {
		return err
	}
	if err := f.NoteDir(p.Dir); err != nil {
		return err
	}
	if dom.State == vm.StateRunning || dom.State == vm.StatePaused || dom.State == vm.StateSaved {
		if err := m.MendStart(); err != nil {
			return err
		}
	}
	if err := s.start(ctx, m, dom); err != nil {
		return err
	}
	if err := m.Provision(ctx); err != nil {
		return err
	}
	pr.Done()
	return nil
}

// discardBegun removes a VM whose engine has never answered, unless it runs as it should.
func (s *Service) discardBegun(ctx context.Context, m *machine.Machine, dom vm.Domain) (vm.Domain, error) {
	runs := (dom.State == vm.StateRunning || dom.State == vm.StatePaused) && m.IsUpToDate()
	if !m.Files.IsBegun() || runs {
		return dom, nil
	}
	// Its supervisor might find just now that the engine answers.
	if err := s.Daemons(m.Project).StopSupervisor(ctx); err != nil {
		return dom, err
	}
	if !m.Files.IsBegun() {
		return dom, nil
	}
	if state.Exists(m.Files.Disk()) {
		m.Progress.Note("the existing VM never finished starting: recreating it")
	}
	if err := m.Discard(ctx); err != nil {
		return dom, err
	}
	return vm.Domain{}, s.MakeDirs(m.Files)
}

// start starts the VM. A VM that was running may be going off: libvirt has only just noticed, or a
// killed suspend had only just asked for it.
func (s *Service) start(ctx context.Context, m *machine.Machine, dom vm.Domain) error {
	err := m.Start(ctx, dom)
	for again := 0; again < 2 && (errors.Is(err, machine.ErrWentOff) || errors.Is(err, vm.ErrNotRunning)) && ctx.Err() == nil; again++ {
		m.Progress.Fail(err)
		if dom, err = s.find(ctx, m.Hypervisor, m.Project); err == nil {
			dom, err = s.outlast(ctx, m.Hypervisor, m.Project, dom, m.Progress.Progress)
		}
		if err == nil {
			err = m.Start(ctx, dom)
		}
	}
	return err
}
