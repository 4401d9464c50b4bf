// Package config turns devvm.toml into a checked [Config].
//
// There are three layers: defaults that depend on the host, the user's own file, and the
// project's devvm.toml. A later layer overrides an earlier one, and each value remembers where
// it came from. All keys are in one table ([Keys]). The example file and docs/devvm.toml.md are
// made from it, so that code and documents cannot drift apart.
//
// The package reads two files and nothing else. Its only imports from devvm are egress, the
// language of two keys, shell for quoting, and trust, which decides whose devvm.toml counts. It
// knows nothing about images or libvirt. Every error of [Load] is an [*Error] with file, line,
// key and a hint.
package config

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/trust"
)

// FileName is the name of a project's file. It marks the project's directory.
const FileName = "devvm.toml"

// Binary units, in bytes.
const (
	MiB int64 = 1 << 20
	GiB int64 = 1 << 30
	TiB int64 = 1 << 40
)

// Limits on the size of a VM.
const (
	MinMemory = 512 * MiB
	MinDisk   = 1 * GiB
	MaxDisk   = 16 * TiB // the largest ext4 file system with blocks of 4 KiB
)

// Network modes.
const (
	NetworkUser    = "user"    // out to the internet and the LAN, never to the host itself
	NetworkOffline = "offline" // nothing leaves the VM
)

// Which project gets the host's 127.0.0.1 and ::1 for a published port.
const (
	PortsShared = "shared" // this project, or the container does not start
	PortsOwn    = "own"    // whichever has it; the project's own address is enough
)

// Config is the effective configuration of one project.
type Config struct {
	Image  string // name or digest of the base image
	CPUs   int
	Memory int64 // bytes, whole MiB
	Disk   int64 // bytes, whole MiB

	// Daemon is the table docker.daemon: string, bool, int64, float64, []any
	// and map[string]any. Never nil.
	Daemon map[string]any

	NetworkMode string // NetworkUser or NetworkOffline

	// Network holds the keys egress and host_ports; see Policy.
	Network     egress.Policy
	PortsPrefer string            // PortsShared or PortsOwn
	PortsMap    map[uint16]uint16 // published port → port on the host
	PortsMost   int               // how many of the host's ports the project may have
	PortsDeny   []uint16          // ports of the host that the project never gets

	Mount        bool    // the VM has the project's directory
	Mounts       []Mount // and these directories
	ShareDurable bool    // data fsynced in it is on the host's disk
	BindGuard    bool    // refuse containers that bind paths that the VM does not have
	// ShareIgnore are names, patterns and paths whose changes the VM's watchers are not told
	// about.
	ShareIgnore []string

	Packages []string // Debian packages for a new VM
	Script   string   // shell script for a new VM

	// URI is the libvirt to use; empty: the caller's default.
	URI string

	// File and UserFile are the files that were read, empty if there were none.
	File     string
	UserFile string
	Sum      string // identifies the text of File; empty if there was none

	origins map[string]origin
}

// Env is what Load must know about its surroundings.
type Env struct {
	UserFile string // the user's own defaults; may not exist; empty: none
	URI      string // value of DEVVM_LIBVIRT_URI, which overrides all files
	CPUs     int    // of the host
	Memory   int64  // of the host, in bytes; 0: unknown

	Trust *trust.Rule // whose project files count; nil: anybody's
}

// URIVariable is the environment variable that overrides host.uri.
const URIVariable = "DEVVM_LIBVIRT_URI"

// HostEnv describes this host. The user's file is config.toml in configDir.
func HostEnv(configDir string, getenv func(string) string) Env {
	env := Env{URI: getenv(URIVariable), CPUs: runtime.NumCPU()}
	if configDir != "" {
		env.UserFile = filepath.Join(configDir, "config.toml")
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		env.Memory = int64(info.Totalram) * int64(info.Unit)
	}
	return env
}

// origin is where a value came from.
type origin struct {
	file string // empty: default
	line int
}

func (o origin) String() string {
	switch {
	case o.file == "":
		return "default"
	case o.line == 0:
		return o.file
	default:
		return fmt.Sprintf("%s:%d", o.file, o.line)
	}
}

// Origin returns where the value of a key came from: "default", "/path/devvm.toml:3" or
// "$DEVVM_LIBVIRT_URI". Keys in the table docker.daemon have their own origins, e.g.
// "docker.daemon.debug". An unknown key has the origin "default".
func (c Config) Origin(key string) string { return c.origins[key].String() }

// defaultIgnore are large directories that change often and need no watching.
var defaultIgnore = []string{".git", "node_modules"}

// Default returns the configuration of a project without files.
func Default(env Env) Config {
	cpus := max(env.CPUs, 1)
	memory := 4 * GiB
	if env.Memory > 0 {
		memory = min(memory, max(env.Memory/2, MinMemory), env.Memory)
	}
	return Config{
		Image:       "debian-13",
		CPUs:        min(4, cpus),
		Memory:      memory / MiB * MiB,
		Disk:        40 * GiB,
		Daemon:      map[string]any{},
		NetworkMode: NetworkUser,
		Network:     egress.Default(),
		PortsPrefer: PortsShared,
		PortsMost:   256,
		Mount:       true,
		BindGuard:   true,
		ShareIgnore: slices.Clone(defaultIgnore),
		origins:     map[string]origin{},
	}
}

// HostAddress is the address at which the VM reaches the ports of the host that host_ports
// opens: pkg/vmnet's HostAlias.
const HostAddress = "192.0.2.254"

