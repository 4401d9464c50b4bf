package guesttest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// OpenSSH runs this machine's real sshd for one test, on its own loopback port and with its
// files in a temporary directory. It returns the address and the user to log in as. The test is
// skipped where there is no sshd. Extra lines come first in its configuration.
func OpenSSH(t testing.TB, hostKey, authorizedKeys []byte, extra ...string) (address, login string) {
	t.Helper()
	sshd, err := exec.LookPath("/usr/sbin/sshd")
	if err != nil {
		t.Skip("no sshd on this machine (package openssh-server)")
	}
	if os.Getuid() == 0 {
		// sshd needs this directory when it runs as root; the path is compiled in.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Skip(err)
		}
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}

	// Ask the kernel for a free port. Another process may take it before sshd does.
	for range 5 {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address = l.Addr().String()
		_, port, _ := net.SplitHostPort(address)
		_ = l.Close()
		config := append(extra,
			"ListenAddress 127.0.0.1", "Port "+port, "PidFile none",
			"HostKey "+file("host_key", hostKey),
			"AuthorizedKeysFile "+file("authorized_keys", authorizedKeys),
			"PermitRootLogin prohibit-password", "PasswordAuthentication no",
			"KbdInteractiveAuthentication no", "UsePAM no", "StrictModes no",
			"SetEnv HOME="+dir, // keep this user's shell start-up files out
			"PrintMotd no", "PrintLastLog no", "MaxSessions 100", "MaxStartups 100", "")
		path := file("sshd_config", []byte(strings.Join(config, "\n")))

		var log bytes.Buffer
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), sshd, "-D", "-e", "-f", path)
		cmd.Stderr = &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(ended)
		}()
		if answers(t.Context(), address, ended) {
			t.Cleanup(func() {
				_ = cmd.Process.Kill()
				<-ended
				if t.Failed() {
					t.Logf("sshd: %s", log.Bytes())
				}
			})
			return address, me.Username
		}
		_ = cmd.Process.Kill()
		<-ended
		t.Logf("sshd did not start: %s", log.Bytes())
	}
	t.Fatal(fmt.Errorf("sshd does not start"))
	return "", ""
}

// answers waits until something listens at address, or ended is closed.
func answers(ctx context.Context, address string, ended <-chan struct{}) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var d net.Dialer
	for {
		if conn, err := d.DialContext(ctx, "tcp", address); err == nil {
			_ = conn.Close()
			return true
		}
		select {
		case <-ended:
			return false
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}
