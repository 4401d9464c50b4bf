package config

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/devvm/devvm/pkg/egress"
)

// Key documents one key of devvm.toml.
type Key struct {
	Name     string // dotted: "network.mode"
	Type     string // in words: "size in quotes"
	Default  string // in words
	Applies  Applies
	Only     string // what part of a change takes effect then, in words; empty: all of it
	UserOnly bool   // only in the user's own file
	Doc      string // what it does: paragraphs, Markdown
	Brief    string // the same in one line, for the example file
	Example  string // one or more lines of TOML, without the table's heading
	Consent  Consent
	Free     string // why a larger value gives the VM nothing more of the host, if Consent is ConsentFree
}

// field is a key and the functions that handle it.
type field struct {
	Key
	get func(Config) any
	// set checks the value and stores it. It is called once for each layer.
	set func(c *Config, env Env, v any) *problem
	// wider lists what next grants by this key beyond before, see [Wider]. All keys but free
	// ones have it.
	wider func(before, next Config) []string
}

// problem describes what is wrong with a value.
type problem struct {
	msg  string // continues `key = value: `
	hint string
	sub  string // the key below this one that is wrong; empty: the key itself
	item int    // the table of a list of tables that is wrong, from 1; 0: none
	full bool   // msg is a complete sentence
}

// Keys lists every key of devvm.toml and of the user's own file, in the order of the
// documentation.
func Keys() []Key {
	keys := make([]Key, len(schema))
	for i := range schema {
		keys[i] = schema[i].Key
	}
	return keys
}

// Applies is when a change of a key takes effect.
type Applies int

// The possible times.
const (
	AppliesUnset   Applies = iota
	AppliesCommand         // to the next command
	AppliesUp              // at the next up, to a running VM too
	AppliesStart           // at the VM's next start
	AppliesNew             // to a new VM
)

// String completes "A change applies" in the documentation.
func (a Applies) String() string {
	switch a {
	case AppliesCommand:
		return "to new commands"
	case AppliesUp:
		return "at the next `devvm up`, to a running VM too"
	case AppliesStart:
		return "at the next start: `devvm down`, `devvm up`"
	case AppliesNew:
		return "to a new VM: `devvm nuke`"
	}
	return ""
}

// mostPorts is the largest value of ports.most: pkg/ports' MaxMost.
const mostPorts = 4096

