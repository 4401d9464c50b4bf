package usernet_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/devvm/devvm/pkg/usernet"
	"github.com/devvm/devvm/pkg/usernet/usernettest"
	"github.com/devvm/devvm/pkg/vmnet"
)

// kernel is a guest whose stack is this machine's kernel, in a namespace of its own.
type kernel struct {
	in      io.Writer
	answers *bufio.Scanner
}

// startKernel starts one and plugs it in.
func startKernel(t *testing.T, s *usernet.Stack) *kernel {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "cable"), os.NewFile(uintptr(fds[1]), "cable")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(t.Context(), conn) }()
	t.Cleanup(func() { <-served }) // when the guest has ended
	_, in, out := startBeside(t, "kernel", theirs)
	return &kernel{in, bufio.NewScanner(out)}
}

// does has the guest do something and returns what came of it.
func (k *kernel) does(t *testing.T, what string) string {
	t.Helper()
	fmt.Fprintln(k.in, what)
	if !k.answers.Scan() {
		t.Fatalf("%s: the guest has ended: %v", what, k.answers.Err())
	}
	return k.answers.Text()
}

func (k *kernel) wants(t *testing.T, what string, want ...string) {
	t.Helper()
	start := time.Now()
	got := k.does(t, what)
	if !slices.ContainsFunc(want, func(w string) bool { return strings.HasSuffix(got, w) }) {
		t.Errorf("%s: %s, want %q", what, got, want)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("%s took %v", what, d)
	}
}

// waits waits until it comes to that.
func (k *kernel) waits(t *testing.T, what, want string) {
	t.Helper()
	got := ""
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if got = k.does(t, what); got == want {
			return
		}
	}
	t.Fatalf("%s: %s, want %s", what, got, want)
}

// beKernel is the guest: a tap device, and what it is told to do.
func beKernel() int {
	if err := runKernel(); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		return 1
	}
	return 0
}

func runKernel() error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0o600); err != nil {
		return err
	}
	if err := up("lo", ""); err != nil {
		return err
	}
	link := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, Mode: netlink.TUNTAP_MODE_TAP,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_ONE_QUEUE, Queues: 1,
	}
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	if err := netlink.LinkSetHardwareAddr(link, usernettest.MAC); err != nil {
		return err
	}
	if err := netlink.LinkSetMTU(link, vmnet.DefaultMTU); err != nil {
		return err
	}
	if err := up("eth0", vmnet.Guest.String()+"/24"); err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: vmnet.Gateway.AsSlice()}); err != nil {
		return err
	}
	cable, tap := os.NewFile(3, "cable"), link.Fds[0]
	go func() {
		for buf := make([]byte, 4+1<<17); ; {
			n, err := tap.Read(buf[4:])
			if err != nil {
				return
			}
			binary.BigEndian.PutUint32(buf, uint32(n))
			if _, err := cable.Write(buf[:4+n]); err != nil {
				return
			}
		}
	}()
	go func() {
		for buf := make([]byte, 1<<17); ; {
			if _, err := io.ReadFull(cable, buf[:4]); err != nil {
				return
			}
			n := binary.BigEndian.Uint32(buf)
			if _, err := io.ReadFull(cable, buf[:n]); err != nil {
				return
			}
			tap.Write(buf[:n])
		}
	}()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		verb, to, _ := strings.Cut(lines.Text(), " ")
		if err := kernelDoes(verb, to); err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("ok")
		}
	}
	return nil
}

// kernelDoes carries out what the guest is told to.
func kernelDoes(verb, to string) error {
	size := 5
	switch verb {
	case "route": // and the address to use it from
		routes, err := netlink.RouteGet(net.ParseIP("2001:db8::7"))
		if err != nil || !vmnet.Network6.Contains(netip.MustParseAddr(routes[0].Src.String())) {
			return errors.New("none")
		}
		return nil
	case "ping":
		return kernelPings(netip.MustParseAddr(to))
	case "large":
		verb, size = "tcp", 1<<20
	}
	c, err := net.DialTimeout(verb, to, 20*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	sent, got := bytes.Repeat([]byte("x"), size), make([]byte, size)
	go c.Write(sent)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return errors.New("other bytes")
	}
	return nil
}

// kernelPings sends an echo request and waits for the answer.
func kernelPings(to netip.Addr) error {
	family, proto, message := unix.AF_INET, unix.IPPROTO_ICMP, []byte{byte(header.ICMPv4Echo), 0, 0, 0, 0, 0, 0, 1}
	var peer unix.Sockaddr = &unix.SockaddrInet4{Port: 7}
	if to.Is6() {
		family, proto, message[0] = unix.AF_INET6, unix.IPPROTO_ICMPV6, byte(header.ICMPv6EchoRequest)
		peer = &unix.SockaddrInet6{Port: 7, Addr: to.As16()}
	} else {
		peer.(*unix.SockaddrInet4).Addr = to.As4()
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, proto)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20})
	if err := unix.Connect(fd, peer); err != nil {
		return err
	}
	if _, err := unix.Write(fd, message); err != nil {
		return err
	}
	_, err = unix.Read(fd, make([]byte, 100))
	return err
}
