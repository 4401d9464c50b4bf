package egress

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func list(t testing.TB, entries ...string) Policy {
	t.Helper()
	rules, err := ParseRules(entries)
	if err != nil {
		t.Fatal(err)
	}
	return Policy{Rules: rules}
}

func TestParseRule(t *testing.T) {
	for in, want := range map[string]string{
		"registry.example.com:443":     "registry.example.com:443",
		"Registry.Example.COM.":        "registry.example.com",
		"*.example.org":                "*.example.org",
		"*.example.org:8443":           "*.example.org:8443",
		"_acme.x-y.example.org":        "_acme.x-y.example.org",
		"db":                           "db",
		"1.2.3.4":                      "1.2.3.4",
		"1.2.3.4/32:80":                "1.2.3.4:80",
		"10.20.0.0/16:5432":            "10.20.0.0/16:5432",
		"0.0.0.0/0:443":                "0.0.0.0/0:443",
		"[2001:db8::]/32:443":          "[2001:db8::]/32:443",
		"[2001:DB8:0:0::7]":            "[2001:db8::7]",
		"[2001:db8::7]:53":             "[2001:db8::7]:53",
		"[::]/0":                       "[::]/0",
		"3.example.org":                "3.example.org",
		strings.Repeat("a", 63) + ".b": strings.Repeat("a", 63) + ".b",
	} {
		r, err := ParseRule(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if r.String() != want {
			t.Errorf("%q is %q, want %q", in, r, want)
		}
	}
}

// What people may write wrongly, and what they are told.
func TestSyntaxErrors(t *testing.T) {
	var b strings.Builder
	for _, in := range []string{
		"", " ", "*", "*:443", "*.", "a.*.org", "*a.org", "**.org", "foo bar", "a..b", ".org", "a/b\n", "a\x00",
		"https://registry.example.com/v2/", "https://user@x.example.org:8443", "git://h", "http://[2001:db8::7]/", "https://",
		"example.org/path", "example.org/24", "example.org:", "example.org:0", "example.org:443:80", "example.org:https", "example.org:65536", "example.org:0443",
		"1.2.3", "1.2.3.4.5", "256.1.1.1", "1.2.3.4/33", "1.2.3.4/", "1.2.3.4/08", "10.20.0.5/16", "10.20.0.5/16:80", "0x7f.1", "a.0x7f",
		"2001:db8::7", "2001:db8::7:443", "2001:db8::/32", "[2001:db8::7", "[2001:db8::7]x", "[1.2.3.4]", "[fe80::1%eth0]", "[2001:db8::7]:443:1", "[2001:db8::7]/129", "[::ffff:1.2.3.4]:80",
		"bücher.example", "127.0.0.1:5432", "127.0.0.53", "localhost:3000", "host.docker.internal:6379", "*.docker.internal", "192.0.2.254:80", "[fd64:6576:766d::2]", "[::1]:80",
		"169.254.169.254", "169.254.0.0/16:80", "0.0.0.0", "224.0.0.251:5353", "[fe80::1]", "[ff02::1]",
		strings.Repeat("a", 64) + ".org", strings.Repeat("a.", 127) + "a",
	} {
		_, err := ParseRule(in)
		var e *SyntaxError
		if !errors.As(err, &e) || e.Hint == "" || e.Entry != in {
			t.Errorf("%q: %v", in, err)
			continue
		}
		fmt.Fprintf(&b, "%v\n\t%s\n", e, e.Hint)
	}
	const golden = "testdata/errors.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Error(diff)
	}
	if _, err := ParseRules(slices.Repeat([]string{"a"}, MaxRules+1)); err == nil {
		t.Error("a list can be of any length")
	}
}