// schema is the table of all keys.
var schema = []field{
	{
		Key: Key{
			Name: "image", Type: "string", Default: `"debian-13"`, Applies: AppliesNew,
			Brief: "Base image, by name or digest: see `devvm image ls`.",
			Doc: "The base image of the VM: its name, its digest or the beginning of its digest, as `devvm image ls` shows them. " +
				"`devvm image build` builds `debian-13` from a recipe that comes with devvm.\n\n" +
				"`devvm image import` imports an image that `devvm image export` wrote on another host, or a cloud image: a disk (qcow2 or raw) of a system with cloud-init and apt or dnf, by path or URL, with `--sha256`. " +
				"A VM of a cloud image installs Docker Engine over the network at its first boot, which takes minutes. Each new VM boots; it is not forked.",
			Example: `image = "debian-13"`,
			Consent: ConsentGrowth,
		},
		get:   func(c Config) any { return c.Image },
		wider: widerImage,
		set: func(c *Config, _ Env, v any) *problem {
			s, ok := v.(string)
			if !ok {
				return wrongType("the name of an image in quotes", v)
			}
			if !imageName.MatchString(s) {
				return &problem{msg: "an image's name is letters, digits and . _ : / -, at most 128 of them", hint: "the images of this host: devvm image ls"}
			}
			c.Image = s
			return nil
		},
	},
	{
		Key: Key{
			Name: "cpus", Type: "whole number", Default: "4, or as many as the host has, if it has fewer", Applies: AppliesStart,
			Brief:   "Virtual CPUs, from 1 to the host's number.",
			Doc:     "The number of virtual CPUs, from 1 to as many as the host has. They are shared with the host, not taken from it.",
			Example: "cpus = 4",
			Consent: ConsentGrowth,
		},
		get:   func(c Config) any { return c.CPUs },
		wider: grows("cpus", func(c Config) int64 { return int64(c.CPUs) }, func(c Config) string { return strconv.Itoa(c.CPUs) }),
		set: func(c *Config, env Env, v any) *problem {
			n, ok := v.(int64)
			if !ok {
				p := wrongType("a whole number, without quotes", v)
				if text, ok := v.(string); ok {
					if n, err := strconv.ParseUint(text, 10, 16); err == nil {
						p.hint = fmt.Sprintf("write cpus = %d", n)
					}
				}
				return p
			}
			switch {
			case n < 1:
				return &problem{msg: "a VM needs at least one CPU", hint: "write cpus = 1 or more"}
			case env.CPUs > 0 && n > int64(env.CPUs):
				return &problem{msg: fmt.Sprintf("this host has only %d", env.CPUs), hint: fmt.Sprintf("write cpus = %d or less, or leave the key out: each host then takes what it has", env.CPUs)}
			}
			c.CPUs = int(min(n, math.MaxInt32))
			return nil
		},
	},
	{
		Key: Key{
			Name: "memory", Type: "size in quotes", Default: "4 GiB, or half of the host's memory, if that is less", Applies: AppliesStart,
			Brief: "Memory, from 512MiB to the host's: MiB, GiB (of 1024) or MB, GB (of 1000).",
			Doc: "The VM's memory, from 512 MiB to all that the host has. It is an upper limit: memory that the VM frees goes back to the host.\n\n" +
				"Sizes are a number and a unit: `MiB`, `GiB`, `TiB` count in steps of 1024, `MB`, `GB`, `TB` in steps of 1000. " +
				"Shorter forms such as `4G` are refused, because programs do not agree on what they mean. The result is rounded down to whole MiB.",
			Example: `memory = "4GiB"`,
			Consent: ConsentGrowth,
		},
		get:   func(c Config) any { return FormatSize(c.Memory) },
		wider: grows("memory", func(c Config) int64 { return c.Memory }, func(c Config) string { return literal(FormatSize(c.Memory)) }),
		set: func(c *Config, env Env, v any) *problem {
			n, p := sizeValue("memory", v)
			if p != nil {
				return p
			}
			n = n / MiB * MiB
			switch {
			case n < MinMemory:
				return &problem{msg: "a VM with Docker needs at least " + FormatSize(MinMemory), hint: fmt.Sprintf("write memory = %q or more", FormatSize(MinMemory))}
			case env.Memory > 0 && n > env.Memory:
				most := env.Memory / MiB * MiB
				if most > GiB {
					most = most / GiB * GiB
				}
				return &problem{msg: "this host has only " + FormatSize(env.Memory/MiB*MiB), hint: fmt.Sprintf("write memory = %q or less, or leave the key out: each host then takes what it can spare", FormatSize(most))}
			}
			c.Memory = n
			return nil
		},
	},
	{
		Key: Key{
			Name: "disk", Type: "size in quotes", Default: "40 GiB", Applies: AppliesStart, Only: "it only grows, `devvm nuke` makes it smaller",
			Brief: "Size of the disk; takes only as much space on the host as is used.",
			Doc: "The size of the VM's disk: at least that of the base image, at most 16 TiB. The file on the host is as large as what the VM uses, " +
				"and shrinks when the VM deletes. Units as for `memory`; rounded up to whole MiB. " +
				"If the VM's disk is full (`devvm status`), set a larger one; the VM keeps its files.",
			Example: `disk = "40GiB"`,
			Consent: ConsentGrowth,
		},
		get:   func(c Config) any { return FormatSize(c.Disk) },
		wider: grows("disk", func(c Config) int64 { return c.Disk }, func(c Config) string { return literal(FormatSize(c.Disk)) }),
		set: func(c *Config, _ Env, v any) *problem {
			n, p := sizeValue("disk", v)
			if p != nil {
				return p
			}
			if r := n % MiB; r != 0 && n <= MaxDisk {
				n += MiB - r
			}
			switch {
			case n < MinDisk:
				return &problem{msg: "a VM with Docker needs at least " + FormatSize(MinDisk), hint: `write disk = "10GiB" or more; space that the VM does not use costs nothing`}
			case n > MaxDisk:
				return &problem{msg: "the VM's file system holds at most " + FormatSize(MaxDisk), hint: fmt.Sprintf("write disk = %q or less", FormatSize(MaxDisk))}
			}
			c.Disk = n
			return nil
		},
	},
	{
		Key: Key{
			Name: "mount", Type: "true or false", Default: "true", Applies: AppliesStart,
			Brief:   "Whether the VM has the project's directory, at the same path.",
			Doc:     "Whether the VM has the project's directory: at the same absolute path, for reading and writing. [What that means for files](files-in-the-vm.md).",
			Example: "mount = false",
			Consent: ConsentGrowth,
		},
		get:   func(c Config) any { return c.Mount },
		wider: widerMount,
		set:   func(c *Config, _ Env, v any) *problem { return setBool(&c.Mount, v) },
	},
	{
		Key: Key{
			Name: "mounts", Type: "list of tables", Default: "empty", Applies: AppliesStart,
			Brief: "More directories of the host for the VM: source, target (same path if left out), writable.",
			Doc: "More directories of the host for the VM, besides the project's own, 32 at most. You can also write them as `[[mounts]]` at the end of the file, with the keys below it.\n\n" +
				"- `source`: a directory; absolute, below `~/`, or relative to the project's directory. In the project's directory no part of the path may be a symbolic link. Elsewhere devvm follows links, and asks you about the place where they lead.\n" +
				"- `target`: an absolute path in the VM. The default is the source as you wrote it.\n" +
				"- `writable`: the default is `false`.\n\n" +
				"`devvm up` asks once about a source outside the project's directory: devvm.toml may have come with a cloned repository.",
			Example: `mounts = [{ source = "../shared", target = "/srv/shared", writable = true }]`,
			Consent: ConsentReach,
		},
		get:   func(c Config) any { return c.mountTables() },
		wider: func(Config, Config) []string { return nil }, // pkg/grant compares where they lead
		set:   setMounts,
	},
	{
		Key: Key{
			Name: "bind_guard", Type: "true or false", Default: "true", Applies: AppliesUp,
			Brief: "Whether to refuse containers that bind a path which is not in the VM.",
			Doc: "devvm refuses a container that binds a path (`docker run -v`, `--mount type=bind`, `volumes` of compose, volumes of the driver `local` with `o=bind`) which is not in the VM. The error has the lines for devvm.toml that share it. " +
				"With `false`, Docker makes an empty directory in the VM for the container, as any engine on another machine does. [What counts](files-in-the-vm.md#paths-that-the-vm-does-not-have).",
			Example: "bind_guard = true",
			Consent: ConsentFree,
			Free:    "it gives the VM nothing new",
		},
		get: func(c Config) any { return c.BindGuard },
		set: func(c *Config, _ Env, v any) *problem { return setBool(&c.BindGuard, v) },
	},
	{
		Key: Key{
			Name: "docker.daemon", Type: "table", Default: "empty", Applies: AppliesStart,
			Brief: "Settings of the Docker Engine, as in daemon.json.",
			Doc: "Settings of the VM's Docker Engine, merged into its `/etc/docker/daemon.json`; " +
				"[Docker's manual](https://docs.docker.com/reference/cli/dockerd/#daemon-configuration-file) lists them. " +
				"Tables in your own file and in devvm.toml are merged key by key; otherwise devvm.toml wins.\n\n" +
				"devvm refuses the keys that would cut it off from the engine: `hosts`, `tls`, `tlsverify`, `tlscacert`, `tlscert`, `tlskey`, `containerd`, " +
				"and address ranges (`bip`, `fixed-cidr`, `default-address-pools`) that overlap 192.0.2.0/24, the VM's own network.\n\n" +
				"Unless you set `mtu`, Docker's own bridge has the MTU of the VM's link, 65520, and so do builds: large packets cost less than many, and none of them crosses a wire. " +
				"Networks that you make have Docker's 1500. The engine shows another one among a network's options, and Compose v1 then says that the network \"needs to be recreated\". " +
				"Without Compose v1, larger packets make a published port two to four times as fast, and the way out twice as fast, [under emulation](performance.md#a-published-port): " +
				"`default-network-opts.bridge.\"com.docker.network.driver.mtu\" = \"65520\"`, for networks that are made from then on.\n\n" +
				"Unless you set `default-address-pools`, networks get addresses that hide no LAN or VPN of the host: Docker's own ranges if none of its routes overlaps, else 10.208.0.0/12, 192.168.0.0/16 or 198.18.0.0/15. " +
				"`devvm status` says when a network hides what came up later.",
			Example: "log-level = \"info\"\nregistry-mirrors = [\"https://mirror.example.com\"]\ndefault-address-pools = [{ base = \"172.30.0.0/16\", size = 24 }]",
			Consent: ConsentGrowth,
		},
		get:   func(c Config) any { return c.Daemon },
		wider: widerDaemon,
		set: func(c *Config, _ Env, v any) *problem {
			t, ok := v.(map[string]any)
			if !ok {
				p := wrongType("a table", v)
				p.hint = engineHint
				return p
			}
			for _, k := range sortedKeys(t) {
				if p := checkDaemon(k, t[k]); p != nil {
					p.sub = k
					return p
				}
			}
			c.Daemon = merge(c.Daemon, t)
			return nil
		},
	},
	{
		Key: Key{
			Name: "network.mode", Type: "string", Default: `"user"`, Applies: AppliesUp,
			Brief: `"user": out to the internet, never to this host itself; "offline": no way out.`,
			Doc: "`\"user\"`: the VM reaches what the host reaches, the internet, the LAN, a VPN, but never the host itself; `egress` and `host_ports` say it more exactly. " +
				"`\"offline\"`: nothing leaves the VM, whatever those two say. In both, nothing reaches the VM but this host's user.",
			Example: `mode = "user"`,
			Consent: ConsentReach,
		},
		get:   func(c Config) any { return c.NetworkMode },
		wider: func(Config, Config) []string { return nil }, // see widerEgress and widerHostPorts
		set: func(c *Config, _ Env, v any) *problem {
			s, ok := v.(string)
			if !ok {
				return wrongType(`"user" or "offline"`, v)
			}
			if s != NetworkUser && s != NetworkOffline {
				hint := `write mode = "user" or mode = "offline"`
				if near := nearest(s, []string{NetworkUser, NetworkOffline}); near != "" {
					hint = fmt.Sprintf("did you mean %q?", near)
				}
				return &problem{msg: `the modes are "user" and "offline"`, hint: hint}
			}
			c.NetworkMode = s
			return nil
		},
	},
	{
		Key: Key{
			Name: "network.egress", Type: `"all", "none" or a list of strings`, Default: `"all"`, Applies: AppliesUp,
			Brief: `Where connections may go: "all", "none", or names, addresses, ranges, with or without a port.`,
			Doc: "Where connections of the VM may go, beside the host, which is `host_ports`'s matter. `\"all\"`: everywhere. `\"none\"`: nowhere. A list: only there.\n\n" +
				"- `\"registry.example.com:443\"`: a name, and a port; without a port, any. It holds for TCP and UDP, and without a port for `ping`.\n" +
				"- `\"*.example.org\"`: all names below `example.org`, at any depth, and not `example.org` itself, which is an entry of its own.\n" +
				"- `\"203.0.113.7\"`, `\"10.20.0.0/16:5432\"`, `\"[2001:db8::]/32:443\"`: addresses and ranges.\n\n" +
				"With a list or `\"none\"`, the VM's DNS answers only names that the list has; for others it says that they do not exist. " +
				"A name stands for the addresses that the VM got for it, for as long as the answer says, but at least five minutes; connections that exist stay. " +
				"It is the name asked for that counts, not those that it is an alias of. Other DNS servers are destinations like any other. Addresses and ranges match only their own family: `\"0.0.0.0/0\"` allows no IPv6. A name allows both. " +
				"A container has IPv6 only on [a network made for it](egress.md#ipv6). " +
				"`devvm egress` shows what was refused, with the line that would allow it. [What it cannot do](security.md#where-the-claim-ends).",
			Example: `egress = ["registry.example.com:443", "*.example.org", "10.20.0.0/16:5432"]`,
			Consent: ConsentReach,
		},
		get: func(c Config) any {
			switch {
			case c.Network.All:
				return egress.All
			case len(c.Network.Rules) == 0:
				return egress.None
			}
			return c.Network.Entries()
		},
		wider: widerEgress,
		set:   setEgress,
	},
	{
		Key: Key{
			Name: "network.host_ports", Type: "list of whole numbers", Default: "empty", Applies: AppliesUp,
			Brief: "TCP ports of this host's loopback that the VM reaches as host.docker.internal.",
			Doc: "TCP ports of this host that the VM and its containers reach as `host.docker.internal`: a connection there arrives on `127.0.0.1` of the host (or `::1`, if nobody listens there). " +
				"All other ports of that name are refused, and the host's other addresses are, whatever is written here. " +
				"The service sees a connection from this host, and may trust it for that: `devvm up` asks before it opens a port for the first time.",
			Example: "host_ports = [5432]",
			Consent: ConsentReach,
		},
		get: func(c Config) any {
			ports := []any{}
			for _, port := range c.Network.HostPorts {
				ports = append(ports, int64(port))
			}
			return ports
		},
		wider: widerHostPorts,
		set:   setHostPorts,
	},
	{
		Key: Key{
			Name: "ports.prefer", Type: "string", Default: `"shared"`, Applies: AppliesUp,
			Brief: `"shared": published ports need 127.0.0.1; "own": the project's own address is enough.`,
			Doc: "A port that a container publishes is opened on 127.0.0.1 and ::1 of the host, which all projects share, and on the project's own address, which `devvm ports` shows.\n\n" +
				"`\"shared\"`: if somebody else has the port on a shared address, the container does not start, and the error names who has it. " +
				"`\"own\"`: it starts; the port is open on the project's own address, and `devvm ports` notes who has it on the shared ones. So two projects can both publish 5432.",
			Example: `prefer = "shared"`,
			Consent: ConsentFree,
			Free:    "addresses that are free are opened either way",
		},
		get: func(c Config) any { return c.PortsPrefer },
		set: func(c *Config, _ Env, v any) *problem {
			s, ok := v.(string)
			if !ok {
				return wrongType(`"shared" or "own"`, v)
			}
			if s != PortsShared && s != PortsOwn {
				hint := `write prefer = "shared" or prefer = "own"`
				if near := nearest(s, []string{PortsShared, PortsOwn}); near != "" {
					hint = fmt.Sprintf("did you mean %q?", near)
				}
				return &problem{msg: `it is "shared" or "own"`, hint: hint}
			}
			c.PortsPrefer = s
			return nil
		},
	},
	{
		Key: Key{
			Name: "ports.map", Type: "table of numbers", Default: "empty", Applies: AppliesUp,
			Brief: "Published ports that have another number on the host.",
			Doc: "Published ports that have another number on the host, `published = host`. " +
				"With the example, `docker run -p 80:8000` is http://localhost:8080: users may not open ports below 1024 (`net.ipv4.ip_unprivileged_port_start`). " +
				"A devvm that runs as root does not open them for a VM either, unless a mapping to the port says so: `map = { 80 = 80 }`.",
			Example: `map = { 80 = 8080, 443 = 8443 }`,
			Consent: ConsentGrowth,
		},
		get: func(c Config) any {
			m := map[string]any{}
			for k, v := range c.PortsMap {
				m[strconv.Itoa(int(k))] = int64(v)
			}
			return m
		},
		wider: widerPortsMap,
		set: func(c *Config, _ Env, v any) *problem {
			t, ok := v.(map[string]any)
			if !ok {
				return wrongType("a table, such as { 80 = 8080 }", v)
			}
			m := map[uint16]uint16{}
			hosts := map[uint16]string{}
			for _, k := range sortedKeys(t) {
				published, err := strconv.ParseUint(k, 10, 16)
				if err != nil || published == 0 || strconv.FormatUint(published, 10) != k {
					return &problem{msg: fmt.Sprintf("ports.map: %s is not a port", quoteKey(k)), hint: "ports are whole numbers from 1 to 65535", full: true, sub: k}
				}
				host, ok := t[k].(int64)
				if !ok || host < 1 || host > math.MaxUint16 {
					return &problem{msg: fmt.Sprintf("ports.map: %s = %s is not a port", k, brief(t[k])), hint: "ports are whole numbers from 1 to 65535, without quotes", full: true, sub: k}
				}
				if other := hosts[uint16(host)]; other != "" {
					return &problem{msg: fmt.Sprintf("ports.map: %s and %s cannot both be %d on the host", other, k, host), hint: "choose another number for one of them", full: true, sub: k}
				}
				m[uint16(published)], hosts[uint16(host)] = uint16(host), k
			}
			c.PortsMap = m
			return nil
		},
	},
	{
		Key: Key{
			Name: "ports.most", Type: "whole number", Default: "256", Applies: AppliesUp,
			Brief: "Ports of the host that the project may have, up to 4096.",
			Doc: "How many ports of the host the project's containers may have, from 0 to 4096. A port of TCP and one of UDP are two, and each port of a range counts. " +
				"A container that would have more does not start, and the error says so. What is published in the VM itself, past the Docker socket, and is too much is not opened: `devvm ports` says which. " +
				"0: none is opened.",
			Example: "most = 256",
			Consent: ConsentReach,
		},
		get:   func(c Config) any { return c.PortsMost },
		wider: grows("ports.most", func(c Config) int64 { return int64(c.PortsMost) }, func(c Config) string { return strconv.Itoa(c.PortsMost) }),
		set: func(c *Config, _ Env, v any) *problem {
			n, ok := v.(int64)
			if !ok {
				return wrongType("a whole number, without quotes", v)
			}
			if n < 0 || n > mostPorts {
				return &problem{msg: fmt.Sprintf("it is a number from 0 to %d", mostPorts), hint: "write most = 256, or leave the key out"}
			}
			c.PortsMost = int(n)
			return nil
		},
	},
	{
		Key: Key{
			Name: "ports.deny", Type: "list of whole numbers", Default: "empty", Applies: AppliesUp,
			Brief: "Ports of the host that the project never gets.",
			Doc: "Ports of the host that the project never gets, whatever its containers publish: those of services of the host's own that do not always run. " +
				"While the service is down, your programs would take whoever opens its port for the service. " +
				"The ports in your own `config.toml` are for no project; devvm.toml can only add to them. This does not apply to a published port that `map` moves to another number.",
			Example: "deny = [5432, 6379]",
			Consent: ConsentGrowth,
		},
		wider: widerPortsDeny,
		get: func(c Config) any {
			ports := []any{}
			for _, port := range c.PortsDeny {
				ports = append(ports, int64(port))
			}
			return ports
		},
		set: func(c *Config, _ Env, v any) *problem {
			list, ok := v.([]any)
			if !ok {
				return wrongType("a list of ports, such as [5432]", v)
			}
			ports := slices.Clone(c.PortsDeny) // a project cannot take back what the user denies
			for _, e := range list {
				n, ok := e.(int64)
				if !ok || n < 1 || n > math.MaxUint16 {
					return &problem{msg: fmt.Sprintf("ports.deny holds %s, which is not a port", brief(e)), hint: "ports are whole numbers from 1 to 65535, without quotes", full: true}
				}
				ports = append(ports, uint16(n))
			}
			c.PortsDeny = egress.SortPorts(ports)
			return nil
		},
	},
	{
		Key: Key{
			Name: "provision.packages", Type: "list of strings", Default: "empty", Applies: AppliesNew,
			Brief: "Debian packages to install once in a new VM.",
			Doc: "Debian packages that are installed once in a new VM, before `script` runs. They come from Debian's archive, " +
				"so they need a network that lets them: `network.mode = \"user\"`, and with a list in `network.egress` entries for the hosts in the VM's `/etc/apt/sources.list`.",
			Example: `packages = ["git", "make"]`,
			Consent: ConsentGrowth,
		},
		get:   func(c Config) any { return append([]string{}, c.Packages...) },
		wider: widerPackages,
		set: func(c *Config, _ Env, v any) *problem {
			list, ok := v.([]any)
			if !ok {
				return wrongType("a list", v)
			}
			packages := []string{}
			for _, v := range list {
				s, ok := v.(string)
				if !ok {
					return &problem{msg: fmt.Sprintf("provision.packages holds %s, which is %s", brief(v), typeName(v)), hint: `packages are strings: ["git", "make"]`, full: true}
				}
				if !packageName.MatchString(s) {
					p := &problem{msg: brief(s) + " is not the name of a Debian package", hint: "names are lower-case letters, digits and + - . and have at least two characters; no versions, no options", full: true}
					if l := strings.ToLower(strings.TrimSpace(s)); packageName.MatchString(l) {
						p.hint = fmt.Sprintf("did you mean %q?", l)
					}
					return p
				}
				if !slices.Contains(packages, s) {
					packages = append(packages, s)
				}
			}
			c.Packages = packages
			return nil
		},
	},
	{
		Key: Key{
			Name: "provision.script", Type: "string", Default: "empty", Applies: AppliesNew,
			Brief: "Shell script that runs once in a new VM, as root.",
			Doc: "A shell script that runs once in a new VM, as root, after `packages`. It runs with `sh -eu`, which ends at the first command that fails, or with what its first line says (`#!/bin/bash`). " +
				"Its output is shown and kept in a log; if it fails, `devvm up` fails and shows the end of the log, with the line of the script (in bash, the command), and the next `devvm up` runs it again, " +
				"so write it such that it can. What packages and script have made is kept as a template: the next new VM with the same text (`devvm nuke`) starts from there and does not run them again, until `devvm template rm`, or `devvm prune` when no project has such a VM.",
			Example: "script = '''\ngit config --system init.defaultBranch main\necho 'set -o vi' >>/root/.bashrc\n'''",
			Consent: ConsentGrowth,
		},
		get:   func(c Config) any { return c.Script },
		wider: widerScript,
		set: func(c *Config, _ Env, v any) *problem {
			s, ok := v.(string)
			if !ok {
				return wrongType("a string", v)
			}
			if i := strings.IndexByte(s, 0); i >= 0 {
				return &problem{msg: "provision.script holds a NUL character, which no shell can read", hint: "remove \\u0000", full: true}
			}
			c.Script = s
			return nil
		},
	},
	{
		Key: Key{
			Name: "share.durable", Type: "true or false", Default: "false", Applies: AppliesStart,
			Brief: "Whether what a container has fsynced is on the host's disk, not only in its memory.",
			Doc: "Once a container is told that its write to a shared directory is done, the host's kernel has the data. It survives the end of the VM and of devvm. " +
				"`true`: what it has fsynced, or closed, is also on the host's disk, and survives the host's power failing. Small files then take many times longer.",
			Example: "durable = true",
			Consent: ConsentFree,
			Free:    "it makes writing slower",
		},
		get: func(c Config) any { return c.ShareDurable },
		set: func(c *Config, _ Env, v any) *problem { return setBool(&c.ShareDurable, v) },
	},
	{
		Key: Key{
			Name: "share.ignore", Type: "list of strings", Default: "`.git` and `node_modules`", Applies: AppliesStart,
			Brief: "Names of files and directories whose changes on the host the VM's watchers do not hear of.",
			Doc: "Changes that the host makes in a shared directory reach those in the VM who watch it (inotify, live reload), but not below these: names, patterns with `*`, `?` and `[a-z]`, " +
				"or, with a slash in them, paths below the directory. The VM has these files like any other; what is watched costs the host a watch for each directory.",
			Example: `ignore = [".git", "node_modules", "target", "*.log"]`,
			Consent: ConsentFree,
			Free:    "what is watched is bounded, whatever it says",
		},
		get: func(c Config) any { return append([]string{}, c.ShareIgnore...) },
		set: func(c *Config, _ Env, v any) *problem {
			list, ok := v.([]any)
			if !ok {
				return wrongType("a list", v)
			}
			ignore := []string{}
			for _, v := range list {
				s, ok := v.(string)
				if _, err := path.Match(s, ""); !ok || s == "" || err != nil {
					return &problem{msg: fmt.Sprintf("share.ignore holds %s, which is not a name or pattern", brief(v)), hint: `write ignore = [".git", "node_modules", "*.log"]`, full: true}
				}
				ignore = append(ignore, s)
			}
			c.ShareIgnore = ignore
			return nil
		},
	},
	{
		Key: Key{
			Name: "host.uri", Type: "string", Default: "`qemu:///session`, for root `qemu:///system`", Applies: AppliesCommand, Only: "existing VMs stay with the libvirt that has them", UserOnly: true,
			Brief: "The libvirt that runs the VMs.",
			Doc: "The libvirt that runs the VMs. Only in your own file: a project that you have cloned must not choose it. " +
				"The environment variable `DEVVM_LIBVIRT_URI` goes before it. The libvirt must be one of this host.",
			Example: `uri = "qemu:///session"`,
			Consent: ConsentFree,
			Free:    "only your own file has it",
		},
		get: func(c Config) any { return c.URI },
		set: func(c *Config, _ Env, v any) *problem {
			s, ok := v.(string)
			if !ok {
				return wrongType("a libvirt URI in quotes", v)
			}
			if p := checkURI(s); p != nil {
				return p
			}
			c.URI = s
			return nil
		},
	},
}

