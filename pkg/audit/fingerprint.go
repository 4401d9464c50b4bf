package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Names of the parts of a [Fingerprint].
const (
	PartNftables  = "nftables rules"
	PartIptables  = "legacy iptables rules"
	PartIP6tables = "legacy ip6tables rules"
	PartLinks     = "links"
	PartAddresses = "addresses"
	PartRoutes    = "routes"
	PartRules     = "routing rules"
	PartSysctls   = "sysctls"
	PartListeners = "listening sockets"
)

// Part is one aspect of the host, as lines of text that stay the same while the host does.
// Counters, handles and lifetimes are left out.
type Part struct {
	Name   string   `json:"name"`
	Unread string   `json:"unread,omitempty"` // why it could not be read; empty: it was read
	Lines  []string `json:"lines"`            // sorted, except rules, whose order matters
}

// Fingerprint is the state of everything that Docker, libvirt and similar programs change on a
// host.
type Fingerprint struct {
	Taken time.Time `json:"taken"`
	Boot  string    `json:"boot"` // boot id of the kernel
	// Namespace is the network namespace that was read. Each counts as its own host.
	Namespace string `json:"namespace"`
	UID       int    `json:"uid"`     // who took it
	Running   int    `json:"running"` // number of devvm's processes that were already running
	Parts     []Part `json:"parts"`
}

// Take reads the fingerprint of the host, as far as this user may. It takes a few milliseconds.
// Parts that cannot be read are marked. It fails only if /proc cannot be read.
func Take(ctx context.Context, h Host) (Fingerprint, error) {
	processes, err := findProcesses(h)
	if err != nil {
		return Fingerprint{}, err
	}
	return take(ctx, h, processes, processSockets(h, processes)), nil
}

// take is Take, given devvm's own processes and sockets.
func take(ctx context.Context, h Host, processes []Process, own sockets) Fingerprint {
	f := Fingerprint{Taken: time.Now().UTC().Truncate(time.Second), UID: h.UID}
	f.Boot, f.Namespace = Identity(h)
	f.Parts = append(f.Parts, firewall(ctx, h)...)
	parts, err := h.Network()
	if err != nil {
		parts = nil
		for _, name := range []string{PartLinks, PartAddresses, PartRoutes, PartRules} {
			parts = append(parts, Part{Name: name, Unread: "the kernel does not tell: " + err.Error()})
		}
	}
	f.Parts = append(f.Parts, parts...)
	f.Parts = append(f.Parts, sysctls(h), hostListeners(h, own))
	for i := range f.Parts {
		if f.Parts[i].Lines == nil {
			f.Parts[i].Lines = []string{}
		}
	}
	for _, p := range processes {
		if p.Kind == KindNet || p.Kind == KindSupervisor || p.Kind == KindQEMU {
			f.Running++
		}
	}
	return f
}

// Identity returns the kernel's boot and the network namespace of this process. Fingerprints
// can be compared only within these.
func Identity(h Host) (boot, namespace string) {
	boot = h.text("proc/sys/kernel/random/boot_id")
	namespace, _ = os.Readlink(h.path("proc/self/ns/net")) // a kernel without namespaces has one network
	return boot, namespace
}

// part returns the part with a name. A missing part counts as unread.
func (f Fingerprint) part(name string) Part {
	for _, p := range f.Parts {
		if p.Name == name {
			return p
		}
	}
	return Part{Name: name, Unread: "an older devvm did not look at it"}
}

// Load reads a fingerprint that Save wrote.
func Load(path string) (Fingerprint, error) {
	var f Fingerprint
	b, err := os.ReadFile(path)
	if err != nil {
		return f, fmt.Errorf("read fingerprint: %w", err)
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("read fingerprint %s: %w", path, err)
	}
	if f.Boot == "" || len(f.Parts) == 0 {
		return f, fmt.Errorf("read fingerprint %s: it holds none", path)
	}
	return f, nil
}

// Save writes the fingerprint atomically, readable only by its owner.
func (f Fingerprint) Save(path string) error {
	b, err := json.MarshalIndent(f, "", " ")
	if err != nil {
		return fmt.Errorf("save fingerprint: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("save fingerprint: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(b, '\n'))
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("save fingerprint: %w", err)
	}
	return nil
}

