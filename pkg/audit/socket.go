package audit

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Verdicts on a [Listener].
const (
	Loopback = "loopback" // only this host can reach it
	Exposed  = "exposed"  // opened to others by its user, for a time
	Libvirt  = "libvirt"  // belongs to the system's libvirt, not devvm
	Open     = "open"     // others can reach it although nobody asked for that
)

// Listener is an address on which a process of devvm's accepts what others send.
type Listener struct {
	Proto   string     `json:"proto"` // "tcp", "udp", "udplite", "raw" or "packet"
	Address netip.Addr `json:"address"`
	Port    uint16     `json:"port"` // for "raw", the IP protocol
	Process Process    `json:"process"`
	Dir     string     `json:"dir,omitempty"` // the project's
	Verdict string     `json:"verdict"`
	Why     string     `json:"why,omitempty"`
}

// String renders the address for people.
func (l Listener) String() string {
	return l.Proto + " " + netip.AddrPortFrom(l.Address, l.Port).String()
}

// entry is a socket as listed in /proc/net.
type entry struct {
	proto string
	local netip.AddrPort
	inode uint64
	uid   int
}

// The tables of internet sockets (proc_pid_net(5)), and the state of a socket that accepts data
// from anybody: LISTEN for TCP, "not connected" for the others (include/net/tcp_states.h).
var tables = []struct{ file, proto, state string }{
	{"tcp", "tcp", "0A"},
	{"tcp6", "tcp", "0A"},
	{"udp", "udp", "07"},
	{"udp6", "udp", "07"},
	{"udplite", "udplite", "07"},
	{"udplite6", "udplite", "07"},
	{"raw", "raw", "07"},
	{"raw6", "raw", "07"},
}

// listening returns the sockets of a network namespace that accept what others send. net is the
// namespace's directory in /proc.
func listening(h Host, net string) ([]entry, error) {
	var out []entry
	read := false
	for _, t := range tables {
		b, err := h.read(net, t.file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the kernel does not have the protocol
		}
		if err != nil {
			return nil, err
		}
		read = true
		out = append(out, parseSockets(string(b), t.proto, t.state)...)
	}
	if !read {
		return nil, fmt.Errorf("%s lists no sockets: %w", net, fs.ErrNotExist)
	}
	return out, nil
}

// parseSockets returns the sockets of a table that are in the given state. It skips lines that
// it does not understand.
func parseSockets(text, proto, state string) []entry {
	var out []entry
	for line := range strings.Lines(text) {
		// sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode …
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != state {
			continue
		}
		local, err := parseAddr(f[1])
		uid, err2 := strconv.Atoi(f[7])
		inode, err3 := strconv.ParseUint(f[9], 10, 64)
		if errors.Join(err, err2, err3) != nil {
			continue
		}
		out = append(out, entry{proto, local, inode, uid})
	}
	return out
}

// parseAddr reads "0100007F:1F90": the address as 32-bit words in this machine's byte order,
// which is little-endian on everything that devvm runs on, and the port.
func parseAddr(s string) (netip.AddrPort, error) {
	address, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(address)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, fmt.Errorf("no address: %q", s)
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("no port: %q", s)
	}
	for w := 0; w < len(b); w += 4 {
		slices.Reverse(b[w : w+4])
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}