// setEgress stores the value of network.egress.
func setEgress(c *Config, _ Env, v any) *problem {
	switch v := v.(type) {
	case string:
		switch v {
		case egress.All, egress.None:
			c.Network.All, c.Network.Rules = v == egress.All, nil
			return nil
		}
		p := &problem{msg: `a string is "all" or "none"; destinations stand in a list`, hint: `write egress = "all", "none" or a list`}
		if near := nearest(v, []string{egress.All, egress.None}); near != "" {
			p.hint = fmt.Sprintf("did you mean %q?", near)
		} else if r, err := egress.ParseRule(v); err == nil {
			p.hint = fmt.Sprintf("write egress = [%q]", r)
		}
		return p
	case []any:
		var entries []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return &problem{msg: fmt.Sprintf("network.egress holds %s, which is %s", brief(e), typeName(e)), hint: `destinations are strings: ["registry.example.com:443"]`, full: true}
			}
			if (s == egress.All || s == egress.None) && len(v) == 1 {
				return &problem{msg: fmt.Sprintf("%q is not a destination", s), hint: fmt.Sprintf("write egress = %q, without brackets", s)}
			}
			entries = append(entries, s)
		}
		rules, err := egress.ParseRules(entries)
		if bad, ok := errors.AsType[*egress.SyntaxError](err); ok {
			return &problem{msg: fmt.Sprintf("network.egress: %s %s", brief(bad.Entry), bad.Msg), hint: bad.Hint, full: true}
		}
		c.Network.All, c.Network.Rules = false, rules
		return nil
	}
	return wrongType(`"all", "none" or a list`, v)
}