// DaemonJSON returns the table docker.daemon as canonical JSON: sorted keys, two spaces, a
// newline at the end. Unless the table says otherwise, `--add-host NAME:host-gateway` means
// HostAddress, networks get addresses from pools (the value of default-address-pools; nil: the
// engine's own), and containers on Docker's default bridge send packets of up to mtu bytes.
//
// The engine could set the MTU for the users' own networks as well (default-network-opts). But
// each of them would then show it as an option, and Compose v1 rejects a network with an option
// that it did not ask for.
func (c Config) DaemonJSON(mtu int, pools any) []byte {
	daemon := maps.Clone(c.Daemon)
	if _, own := daemon["mtu"]; !own {
		daemon["mtu"] = mtu
	}
	if !c.HasPools() && pools != nil {
		daemon[keyPools] = pools
	}
	_, one := daemon["host-gateway-ip"]
	_, more := daemon["host-gateway-ips"] // since Docker 28
	if !one && !more {
		daemon["host-gateway-ip"] = HostAddress
	}
	return canonical(daemon, "  ")
}

// keyPools is the engine's setting for the pools from which networks get addresses.
const keyPools = "default-address-pools"

// HasPools reports whether the table docker.daemon sets the address pools of networks.
func (c Config) HasPools() bool {
	_, has := c.Daemon[keyPools]
	return has
}

// Policy returns what the VM may reach.
func (c Config) Policy() egress.Policy {
	p := c.Network
	p.Offline = c.NetworkMode == NetworkOffline
	return p
}

// ProvisionHash identifies the provisioning, which is done once on a new VM.
func (c Config) ProvisionHash() string {
	return hash("provision", map[string]any{"packages": c.packageSet(), "script": c.Script})
}

// packageSet returns Packages sorted, without duplicates.
func (c Config) packageSet() []string {
	set := slices.Clone(c.Packages)
	slices.Sort(set)
	return append([]string{}, slices.Compact(set)...)
}

func hash(kind string, v map[string]any) string {
	sum := sha256.Sum256(append([]byte("devvm config 1 "+kind+"\n"), canonical(v, "")...))
	return hex.EncodeToString(sum[:])
}

// canonical returns JSON that depends only on the value. Only values that passed their check
// come here, so encoding cannot fail.
func canonical(v any, indent string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	if err := e.Encode(v); err != nil {
		panic(fmt.Sprintf("config: a checked value is no JSON: %v", err))
	}
	return b.Bytes()
}

// CheckDisk returns an error if the disk is smaller than the base image's.
func (c Config) CheckDisk(image int64) error {
	if c.Disk >= image {
		return nil
	}
	o := c.origins["disk"]
	return &Error{
		File: o.file, Line: o.line, Key: "disk",
		Msg:  fmt.Sprintf("disk = %s is smaller than the base image %q (%s)", literal(FormatSize(c.Disk)), c.Image, FormatSize(image)),
		Hint: fmt.Sprintf("write disk = %s or more; space that the VM does not use costs nothing", literal(FormatSize(image))),
	}
}

// CheckProvision returns an error if provisioning cannot work: packages come over the network.
// Call it for a VM that is not provisioned yet; a finished one may well be taken offline.
func (c Config) CheckProvision() error {
	if len(c.Packages) == 0 {
		return nil
	}
	o := c.origins["provision.packages"]
	e := &Error{File: o.file, Line: o.line, Key: "provision.packages"}
	switch {
	case c.NetworkMode == NetworkOffline:
		e.Msg = `provision.packages cannot be installed with network.mode = "offline"`
		e.Hint = `bring the VM up once with mode = "user", then set "offline"`
	case !c.Network.All && len(c.Network.Rules) == 0:
		e.Msg = `provision.packages cannot be installed with network.egress = "none"`
		e.Hint = "packages come from Debian's archive: list the hosts that stand in the VM's /etc/apt/sources.list"
	default:
		return nil
	}
	return e
}

// Entry is one effective value, for display.
type Entry struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Origin string `json:"origin"`
}

// Entries lists the effective values in the order of [Keys], and docker.daemon key by key.
func (c Config) Entries() []Entry {
	var list []Entry
	for _, f := range schema {
		if f.Name == "docker.daemon" && len(c.Daemon) > 0 {
			for _, k := range slices.Sorted(maps.Keys(c.Daemon)) {
				key := f.Name + "." + quoteKey(k)
				list = append(list, Entry{key, c.Daemon[k], c.Origin(key)})
			}
			continue
		}
		v := f.get(c)
		if f.Name == "host.uri" && v == "" {
			continue
		}
		list = append(list, Entry{f.Name, v, c.Origin(f.Name)})
	}
	return list
}

// TOML renders the effective values as a file that can be read again, with the origin of each
// value as a comment.
func (c Config) TOML() string {
	var b strings.Builder
	table := ""
	for _, e := range c.Entries() {
		if e.Key == "docker.daemon" {
			continue // empty
		}
		t, key := splitKey(e.Key)
		if t != table {
			table = t
			fmt.Fprintf(&b, "\n[%s]\n", t)
		}
		fmt.Fprintf(&b, "%s = %s # %s\n", key, literal(e.Value), strings.Map(printable, e.Origin))
	}
	return b.String()
}

// splitKey splits a key into its table and its last part. Everything below docker.daemon is one
// part, which may have dots in quotes.
func splitKey(key string) (table, last string) {
	if rest, ok := strings.CutPrefix(key, "docker.daemon."); ok {
		return "docker.daemon", rest
	}
	if i := strings.LastIndexByte(key, '.'); i >= 0 {
		return key[:i], key[i+1:]
	}
	return "", key
}

// printable drops control characters, which TOML forbids in comments.
func printable(r rune) rune {
	if r < 0x20 || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r == 0xfffd {
		return '?'
	}
	return r
}