func TestPermits(t *testing.T) {
	p := list(t, "registry.example.com:443", "*.example.org", "10.20.0.0/16:5432", "203.0.113.7", "[2001:db8::]/32:443")
	for _, c := range []struct {
		to    string
		names string
		want  bool
	}{
		{"198.51.100.1:443", "registry.example.com", true},
		{"198.51.100.1:443", "Registry.EXAMPLE.com.", true},
		{"198.51.100.1:80", "registry.example.com", false},
		{"198.51.100.1:443", "", false},
		{"198.51.100.1:443", "x.registry.example.com", false},
		{"198.51.100.1:443", "aregistry.example.com", false},
		{"198.51.100.1:1", "other.net a.example.org", true},
		{"198.51.100.1:1", "a.b.example.org", true},
		{"198.51.100.1:1", "example.org", false},
		{"198.51.100.1:1", "badexample.org", false},
		{"198.51.100.1:1", `evil\.example.org`, false},
		{"198.51.100.1:1", "a.example.org.evil.net", false},
		{"10.20.255.255:5432", "", true},
		{"[::ffff:10.20.0.1]:5432", "", true},
		{"10.20.0.1:5433", "", false},
		{"10.21.0.1:5432", "", false},
		{"203.0.113.7:9", "", true},
		{"203.0.113.8:9", "", false},
		{"[2001:db8:1::1]:443", "", true},
		{"[2001:db9::1]:443", "", false},
	} {
		to := netip.MustParseAddrPort(c.to)
		if got := p.Permits(to, strings.Fields(c.names)...); got != c.want {
			t.Errorf("%s as %q: %v", c.to, c.names, got)
		}
		if !Default().Permits(to) || (Policy{}).Permits(to) || (Policy{All: true, Offline: true}).Permits(to) {
			t.Errorf("%s: all, none or offline", c.to)
		}
		offline := p
		offline.Offline = true
		if offline.Permits(to, strings.Fields(c.names)...) {
			t.Errorf("%s leaves an offline VM", c.to)
		}
	}
}

