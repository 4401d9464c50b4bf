package template

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"

	"github.com/devvm/devvm/pkg/file"
)

// Sweep removes what an Add left that was killed. While another process is at the store it does
// nothing: there is always a next time.
func (s *Store) Sweep() {
	left, err := file.Glob(s.dir, makingPrefix+"*")
	if err != nil || len(left) == 0 {
		return
	}
	l := flock.New(filepath.Join(s.dir, lockName), flock.SetPermissions(0o600))
	defer l.Close()
	if ok, err := l.TryLock(); err != nil || !ok {
		return
	}
	for _, dir := range left { // one that was added meanwhile has another name
		s.log.Info("remove what an interrupted run left", "dir", dir)
		if err := os.RemoveAll(dir); err != nil {
			s.log.Warn("remove what is left of a template", "err", err)
		}
	}
}

// Users finds the IDs of the templates that a disk lies on. It is asked under the
// store's lock.
type Users func(context.Context) (map[string]bool, error)

// Prune removes every template that no disk lies on and that keep says no to, and
// what interrupted runs have left; the memory of one that must stay for its disk is
// dropped. It returns how many bytes that freed.
func (s *Store) Prune(ctx context.Context, inUse Users, keep func(Template) bool) (freed int64, err error) {
	l, err := s.lock(ctx, true)
	if err != nil {
		return 0, err
	}
	defer l.Close()
	p := pruning{Store: s, inUse: func(ctx context.Context, _ map[string]bool) (map[string]bool, error) { return inUse(ctx) }, keep: keep}
	err = p.run(ctx)
	return p.freed, err
}

// Prunable returns how many bytes Prune would free, and the IDs of the templates that it would
// remove. The users are asked who there would be without those.
func (s *Store) Prunable(ctx context.Context, inUse func(ctx context.Context, gone map[string]bool) (map[string]bool, error), keep func(Template) bool) (freed int64, gone map[string]bool, err error) {
	l, err := s.lock(ctx, false)
	if err != nil {
		return 0, nil, err
	}
	defer l.Close()
	p := pruning{Store: s, inUse: inUse, keep: keep, dry: true}
	err = p.run(ctx)
	return p.freed, p.gone, err
}

// pruning removes what nobody needs, or only counts it.
type pruning struct {
	*Store
	inUse func(ctx context.Context, gone map[string]bool) (map[string]bool, error)
	keep  func(Template) bool
	dry   bool

	freed   int64
	gone    map[string]bool  // directories that are removed, or would be
	dropped map[string]int64 // of templates, memory that would be
}

func (p *pruning) run(ctx context.Context) error {
	p.gone, p.dropped = map[string]bool{}, map[string]int64{}
	for { // what a removed template lay on may be free now
		removed, err := p.round(ctx)
		if err != nil || !removed {
			return err
		}
	}
}

func (p *pruning) round(ctx context.Context) (removed bool, err error) {
	used, err := p.inUse(ctx, p.gone)
	if err != nil {
		return false, err
	}
	all, damaged, err := p.scan()
	if err != nil {
		return false, err
	}
	whole := map[string]bool{}
	for _, d := range damaged { // what cannot be read may be whole
		whole[d.ID] = !errors.Is(d.Err, ErrDamaged)
	}
	for _, t := range all {
		whole[t.ID] = true
		switch {
		case p.keep(t) || p.gone[t.ID]:
		case used[t.ID] && t.Warm() && p.dropped[t.ID] == 0:
			n := file.Used(t.Memory()) + file.Used(t.spare())
			if p.dry {
				p.dropped[t.ID] = n
			} else if err := p.Distrust(t); err != nil {
				return removed, err
			}
			p.freed += n
		case !used[t.ID]:
			n := t.Used() - p.dropped[t.ID]
			if !p.dry {
				if err := p.remove(t); err != nil {
					return removed, err
				}
			}
			p.gone[t.ID], removed = true, true
			p.freed += n
		}
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return removed, fmt.Errorf("list templates: %w", err)
	}
	for _, e := range entries { // what interrupted runs have left
		if whole[e.Name()] || !e.IsDir() || used[e.Name()] || p.gone[e.Name()] {
			continue
		}
		dir := filepath.Join(p.dir, e.Name())
		p.freed += file.Used(dir)
		p.gone[e.Name()] = true
		if p.dry {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return removed, fmt.Errorf("remove what is left of a template: %w", err)
		}
	}
	return removed, nil
}