// parsePackets reads /proc/net/packet and returns the inodes of sockets that see whole frames
// (packet(7)).
func parsePackets(text string) []uint64 {
	var out []uint64
	for line := range strings.Lines(text) {
		f := strings.Fields(line) // sk RefCnt Type Proto Iface R Rmem User Inode
		if len(f) < 9 {
			continue
		}
		if n, err := strconv.ParseUint(f[8], 10, 64); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// hostListeners are the sockets, other than devvm's, that other hosts can reach. Ephemeral UDP
// ports come and go, so they are left out.
func hostListeners(h Host, own sockets) Part {
	p := Part{Name: PartListeners}
	all, err := listening(h, "proc/self/net")
	if err != nil {
		p.Unread = "not readable: " + oneLine(err.Error())
		return p
	}
	low, high := uint16(32768), uint16(60999)
	if f := strings.Fields(h.text("proc/sys/net/ipv4/ip_local_port_range")); len(f) == 2 {
		l, err := strconv.ParseUint(f[0], 10, 16)
		u, err2 := strconv.ParseUint(f[1], 10, 16)
		if errors.Join(err, err2) == nil {
			low, high = uint16(l), uint16(u)
		}
	}
	for _, e := range all {
		_, devvms := own.owner[e.inode]
		passing := e.proto == "udp" && e.local.Port() >= low && e.local.Port() <= high
		if devvms || passing || e.local.Addr().IsLoopback() {
			continue
		}
		p.Lines = append(p.Lines, fmt.Sprintf("%s %s uid %d", e.proto, e.local, e.uid))
	}
	slices.Sort(p.Lines)
	p.Lines = slices.Compact(p.Lines)
	return p
}

// listeners judges the addresses that devvm's processes listen on.
func listeners(ctx context.Context, r *Report, h Host, s sockets, o Options) Finding {
	f := Finding{Name: "listeners", Status: OK}
	r.Listeners = []Listener{}
	var exposures []Exposure
	var unread []string
	if o.Exposures != nil {
		var err error
		if exposures, err = o.Exposures(ctx); err != nil {
			unread = append(unread, "which ports are open on purpose: "+oneLine(err.Error()))
		}
	}
	for _, p := range s.unread {
		unread = append(unread, "the sockets of "+p.name())
	}
	for _, pid := range s.netns {
		net := filepath.Join("proc", strconv.Itoa(pid), "net")
		all, err := listening(h, net)
		if err != nil {
			if _, ended := h.read("proc", strconv.Itoa(pid), "status"); ended == nil {
				unread = append(unread, oneLine(err.Error()))
			}
			continue
		}
		packets, _ := h.read(net, "packet") // missing if there are no such sockets
		for _, inode := range parsePackets(string(packets)) {
			all = append(all, entry{"packet", netip.AddrPortFrom(netip.IPv6Unspecified(), 0), inode, 0})
		}
		for _, e := range all {
			p, ours := s.owner[e.inode]
			if !ours {
				continue
			}
			l := Listener{Proto: e.proto, Address: e.local.Addr(), Port: e.local.Port(), Process: p}
			if o.Dir != nil && p.Project != "" {
				l.Dir = o.Dir(p.Project)
			}
			l.Verdict, l.Why = judge(l, exposures, r.Taken)
			if l.Verdict == Open && p.UID != h.UID {
				l.Why += fmt.Sprintf("; whether %s has exposed it shows in devvm audit as that user", userName(p.UID))
			}
			r.Listeners = append(r.Listeners, l)
		}
	}
	slices.SortFunc(r.Listeners, func(a, b Listener) int {
		return cmp.Or(cmp.Compare(a.Process.Project, b.Process.Project), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port), a.Address.Compare(b.Address), a.Process.PID-b.Process.PID)
	})
	number := map[string]int{}
	for _, l := range r.Listeners {
		number[l.Verdict]++
		if l.Verdict == Open {
			f.Details = append(f.Details, fmt.Sprintf("%s: %s: %s", l, l.Process.name(), l.Why))
		}
	}
	switch {
	case number[Open] > 0:
		f.Status = Fail
		f.What = count(number[Open], "listener") + " that other hosts can reach, although no one asked for that"
		f.Fix = "# close them: devvm down in the project's directory, or devvm expose --stop"
	case len(unread) > 0:
		f.Status = Fail
		f.What = "not all sockets of devvm's could be read"
		f.Details = unread
	case len(r.Listeners) == 0:
		f.What = "no process of devvm's listens on an address"
	default:
		var says []string
		for _, v := range []struct{ verdict, words string }{
			{Loopback, "on loopback, which this host alone reaches"},
			{Exposed, "open to other hosts by devvm expose"},
			{Libvirt, "of the system's libvirt, by its own configuration"},
		} {
			if n := number[v.verdict]; n > 0 {
				says = append(says, fmt.Sprintf("%d %s", n, v.words))
			}
		}
		f.What = count(len(r.Listeners), "listener") + ": " + strings.Join(says, ", ")
	}
	return f
}

// judge decides whether a listener keeps the promise: only 127.0.0.0/8 and ::1, unless its user
// has opened it.
func judge(l Listener, exposures []Exposure, now time.Time) (verdict, why string) {
	for _, e := range exposures {
		same := e.Project == l.Process.Project && (e.Proto == "" || e.Proto == l.Proto) && e.Port == l.Port
		if same && l.Proto != "packet" && l.Proto != "raw" && !l.Address.IsLoopback() && now.Before(e.Until) {
			return Exposed, fmt.Sprintf("to %s until %s", e.To, e.Until.Local().Format("2006-01-02 15:04"))
		}
	}
	switch {
	case l.Proto == "packet":
		return Open, "it sees whole frames"
	case l.Address.IsLoopback():
		return Loopback, ""
	case l.Process.Kind == KindLibvirt && l.Process.UID == 0:
		return Libvirt, "see listen_tcp and listen_tls in libvirtd.conf"
	case l.Address.IsUnspecified():
		return Open, "on all addresses of this host"
	}
	return Open, "not on a loopback address"
}

// unixSocket is a socket as listed in /proc/net/unix.
type unixSocket struct {
	path  string // "@…": in the abstract namespace
	inode uint64
}

// Flags and types in /proc/net/unix, include/uapi/linux/net.h.
const (
	soAcceptCon = 1 << 16
	typeStream  = 1
)

// parseUnix reads the sockets in /proc/net/unix that can be reached by name.
func parseUnix(text string) []unixSocket {
	var out []unixSocket
	for line := range strings.Lines(text) {
		// Num: RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		flags, err := strconv.ParseUint(f[3], 16, 64)
		kind, err2 := strconv.ParseUint(f[4], 16, 64)
		inode, err3 := strconv.ParseUint(f[6], 10, 64)
		if errors.Join(err, err2, err3) != nil || kind == typeStream && flags&soAcceptCon == 0 {
			continue
		}
		_, path, _ := strings.Cut(line, f[6]+" ")
		out = append(out, unixSocket{strings.TrimRight(path, "\n"), inode})
	}
	return out
}

// unixSockets checks that nobody else can connect to devvm's sockets: those in its directories,
// and any others that the kernel says its processes listen on. The kernel keeps the name that a
// socket was bound to, but devvm renames its sockets after binding.
func unixSockets(h Host, s sockets, d Dirs) Finding {
	f := Finding{Name: "unix sockets", Status: OK}
	mine := []int{h.UID}
	if d.Shared {
		mine = append(mine, qemuUsers()...)
	}
	who := readAccounts(h)
	seen := map[string]bool{}
	var bad []string
	look := func(path, of string, mine ...int) {
		if seen[path] {
			return
		}
		seen[path] = true
		if why := reachable(h, path, who, mine...); why != "" {
			bad = append(bad, path+of+": "+why)
		}
	}
	for _, dir := range d.Runtime {
		_ = filepath.WalkDir(h.path(dir), func(full string, e fs.DirEntry, err error) error {
			if err == nil && e.Type() == fs.ModeSocket {
				look(filepath.Join(dir, strings.TrimPrefix(full, h.path(dir))), "", mine...)
			}
			return nil // files reports what cannot be read
		})
	}
	for _, pid := range s.netns {
		b, err := h.read("proc", strconv.Itoa(pid), "net/unix")
		if err != nil {
			continue
		}
		for _, u := range parseUnix(string(b)) {
			p, ours := s.owner[u.inode]
			if !ours || p.Kind == KindLibvirt && p.UID == 0 {
				continue
			}
			if filepath.IsAbs(u.path) {
				if _, err := os.Lstat(h.path(u.path)); err != nil || strings.HasPrefix(u.path, "/proc/") {
					continue // no longer its name
				}
			}
			look(u.path, " of "+p.name(), p.UID)
		}
	}
	slices.Sort(bad)
	f.What = count(len(seen), "socket") + ", none of which another user can open"
	if len(bad) > 0 {
		f.Status, f.Details = Fail, bad
		f.What = fmt.Sprintf("another user of this host can open %s of devvm's", count(len(bad), "socket"))
	}
	return f
}

// reachable says why somebody other than root and the given users can connect to a unix socket,
// "" if nobody can. Connecting requires search permission on each directory and write
// permission on the socket (unix(7)).
func reachable(h Host, path string, who accounts, mine ...int) string {
	if strings.HasPrefix(path, "@") || !filepath.IsAbs(path) {
		return "it has no file that would protect it"
	}
	socket, err := lookAt(h, path)
	if err != nil {
		return "" // removed, so nobody can
	}
	way := []access{socket}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		a, err := lookAt(h, dir)
		if err != nil {
			return ""
		}
		way = append(way, a)
		if dir == filepath.Dir(dir) {
			break
		}
	}
	if who.open(way, mine...) {
		return fmt.Sprintf("mode %04o, in directories that others may pass", socket.mode.Perm())
	}
	return ""
}

// access decides who may use a file.
type access struct {
	mode     fs.FileMode
	uid, gid int
	acl      bool // has an ACL for more users and groups (acl(5)), bounded by the group's bits
}

func lookAt(h Host, path string) (access, error) {
	info, err := os.Lstat(h.path(path))
	if err != nil {
		return access{}, err
	}
	_, err = unix.Lgetxattr(h.path(path), "system.posix_acl_access", nil)
	acl := !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP)
	return access{info.Mode(), uidOf(info), gidOf(info), acl}, nil
}