func TestAnswersName(t *testing.T) {
	p := list(t, "registry.example.com:443", "*.example.org:22", "10.20.0.0/16")
	for name, want := range map[string]bool{
		"registry.example.com.": true, "REGISTRY.example.com": true, "example.com": false, "a.registry.example.com": false,
		"a.example.org.": true, "example.org": false, `a\.example.org.`: false, "": false, ".": false, "1.0.20.10.in-addr.arpa.": false,
	} {
		if got := p.AnswersName(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
		if !Default().AnswersName(name) || (Policy{}).AnswersName(name) || (Policy{All: true, Offline: true}).AnswersName(name) {
			t.Errorf("%q: all, none or offline", name)
		}
	}
}

func TestHostPorts(t *testing.T) {
	p := Policy{HostPorts: []uint16{5432}}
	if !p.OpensHostPort(5432) || p.OpensHostPort(5433) || (Policy{All: true}).OpensHostPort(5432) {
		t.Error("ports of the host")
	}
	p.Offline = true
	if p.OpensHostPort(5432) {
		t.Error("an offline VM reaches a port of the host")
	}
}

func TestWidening(t *testing.T) {
	entries := func(s string) Policy { return list(t, strings.Fields(s)...) }
	with := func(p Policy, ports ...uint16) Policy { p.HostPorts = ports; return p }
	offline := Policy{Offline: true, All: true, HostPorts: []uint16{1}}
	for _, c := range []struct {
		before, next Policy
		want         []string
	}{
		{Default(), Default(), nil},
		{Default(), entries("example.org"), nil},
		{Default(), Policy{}, nil},
		{Default(), offline, nil},
		{Policy{}, Default(), []string{`egress = "all" (was: "none")`}},
		{offline, Default(), []string{`egress = "all" (was: "none")`}},
		{offline, with(Default(), 1), []string{`egress = "all" (was: "none")`, "host_ports + 1"}},
		{offline, offline, nil},
		{entries("a.org b.org"), Default(), []string{`egress = "all" (was: ["a.org", "b.org"])`}},
		{entries("0.0.0.0/0 [::]/0"), Default(), []string{`egress = "all" (was: ["0.0.0.0/0", "[::]/0"])`}},
		{entries("a.org b.org"), entries("b.org"), nil},
		{entries("a.org"), entries("a.org:443"), nil},
		{entries("a.org:443"), entries("a.org"), []string{"egress + a.org"}},
		{entries("a.org:443"), entries("a.org:80"), []string{"egress + a.org:80"}},
		{entries("*.a.org"), entries("x.a.org x.y.a.org:1 *.x.a.org"), nil},
		{entries("*.a.org"), entries("a.org"), []string{"egress + a.org"}},
		{entries("*.x.a.org"), entries("*.a.org"), []string{"egress + *.a.org"}},
		{entries("a.org"), entries("*.a.org"), []string{"egress + *.a.org"}},
		{entries("*.a.org:443"), entries("x.a.org"), []string{"egress + x.a.org"}},
		{entries("*.a.org"), entries("x.ba.org"), []string{"egress + x.ba.org"}},
		{entries("10.0.0.0/8"), entries("10.1.0.0/16 10.1.2.3:80"), nil},
		{entries("10.1.0.0/16"), entries("10.0.0.0/8"), []string{"egress + 10.0.0.0/8"}},
		{entries("10.0.0.0/8:80"), entries("10.0.0.0/9"), []string{"egress + 10.0.0.0/9"}},
		{entries("[2001:db8::]/32"), entries("[2001:db8:1::]/48:443 [2001:db9::1]"), []string{"egress + [2001:db9::1]"}},
		{entries("0.0.0.0/0"), entries("[::]/0"), []string{"egress + [::]/0"}},
		// In doubt it widens: two halves are not seen as the whole.
		{entries("10.0.0.0/9 10.128.0.0/9"), entries("10.0.0.0/8"), []string{"egress + 10.0.0.0/8"}},
		// A name's owner says where it leads.
		{entries("0.0.0.0/0"), entries("a.org"), []string{"egress + a.org"}},
		{entries("a.org"), entries("203.0.113.1"), []string{"egress + 203.0.113.1"}},
		{Default(), with(Default(), 5432), []string{"host_ports + 5432"}},
		{with(Default(), 5432), with(entries("a.org"), 22, 5432), []string{"host_ports + 22"}},
		{with(Default(), 22, 5432), with(Default(), 22), nil},
		{with(Policy{}, 22), with(Default(), 22), []string{`egress = "all" (was: "none")`}},
	} {
		if diff := cmp.Diff(c.want, Widening(c.before, c.next)); diff != "" {
			t.Errorf("%s → %s: %s", c.before, c.next, diff)
		}
	}
}

func TestJSON(t *testing.T) {
	for _, p := range []Policy{
		Default(),
		{},
		{Offline: true, All: true},
		{All: true, HostPorts: []uint16{1, 65535}},
		list(t, "*.example.org:443", "[2001:db8::]/32", "10.0.0.0/8:1"),
	} {
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var got Policy
		if err := json.Unmarshal(b, &got); err != nil || !got.Equal(p) {
			t.Errorf("%s: %+v, %v", b, got, err)
		}
	}
	// What is missing allows nothing; what is wrong is an error.
	for in, want := range map[string]string{
		`{}`: "none", `{"host_ports":[2,1,2]}`: "none; host ports 1, 2", `{"egress":[]}`: "none", `{"egress":"all","offline":true}`: "offline",
		`{"egress":"al"}`: "", `{"egress":true}`: "", `{"egress":[1]}`: "", `{"egress":["*"]}`: "", `{"host_ports":[0]}`: "", `{"host_ports":[65536]}`: "", `[]`: "",
	} {
		p := Policy{All: true}
		err := json.Unmarshal([]byte(in), &p)
		if (err == nil) != (want != "") || err == nil && p.String() != want {
			t.Errorf("%s: %s, %v", in, p, err)
		}
	}
}

func TestAllowing(t *testing.T) {
	addr := netip.MustParseAddr("198.51.100.1")
	p := list(t, "a.org:443")
	p.HostPorts = []uint16{5432}
	for got, want := range map[string]string{
		p.Allowing(Destination("B.org.", addr, 80)):                     `egress = ["a.org:443", "b.org:80"]`,
		p.Allowing(Destination("", addr, 80)):                           `egress = ["a.org:443", "198.51.100.1:80"]`,
		p.Allowing(Destination(`x\.y`, addr, 0)):                        `egress = ["a.org:443", "198.51.100.1"]`,
		(Policy{}).Allowing(Destination("b.org", addr, 0)):              `egress = ["b.org"]`,
		(Policy{Offline: true}).Allowing(Destination("b.org", addr, 0)): `mode = "user"`,
		p.AllowingHostPort(22):                                          "host_ports = [22, 5432]",
		(Policy{Offline: true}).AllowingHostPort(22):                    `mode = "user"`,
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// What is parsed is written such that it parses to the same, matches what it
// names, covers itself, and never panics.
func FuzzParseRule(f *testing.F) {
	for _, s := range []string{"a.org", "*.a.org:443", "1.2.3.4/8", "10.0.0.0/8:1", "[2001:db8::]/32:443", "http://x/", "*", "[::ffff:1.2.3.4]"} {
		f.Add(s, "b.a.org")
	}
	f.Fuzz(func(t *testing.T, s, name string) {
		r, err := ParseRule(s)
		var e *SyntaxError
		if err != nil {
			if !errors.As(err, &e) || e.Hint == "" {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		again, err := ParseRule(r.String())
		if err != nil || again != r {
			t.Fatalf("%q is %q, which is %q, %v", s, r, again, err)
		}
		if !r.covers(r) {
			t.Fatalf("%q does not cover itself", s)
		}
		p := Policy{Rules: []Rule{r}}
		if lines := Widening(p, p); lines != nil {
			t.Fatalf("%q widens itself: %q", s, lines)
		}
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var got Policy
		if err := json.Unmarshal(b, &got); err != nil || !got.Equal(p) {
			t.Fatalf("%s: %v", b, err)
		}
		// A connection by a name needs the name to be one that may be asked for.
		to := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.9"), 443)
		if p.Permits(to, name) && !p.Permits(to) && !p.AnswersName(name) {
			t.Fatalf("%q permits %q, and does not answer it", s, name)
		}
	})
}

// A rule that covers another permits all that the other permits.
func FuzzCovers(f *testing.F) {
	f.Add("*.a.org", "b.a.org:1", "c.b.a.org", uint16(443), uint32(1))
	f.Add("10.0.0.0/8", "10.1.0.0/16:5", "x", uint16(5), uint32(10<<24|1<<16))
	f.Fuzz(func(t *testing.T, a, b, name string, port uint16, addr uint32) {
		ra, erra := ParseRule(a)
		rb, errb := ParseRule(b)
		if erra != nil || errb != nil || !ra.covers(rb) {
			return
		}
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(addr >> 24), byte(addr >> 16), byte(addr >> 8), byte(addr)}), port)
		pa, pb := Policy{Rules: []Rule{ra}}, Policy{Rules: []Rule{rb}}
		if pb.Permits(to, name) && !pa.Permits(to, name) || pb.AnswersName(name) && !pa.AnswersName(name) {
			t.Fatalf("%q covers %q, and does not permit %s as %q", a, b, to, name)
		}
	})
}

func TestCommon(t *testing.T) {
	list := func(entries ...string) Policy {
		rules, err := ParseRules(entries)
		if err != nil {
			t.Fatal(err)
		}
		return Policy{Rules: rules}
	}
	for _, c := range []struct{ a, b, want Policy }{
		{Default(), Default(), Default()},
		{Default(), Policy{}, Policy{}},
		{Default(), list("a.example"), list("a.example")},
		{list("a.example", "b.example:443"), list("b.example"), list("b.example:443")},
		{list("*.example.org"), list("a.example.org", "example.org"), list("a.example.org")},
		{list("10.0.0.0/8"), list("10.1.0.0/16", "198.51.100.1"), list("10.1.0.0/16")},
		{Policy{All: true, Offline: true}, Default(), Policy{All: true, Offline: true}},
		{Policy{HostPorts: []uint16{1, 2}}, Policy{HostPorts: []uint16{2, 3}}, Policy{HostPorts: []uint16{2}}},
	} {
		for _, got := range []Policy{Common(c.a, c.b), Common(c.b, c.a)} {
			if !got.Equal(c.want) {
				t.Errorf("Common(%s, %s) = %s, want %s", c.a, c.b, got, c.want)
			}
			if wider := append(Widening(c.a, got), Widening(c.b, got)...); len(wider) > 0 {
				t.Errorf("Common(%s, %s) allows more than one of them: %q", c.a, c.b, wider)
			}
		}
	}
}
