// Package grant is what a user has agreed to give a project's VM, and what a devvm.toml asks
// for beyond that.
//
// The VM can write its devvm.toml, and a repository can bring one, so the file alone decides
// nothing. A [Grant] is the configuration that the last up accepted, with the directories of
// the host that it leads to. [Compare] says what another asks for beyond it. The table of keys
// in pkg/config says which keys count, and how.
//
// The package is pure: it reads no file and asks nobody. Its only imports from devvm are
// config, egress and mounts. pkg/applied stores grants.
package grant

import (
	"slices"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/mounts"
)

// Share is a directory of the host that a VM has. Its path contains no symbolic links.
type Share struct {
	Source   string `json:"source"`
	Writable bool   `json:"writable,omitempty"`
}

// Grant is what the user agreed to, or what a devvm.toml asks for.
type Grant struct {
	Dir    string // the project's; set only in what is asked for
	Config config.Config
	Shares []Share // besides the project's directory
	// File identifies the text of the devvm.toml; empty: it matches no text.
	File string
}

// noFile is the value of File if there is no devvm.toml.
const noFile = "none"

// Of returns what a configuration asks for.
func Of(dir string, cfg config.Config, shares []Share) Grant {
	g := Grant{Dir: dir, Config: cfg, Shares: shares, File: cfg.Sum}
	if cfg.File == "" {
		g.File = noFile
	}
	return g
}

// Nothing returns the empty grant, so that any other is more.
func Nothing() Grant { return Grant{Config: config.Nothing()} }

// First returns what counts as agreed to before the first question. At that point only the user
// and the repository can have written the devvm.toml, and they may choose sizes and what runs
// in the VM. The network and the host are as reachable as the user's own file says.
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

// Nested returns what counts as agreed to before the first question if other VMs can write the
// devvm.toml: what the user's own file says, and no more of the network than every one of those
// VMs has. The VM may be as large as the smallest of them, because they could ask for that
// themselves.
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

// WithPolicy returns the grant with another network policy.
func (g Grant) WithPolicy(p egress.Policy) Grant {
	g.Config.NetworkMode = config.NetworkUser
	if p.Offline {
		g.Config.NetworkMode = config.NetworkOffline
	}
	p.Offline = false
	g.Config.Network = p
	return g
}

// Compare lists for people what is wanted beyond what was agreed to, one item a line. Text from
// the devvm.toml appears in the lines unchanged. A devvm.toml with the same text asks for the
// same, even if the user's own file or the host's size has changed. Only the targets of its
// mounts are compared again.
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

// String renders a share for people.
func (s Share) String() string {
	if s.Writable {
		return s.Source + " (writable)"
	}
	return s.Source + " (read-only)"
}
