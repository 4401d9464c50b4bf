package ports

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/network"
)

var testVM = VM{Addr: netip.MustParseAddr("192.0.2.2"), Loopback: netip.MustParseAddr("192.0.2.3")}

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

// pub reads "db 0.0.0.0:5432->5432/tcp", as docker ps has it.
func pub(s string) Published {
	name, rest, _ := strings.Cut(s, " ")
	at, to, _ := strings.Cut(rest, "->")
	ap := netip.MustParseAddrPort(at)
	p := Published{Container: name, ID: "id-" + name, IP: ap.Addr(), HostPort: ap.Port()}
	number, protocol, _ := strings.Cut(to, "/")
	p.Protocol = protocol
	fmt.Sscan(number, &p.Port)
	return p
}

func TestPlan(t *testing.T) {
	for _, c := range []struct {
		name      string
		published []string
		mapping   map[uint16]uint16
		want      []string
	}{
		{"nothing", nil, nil, nil},
		{"all addresses, as the engine lists them", []string{"db 0.0.0.0:5432->5432/tcp", "db [::]:5432->5432/tcp"}, nil, []string{"db 5432/tcp: 5432 by 192.0.2.2:5432"}},
		{"order does not matter", []string{"db [::]:5432->5432/tcp", "db 0.0.0.0:5432->5432/tcp"}, nil, []string{"db 5432/tcp: 5432 by 192.0.2.2:5432"}},
		{"loopback", []string{"db 127.0.0.1:5432->5432/tcp"}, nil, []string{"db 5432/tcp: 5432 by 192.0.2.3:5432"}},
		{"both loopbacks", []string{"db [::1]:80->80/tcp", "db 127.0.0.1:80->80/tcp"}, nil, []string{"db 80/tcp: 80 by 192.0.2.3:80"}},
		{"the VM's address", []string{"db 192.0.2.2:1->2/udp"}, nil, []string{"db 2/udp: 1 by 192.0.2.2:1"}},
		{"both protocols", []string{"dns 0.0.0.0:53->53/udp", "dns 0.0.0.0:53->53/tcp"}, nil, []string{"dns 53/tcp: 53 by 192.0.2.2:53", "dns 53/udp: 53 by 192.0.2.2:53"}},
		{"mapped", []string{"web 0.0.0.0:80->8000/tcp"}, map[uint16]uint16{80: 8080}, []string{"web 8000/tcp: 8080 by 192.0.2.2:80"}},
		{"one port of a container twice", []string{"web 0.0.0.0:81->80/tcp", "web 0.0.0.0:82->80/tcp"}, nil, []string{"web 80/tcp: 81 by 192.0.2.2:81", "web 80/tcp: 82 by 192.0.2.2:82"}},
		{"other loopback", []string{"db 127.0.0.5:1->2/tcp"}, nil, []string{"db 2/tcp: 1 not: it is published on 127.0.0.5, which only the VM itself reaches"}},
		{"IPv6 alone", []string{"db [::1]:1->2/tcp"}, nil, []string{"db 2/tcp: 1 not: it is published for IPv6 alone, which the VM's network does not carry"}},
		{"SCTP", []string{"db 0.0.0.0:1->2/sctp"}, nil, []string{"db 2/sctp: 1 not: sctp is not carried to the host, only TCP and UDP are"}},
		{"exposed only", []string{"db 0.0.0.0:0->2/tcp"}, nil, nil},
	} {
		var published []Published
		for _, s := range c.published {
			published = append(published, pub(s))
		}
		var got []string
		for _, l := range Plan(published, testVM, c.mapping) {
			s := fmt.Sprintf("%s %d/%s: %d ", l.Container, l.Port, l.Protocol, l.HostPort)
			if l.Target.IsValid() {
				s += "by " + l.Target.String()
			} else {
				s += "not: " + l.Why
			}
			got = append(got, s)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s:\n%s", c.name, diff)
		}
	}
}

func TestAssignAndDiff(t *testing.T) {
	own := addr("127.64.1.2")
	plan := func(published ...string) []Line {
		var list []Published
		for _, s := range published {
			list = append(list, pub(s))
		}
		return Plan(list, testVM, nil)
	}
	show := func(shut, open []Key) string {
		var b strings.Builder
		for _, k := range shut {
			b.WriteString("-" + k.String() + " ")
		}
		for _, k := range open {
			b.WriteString("+" + k.String() + " ")
		}
		return strings.TrimSpace(b.String())
	}
	one := assign(plan("a 0.0.0.0:80->80/tcp"), own, nil, nil)
	for _, c := range []struct {
		name string
		have map[Key]Line
		want []Line
		diff string
	}{
		{"nothing", nil, nil, ""},
		{"first", nil, plan("a 0.0.0.0:80->80/tcp"), "+127.0.0.1:80/tcp +127.64.1.2:80/tcp +[::1]:80/tcp"},
		{"same", one, plan("a 0.0.0.0:80->80/tcp"), ""},
		{"gone", one, nil, "-127.0.0.1:80/tcp -127.64.1.2:80/tcp -[::1]:80/tcp"},
		{
			"another container has the port now", one, plan("b 0.0.0.0:80->80/tcp"),
			"-127.0.0.1:80/tcp -127.64.1.2:80/tcp -[::1]:80/tcp +127.0.0.1:80/tcp +127.64.1.2:80/tcp +[::1]:80/tcp",
		},
		{"a second one wants it, too", one, plan("0 127.0.0.1:80->80/tcp", "a 0.0.0.0:80->80/tcp"), ""},
		{"unreachable", one, plan("a 0.0.0.0:80->80/tcp", "b [::1]:81->80/tcp"), ""},
	} {
		if got := show(diff(c.have, assign(c.want, own, nil, c.have))); got != c.diff {
			t.Errorf("%s: %s, want %s", c.name, got, c.diff)
		}
	}
	renamed := plan("a 0.0.0.0:80->80/tcp")
	renamed[0].Container = "z"
	if got := show(diff(one, assign(renamed, own, nil, one))); got != "" {
		t.Errorf("renamed: %s", got)
	}
	lan := assign(plan("a 0.0.0.0:80->80/tcp"), own, func(Line) []netip.Addr { return []netip.Addr{addr("192.168.1.5")} }, one)
	if got := show(diff(one, lan)); got != "+192.168.1.5:80/tcp" {
		t.Errorf("exposed: %s", got)
	}
}

