package audit

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Kinds of a [Change].
const (
	Added     = "added"
	Removed   = "removed"
	Reordered = "reordered"
)

// Change is one difference between two fingerprints.
type Change struct {
	Part string `json:"part"`
	Kind string `json:"kind"`
	Line string `json:"line"`
	By   string `json:"by,omitempty"` // who else makes such changes; empty: nobody known
}

// String renders the change as a line for people.
func (c Change) String() string {
	sign := map[string]string{Added: "+", Removed: "-", Reordered: "~"}[c.Kind]
	s := fmt.Sprintf("%s %s: %s", sign, c.Part, c.Line)
	if c.By != "" {
		s += "  (" + c.By + ")"
	}
	return s
}

// Unread is a part that could not be compared.
type Unread struct {
	Part string `json:"part"`
	Why  string `json:"why"`
}

// Comparison lists what has changed on the host. Fields are only ever added.
type Comparison struct {
	Taken     time.Time `json:"taken"` // when the earlier fingerprint was taken
	Identical bool      `json:"identical"`
	// Same are the parts that did not change, Unread those that were not compared.
	Same    []string `json:"same"`
	Changes []Change `json:"changes,omitempty"`
	Unread  []Unread `json:"unread,omitempty"`
	// Sockets are the changes in what listens on this host, other than devvm.
	Sockets []Change `json:"sockets,omitempty"`
	// Unprivileged says that neither fingerprint was taken by root, so the user could not have
	// changed any of this.
	Unprivileged bool `json:"unprivileged"`
}

// Compare finds the changes from one fingerprint to a later one. It compares only parts that
// were read both times.
func Compare(before, now Fingerprint) Comparison {
	c := Comparison{Taken: before.Taken, Same: []string{}, Unprivileged: before.UID != 0 && now.UID != 0}
	var changes []Change
	for _, p := range now.Parts {
		was := before.part(p.Name)
		switch {
		case p.Unread != "":
			c.Unread = append(c.Unread, Unread{p.Name, p.Unread})
			continue
		case was.Unread != "":
			c.Unread = append(c.Unread, Unread{p.Name, "not in the former fingerprint: " + was.Unread})
			continue
		}
		diff := difference(p.Name, was.Lines, p.Lines)
		switch {
		case p.Name == PartListeners:
			c.Sockets = diff
		case len(diff) == 0:
			c.Same = append(c.Same, p.Name)
		default:
			changes = append(changes, diff...)
		}
	}
	c.Changes = explain(changes, before, now)
	c.Identical = len(c.Changes) == 0 && len(c.Unread) == 0
	return c
}

// difference compares lines and how often each occurs. If only their order differs, that is one
// change.
func difference(part string, was, is []string) []Change {
	n := map[string]int{}
	for _, l := range was {
		n[l]++
	}
	var added, removed []Change
	for _, l := range is {
		if n[l]--; n[l] < 0 {
			added = append(added, Change{Part: part, Kind: Added, Line: l})
		}
	}
	for _, l := range slices.Backward(was) {
		if n[l] > 0 {
			n[l]--
			removed = append(removed, Change{Part: part, Kind: Removed, Line: l})
		}
	}
	slices.Reverse(removed)
	out := append(removed, added...)
	if len(out) == 0 && !slices.Equal(was, is) {
		for i := range is {
			if is[i] != was[i] {
				return []Change{{Part: part, Kind: Reordered, Line: is[i]}}
			}
		}
	}
	return out
}

// makers are programs that change a host's network, recognized by the names they give to links,
// chains and tables.
var makers = []struct {
	who  string
	link *regexp.Regexp
	rule *regexp.Regexp
}{
	{"Docker", regexp.MustCompile(`^(docker\w*|br-[0-9a-f]{12}|veth[0-9a-f]{7})$`), regexp.MustCompile(`DOCKER|docker0|\bbr-[0-9a-f]{12}\b|docker-(bridges|events)`)},
	{"libvirt's own networks", regexp.MustCompile(`^(virbr\d+(-nic)?|vnet\d+)$`), regexp.MustCompile(`LIBVIRT_|libvirt_network|virbr\d+`)},
	{"Podman", regexp.MustCompile(`^(podman\d+|cni-podman\d+)$`), regexp.MustCompile(`NETAVARK|netavark|cni-podman`)},
	{"Kubernetes", regexp.MustCompile(`^(cni\d+|flannel\S*|cali\S*|cilium\S*|lxc[0-9a-f]{12}|kube-\S*|nodelocaldns)$`), regexp.MustCompile(`KUBE-|CNI-|cali-|FLANNEL|CILIUM`)},
	{"LXD, Incus or LXC", regexp.MustCompile(`^(lxdbr\d+|incusbr\d+|lxcbr\d+)$`), regexp.MustCompile(`lxdbr\d+|incusbr\d+|lxcbr\d+|\btable inet (lxd|incus|lxc)\b`)},
	{"a VPN", regexp.MustCompile(`^(tun\d+|wg\S*|tailscale\d+|ppp\d+|utun\d+|zt\S+|nordlynx|proton\S*|ipsec\d+|vpn\d+|gpd\d+|cscotun\d+)$`), regexp.MustCompile(`\bts-(input|forward|postrouting)\b|wg-quick|tailscale|nordvpn`)},
	{"VirtualBox or VMware", regexp.MustCompile(`^(vboxnet\d+|vmnet\d+)$`), nil},
	{"ufw", nil, regexp.MustCompile(`\bufw6?-`)},
	{"firewalld", nil, regexp.MustCompile(`table inet firewalld`)},
	{"fail2ban", nil, regexp.MustCompile(`\bf2b-|table \S+ f2b`)},
	{"NetworkManager", nil, regexp.MustCompile(`nm-sh-|nm-shared`)},
}

