package egress

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// MaxRules bounds a list, so that the check of each connection stays short.
const MaxRules = 500

// Rule is one entry of a list: a name, all names below one, or a range of
// addresses, each with one port or any. It holds for TCP and UDP. Rules can be
// compared with ==.
type Rule struct {
	name   string // as [Name] has it; empty: prefix counts
	below  bool   // "*.name": the names below name, at any depth, and not itself
	prefix netip.Prefix
	port   uint16 // 0: any
}

// SyntaxError says what is wrong with an entry, and what to write instead.
type SyntaxError struct{ Entry, Msg, Hint string }

// Error names the entry and what is wrong with it.
func (e *SyntaxError) Error() string { return fmt.Sprintf("%q %s", e.Entry, e.Msg) }

// forms is the hint where no better one is known.
const forms = `an entry is a name ("example.org"), names below one ("*.example.org"), an address ("203.0.113.7", "[2001:db8::7]") or a range ("10.20.0.0/16"), and a port if only that is meant ("example.org:443")`

// ParseRules reads a list; an entry that repeats another is dropped.
func ParseRules(entries []string) ([]Rule, error) {
	if len(entries) > MaxRules {
		return nil, &SyntaxError{entries[MaxRules], fmt.Sprintf("is one entry too many: a list has at most %d", MaxRules), `write "*.example.org" for names below one, and ranges for addresses`}
	}
	var rules []Rule
	for _, entry := range entries {
		r, err := ParseRule(entry)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(rules, r) {
			rules = append(rules, r)
		}
	}
	return rules, nil
}

// ParseRule reads one entry. All errors are of type [*SyntaxError].
func ParseRule(s string) (Rule, error) {
	fail := func(msg, hint string) (Rule, error) { return Rule{}, &SyntaxError{s, msg, hint} }
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		return fail("is a URL", fmt.Sprintf("write only its host and port: %q", hostOfURL(scheme, rest)))
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Is6() && a.Zone() == "" {
		return fail("lacks brackets", fmt.Sprintf("write %q", "["+a.String()+"]"))
	}
	if p, err := netip.ParsePrefix(s); err == nil && p.Addr().Is6() {
		return fail("lacks brackets", fmt.Sprintf("write %q", Rule{prefix: p.Masked()}.String()))
	}

	var host, bits, port string
	var hasBits, hasPort bool
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return fail("has no ] for its [", `write "[2001:db8::7]:443"`)
		}
		host = s[:end+1]
		rest := s[end+1:]
		rest, port, hasPort = strings.Cut(rest, ":")
		if rest != "" {
			if rest[0] != '/' {
				return fail("has something between ] and the port", `write "[2001:db8::]/32:443"`)
			}
			bits, hasBits = rest[1:], true
		}
	} else {
		if strings.Count(s, ":") > 1 {
			return fail("has more than one colon", `an IPv6 address stands in brackets: "[2001:db8::7]:443"; an entry has one port`)
		}
		host, port, hasPort = strings.Cut(s, ":")
		host, bits, hasBits = strings.Cut(host, "/")
	}

	var r Rule
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
			return fail("has no valid port after its colon", "a port is a number from 1 to 65535")
		}
		r.port = uint16(n)
	}
	if addr, ok := address(host); ok {
		length := addr.BitLen()
		if hasBits {
			n, err := strconv.ParseUint(bits, 10, 8)
			if err != nil || int(n) > addr.BitLen() || strconv.FormatUint(n, 10) != bits {
				return fail("has no valid prefix length after its slash", fmt.Sprintf("a length is a number from 0 to %d", addr.BitLen()))
			}
			length = int(n)
		}
		r.prefix = netip.PrefixFrom(addr, length)
		if masked := r.prefix.Masked(); masked != r.prefix {
			r.prefix = masked
			return fail("is not the first address of its range", fmt.Sprintf("write %q for the range, or leave /%d out for the one address", r.String(), length))
		}
		if addr.Is4In6() {
			r.prefix = netip.PrefixFrom(addr.Unmap(), max(0, length-96))
			return fail("is an IPv4 address in the form of IPv6", fmt.Sprintf("write %q", r.String()))
		}
		return r, unreachable(s, r)
	}
	if strings.HasPrefix(host, "[") {
		return fail("has no IPv6 address between its brackets", `write "[2001:db8::7]:443"`)
	}
	if hasBits {
		if _, ok := Name(host); ok && strings.Trim(host, "0123456789.") != "" {
			return fail("has a path", "write only the name and the port: who reaches a server reaches all of its paths")
		}
		return fail("is not a range of addresses", `write "10.20.0.0/16"`)
	}
	name, wild := strings.CutPrefix(host, "*.")
	r.below = wild
	canonical, ok := Name(name)
	switch {
	case host == "*" && !hasPort:
		return fail("alone is everything", `write egress = "all"`)
	case host == "*":
		return fail("names no domain", fmt.Sprintf(`write "*.example.org:%s"; "0.0.0.0/0:%s" is every address, but answers no names`, port, port))
	case strings.Contains(name, "*"):
		return fail("has a * that is not at its beginning", `* stands for whole names below one: "*.example.org"`)
	case strings.IndexFunc(name, func(r rune) bool { return r >= 0x80 }) >= 0:
		return fail("is not written as the DNS has it", `write such a name in its ASCII form, "xn--…"`)
	case !ok:
		return fail("is neither a name nor an address", forms)
	case endsInNumber(canonical):
		return fail("is not an IPv4 address", `write all four numbers: "203.0.113.7"`)
	}
	r.name = canonical
	return r, unreachable(s, r)
}

