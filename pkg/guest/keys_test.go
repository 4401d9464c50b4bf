package guest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/guest/guesttest"
)

func TestKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	if _, err := guest.LoadKeys(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no keys: %v", err)
	}
	keys, err := guest.GenerateKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]string{}
	for _, name := range []string{".", "id_ed25519", "id_ed25519.pub", "host_ed25519", "host_ed25519.pub", "known_hosts"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		modes[name] = info.Mode().String()
	}
	if diff := cmp.Diff(map[string]string{
		".": "drwx------", "id_ed25519": "-rw-------", "id_ed25519.pub": "-rw-------",
		"host_ed25519": "-rw-------", "host_ed25519.pub": "-rw-------", "known_hosts": "-rw-------",
	}, modes); diff != "" {
		t.Errorf("modes (-want +got):\n%s", diff)
	}

	same := func(a, b guest.Keys) bool {
		return a.AuthorizedKey() == b.AuthorizedKey() && bytes.Equal(a.HostKeyPEM(), b.HostKeyPEM())
	}
	if loaded, err := guest.LoadKeys(dir); err != nil || !same(keys, loaded) {
		t.Errorf("loaded keys differ: %v", err)
	}
	if again, err := guest.GenerateKeys(dir); err != nil || !same(keys, again) {
		t.Errorf("a complete set was not kept: %v", err)
	}
	public, err := os.ReadFile(filepath.Join(dir, "id_ed25519.pub"))
	if err != nil || string(public) != keys.AuthorizedKey() || !strings.HasPrefix(keys.AuthorizedKey(), "ssh-ed25519 ") {
		t.Errorf("%q %v", public, err)
	}

	// A previous run was interrupted between the two keys, or left a damaged one.
	for _, damage := range []func(string) error{os.Remove, func(p string) error { return os.Truncate(p, 10) }} {
		if err := damage(filepath.Join(dir, "host_ed25519")); err != nil {
			t.Fatal(err)
		}
		if _, err := guest.LoadKeys(dir); err == nil {
			t.Error("loaded a broken set")
		}
		if _, err := guest.GenerateKeys(dir); err != nil {
			t.Error(err)
		}
		if _, err := guest.LoadKeys(dir); err != nil {
			t.Error(err)
		}
	}
}

