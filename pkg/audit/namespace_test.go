package audit

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestNamespace runs TestChangesInNamespace in a separate network namespace, where the test may
// change the network.
func TestNamespace(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestChangesInNamespace$", "-test.v")
	cmd.Env = append(os.Environ(), "AUDIT_TEST_NAMESPACE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Skipf("network namespaces need root or unprivileged user namespaces: %v", err)
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: TestChangesInNamespace") {
		t.Errorf("in the namespace: %v\n%s", err, out)
	}
}

// TestChangesInNamespace makes each kind of change for real. Each must show, and disappear when
// it is undone.
func TestChangesInNamespace(t *testing.T) {
	if os.Getenv("AUDIT_TEST_NAMESPACE") == "" {
		t.Skip("runs within TestNamespace")
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	card := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth9"}, PeerName: "eth8"}
	if err := netlink.LinkAdd(card); err != nil {
		t.Fatal(err)
	}
	address, _ := netlink.ParseAddr("10.9.0.1/24")
	if err := errors.Join(netlink.AddrAdd(card, address), netlink.LinkSetUp(card)); err != nil {
		t.Fatal(err)
	}
	h := System()
	ctx := t.Context()
	before, err := Take(ctx, h)
	if err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) func() error {
		return func() error {
			out, err := h.Exec(ctx, args[0], args[1:]...)
			if err != nil {
				t.Log(out)
			}
			return err
		}
	}
	second, _ := netlink.ParseAddr("10.9.0.7/32")
	prefix, err := netlink.ParseIPNet("172.17.0.0/16")
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{LinkIndex: card.Attrs().Index, Dst: prefix, Table: 77}
	rule := netlink.NewRule()
	rule.Priority, rule.Table, rule.Src = 500, 77, prefix
	sysctl := func(name, value string) func() error {
		return func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) }
	}
	for _, c := range []struct {
		part     string
		do, undo func() error
		want     string // part of the changed line
	}{
		{PartLinks, func() error { return netlink.LinkSetMTU(card, 1400) }, func() error { return netlink.LinkSetMTU(card, 1500) }, "eth9 type veth up mtu 1400"},
		{PartAddresses, func() error { return netlink.AddrAdd(card, second) }, func() error { return netlink.AddrDel(card, second) }, "10.9.0.7/32 dev eth9"},
		{PartRoutes, func() error { return netlink.RouteAdd(route) }, func() error { return netlink.RouteDel(route) }, "inet 172.17.0.0/16 dev eth9 table 77"},
		{PartRules, func() error { return netlink.RuleAdd(rule) }, func() error { return netlink.RuleDel(rule) }, "inet 500: from 172.17.0.0/16 lookup 77"},
		{PartSysctls, sysctl("net/ipv4/conf/lo/route_localnet", "1"), sysctl("net/ipv4/conf/lo/route_localnet", "0"), "route_localnet = 1"},
		{PartNftables, run("nft", "add", "table", "inet", "odd"), run("nft", "delete", "table", "inet", "odd"), "table inet odd"},
		{PartIptables, run("iptables-legacy", "-A", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP"), run("iptables-legacy", "-D", "INPUT", "-p", "tcp", "--dport", "9", "-j", "DROP"), "filter -A INPUT -p tcp -m tcp --dport 9 -j DROP"},
		{PartIP6tables, run("ip6tables-legacy", "-P", "FORWARD", "DROP"), run("ip6tables-legacy", "-P", "FORWARD", "ACCEPT"), "filter :FORWARD DROP"},
	} {
		t.Run(c.part, func(t *testing.T) {
			if before.part(c.part).Unread != "" {
				t.Skip(before.part(c.part).Unread)
			}
			if err := c.do(); err != nil {
				if strings.Contains(c.part, "tables") {
					t.Skipf("this host does not let us change it: %v", err)
				}
				t.Fatal(err)
			}
			after, err := Take(ctx, h)
			if err != nil {
				t.Fatal(err)
			}
			got := Compare(before, after)
			if got.Identical || !slices.ContainsFunc(got.Changes, func(ch Change) bool {
				return ch.Part == c.part && ch.Kind == Added && strings.Contains(ch.Line, c.want)
			}) {
				t.Errorf("want %q among the changes: %v", c.want, got.Changes)
			}
			if err := c.undo(); err != nil {
				t.Fatal(err)
			}
			after, err = Take(ctx, h)
			if err != nil {
				t.Fatal(err)
			}
			// Legacy tables stay, empty, once they have been used.
			left := slices.DeleteFunc(Compare(before, after).Changes, func(ch Change) bool {
				return strings.HasSuffix(ch.Line, " ACCEPT")
			})
			if len(left) > 0 {
				t.Errorf("after it was undone: %v", left)
			}
		})
	}
}

func BenchmarkTake(b *testing.B) {
	for b.Loop() {
		if _, err := Take(b.Context(), System()); err != nil {
			b.Fatal(err)
		}
	}
}