// hostOfURL is the entry for a URL that stands where an entry should.
func hostOfURL(scheme, rest string) string {
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	rest = rest[strings.LastIndexByte(rest, '@')+1:]
	ports := map[string]string{"http": "80", "https": "443", "ssh": "22", "git": "9418", "ws": "80", "wss": "443"}
	if port := ports[strings.ToLower(scheme)]; port != "" && !strings.Contains(rest[strings.LastIndexByte(rest, ']')+1:], ":") {
		rest += ":" + port
	}
	if r, err := ParseRule(rest); err == nil {
		return r.String()
	}
	return "example.org:443"
}

// address reads an address, that of IPv6 in its brackets.
func address(host string) (netip.Addr, bool) {
	inner := host
	if strings.HasPrefix(host, "[") {
		inner = strings.TrimSuffix(host[1:], "]")
	}
	a, err := netip.ParseAddr(inner)
	if err != nil || a.Zone() != "" || a.Is6() != (inner != host) {
		return netip.Addr{}, false
	}
	return a, true
}

// endsInNumber says whether a name's last label is a number: whoever resolves
// it takes it for an address (WHATWG URL, "ends in a number").
func endsInNumber(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	_, err := strconv.ParseUint(last, 0, 64)
	return err == nil
}

// Name returns a DNS name in the one form in which names are compared: lower
// case, without a final dot. It is false for what no host is called.
func Name(s string) (string, bool) {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return "", false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return "", false
		}
		for i := range len(label) {
			c := label[i]
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return "", false
			}
		}
	}
	return strings.ToLower(s), true
}