// PortMap reads the PortBindings of a request.
func PortMap(text string) (m network.PortMap) {
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		panic(err)
	}
	return m
}

func TestWants(t *testing.T) {
	for _, c := range []struct {
		name     string
		bindings string
		want     []Want
		chosen   int
	}{
		{"none", `{}`, nil, 0},
		{"one", `{"80/tcp": [{"HostPort": "8080"}]}`, []Want{{TCP, 8080}}, 0},
		{"without protocol", `{"80": [{"HostPort": "8080"}]}`, []Want{{TCP, 8080}}, 0},
		{"capitals", `{"80/TCP": [{"HostPort": "8080"}]}`, []Want{{TCP, 8080}}, 0},
		{"twice", `{"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}]}`, []Want{{TCP, 8080}}, 0},
		{"loopback", `{"53/udp": [{"HostIp": "127.0.0.1", "HostPort": "53"}]}`, []Want{{UDP, 53}}, 0},
		{"the engine chooses", `{"1/tcp": [{"HostIp": "", "HostPort": ""}], "2/tcp": [{"HostPort": "0"}], "3/tcp": [{"HostPort": "8000-8010"}], "4/tcp": null}`, nil, 3},
		{"not reached", `{"1/tcp": [{"HostIp": "127.0.0.9", "HostPort": "1"}, {"HostIp": "::1", "HostPort": "2"}], "1/sctp": [{"HostPort": "3"}]}`, nil, 0},
		{"nonsense", `{"1/tcp": [{"HostPort": "99999"}, {"HostPort": "-1"}, {"HostPort": "x"}]}`, nil, 0},
		{"in order", `{"2/tcp": [{"HostPort": "2"}], "1/tcp": [{"HostPort": "1"}], "1/udp": [{"HostPort": "1"}]}`, []Want{{TCP, 1}, {UDP, 1}, {TCP, 2}}, 0},
	} {
		got, chosen := Wants(PortMap(c.bindings), testVM)
		if diff := cmp.Diff(c.want, got); diff != "" || chosen != c.chosen {
			t.Errorf("%s: %d are chosen\n%s", c.name, chosen, diff)
		}
	}
}

func TestOwnAddress(t *testing.T) {
	if got := OwnAddress([]byte{0, 0, 0}); got != addr("127.64.0.1") {
		t.Error(got)
	}
	if got := OwnAddress([]byte{255, 255, 255}); got != addr("127.127.255.2") {
		t.Error(got)
	}
	within := netip.MustParsePrefix("127.64.0.0/10")
	for i := range 1 << 16 {
		a := OwnAddress([]byte{byte(i >> 8), byte(i * 7), byte(i)})
		if last := a.As4()[3]; !within.Contains(a) || last == 0 || last == 255 {
			t.Fatal(a)
		}
	}
}

// A project does not have all of the host's ports, those that are open stay open, and no
// list keeps this process busy.
func TestLimit(t *testing.T) {
	var published []Published
	for port := range 60_000 {
		published = append(published, Published{
			Container: "web", ID: "1", Protocol: TCP, Port: uint16(port + 1), HostPort: uint16(port + 1), IP: addr("0.0.0.0"),
		})
	}
	lines := Plan(published, testVM, nil)
	open := map[number]bool{{TCP, 50_000}: true, {UDP, 7}: true, {TCP, 3}: true}
	kept, more := limit(lines, 10, open)
	var got []uint16
	for _, l := range kept {
		if l.Target.IsValid() {
			got = append(got, l.HostPort)
		} else if !strings.Contains(l.Why, "[ports] most = 20") {
			t.Fatalf("%+v", l)
		}
	}
	if diff := cmp.Diff([]uint16{1, 2, 3, 4, 5, 6, 7, 8, 9, 50_000}, got); diff != "" {
		t.Error(diff)
	}
	if len(kept) != 10+maxBeyond || more != 60_000-len(kept) {
		t.Errorf("%d lines, %d more", len(kept), more)
	}
	// One port on two addresses of the VM is one; TCP and UDP are two.
	kept, more = limit(Plan([]Published{pub("a 0.0.0.0:80->80/tcp"), pub("a 127.0.0.1:80->80/tcp"), pub("a 0.0.0.0:80->80/udp")}, testVM, nil), 1, nil)
	if len(kept) != 3 || more != 0 || !kept[0].Target.IsValid() || !kept[1].Target.IsValid() || kept[2].Target.IsValid() {
		t.Errorf("%+v", kept)
	}
}
