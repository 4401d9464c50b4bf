package subnet

import (
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
)

func routes(list ...string) []Route {
	var out []Route
	for _, s := range list {
		out = append(out, Route{netip.MustParsePrefix(s), "wg0"})
	}
	return out
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		name   string
		routes []Route
		had    Pools
		want   int // of plans
		why    string
	}{
		{"nothing", nil, nil, 0, ""},
		{"a LAN at home", routes("192.168.1.0/24"), nil, 0, ""},
		{"libvirt's network", routes("192.168.122.0/24", "10.0.0.0/8"), nil, 0, ""},
		{"below Docker's ranges", routes("172.16.5.0/24"), nil, 0, ""},
		{"a VPN in Docker's ranges", routes("192.168.1.0/24", "172.20.7.0/24"), nil, 1, "172.20.7.0/24 (wg0)"},
		{"a VPN around them", routes("172.16.0.0/12"), nil, 1, "172.16.0.0/12 (wg0)"},
		{"a proxy with false addresses", routes("198.18.0.0/16"), nil, 1, "198.18.0.0/16 (wg0)"},
		{"a company with two of the three", routes("10.0.0.0/8", "172.16.0.0/12"), nil, 2, "172.16.0.0/12 (wg0)"},
		{"a company with all, and a home", routes("10.0.0.0/8", "172.16.0.0/12", "192.168.1.0/24"), nil, 3, "172.16.0.0/12 (wg0)"},
		{"everything", routes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15"), nil, 0, "172.16.0.0/12 (wg0)"},
		{"a VM keeps what it has", nil, plans[2], 2, ""},
		{"while that is free", routes("192.168.1.0/24"), plans[2], 0, "192.168.1.0/24 (wg0)"},
		{"and not what is no choice any more", nil, Pools{pool("10.0.0.0/8", 24)}, 0, ""},
	} {
		got, why := Choose(c.routes, c.had)
		text := ""
		if why != (Route{}) {
			text = why.String()
		}
		if !got.equal(plans[c.want]) || text != c.why {
			t.Errorf("%s: %v because of %q; want plan %d because of %q", c.name, got, text, c.want, c.why)
		}
	}
}

// Pools are valid for the engine: parts are no larger than their pool, and none overlaps with
// another or with the VM's own network.
func TestPlans(t *testing.T) {
	for i, p := range plans {
		for j, a := range p {
			if a.Size < a.Base.Bits() || a.Base != a.Base.Masked() || a.Base.Overlaps(netip.MustParsePrefix("192.0.2.0/24")) {
				t.Errorf("plan %d: %v", i, a)
			}
			for _, b := range p[j+1:] {
				if a.Base.Overlaps(b.Base) {
					t.Errorf("plan %d: %v and %v", i, a, b)
				}
			}
		}
	}
}

func TestRead(t *testing.T) {
	b, err := json.Marshal(map[string]any{"default-address-pools": plans[1], "bip": "10.9.0.1/24", "fixed-cidr": "10.9.0.128/25"})
	if err != nil {
		t.Fatal(err)
	}
	bridge := []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("10.9.0.128/25")}
	if s := Read(b); !s.Pools.equal(plans[1]) || !slices.Equal(s.Bridge, bridge) || s.Own().Pools != nil || len(s.Own().Bridge) != 2 {
		t.Errorf("%v of %s", s, b)
	}
	for _, s := range []string{"", "{}", `{"bip": "nonsense"}`, `{"default-address-pools": 7}`} {
		if got := Read([]byte(s)); got.Pools != nil || got.Bridge != nil {
			t.Errorf("%q: %v", s, got)
		}
	}
	if s := Read([]byte(`{"default-address-pools": [{"base": "100.64.0.0/16", "size": 24}]}`)); len(s.Own().Pools) != 1 {
		t.Error(s)
	}
}

