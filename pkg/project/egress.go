package project

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/vm"
)

// What a VM may reach stands in devvm.toml, which comes with a repository and
// which a program at work on the project can edit. So it counts only as far as
// the user has agreed to it. What was agreed to is kept in the user's data, where
// neither the VM nor the repository can write, from the first up until rm; a
// policy that allows more is refused until it is granted. It is also from there
// that the network process takes its policy when it starts.

// Widening is what devvm.toml allows beyond what was granted.
type Widening struct {
	Policy egress.Policy // as a whole
	Lines  []string      // what is new in it, for people; none: nothing
}

// Widening compares the project's devvm.toml with what was granted to it.
func (s *Service) Widening(p Project) (Widening, error) {
	cfg, err := s.Config(p.Dir)
	if err != nil {
		return Widening{}, err
	}
	return s.widening(p, cfg)
}

func (s *Service) widening(p Project, cfg config.Config) (Widening, error) {
	granted, err := s.Dirs.paths(p.Name).readGranted()
	if errors.Is(err, fs.ErrNotExist) {
		// Nobody has been asked yet: what the user's own file says is theirs.
		var own config.Config
		own, err = s.Config("")
		granted = own.Policy()
	}
	if err != nil {
		return Widening{}, err
	}
	w := Widening{Policy: cfg.Policy()}
	w.Lines = egress.Widening(granted, w.Policy)
	return w, nil
}

// Grant notes that the user agrees to a policy, as it was shown: a devvm.toml
// that says still more by now is not granted.
func (s *Service) Grant(ctx context.Context, p Project, w Widening) error {
	f := s.Dirs.paths(p.Name)
	lock, err := f.acquire(ctx, "up", nil)
	if err != nil {
		return err
	}
	defer lock.Close()
	return f.writeGranted(w.Policy)
}

// granted returns the project's configuration, if what it lets the VM reach was
// granted.
func (s *Service) granted(p Project) (config.Config, error) {
	cfg, err := s.Config(p.Dir)
	if err != nil {
		return cfg, err
	}
	w, err := s.widening(p, cfg)
	if err != nil {
		return cfg, err
	}
	if len(w.Lines) > 0 {
		return cfg, &ui.Error{
			Msg:  fmt.Sprintf("%s lets the VM reach more than was granted to this project: %s", config.FileName, strings.Join(w.Lines, ", ")),
			Hint: "look at it, and grant it with: devvm up",
		}
	}
	return cfg, nil
}

// readGranted returns what was granted; fs.ErrNotExist if nothing was ever
// asked. A file that cannot be understood grants nothing.
func (f paths) readGranted() (egress.Policy, error) {
	b, err := os.ReadFile(f.egress())
	if err != nil {
		return egress.Policy{}, err
	}
	var p egress.Policy
	if json.Unmarshal(b, &p) != nil {
		p = egress.Policy{}
	}
	return p, nil
}

func (f paths) writeGranted(p egress.Policy) error {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", f.egress(), err)
	}
	return file.Replace(f.egress(), append(b, '\n'), 0o600)
}

// enforce gives a network process that runs the policy of devvm.toml, unless it
// has it.
func (b *boot) enforce(ctx context.Context, net usernet.Status) error {
	now, next := net.Policy, b.cfg.Policy()
	if now == nil { // it is of a devvm that knew no other
		now = &egress.Policy{All: true, Offline: net.Offline}
	}
	if err := b.files.writeGranted(next); err != nil {
		return err
	}
	if now.Equal(next) {
		return nil
	}
	cut, err := usernet.NewDialer(b.files.dialSocket()).SetPolicy(ctx, next)
	if err != nil {
		return &ui.Error{
			Msg:  "the running VM's network does not take the policy of " + config.FileName,
			Hint: "start the VM afresh: devvm down && devvm up",
			Err:  err,
		}
	}
	note := "the VM now reaches: " + next.String()
	if next.Offline {
		note = "the VM is offline from now on"
	}
	if cut > 0 {
		note += fmt.Sprintf(" (%d connections were cut)", cut)
	}
	b.progress.Note("%s", note)
	return nil
}

// Egress returns what the project's VM has asked for on the network since its
// network process started.
func (s *Service) Egress(ctx context.Context, p Project) (usernet.Egress, error) {
	d, err := s.network(ctx, p)
	if err != nil {
		return usernet.Egress{}, err
	}
	e, err := d.Egress(ctx)
	return e, explainNetwork(err)
}

// FollowEgress calls use with each attempt so far and each to come, until ctx or
// the VM ends.
func (s *Service) FollowEgress(ctx context.Context, p Project, use func(usernet.Attempt) error) error {
	d, err := s.network(ctx, p)
	if err != nil {
		return err
	}
	return explainNetwork(d.FollowEgress(ctx, use))
}

// network is the way to the network process of a VM that runs.
func (s *Service) network(ctx context.Context, p Project) (*usernet.Dialer, error) {
	dom, err := s.get(ctx, p)
	if err != nil {
		return nil, err
	}
	if dom.State != vm.StateRunning {
		return nil, errNotRunning(p, dom.State)
	}
	return usernet.NewDialer(s.Dirs.paths(p.Name).dialSocket()), nil
}

func explainNetwork(err error) error {
	switch {
	case errors.Is(err, usernet.ErrNoNetwork):
		return &ui.Error{Msg: "the VM's network process is gone", Hint: "start another with: devvm up", Err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &ui.Error{Msg: "the VM's network process does not answer", Hint: "start another with: devvm up", Err: err}
	}
	return err
}
