package guest

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// SSHHost is what an OpenSSH client needs to reach a guest by name.
type SSHHost struct {
	// Name is the alias that the user types, e.g. "devvm-app-1a2b3c4d".
	Name string
	// User in the guest; empty means [DefaultUser].
	User string
	// Proxy is the command, as program and arguments, that connects its standard input and
	// output to the guest's SSH server.
	Proxy []string
	// Keys of the guest.
	Keys Keys
	// Emulated is as in [Target].
	Emulated bool
}

// SSHConfig writes a block for an OpenSSH client's configuration. With it, ssh, scp, rsync and
// editors reach the guest. A path that ssh_config cannot express (a line break, or a reference
// to an environment variable) is an error.
func SSHConfig(w io.Writer, h SSHHost) error {
	if h.User == "" {
		h.User = DefaultUser
	}
	if h.Name == "" || len(h.Proxy) == 0 {
		return errors.New("write SSH configuration: no name or no proxy command")
	}
	if strings.ContainsFunc(h.Name, func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r) || strings.ContainsRune(`*?!,"'#`, r)
	}) {
		return fmt.Errorf("write SSH configuration: %q cannot be the name of a host", h.Name)
	}
	identity, err := sshConfigPath(h.Keys.IdentityFile())
	if err != nil {
		return err
	}
	knownHosts, err := sshConfigPath(h.Keys.KnownHostsFile())
	if err != nil {
		return err
	}
	proxy, err := Quote(h.Proxy...)
	if err != nil {
		return fmt.Errorf("write SSH configuration: %w", err)
	}
	if strings.ContainsAny(proxy, "\r\n") {
		return fmt.Errorf("write SSH configuration: line break in the proxy command %q", h.Proxy)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Host %s\n", h.Name)
	for _, kv := range [][2]string{
		{"User", h.User},
		{"ProxyCommand", strings.ReplaceAll(proxy, "%", "%%")},
		{"IdentityFile", identity},
		{"IdentitiesOnly", "yes"},
		{"UserKnownHostsFile", knownHosts},
		{"GlobalKnownHostsFile", "/dev/null"},
		{"HostKeyAlias", HostAlias},
		{"HostKeyAlgorithms", "ssh-ed25519"},
		{"StrictHostKeyChecking", "yes"},
		{"UpdateHostKeys", "no"},
		{"PreferredAuthentications", "publickey"},
		{"KexAlgorithms", "curve25519-sha256"},
		{"MACs", "hmac-sha2-512-etm@openssh.com,hmac-sha2-256-etm@openssh.com"},
		{"Ciphers", strings.Join(ciphers(h.Emulated), ",")},
	} {
		fmt.Fprintf(&b, "    %s %s\n", kv[0], kv[1])
	}
	_, err = io.WriteString(w, b.String())
	return err
}

// sshConfigPath quotes a path for ssh_config(5). OpenSSH expands percent signs and ${NAME} in
// paths, and has no escape for the latter.
func sshConfigPath(path string) (string, error) {
	if strings.ContainsAny(path, "\r\n\x00") || strings.Contains(path, "${") {
		return "", fmt.Errorf("write SSH configuration: OpenSSH cannot express the path %q", path)
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`).Replace(path) + `"`, nil
}