// setHostPorts stores the value of network.host_ports.
func setHostPorts(c *Config, _ Env, v any) *problem {
	list, ok := v.([]any)
	if !ok {
		p := wrongType("a list of port numbers", v)
		if n, ok := v.(int64); ok && n > 0 && n <= math.MaxUint16 {
			p.hint = fmt.Sprintf("write host_ports = [%d]", n)
		}
		return p
	}
	ports := []uint16{}
	for _, e := range list {
		n, ok := e.(int64)
		if !ok {
			return &problem{msg: fmt.Sprintf("network.host_ports holds %s, which is %s", brief(e), typeName(e)), hint: "ports are numbers, without quotes: [5432]; they are the host's, and not mapped to others", full: true}
		}
		if n < 1 || n > math.MaxUint16 {
			return &problem{msg: fmt.Sprintf("network.host_ports holds %d, which is no port", n), hint: "a port is a number from 1 to 65535", full: true}
		}
		ports = append(ports, uint16(n))
	}
	c.Network.HostPorts = egress.SortPorts(ports)
	return nil
}

var (
	imageName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$`)
	packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,127}$`) // Debian Policy 5.6.1
)

func setBool(to *bool, v any) *problem {
	b, ok := v.(bool)
	if !ok {
		p := wrongType("true or false, without quotes", v)
		p.hint = "write true or false"
		return p
	}
	*to = b
	return nil
}