// TestClashes: each network that hides something is told with what gave it its addresses.
func TestClashes(t *testing.T) {
	vpn := routes("172.18.4.0/22")
	all := routes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15")
	devvm := Settings{Pools: Default()}
	own := Settings{Pools: Pools{pool("172.18.0.0/16", 20)}}
	other := Settings{Pools: Pools{pool("100.64.0.0/16", 24)}}
	bip := func(s string) Settings { return Settings{Bridge: []netip.Prefix{netip.MustParsePrefix(s)}} }
	for _, c := range []struct {
		name     string
		routes   []Route
		network  string
		subnet   string
		asked    bool
		now, own Settings
		want     Source
	}{
		{"devvm's choice", vpn, "app_default", "172.18.0.0/16", false, devvm, Settings{}, SourceDevvm},
		{"a choice of before", vpn, "app_default", "172.18.0.0/16", false, Settings{Pools: plans[1]}, Settings{}, SourceDevvm},
		{"Docker's", routes("192.168.1.0/24"), "app_default", "192.168.0.0/20", false, Settings{}, Settings{}, SourceDevvm},
		{"no other choice", all, "app_default", "172.18.0.0/16", false, devvm, Settings{}, SourcePools},
		{"the bridge", routes("172.17.3.0/24"), "bridge", "172.17.0.0/16", true, devvm, Settings{}, SourceDevvm},
		{"the user's pools", vpn, "app_default", "172.18.0.0/20", false, own, own, SourcePools},
		{"the bridge of the user's pools", vpn, "bridge", "172.18.0.0/20", false, own, own, SourcePools},
		{"pools that are mended, and the engine runs with the old ones", vpn, "app_default", "172.18.0.0/20", false, own, other, SourceDevvm},
		{"pools that are mended, and the network is not made again", vpn, "app_default", "172.18.0.0/16", false, other, other, SourceDevvm},
		{"the user's pools that are gone", vpn, "app_default", "172.18.0.0/20", false, own, Settings{}, SourceDevvm},
		{"a subnet that was asked for", vpn, "app_default", "172.18.0.0/16", true, devvm, Settings{}, SourceSubnet},
		{"with a gateway", vpn, "app_default", "172.18.5.0/24", false, devvm, Settings{}, SourceSubnet},
		{"in the user's pools", vpn, "app_default", "172.18.5.0/24", false, own, own, SourceSubnet},
		{"the bridge's own", vpn, "bridge", "172.18.5.0/24", true, bip("172.18.5.0/24"), bip("172.18.5.0/24"), SourceBridge},
		{"the bridge's own, mended", vpn, "bridge", "172.18.5.0/24", true, bip("172.18.5.0/24"), bip("172.19.5.0/24"), SourceDevvm},
		{"another, where the bridge has its own", vpn, "app_default", "172.18.0.0/16", false, bip("172.18.5.0/24"), bip("172.18.5.0/24"), SourceDevvm},
	} {
		networks := []Network{
			{"free", netip.MustParsePrefix("172.32.0.0/16"), false},
			{c.network, netip.MustParsePrefix(c.subnet), c.asked},
		}
		got := Clashes(c.routes, networks, c.now, c.own)
		if len(got) != 1 || got[0].Network != c.network || got[0].Source != c.want {
			t.Errorf("%s: %+v, want %s", c.name, got, c.want)
		}
	}
	text := Clash{Network: "app_default", Subnet: netip.MustParsePrefix("172.18.0.0/16"), Route: vpn[0]}.String()
	if text != "network app_default (172.18.0.0/16) hides 172.18.4.0/22 (wg0) of this host" {
		t.Error(text)
	}
}

func TestCounts(t *testing.T) {
	for _, c := range []struct {
		to, link string
		want     bool
	}{
		{"0.0.0.0/0", "eth0", false},
		{"0.0.0.0/1", "tun0", false},
		{"128.0.0.0/1", "tun0", false},
		{"10.0.0.0/8", "tun0", true},
		{"172.17.0.0/16", "docker0", false},
		{"172.17.0.0/16", "tun0", true},
		{"172.18.0.0/16", "br-0123456789ab", false},
		{"172.18.0.0/16", "br-lan", true},
		{"169.254.0.0/16", "eth0", false},
		{"127.0.0.0/8", "lo", false},
		{"192.168.1.7/32", "", true},
	} {
		if got := counts(netip.MustParsePrefix(c.to), c.link); got != c.want {
			t.Errorf("%s %s: %t", c.to, c.link, got)
		}
	}
}

// The host is a network namespace of the test's own, with a VPN in a table of its own.
func TestHostRoutes(t *testing.T) {
	const variable = "SUBNET_TEST_NAMESPACE"
	if os.Getenv(variable) == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("unshare", "--user", "--map-root-user", "--net", exe, "-test.run", "^TestHostRoutes$", "-test.v")
		cmd.Env = append(os.Environ(), variable+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			if exec.Command("unshare", "--user", "--map-root-user", "--net", "true").Run() != nil {
				t.Skip("this host allows no network namespace")
			}
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	for _, line := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "lan", "type", "veth", "peer", "name", "wg0"},
		{"link", "add", "docker0", "type", "veth", "peer", "name", "inside"},
		{"address", "add", "192.168.7.2/24", "dev", "lan"},
		{"address", "add", "172.17.0.1/16", "dev", "docker0"},
		{"link", "set", "lan", "up"},
		{"link", "set", "wg0", "up"},
		{"link", "set", "docker0", "up"},
		{"link", "set", "inside", "up"},
		{"route", "add", "default", "via", "192.168.7.1"},
		{"route", "add", "0.0.0.0/1", "dev", "wg0"},
		{"route", "add", "172.20.0.0/16", "dev", "wg0", "table", "51820"},
		{"route", "add", "unreachable", "10.9.0.0/16"},
	} {
		if out, err := exec.Command("ip", line...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", line, err, out)
		}
	}
	got, err := HostRoutes()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(got, func(a, b Route) int { return a.To.Addr().Compare(b.To.Addr()) })
	want := []Route{{netip.MustParsePrefix("172.20.0.0/16"), "wg0"}, {netip.MustParsePrefix("192.168.7.0/24"), "lan"}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