// ownLink matches the names that systemd and the kernel give to the host's network cards.
var ownLink = regexp.MustCompile(`^(en|eth|wl|ww|usb)\S*$`)

var (
	deviceOf   = regexp.MustCompile(`\b(?:dev|iif|oif) (\S+)`)
	settingOf  = regexp.MustCompile(`^net/ipv[46]/conf/([^/]+)/`)
	forwarding = regexp.MustCompile(`^net/(ipv4/ip_forward|ipv[46]/conf/[^/]+/(forwarding|accept_ra)|bridge/)`)
	learnt     = regexp.MustCompile(` proto (dhcp|ra|kernel)$`)
	baseChain  = regexp.MustCompile(`^(table ip6? (filter|nat|raw|mangle)\b|(filter|nat|raw|mangle) )`)
)

// linkMaker returns who makes a link of this name, "" if unknown.
func linkMaker(link string) string {
	for _, m := range makers {
		if m.link != nil && m.link.MatchString(link) {
			return m.who
		}
	}
	return ""
}

// ruleMaker returns who makes such a rule, "" if unknown.
func ruleMaker(line string) string {
	for _, m := range makers {
		if m.rule != nil && m.rule.MatchString(line) {
			return m.who
		}
	}
	return ""
}

// explain adds to each change who else makes such changes.
func explain(changes []Change, before, now Fingerprint) []Change {
	rulers := map[string]bool{} // programs whose rules have changed
	for _, c := range changes {
		if strings.HasSuffix(c.Part, "tables rules") {
			rulers[ruleMaker(c.Line)] = true
		}
	}
	bridges := "" // the program that forwards for containers or VMs here
	for _, f := range []Fingerprint{now, before} {
		for _, l := range f.part(PartLinks).Lines {
			link, _, _ := strings.Cut(l, " ")
			if who := linkMaker(link); who != "" && who != "a VPN" && bridges == "" {
				bridges = who
			}
		}
	}
	for i := range changes {
		c := &changes[i]
		switch c.Part {
		case PartLinks:
			link, rest, _ := strings.Cut(c.Line, " ")
			c.By = linkMaker(link)
			if c.By == "" && ownLink.MatchString(link) && strings.HasPrefix(rest, "type device ") {
				c.By = "this host's own network card"
			}
		case PartAddresses, PartRoutes, PartRules:
			c.By = deviceMaker(*c)
		case PartSysctls:
			if m := settingOf.FindStringSubmatch(c.Line); m != nil {
				c.By = linkMaker(m[1])
				if c.By == "" && ownLink.MatchString(m[1]) && hasLink(before, m[1]) != hasLink(now, m[1]) {
					c.By = "this host's own network card"
				}
			}
			if c.By == "" && bridges != "" && forwarding.MatchString(c.Line) {
				c.By = bridges
			}
			if c.By == "" && strings.HasPrefix(c.Line, "net/netfilter/") {
				c.By = "the kernel's connection tracking, with the first firewall rule that uses it"
			}
		default:
			c.By = ruleMaker(c.Line)
			// Docker also changes the policies of the chains that it hooks into.
			if c.By == "" && baseChain.MatchString(c.Line) && rulers["Docker"] {
				c.By = "Docker"
			}
		}
	}
	return changes
}

// deviceMaker explains a change to an address, route or rule by its device.
func deviceMaker(c Change) string {
	m := deviceOf.FindStringSubmatch(c.Line)
	if m == nil {
		return ""
	}
	if who := linkMaker(m[1]); who != "" {
		return who
	}
	if ownLink.MatchString(m[1]) && (c.Part == PartAddresses || learnt.MatchString(c.Line)) {
		return "this host's own network connection"
	}
	return ""
}

func hasLink(f Fingerprint, link string) bool {
	return slices.ContainsFunc(f.part(PartLinks).Lines, func(l string) bool { return strings.HasPrefix(l, link+" ") })
}
