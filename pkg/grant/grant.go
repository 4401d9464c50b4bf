// Package grant is what a user has agreed to give a project's VM, and what a devvm.toml asks
// for beyond it.
//
// The VM can write its devvm.toml, and a repository brings one: neither is authority. A
// [Grant] is the configuration as the last up has taken it, with the directories of the host
// that it leads to; [Compare] says what another has more. Which key counts, and how, stands in
// the table of keys in pkg/config.
//
// It is pure: it reads no file and asks nobody. Of devvm it imports config, egress and mounts.
// pkg/applied keeps grants.
package grant

import (
	"slices"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/mounts"
)

// Share is a directory of the host that a VM has, without symbolic links.
type Share struct {
	Source   string `json:"source"`
	Writable bool   `json:"writable,omitempty"`
}

// Grant is what was agreed to, or is asked for.
type Grant struct {
	Dir    string // of the project; only what is asked for has it
	Config config.Config
	Shares []Share // beside the project's directory
	// File identifies the text of the devvm.toml; empty: no text is this one.
	File string
}

// noFile is File where there is none.
const noFile = "none"

// Of is what a configuration asks for.
func Of(dir string, cfg config.Config, shares []Share) Grant {
	g := Grant{Dir: dir, Config: cfg, Shares: shares, File: cfg.Sum}
	if cfg.File == "" {
		g.File = noFile
	}
	return g
}

// Nothing is the grant beyond which everything is more.
func Nothing() Grant { return Grant{Config: config.Nothing()} }

// First is what counts as agreed to before the first question: nobody but the user and the
// repository can have written the devvm.toml, and sizes and what runs in the VM are theirs to
// choose. What it reaches of the network and the host is as much as the user's own file says.
func First(own, wanted Grant) Grant {
	g := wanted
	g.File = ""
	g.Config = config.First(own.Config, wanted.Config)
	g.Shares = slices.Clone(own.Shares)
	for _, s := range wanted.Shares {
		if mounts.Within(wanted.Dir, s.Source) {
			g.Shares = append(g.Shares, s)
		}
	}
	return g
}

// Nested is what counts as agreed to before the first question if other VMs can write what
// would be asked: what the user's own file says, and no more of the network than each of them
// has. A VM as large as one of theirs is no more than they could ask for.
func Nested(own Grant, outer []Grant) Grant {
	g := own
	g.File, g.Shares = "", nil
	policy := own.Config.Policy()
	for _, o := range outer {
		policy = egress.Common(policy, o.Config.Policy())
	}
	size := func(of func(config.Config) int64) int64 {
		least := of(outer[0].Config)
		for _, o := range outer {
			least = min(least, of(o.Config))
		}
		return max(least, of(own.Config))
	}
	if len(outer) > 0 {
		g.Config.CPUs = int(size(func(c config.Config) int64 { return int64(c.CPUs) }))
		g.Config.Memory = size(func(c config.Config) int64 { return c.Memory })
		g.Config.Disk = size(func(c config.Config) int64 { return c.Disk })
	}
	return g.WithPolicy(policy)
}

// WithPolicy is the grant with another policy of the network.
func (g Grant) WithPolicy(p egress.Policy) Grant {
	g.Config.NetworkMode = config.NetworkUser
	if p.Offline {
		g.Config.NetworkMode = config.NetworkOffline
	}
	p.Offline = false
	g.Config.Network = p
	return g
}

// Compare lists what is wanted beyond what was agreed to, a line each, for people. Text that
// comes from the devvm.toml is in them as it is. A devvm.toml that is the same asks for the
// same, whatever the user's own file or the host's size have become; only where its mounts
// lead is looked at again.
func Compare(agreed, wanted Grant) []string {
	var lines []string
	if agreed.File == "" || agreed.File != wanted.File {
		lines = config.Wider(agreed.Config, wanted.Config)
	}
	for _, s := range wanted.Shares {
		inside := agreed.Config.Mount && mounts.Within(wanted.Dir, s.Source)
		if inside || slices.Contains(agreed.Shares, s) || slices.Contains(agreed.Shares, Share{s.Source, true}) {
			continue
		}
		lines = append(lines, "mounts + "+s.String())
	}
	return lines
}

// String is a share for people.
func (s Share) String() string {
	if s.Writable {
		return s.Source + " (writable)"
	}
	return s.Source + " (read-only)"
}
