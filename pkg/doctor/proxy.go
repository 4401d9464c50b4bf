package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
)

// proxy tells who reaches the network by a proxy that the engine in the VM has to be told
// of: its settings are not taken from this host's environment.
func (d *doctor) proxy(context.Context) Result {
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"} {
		value := d.h.Getenv(name)
		if value == "" {
			continue
		}
		if d.o.EngineProxy {
			return ok(name+" is set here, and devvm.toml has a proxy for the engine", "")
		}
		return warn(name+" is set here, and the engine in the VM has no proxy",
			"it pulls images without one, which may not be possible here; these lines in "+d.o.ConfigFile+" are for all projects", engineProxy(value))
	}
	return ok("none is set here", "")
}

// engineProxy is what gives the engine the proxy of this host.
func engineProxy(value string) string {
	if !strings.Contains(value, "://") {
		value = "http://" + value
	}
	u, err := url.Parse(value)
	if err != nil || u.Hostname() == "" {
		return "# see the README: behind a proxy"
	}
	var lines []string
	ip, err := netip.ParseAddr(u.Hostname())
	if u.Hostname() == "localhost" || err == nil && ip.IsLoopback() { // of this host's, not the VM's
		port := u.Port()
		if port == "" {
			port = "80"
		}
		u.Host = "host.docker.internal:" + port
		lines = append(lines, "[network]", "host_ports = ["+port+"]")
	}
	lines = append(lines, "[docker.daemon.proxies]")
	for _, key := range []string{"http-proxy", "https-proxy"} {
		lines = append(lines, fmt.Sprintf("%s = %q", key, u.Redacted()))
	}
	return "# " + strings.Join(lines, "\n# ")
}
