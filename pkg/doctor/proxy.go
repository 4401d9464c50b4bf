package doctor

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// proxy warns if this host's environment has a proxy and the engine has none: the VM does
// not see that environment.
func (d *doctor) proxy(context.Context) Result {
	env := func(name string) string { return cmp.Or(d.h.Getenv(strings.ToUpper(name)), d.h.Getenv(name)) }
	var here bool
	var lines, ports []string
	for _, key := range []string{"http-proxy", "https-proxy"} {
		value := env(strings.ReplaceAll(key, "-", "_"))
		if value == "" {
			continue
		}
		here = true
		if slices.Contains(d.o.EngineProxies, key) {
			continue
		}
		u, port := forVM(value)
		lines = append(lines, fmt.Sprintf("%s = %q", key, u))
		if port != "" && !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	switch {
	case !here:
		return ok("none is set here", "")
	case len(lines) == 0:
		return ok("one is set here, and the engine has one, too", "")
	}
	if no := env("no_proxy"); no != "" {
		lines = append(lines, fmt.Sprintf("no-proxy = %q", no))
	}
	lines = append([]string{"[docker.daemon.proxies]"}, lines...)
	if len(ports) > 0 {
		lines = append([]string{"[network]", "host_ports = [" + strings.Join(ports, ", ") + "]"}, lines...)
	}
	return warn("one is set here, and the engine in the VM has none",
		"it pulls images without a proxy, which may not be possible here",
		"# add this to "+d.o.ConfigFile+", below the tables that are there already, without the # (docs/proxy.md):\n#   "+strings.Join(lines, "\n#   "))
}

// forVM is a proxy as the VM sees it. One of this host's is host.docker.internal there, if
// its port is opened. Who may use it is left to be filled in.
func forVM(value string) (proxy, port string) {
	if !strings.Contains(value, "://") {
		value = "http://" + value
	}
	u, err := url.Parse(value)
	if err != nil {
		return "http://PROXY:PORT", ""
	}
	if u.User != nil {
		u.User = url.UserPassword("USER", "PASSWORD")
	}
	ip, err := netip.ParseAddr(u.Hostname())
	if strings.EqualFold(u.Hostname(), "localhost") || err == nil && (ip.IsLoopback() || ip.IsUnspecified()) {
		port = cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme], "1080")
		u.Host = "host.docker.internal:" + port
	}
	return u.String(), port
}
