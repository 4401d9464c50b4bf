package project

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/grant"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

// devvm.toml says what a VM gets. It comes with a repository, and the VM can write it. So it
// counts only as far as the user has agreed to it. applied.json records what the last up applied,
// until rm. It is in the user's data, where neither the VM nor the repository can write. If
// devvm.toml asks for more, every verb refuses until up has asked the user.

// Plan is what a project's devvm.toml asks for. The file is read once: what the user sees is what
// the verb does, even if somebody writes to the file meanwhile.
type Plan struct {
	// Beyond lists what the user has not agreed to yet, in the words of devvm.toml.
	Beyond []string
	Why    []string // sentences: why so little counts as agreed to; often none

	config  config.Config
	exports []share.Export // that its mounts lead to
	note    string         // about exports
	wanted  grant.Grant
}

// Plan reads the project's devvm.toml and compares it with what the user has agreed to.
func (s *Service) Plan(p state.Project) (Plan, error) {
	cfg, err := s.readConfig(p)
	if err != nil {
		return Plan{}, err
	}
	exports, note, err := s.shares(p, cfg)
	if err != nil {
		return Plan{}, err
	}
	plan := Plan{config: cfg, exports: exports, note: note, wanted: grant.Of(p.Dir, cfg, grantShares(exports, p))}
	return plan, s.compare(p, &plan)
}

// Agree records that the user agrees to a plan.
func (s *Service) Agree(ctx context.Context, p state.Project, plan Plan) error {
	lock, err := s.Dirs.Files(p.Name).Acquire(ctx, "up", nil)
	if err != nil {
		return err
	}
	defer lock.Close()
	return s.writeAgreed(p, plan)
}

// compare finds out what in a plan goes beyond what the user has agreed to.
func (s *Service) compare(p state.Project, plan *Plan) error {
	agreed, why, err := s.agreed(p, plan.wanted)
	if err != nil {
		return err
	}
	plan.Beyond, plan.Why = grant.Compare(agreed, plan.wanted), why
	return nil
}

// readConfig reads the project's configuration.
func (s *Service) readConfig(p state.Project) (config.Config, error) {
	if !state.Exists(p.Dir) {
		return config.Config{}, &ui.Error{
			Msg:  fmt.Sprintf("the project's directory is gone: %s", p.Dir),
			Hint: fmt.Sprintf("if it moved, take over its VM there (devvm move %s); if not, bring it back or remove its VM: devvm rm --project %s", p.Name, p.Name),
		}
	}
	return s.Config(p.Dir)
}

// granted returns the project's configuration, if the user has agreed to it. It does not check
// where the mounts lead.
func (s *Service) granted(p state.Project) (config.Config, error) {
	cfg, err := s.Config(p.Dir)
	if err != nil {
		return cfg, err
	}
	return cfg, s.checkAgreed(p, Plan{config: cfg, wanted: grant.Of(p.Dir, cfg, nil)})
}

// checkAgreed returns an error unless the user has agreed to a plan, as of now.
func (s *Service) checkAgreed(p state.Project, plan Plan) error {
	if err := s.compare(p, &plan); err != nil {
		return err
	}
	return plan.refusal()
}

// keepAgreed checks a plan and records it. From now on devvm asks about anything beyond it.
func (s *Service) keepAgreed(p state.Project, plan Plan) error {
	if err := s.checkAgreed(p, plan); err != nil {
		return err
	}
	return s.writeAgreed(p, plan)
}

func (s *Service) writeAgreed(p state.Project, plan Plan) error {
	at := s.Dirs.Files(p.Name).Applied()
	r, _ := applied.Read(at) // one that cannot be read is replaced
	r.Agreed = &plan.wanted
	return r.Write(at)
}

// refusal is the error of a verb that does not ask the user.
func (p Plan) refusal() error {
	if len(p.Beyond) == 0 {
		return nil
	}
	const most = 8
	lines := slices.Clone(p.Beyond[:min(most, len(p.Beyond))])
	if more := len(p.Beyond) - most; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	msg := fmt.Sprintf("%s asks for more than you agreed to: %s", config.FileName, strings.Join(lines, ", "))
	return &ui.Error{
		Msg:  strings.Join(append(slices.Clone(p.Why), msg), "\n"),
		Hint: "review it and agree with: devvm up",
		Kind: errNotAgreed,
	}
}

// errNotAgreed is wrapped by every refusal.
var errNotAgreed = errors.New("not agreed to")

// agreed returns what the user has agreed to for a project, or what counts as such, and sentences
// that say why it is so little.
func (s *Service) agreed(p state.Project, wanted grant.Grant) (grant.Grant, []string, error) {
	at := s.Dirs.Files(p.Name).Applied()
	r, err := applied.Read(at)
	switch {
	case err != nil:
		return *r.Agreed, []string{fmt.Sprintf("devvm cannot read what you agreed to before (%s), so it asks about all of it.", at)}, nil //nolint:nilerr // it is asked about
	case r.Agreed != nil:
		return *r.Agreed, nil, nil
	}
	cfg, err := s.Config("")
	if err != nil {
		return grant.Nothing(), nil, err
	}
	own := grant.Of(p.Dir, cfg, nil)
	if exports, _, err := s.shares(p, cfg); err == nil {
		own.Shares = grantShares(exports, p)
	}
	outer, why, err := s.outer(p)
	if err != nil {
		return grant.Nothing(), nil, err
	}
	if len(outer) > 0 {
		return grant.Nested(own, outer), why, nil
	}
	return grant.First(own, wanted), nil, nil
}

// agreedConfig is the configuration that the last up applied. A supervisor uses this one, because
// the VM may have written devvm.toml since.
func (s *Service) agreedConfig(f state.Files) (config.Config, error) {
	r, err := applied.Read(f.Applied())
	if r.Agreed == nil { // a template's
		return s.Config("")
	}
	return r.Agreed.Config, err
}

// grantShares returns the directories of the host that the user must agree to: all but the
// project's.
func grantShares(exports []share.Export, p state.Project) []grant.Share {
	var out []grant.Share
	for _, e := range exports {
		if e.Source != p.Dir {
			out = append(out, grant.Share{Source: e.Source, Writable: e.Writable})
		}
	}
	return out
}