// never are ranges that no VM reaches, whatever its policy says; pkg/usernet
// refuses more.
var never = []struct {
	prefix netip.Prefix
	what   string
	host   bool // host_ports is what was meant
}{
	{netip.MustParsePrefix("127.0.0.0/8"), "is the host's loopback, or the VM's own", true},
	{netip.MustParsePrefix("::1/128"), "is the host's loopback, or the VM's own", true},
	{netip.MustParsePrefix("192.0.2.0/24"), "is on the VM's own network", true},
	{netip.MustParsePrefix("fd64:6576:766d::/64"), "is on the VM's own network", true},
	{netip.MustParsePrefix("0.0.0.0/8"), "is no destination", false},
	{netip.MustParsePrefix("::/128"), "is no destination", false},
	{netip.MustParsePrefix("169.254.0.0/16"), "is link-local, where clouds give out credentials: no VM reaches it", false},
	{netip.MustParsePrefix("fe80::/10"), "is link-local: no VM reaches it", false},
	{netip.MustParsePrefix("224.0.0.0/4"), "is multicast, which is not carried", false},
	{netip.MustParsePrefix("ff00::/8"), "is multicast, which is not carried", false},
}

// hostZones are names that lead to the host or nowhere.
var hostZones = []string{"localhost", "docker.internal", "containers.internal"}

// unreachable is an error for a rule that can never have an effect.
func unreachable(entry string, r Rule) error {
	hint := "a service of the host is opened by its port, and reached as host.docker.internal: host_ports = [5432]"
	if r.port != 0 {
		hint = strings.Replace(hint, "5432", strconv.Itoa(int(r.port)), 1)
	}
	for _, zone := range hostZones {
		if r.name == zone || strings.HasSuffix(r.name, "."+zone) {
			return &SyntaxError{entry, "is the host itself", hint}
		}
	}
	for _, n := range never {
		if r.prefix.IsValid() && n.prefix.Contains(r.prefix.Addr()) && n.prefix.Bits() <= r.prefix.Bits() {
			if !n.host {
				hint = "remove the entry"
			}
			return &SyntaxError{entry, n.what, hint}
		}
	}
	return nil
}

// String is the entry as ParseRule reads it.
func (r Rule) String() string {
	s := r.name
	switch {
	case r.name != "" && r.below:
		s = "*." + r.name
	case r.name != "":
	case !r.prefix.IsValid():
		return ""
	default:
		s = r.prefix.Addr().String()
		if r.prefix.Addr().Is6() {
			s = "[" + s + "]"
		}
		if !r.prefix.IsSingleIP() {
			s += "/" + strconv.Itoa(r.prefix.Bits())
		}
	}
	if r.port != 0 {
		s += ":" + strconv.Itoa(int(r.port))
	}
	return s
}

// Destination is the rule for one destination: a name if there is one, else
// the address; port 0 is any.
func Destination(name string, addr netip.Addr, port uint16) Rule {
	if name, ok := Name(name); ok && !endsInNumber(name) {
		return Rule{name: name, port: port}
	}
	if addr = addr.WithZone("").Unmap(); addr.IsValid() {
		return Rule{prefix: netip.PrefixFrom(addr, addr.BitLen()), port: port}
	}
	return Rule{}
}

func (r Rule) matchPort(port uint16) bool { return r.port == 0 || r.port == port }

// matchName compares with a canonical name.
func (r Rule) matchName(name string) bool {
	switch {
	case r.name == "":
		return false
	case r.below:
		return len(name) > len(r.name)+1 && strings.HasSuffix(name, r.name) && name[len(name)-len(r.name)-1] == '.'
	}
	return name == r.name
}

func (r Rule) matchAddr(to netip.AddrPort) bool {
	return r.prefix.IsValid() && r.matchPort(to.Port()) && r.prefix.Contains(to.Addr().WithZone("").Unmap())
}

// covers says whether all that other allows is allowed by r. Names and
// addresses never cover each other: what a name leads to is for its owner to
// say.
func (r Rule) covers(other Rule) bool {
	if r.port != 0 && r.port != other.port {
		return false
	}
	if r.name == "" || other.name == "" {
		return r.name == other.name && r.prefix.IsValid() && other.prefix.IsValid() &&
			r.prefix.Bits() <= other.prefix.Bits() && r.prefix.Contains(other.prefix.Addr())
	}
	if r.below {
		return r.matchName(other.name) || other.below && r.name == other.name
	}
	return !other.below && r.name == other.name
}