func TestSSHConfig(t *testing.T) {
	dir := filepath.Join(t.TempDir(), `a "quoted" dir, 100% it's \ünï #1`)
	keys, err := guest.GenerateKeys(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	host := guest.SSHHost{Name: "devvm-app", Proxy: []string{"/opt/dev vm/devvm", "ssh", "--proxy", "100%"}, Keys: keys}
	if err := guest.SSHConfig(&b, host); err != nil {
		t.Fatal(err)
	}
	if want := "    ProxyCommand '/opt/dev vm/devvm' ssh --proxy '100%%'\n"; !strings.Contains(b.String(), want) {
		t.Errorf("no line %q in:\n%s", want, b.String())
	}

	for name, h := range map[string]guest.SSHHost{
		"no name":        {Proxy: host.Proxy, Keys: keys},
		"pattern":        {Name: "*", Proxy: host.Proxy, Keys: keys},
		"two names":      {Name: "a b", Proxy: host.Proxy, Keys: keys},
		"no proxy":       {Name: "a", Keys: keys},
		"line in a path": {Name: "a", Proxy: []string{"a\nb"}, Keys: keys},
	} {
		if err := guest.SSHConfig(io.Discard, h); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	odd, err := guest.GenerateKeys(filepath.Join(t.TempDir(), "${HOME}"))
	if err != nil {
		t.Fatal(err)
	}
	host.Keys = odd
	if err := guest.SSHConfig(io.Discard, host); err == nil {
		t.Error("wrote a path that OpenSSH would expand")
	}
}

// proxyVariable makes the test program a proxy command for an address.
const proxyVariable = "GUEST_TEST_PROXY"

func TestMain(m *testing.M) {
	if project := os.Getenv(guest.SwapVariable); project != "" {
		os.Exit(guest.SwapForever(project))
	}
	if address := os.Getenv(proxyVariable); address != "" && len(os.Args) == 2 && os.Args[1] == "100% it's a proxy" {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			os.Exit(1)
		}
		go func() { _, _ = io.Copy(conn, os.Stdin) }()
		_, _ = io.Copy(os.Stdout, conn)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestSSHConfigWorks runs the real client with the configuration, against both servers.
func TestSSHConfigWorks(t *testing.T) {
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("no ssh on this machine (package openssh-client)")
	}
	keys, err := guest.GenerateKeys(filepath.Join(t.TempDir(), `a "quoted" dir, 100% it's \ünï #1`))
	if err != nil {
		t.Fatal(err)
	}
	address, user := guesttest.OpenSSH(t, keys.HostKeyPEM(), []byte(keys.AuthorizedKey()))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(proxyVariable, address)
	for _, emulated := range []bool{false, true} {
		var b strings.Builder
		err = guest.SSHConfig(&b, guest.SSHHost{
			Name: "devvm-app", User: user, Keys: keys, Emulated: emulated,
			Proxy: []string{self, "100% it's a proxy"},
		})
		if err != nil {
			t.Fatal(err)
		}
		config := filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(config, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), ssh, "-F", config, "-o", "BatchMode=yes", "devvm-app", "echo hello").CombinedOutput()
		if string(out) != "hello\n" || err != nil {
			t.Errorf("%s %v\n%s", out, err, &b)
		}
	}
}

func TestClock(t *testing.T) {
	bothServers(t, func(t *testing.T, h *host) {
		c := h.connect(t)
		clock, err := c.Clock(t.Context())
		if err != nil || clock.Least > time.Millisecond || clock.Most < -time.Millisecond || clock.Most-clock.Least > 5*time.Second {
			t.Errorf("%+v, %v", clock, err)
		}
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil || clock.Boot != strings.TrimSpace(string(boot)) {
			t.Errorf("boot %q is not %q, %v", clock.Boot, boot, err)
		}
	})
}

func TestSetClock(t *testing.T) {
	// Give the guest its own date, which leaves this machine's clock alone.
	bin := t.TempDir()
	const script = `#!/bin/sh
case "$1" in
-u) echo "$3" >"$STATE" ;;
*) [ -f "$STATE" ] && sed s/@// "$STATE" || echo 1000000000.5 ;;
esac
`
	if err := os.WriteFile(filepath.Join(bin, "date"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	h := testServer(t, func(o *guesttest.Options) { t.Setenv("STATE", filepath.Join(o.Dir, "state")) })
	c := h.connect(t)
	// The server does not pass STATE on, so write it into the script.
	baked := strings.ReplaceAll(script, "$STATE", filepath.Join(h.dir, "state"))
	if err := os.WriteFile(filepath.Join(bin, "date"), []byte(baked), 0o700); err != nil {
		t.Fatal(err)
	}
	clock, err := c.Clock(t.Context())
	if want := time.Until(time.Unix(1000000000, 5e8)); err != nil || (clock.Least-want).Abs() > 5*time.Second {
		t.Errorf("%+v, want %s, %v", clock, want, err)
	}
	// The fake clock stops when it is set, so it falls behind while it is read.
	before := time.Now()
	if clock, err = c.SetClock(t.Context()); err != nil || clock.Most < -time.Since(before) || clock.Most > 5*time.Second {
		t.Errorf("%+v after setting, %v", clock, err)
	}
	state, err := os.ReadFile(filepath.Join(h.dir, "state"))
	if set, _ := strconv.ParseFloat(strings.TrimSpace(strings.TrimPrefix(string(state), "@")), 64); set < float64(before.UnixNano())/1e9 {
		t.Errorf("set to %q, which was over when it was asked for", state)
	}
	if err != nil || !strings.HasPrefix(string(state), "@"+fmt.Sprint(time.Now().Unix())[:7]) {
		t.Errorf("%q %v", state, err)
	}
	if err := os.WriteFile(filepath.Join(bin, "date"), []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetClock(t.Context()); err == nil {
		t.Error("a failing date is no error")
	}
}