// Remember saves the host's fingerprint, taken before the first VM of this boot, at path,
// unless there is one already.
func Remember(ctx context.Context, h Host, path string) error {
	boot, namespace := Identity(h)
	if f, err := Load(path); err == nil && f.Boot == boot && f.Namespace == namespace {
		return nil
	}
	f, err := Take(ctx, h)
	if err == nil {
		err = ctx.Err() // some parts may not have been read
	}
	if err != nil {
		return err
	}
	return f.Save(path)
}

// firewall reads the rules of both backends. nftables' rules include those made by
// iptables-nft.
func firewall(ctx context.Context, h Host) []Part {
	out := []Part{{Name: PartNftables}, {Name: PartIptables}, {Name: PartIP6tables}}
	if h.UID != 0 {
		for i := range out {
			out[i].Unread = "not readable as this user: only root may list firewall rules"
		}
		return out
	}
	// --stateless leaves out counters and expiry times.
	text, err := h.Exec(ctx, "nft", "--stateless", "list", "ruleset")
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		out[0].Unread = "the program nft is not installed (package nftables)"
	case err != nil:
		out[0].Unread = "not readable: " + oneLine(err.Error())
	default:
		out[0].Lines = nftLines(text)
	}
	for i, t := range []struct{ names, program string }{
		{"proc/net/ip_tables_names", "iptables-legacy-save"},
		{"proc/net/ip6_tables_names", "ip6tables-legacy-save"},
	} {
		p := &out[i+1]
		names, err := h.read(t.names)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(strings.TrimSpace(string(names))) == 0 {
			continue // no legacy table exists, so the part is read and empty
		}
		if err == nil {
			text, err = h.Exec(ctx, t.program)
		}
		switch {
		case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
			p.Unread = "the program " + t.program + " is not installed (package iptables), though there are legacy tables"
		case err != nil:
			p.Unread = "not readable: " + oneLine(err.Error())
		default:
			p.Lines = legacyLines(text)
		}
	}
	return out
}

// sysctlNames are the settings below /proc/sys that Docker, libvirt and VPNs change. "*" stands
// for each interface.
var sysctlNames = []string{
	"kernel/apparmor_restrict_unprivileged_userns",
	"kernel/unprivileged_userns_clone",
	"net/bridge/bridge-nf-call-arptables",
	"net/bridge/bridge-nf-call-ip6tables",
	"net/bridge/bridge-nf-call-iptables",
	"net/ipv4/ip_forward",
	"net/ipv4/ip_nonlocal_bind",
	"net/ipv4/ip_unprivileged_port_start",
	"net/ipv4/ping_group_range",
	"net/ipv4/conf/*/accept_local",
	"net/ipv4/conf/*/arp_ignore",
	"net/ipv4/conf/*/forwarding",
	"net/ipv4/conf/*/proxy_arp",
	"net/ipv4/conf/*/route_localnet",
	"net/ipv4/conf/*/rp_filter",
	"net/ipv4/conf/*/src_valid_mark",
	"net/ipv6/conf/*/accept_ra",
	"net/ipv6/conf/*/disable_ipv6",
	"net/ipv6/conf/*/forwarding",
	"net/ipv6/conf/*/proxy_ndp",
	"net/netfilter/nf_conntrack_max",
	"vm/max_map_count",
	"vm/overcommit_memory",
}

// sysctls reads the settings and leaves out those that the kernel does not have.
func sysctls(h Host) Part {
	p := Part{Name: PartSysctls}
	base := h.path("proc/sys")
	interfaces := map[string][]string{}
	for _, name := range sysctlNames {
		dir, rest, found := strings.Cut(name, "/*/")
		if !found {
			p.Lines = append(p.Lines, sysctl(base, name)...)
			continue
		}
		if _, read := interfaces[dir]; !read {
			interfaces[dir] = []string{}
			entries, _ := os.ReadDir(filepath.Join(base, dir)) // missing if the kernel lacks the protocol
			for _, e := range entries {
				interfaces[dir] = append(interfaces[dir], e.Name())
			}
		}
		for _, i := range interfaces[dir] {
			p.Lines = append(p.Lines, sysctl(base, dir+"/"+i+"/"+rest)...)
		}
	}
	if len(p.Lines) == 0 {
		p.Unread = "/proc/sys cannot be read"
	}
	slices.Sort(p.Lines)
	return p
}

// sysctl renders one setting as sysctl(8) prints it, but with slashes, because names of
// interfaces may contain dots.
func sysctl(base, name string) []string {
	b, err := os.ReadFile(filepath.Join(base, name))
	if err != nil {
		return nil
	}
	return []string{name + " = " + strings.Join(strings.Fields(string(b)), " ")}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
