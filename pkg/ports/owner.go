package ports

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tcpListen is the kernel's TCP_LISTEN (include/net/tcp_states.h). A connection out can
// have a port, too.
const tcpListen = 10

// Owner says in words who keeps a socket from being opened: the project that project
// knows a process by, a process of this user, or another user's. "" if nobody does any
// more, or the kernel does not tell.
func Owner(ctx context.Context, k Key, project func(ctx context.Context, pid int) string) string {
	inode, uid, ok := holder(k)
	if !ok {
		return ""
	}
	pid, name := processOf(inode)
	switch {
	case pid == 0 && uid == os.Getuid():
		return "a process of yours that devvm cannot name"
	case pid == 0:
		who := strconv.Itoa(uid)
		if u, err := user.LookupId(who); err == nil {
			who = u.Username
		}
		return "another user's process (user " + who + ")"
	}
	if project != nil {
		if p := project(ctx, pid); p != "" {
			return p
		}
	}
	return fmt.Sprintf("process %s (pid %d)", name, pid)
}

// holder finds the socket that has the address of k, or all addresses, in the kernel's
// list (sock_diag(7)).
func holder(k Key) (inode uint32, uid int, found bool) {
	list := netlink.SocketDiagTCP
	if k.Protocol == UDP {
		list = netlink.SocketDiagUDP
	}
	best := 0
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := list(family)
		if err != nil {
			continue
		}
		for _, s := range sockets {
			if fit := fits(s, k); fit > best {
				best, inode, uid = fit, s.INode, int(s.UID)
			}
		}
	}
	return inode, uid, best > 0
}

// fits says how likely a socket is the one that is in the way of k; 0: it is not.
func fits(s *netlink.Socket, k Key) int {
	if s.ID.SourcePort != k.Addr.Port() || s.INode == 0 {
		return 0
	}
	at, _ := netip.AddrFromSlice(s.ID.Source)
	at = at.Unmap()
	fit := 0
	switch {
	case at == k.Addr.Addr():
		fit = 3
	case at.IsUnspecified() && at.Is4() == k.Addr.Addr().Is4():
		fit = 2
	case at.IsUnspecified() && at.Is6(): // it has IPv4, too, unless it says otherwise, which is not told
		fit = 1
	}
	if fit > 0 && (s.State == tcpListen || k.Protocol == UDP) {
		fit += 3
	}
	return fit
}

// processOf finds the process that holds a socket, as far as this user may look; pid 0
// if there is none.
func processOf(inode uint32) (pid int, name string) {
	want := fmt.Sprintf("socket:[%d]", inode)
	dirs, err := filepath.Glob("/proc/[0-9]*/fd")
	if err != nil {
		return 0, ""
	}
	for _, dir := range dirs {
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if target, err := os.Readlink(filepath.Join(dir, fd.Name())); err != nil || target != want {
				continue
			}
			proc := filepath.Dir(dir)
			pid, err := strconv.Atoi(filepath.Base(proc))
			if err != nil {
				continue
			}
			comm, _ := os.ReadFile(filepath.Join(proc, "comm"))
			return pid, strings.TrimSpace(string(comm))
		}
	}
	return 0, ""
}

// errnos of bind(2) that are told apart.
var (
	errsTaken       = []error{syscall.EADDRINUSE}
	errsDenied      = []error{syscall.EACCES, syscall.EPERM}
	errsUnavailable = []error{syscall.EADDRNOTAVAIL, syscall.EAFNOSUPPORT, syscall.EPROTONOSUPPORT}
)
