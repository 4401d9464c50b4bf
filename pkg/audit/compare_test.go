package audit

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fingerprint makes one as if taken by root, from lines of the form "PART: LINE".
func fingerprint(lines ...string) Fingerprint {
	f := Fingerprint{Boot: "b", Namespace: "n"}
	for _, name := range []string{PartNftables, PartIptables, PartLinks, PartAddresses, PartRoutes, PartRules, PartSysctls, PartListeners} {
		p := Part{Name: name}
		for _, l := range lines {
			if text, ok := strings.CutPrefix(l, name+": "); ok {
				p.Lines = append(p.Lines, text)
			}
		}
		f.Parts = append(f.Parts, p)
	}
	return f
}

func TestCompare(t *testing.T) {
	base := []string{
		"links: eth0 type device up mtu 1500", "links: lo type device up mtu 65536",
		"addresses: 10.0.0.2/24 dev eth0", "sysctls: net/ipv4/ip_forward = 0",
		"nftables rules: table inet own / chain in / accept", "nftables rules: table inet own / chain in / drop",
	}
	for _, c := range []struct {
		name      string
		less      []string
		more      []string
		want      []string // "+ …", with who made the change
		unblamed  int
		sameParts int
	}{
		{name: "nothing", sameParts: 7},
		{
			name: "Docker was started",
			less: []string{"sysctls: net/ipv4/ip_forward = 0"},
			more: []string{
				"links: docker0 type bridge up mtu 1500", "addresses: 172.17.0.1/16 dev docker0",
				"routes: inet 172.17.0.0/16 dev docker0 src 172.17.0.1 proto kernel", "sysctls: net/ipv4/ip_forward = 1",
				"sysctls: net/ipv4/conf/docker0/forwarding = 1",
				"nftables rules: table ip filter / chain DOCKER", "nftables rules: table ip filter / chain FORWARD / type filter hook forward priority filter; policy drop;",
			},
			sameParts: 2,
		},
		{name: "a VPN", more: []string{"links: tun0 type tuntap up mtu 1500", "routes: inet 10.9.0.0/16 dev tun0 proto boot", "routing rules: inet 100: iif wg0 lookup 7"}, sameParts: 4},
		{name: "another network", less: []string{"addresses: 10.0.0.2/24 dev eth0"}, more: []string{"addresses: 192.168.1.5/24 dev eth0", "routes: inet default via 192.168.1.1 dev eth0 proto dhcp"}, sameParts: 5},
		{name: "libvirt's network", more: []string{"links: virbr0 type bridge up mtu 1500", "legacy iptables rules: filter -A LIBVIRT_FWI -o virbr0 -j REJECT"}, sameParts: 5},
		{name: "a tap", more: []string{"links: tap0 type tuntap up mtu 1500"}, unblamed: 1, sameParts: 6},
		{name: "a bridge", more: []string{"links: devvm0 type bridge up mtu 1500"}, unblamed: 1, sameParts: 6},
		{name: "a static route", more: []string{"routes: inet 172.17.0.0/16 via 10.0.0.9 dev eth0 proto boot"}, unblamed: 1, sameParts: 6},
		{name: "a rule", more: []string{"nftables rules: table inet own / chain in / tcp dport 22 accept"}, unblamed: 1, sameParts: 6},
		{name: "forwarding, and nobody there", less: []string{"sysctls: net/ipv4/ip_forward = 0"}, more: []string{"sysctls: net/ipv4/ip_forward = 1"}, unblamed: 2, sameParts: 6},
		{name: "a listener", more: []string{"listening sockets: tcp 0.0.0.0:22 uid 0"}, sameParts: 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			after := append(slices.DeleteFunc(slices.Clone(base), func(l string) bool { return slices.Contains(c.less, l) }), c.more...)
			got := Compare(fingerprint(base...), fingerprint(after...))
			unblamed := 0
			for _, ch := range got.Changes {
				if ch.By == "" {
					unblamed++
				}
			}
			if n := len(got.Changes) + len(got.Sockets); n != len(c.less)+len(c.more) || unblamed != c.unblamed || len(got.Same) != c.sameParts {
				t.Errorf("%d changes, %d unexplained, same: %v\n%v", n, unblamed, got.Same, got.Changes)
			}
			if got.Identical != (len(got.Changes) == 0) {
				t.Error("identical", got.Identical)
			}
			// The reverse comparison has the same differences with opposite signs.
			back := Compare(fingerprint(after...), fingerprint(base...))
			if len(back.Changes) != len(got.Changes) {
				t.Errorf("the way back: %v", back.Changes)
			}
			status, _ := blame(got, nil)
			if want := map[bool]Status{true: Fail, false: Note}[c.unblamed > 0]; status != want && len(got.Changes) > 0 {
				t.Errorf("blame %s, want %s", status, want)
			}
		})
	}
}

