package audit

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

var (
	// dropsForward matches a FORWARD chain that drops by default, in the syntax of nft and of
	// iptables-save.
	dropsForward = regexp.MustCompile(`^(table (ip|inet) filter / chain FORWARD / .*\bhook forward\b.*policy drop;?|filter :FORWARD DROP)$`)
	// directDrop matches the rules with which Docker 28 and later, or an administrator, block
	// routes to containers.
	directDrop = regexp.MustCompile(`raw.*PREROUTING.*172\.1[7-9]|raw.*PREROUTING.*docker0|raw.*PREROUTING.*\bbr-[0-9a-f]{12}`)
	dockerLink = regexp.MustCompile(`^(docker0|br-[0-9a-f]{12}) type bridge `)
	otherLink  = regexp.MustCompile(`^(virbr\d+|lxdbr\d+|incusbr\d+|lxcbr\d+) type bridge `)
)

// foreign explains what other programs have set up on this host that exposes containers or
// breaks VMs. None of it is devvm's, and none of it affects devvm's VMs, which use no bridge
// and no forwarding.
func foreign(now Fingerprint) []Finding {
	var out []Finding
	rules := slices.Concat(now.part(PartNftables).Lines, now.part(PartIptables).Lines)
	readable := now.part(PartNftables).Unread == ""
	networks := dockerNetworks(now)
	has := func(lines []string, re *regexp.Regexp) bool { return slices.ContainsFunc(lines, re.MatchString) }
	docker := len(networks) > 0 || slices.ContainsFunc(rules, func(l string) bool { return strings.Contains(l, "DOCKER") })
	if docker && !has(rules, directDrop) {
		f := Finding{
			Name: "Docker on the host", Status: Note,
			What:    "Docker runs on this host itself, with firewall rules of its own",
			Meaning: "before Docker 28, a neighbour who adds a route reads its containers, also those published on 127.0.0.1; devvm's VMs are not concerned",
		}
		if !readable {
			f.Meaning += " (whether a rule prevents that is not readable as this user)"
		}
		var fix []string
		for _, n := range networks {
			fix = append(fix, fmt.Sprintf("sudo iptables -t raw -I PREROUTING ! -i %s -d %s -j DROP", n.link, n.subnet))
		}
		f.Fix = strings.Join(append(fix, "# until the next boot; for good: run those containers with devvm, or Docker 28 or later"), "\n")
		out = append(out, f)
	}
	if bridges := matching(now.part(PartLinks).Lines, otherLink); len(bridges) > 0 && has(rules, dropsForward) && docker {
		var fix []string
		for _, b := range bridges {
			fix = append(fix, "sudo iptables -I DOCKER-USER -i "+b+" -j ACCEPT", "sudo iptables -I DOCKER-USER -o "+b+" -j ACCEPT")
		}
		out = append(out, Finding{
			Name: "FORWARD DROP", Status: Note,
			What:    "Docker's policy DROP on FORWARD cuts off the VMs and containers on " + strings.Join(bridges, ", "),
			Meaning: "devvm's VMs are not concerned: nothing of theirs is forwarded",
			Fix:     strings.Join(append(fix, "# until Docker or the host restarts"), "\n"),
		})
	}
	if on := settings(now, regexp.MustCompile(`^net/ipv4/conf/([^/]+)/route_localnet = 1$`)); len(on) > 0 {
		out = append(out, Finding{
			Name: "route_localnet", Status: Note,
			What:    "packets for 127.0.0.0/8 are taken from the network, on: " + strings.Join(on, ", "),
			Meaning: "a neighbour who adds a route reaches what listens on 127.0.0.1, whoever's it is; kube-proxy and some Docker set-ups switch this on",
			Fix:     "sudo sysctl -w net.ipv4.conf." + on[0] + ".route_localnet=0",
		})
	}
	return out
}

// bridge is one of Docker's networks on the host.
type bridge struct{ link, subnet string }

// dockerNetworks finds the bridges of a Docker on the host, with their subnets.
func dockerNetworks(f Fingerprint) []bridge {
	var out []bridge
	for _, link := range matching(f.part(PartLinks).Lines, dockerLink) {
		for _, r := range f.part(PartRoutes).Lines {
			// "inet 172.17.0.0/16 dev docker0 src 172.17.0.1 proto kernel"
			w := strings.Fields(r)
			if len(w) > 3 && w[0] == "inet" && w[2] == "dev" && w[3] == link && strings.Contains(w[1], "/") {
				out = append(out, bridge{link, w[1]})
			}
		}
	}
	return out
}

// matching returns the first group of every match in the lines.
func matching(lines []string, re *regexp.Regexp) []string {
	var out []string
	for _, l := range lines {
		if m := re.FindStringSubmatch(l); m != nil {
			out = append(out, m[1])
		}
	}
	return out
}

// settings returns the interfaces that have a setting.
func settings(f Fingerprint, re *regexp.Regexp) []string {
	return matching(f.part(PartSysctls).Lines, re)
}
