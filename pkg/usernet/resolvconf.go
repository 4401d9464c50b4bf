package usernet

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// A watched file is parsed again when it looks different from last time; that
// follows editors, VPN clients and a replaced symbolic link alike.
type watched[T any] struct {
	mu    sync.Mutex
	mtime time.Time
	size  int64
	inode uint64
	known bool
	value T
}

// read returns the parsed content of path.
func (w *watched[T]) read(path string, parse func(io.Reader) (T, error)) (T, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var none T
	info, err := os.Stat(path)
	if err != nil {
		w.known = false
		return none, err
	}
	inode := inodeOf(info)
	if w.known && info.ModTime().Equal(w.mtime) && info.Size() == w.size && inode == w.inode {
		return w.value, nil
	}
	f, err := os.Open(path)
	if err != nil {
		w.known = false
		return none, err
	}
	defer f.Close()
	value, err := parse(f)
	if err != nil {
		w.known = false
		return none, fmt.Errorf("read %s: %w", path, err)
	}
	w.value, w.mtime, w.size, w.inode, w.known = value, info.ModTime(), info.Size(), inode, true
	return value, nil
}

// nameservers is what resolv.conf says of them.
type nameservers struct {
	servers  []string // addresses
	attempts int
	tcp      bool // "options use-vc"
}

// resolvConf is the host's resolv.conf.
type resolvConf struct {
	path string
	file watched[nameservers]
}

// read returns the nameservers of now. Without the file, as in the C library,
// there is one on the host itself.
func (c *resolvConf) read() (nameservers, error) {
	n, err := c.file.read(c.path, parseResolvConf)
	if os.IsNotExist(err) {
		return parseResolvConf(strings.NewReader(""))
	}
	return n, err
}

func parseResolvConf(r io.Reader) (nameservers, error) {
	content, err := io.ReadAll(r)
	if err != nil {
		return nameservers{}, err
	}
	conf, err := dns.ClientConfigFromReader(bytes.NewReader(content))
	if err != nil {
		return nameservers{}, err
	}
	n := nameservers{attempts: max(1, min(conf.Attempts, 3))}
	for line := range strings.Lines(string(content)) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == "options" {
			n.tcp = n.tcp || slices.Contains(fields, "use-vc") // miekg/dns does not know it
		}
	}
	for _, s := range conf.Servers {
		if addr, err := netip.ParseAddr(s); err == nil && len(n.servers) < 3 { // MAXNS of the C library
			n.servers = append(n.servers, addr.String())
		}
	}
	if len(conf.Servers) == 0 {
		n.servers = []string{"127.0.0.1"}
	}
	return n, nil
}

// hostsFile is the host's hosts file.
type hostsFile struct {
	path string
	file watched[hostNames]
}

// hostNames maps lower-case names with a final dot to their addresses.
type hostNames map[string][]netip.Addr

// answer answers for a name that the file has, and is nil for others.
func (h *hostsFile) answer(query *dns.Msg) *dns.Msg {
	q := query.Question[0]
	if q.Qclass != dns.ClassINET || (q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA) {
		return nil
	}
	names, err := h.file.read(h.path, parseHosts)
	if err != nil {
		return nil // a host without the file has no names in it
	}
	addrs := names[strings.ToLower(q.Name)]
	if len(addrs) == 0 {
		return nil
	}
	return addressAnswer(query, addrs)
}

// parseHosts reads a hosts file. Loopback addresses are left out: within the
// VM they would mean the VM.
func parseHosts(r io.Reader) (hostNames, error) {
	names := hostNames{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil || addr.Unmap().IsLoopback() || addr.Unmap().IsUnspecified() || addr.Zone() != "" {
			continue
		}
		for _, name := range fields[1:] {
			name = dns.CanonicalName(name)
			names[name] = append(names[name], addr.Unmap())
		}
	}
	return names, lines.Err()
}

func inodeOf(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