func TestOrderOfRules(t *testing.T) {
	a := fingerprint("nftables rules: accept", "nftables rules: drop")
	b := fingerprint("nftables rules: drop", "nftables rules: accept")
	got := Compare(a, b)
	want := []Change{{Part: PartNftables, Kind: Reordered, Line: "drop"}}
	if diff := cmp.Diff(want, got.Changes); diff != "" || got.Identical {
		t.Errorf("(-want +got):\n%s", diff)
	}
	twice := Compare(a, fingerprint("nftables rules: accept", "nftables rules: drop", "nftables rules: drop"))
	if len(twice.Changes) != 1 || twice.Changes[0].Kind != Added {
		t.Errorf("a rule that stands there twice: %v", twice.Changes)
	}
}

// TestUnread: a part that was not read is never reported as the same.
func TestUnread(t *testing.T) {
	blind := func(f Fingerprint) Fingerprint {
		f.Parts = slices.Clone(f.Parts)
		f.Parts[0] = Part{Name: PartNftables, Unread: "only root"}
		return f
	}
	full := fingerprint("nftables rules: drop")
	for _, c := range []struct{ before, now Fingerprint }{{blind(full), full}, {full, blind(full)}, {blind(full), blind(full)}, {Fingerprint{}, full}} {
		got := Compare(c.before, c.now)
		if got.Identical || slices.Contains(got.Same, PartNftables) || len(got.Unread) == 0 {
			t.Errorf("%+v", got)
		}
	}
}

// TestBlame: an unexplained difference is a failure unless devvm could not have made it.
func TestBlame(t *testing.T) {
	before, after := fingerprint(), fingerprint("routes: inet 10.0.0.0/8 via 10.1.1.1 dev eth0 proto boot")
	before.UID, after.UID = 1000, 1000
	c := Compare(before, after)
	if status, _ := blame(c, []Process{{UID: 1000}}); status != Note {
		t.Error("a user without privileges is blamed")
	}
	if status, _ := blame(c, []Process{{UID: 1000, Privileged: true}}); status != Fail {
		t.Error("a process with privileges is not blamed")
	}
	after.UID = 0
	if status, _ := blame(Compare(before, after), nil); status != Fail {
		t.Error("root is not blamed")
	}
}

func TestForeign(t *testing.T) {
	docker := []string{
		"links: docker0 type bridge up mtu 1500", "routes: inet 172.17.0.0/16 dev docker0 src 172.17.0.1 proto kernel",
		"nftables rules: table ip filter / chain FORWARD / type filter hook forward priority filter; policy drop;",
		"nftables rules: table ip filter / chain DOCKER",
	}
	for _, c := range []struct {
		name  string
		lines []string
		want  []string
		fix   string
	}{
		{name: "nothing"},
		{name: "Docker", lines: docker, want: []string{"Docker on the host"}, fix: "-i docker0 -d 172.17.0.0/16 -j DROP"},
		{name: "Docker with the fix", lines: append(docker, `nftables rules: table ip raw / chain PREROUTING / iifname != "docker0" ip daddr 172.17.0.0/16 counter drop`)},
		{name: "Docker and libvirt", lines: append(docker, "links: virbr0 type bridge up mtu 1500"), want: []string{"Docker on the host", "FORWARD DROP"}, fix: "DOCKER-USER -i virbr0"},
		{name: "legacy", lines: []string{"legacy iptables rules: filter :FORWARD DROP", "legacy iptables rules: filter :DOCKER -"}, want: []string{"Docker on the host"}},
		{name: "route_localnet", lines: []string{"sysctls: net/ipv4/conf/all/route_localnet = 1"}, want: []string{"route_localnet"}, fix: "net.ipv4.conf.all.route_localnet=0"},
	} {
		var names []string
		fix := ""
		for _, f := range foreign(fingerprint(c.lines...)) {
			if f.Status != Note {
				t.Errorf("%s: %s is a %s", c.name, f.Name, f.Status)
			}
			names = append(names, f.Name)
			fix += f.Fix
		}
		if !slices.Equal(names, c.want) || !strings.Contains(fix, c.fix) {
			t.Errorf("%s: %v\n%s", c.name, names, fix)
		}
	}
}