// vmNetwork is the network between a VM and devvm.
var vmNetwork = netip.MustParsePrefix("192.0.2.0/24")

func checkURI(s string) *problem {
	switch s {
	case "qemu:///session", "qemu:///system", "test:///default":
		return nil
	}
	return &problem{
		msg:  "devvm works with the libvirt of this host, and there with QEMU's driver",
		hint: `write "qemu:///session" (VMs of your user) or "qemu:///system"`,
	}
}

// refusedDaemonKeys are keys that would cut devvm off from the engine, with the reasons.
var refusedDaemonKeys = map[string]string{
	"hosts":      "the engine listens on the one socket that devvm forwards",
	"tls":        "the engine's socket does not leave this host, and devvm reaches it over SSH",
	"tlsverify":  "the engine's socket does not leave this host, and devvm reaches it over SSH",
	"tlscacert":  "the engine's socket does not leave this host, and devvm reaches it over SSH",
	"tlscert":    "the engine's socket does not leave this host, and devvm reaches it over SSH",
	"tlskey":     "the engine's socket does not leave this host, and devvm reaches it over SSH",
	"containerd": "the image brings its own containerd",
}

// checkDaemon checks one key of daemon.json.
func checkDaemon(key string, v any) *problem {
	if why, ok := refusedDaemonKeys[strings.ToLower(key)]; ok {
		return &problem{msg: fmt.Sprintf("docker.daemon.%s cannot be set: %s", quoteKey(key), why), hint: "remove the line", full: true}
	}
	if p := checkJSON("docker.daemon."+quoteKey(key), v); p != nil {
		return p
	}
	var subnets []any
	switch strings.ToLower(key) {
	case "bip", "fixed-cidr":
		subnets = append(subnets, v)
	case "default-address-pools":
		switch pools := v.(type) {
		case []any:
			for _, p := range pools {
				if t, ok := p.(map[string]any); ok {
					subnets = append(subnets, t["base"])
				}
			}
		case []map[string]any:
			for _, t := range pools {
				subnets = append(subnets, t["base"])
			}
		}
	}
	for _, s := range subnets {
		text, _ := s.(string)
		if p, err := netip.ParsePrefix(text); err == nil && p.Overlaps(vmNetwork) {
			return &problem{
				msg:  fmt.Sprintf("docker.daemon.%s: %s overlaps %s, the VM's own network", quoteKey(key), text, vmNetwork),
				hint: `choose another range, such as "172.30.0.0/16"; it has to be free in the VM only`, full: true,
			}
		}
	}
	return nil
}

