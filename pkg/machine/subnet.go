package machine

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/engine"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/subnet"
	"github.com/devvm/devvm/pkg/vmnet"
)

// The engine gives networks addresses when they are created, from pools that it reads when it
// starts. So the pools are chosen whenever a VM is forked or booted, and are part of the shape of
// its template, because the engine is not restarted for them. About networks that come up on the
// host later, devvm can only tell the user.

// routes returns the networks that this host reaches now, or none if the kernel does not say.
func (e *Env) routes() []subnet.Route {
	look := e.Routes
	if look == nil {
		look = subnet.HostRoutes
	}
	list, err := look()
	if err != nil {
		e.Log.Warn("the engine's networks may hide what this host reaches", "err", err)
	}
	return list
}

// choosePools chooses the pools of the engine's networks. It returns nil if devvm.toml has them.
func (m *Machine) choosePools() subnet.Pools {
	if m.pools != nil || m.Config.HasPools() {
		return m.pools
	}
	had := engineSettings(m.Files).Pools
	routes := m.routes()
	pools, why := subnet.Choose(routes, had)
	m.pools = pools
	if _, still := pools.Overlap(routes); still {
		m.Progress.Note("the engine's networks hide %s of this host, and every other range that devvm could give them would hide something, too; choose one yourself: [docker.daemon] default-address-pools in devvm.toml", why)
	} else if why != (subnet.Route{}) && !slices.Equal(pools, had) {
		m.Progress.Note("the engine's networks get addresses of %s: Docker's own would hide %s of this host", pools[0].Base, why)
	}
	return m.pools
}

// engineSettings returns the settings that the engine of a VM runs with. A new VM, or one of a
// cloud image, has none.
func engineSettings(f state.Files) subnet.Settings {
	daemon, _ := os.ReadFile(filepath.Join(f.Credentials(), credentialDaemon))
	return subnet.Read(daemon)
}

// What to do about a network that hides one of the host's, by where its addresses come from.
const (
	AdviceClash       = "devvm down; devvm up lets the engine choose others, for networks when they are made again (docker compose down, docker network rm)"
	AdviceClashPools  = "name others in [docker.daemon] default-address-pools of devvm.toml, then devvm down; devvm up, for networks when they are made again (docker compose down, docker network rm)"
	AdviceClashBridge = "name others in [docker.daemon] bip (and fixed-cidr) of devvm.toml, then devvm down; devvm up"
	AdviceClashSubnet = "change its subnet where the network is made (ipam in compose.yaml, docker network create --subnet), and make it again (docker compose down, docker network rm)"
)

// AdviceFor returns what to do about a network that hides one of the host's.
func AdviceFor(c subnet.Clash) string {
	switch c.Source {
	case subnet.SourcePools:
		return AdviceClashPools
	case subnet.SourceBridge:
		return AdviceClashBridge
	case subnet.SourceSubnet:
		return AdviceClashSubnet
	case subnet.SourceDevvm:
	}
	return AdviceClash
}

// patienceClashes is how long to wait for the engine's answer.
const patienceClashes = 5 * time.Second

// Clashes finds the networks of a running engine that hide what this host reaches now, for
// example through a VPN that came up later. It asks the engine, not its pools: a network keeps the
// addresses that it was created with. load returns the configuration of the next start.
func (e *Env) Clashes(ctx context.Context, f state.Files, load func() (config.Config, error)) []subnet.Clash {
	routes := e.routes()
	if len(routes) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patienceClashes)
	defer cancel()
	networks, err := engine.GetNetworks(ctx, f.DockerSocket())
	if err != nil {
		e.Log.Debug("the engine's networks are not known", "err", err)
	}
	list := make([]subnet.Network, len(networks))
	for i, n := range networks {
		list[i] = subnet.Network(n)
	}
	if len(subnet.Overlaps(routes, list)) == 0 {
		return nil
	}
	now := engineSettings(f)
	own := now.Own()
	if c, err := load(); err == nil {
		own = subnet.Read(c.DaemonJSON(vmnet.DefaultMTU, nil))
	}
	return subnet.Clashes(routes, list, now, own)
}

// NoteClashes tells the user about networks that hide one of the host's.
func (m *Machine) NoteClashes(ctx context.Context) {
	for _, c := range m.Clashes(ctx, m.Files, func() (config.Config, error) { return m.Config, nil }) {
		m.Progress.Note("%s; %s", c, AdviceFor(c))
	}
}