// checkJSON rejects values that TOML can express and JSON cannot.
func checkJSON(key string, v any) *problem {
	switch v := v.(type) {
	case time.Time:
		return &problem{msg: key + " is a date, which daemon.json does not know", hint: "put it in quotes", full: true}
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return &problem{msg: key + " is not a finite number", hint: "daemon.json has only finite numbers", full: true}
		}
	case []any:
		for _, e := range v {
			if p := checkJSON(key, e); p != nil {
				return p
			}
		}
	case []map[string]any:
		for _, e := range v {
			if p := checkJSON(key, e); p != nil {
				return p
			}
		}
	case map[string]any:
		for _, k := range sortedKeys(v) {
			if p := checkJSON(key+"."+quoteKey(k), v[k]); p != nil {
				return p
			}
		}
	}
	return nil
}

// merge puts over on top of base: tables are merged key by key, other values replaced.
func merge(base, over map[string]any) map[string]any {
	out := make(map[string]any, len(base)+len(over))
	for k, v := range base {
		out[k] = v
	}
	for k, v := range over {
		b, ok1 := out[k].(map[string]any)
		o, ok2 := v.(map[string]any)
		if ok1 && ok2 {
			v = merge(b, o)
		}
		out[k] = v
	}
	return out
}

func sizeValue(key string, v any) (int64, *problem) {
	s, ok := v.(string)
	if !ok {
		p := wrongType(`a size in quotes, such as "4GiB"`, v)
		if n, ok := v.(int64); ok && n > 0 {
			unit := "GiB"
			if n >= 512 {
				unit = "MiB"
			}
			p.hint = fmt.Sprintf(`write %s = "%d%s"; %s`, key, n, unit, unitsHint)
		}
		return 0, p
	}
	return parseSize(s)
}

func wrongType(want string, v any) *problem {
	return &problem{msg: fmt.Sprintf("it must be %s, not %s", want, typeName(v))}
}

// typeName names the type of a TOML value.
func typeName(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case int64:
		return "a whole number"
	case float64:
		return "a number with a fraction"
	case bool:
		return "true or false"
	case time.Time:
		return "a date or time"
	case []any:
		return "a list"
	case []map[string]any:
		return "a list of tables"
	default:
		return "a table"
	}
}
