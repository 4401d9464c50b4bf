package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/egress"
)

// bigHost and smallHost are the hosts of the tests.
var (
	bigHost   = Env{CPUs: 16, Memory: 64 * GiB}
	smallHost = Env{CPUs: 2, Memory: 3*GiB + 700*MiB + 12345}
)

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaults(t *testing.T) {
	for _, c := range []struct {
		env    Env
		cpus   int
		memory int64
	}{
		{bigHost, 4, 4 * GiB},
		{smallHost, 2, 1886 * MiB},
		{Env{CPUs: 1, Memory: 900 * MiB}, 1, 512 * MiB},
		{Env{CPUs: 1, Memory: 400 * MiB}, 1, 400 * MiB},
		{Env{}, 1, 4 * GiB},
	} {
		got, err := Load(t.TempDir(), c.env)
		if err != nil {
			t.Fatal(err)
		}
		if got.CPUs != c.cpus || got.Memory != c.memory || got.Disk != 40*GiB || got.Image != "debian-13" || got.NetworkMode != NetworkUser {
			t.Errorf("%+v: %+v", c.env, got)
		}
		if got.Origin("cpus") != "default" || got.File != "" || got.UserFile != "" || len(got.Packages) > 0 || got.Script != "" || string(got.DaemonJSON(9000, nil)) != "{\n  \"host-gateway-ip\": \"192.0.2.254\",\n  \"mtu\": 9000\n}\n" || !got.Policy().Equal(egress.Default()) {
			t.Errorf("%+v", got)
		}
	}
}

func TestLayers(t *testing.T) {
	dir := t.TempDir()
	env := bigHost
	env.UserFile = write(t, filepath.Join(dir, "home", "config.toml"), `
cpus = 8
memory = "8GiB"
[host]
uri = "qemu:///system"
[docker.daemon]
debug = true
labels = ["a", "b"]
log-opts = { max-size = "10m", max-file = "3" }
[provision]
packages = ["git"]
`)
	file := write(t, filepath.Join(dir, "p", FileName), `# comment
cpus = 2
docker.daemon.labels = ["c"]
docker.daemon.log-opts.max-file = "5"
docker.daemon."a.b" = 1.5
provision.script = """
echo hi
"""
`)
	c, err := Load(filepath.Dir(file), env)
	if err != nil {
		t.Fatal(err)
	}
	if c.CPUs != 2 || c.Memory != 8*GiB || c.URI != "qemu:///system" || c.Script != "echo hi\n" || len(c.Packages) != 1 {
		t.Errorf("%+v", c)
	}
	if c.File != file || c.UserFile != env.UserFile {
		t.Errorf("files %q, %q", c.File, c.UserFile)
	}
	for key, want := range map[string]string{
		"image":                  "default",
		"cpus":                   file + ":2",
		"memory":                 env.UserFile + ":3",
		"docker.daemon.debug":    env.UserFile + ":7",
		"docker.daemon.labels":   file + ":3",
		"docker.daemon.log-opts": file + ":4",
		`docker.daemon."a.b"`:    file + ":5",
		"provision.packages":     env.UserFile + ":11",
		"provision.script":       file + ":6",
		"host.uri":               env.UserFile + ":5",
		"no.such.key":            "default",
	} {
		if got := c.Origin(key); got != want {
			t.Errorf("origin of %s: %s, want %s", key, got, want)
		}
	}
	want := `{
  "a.b": 1.5,
  "debug": true,
  "host-gateway-ip": "192.0.2.254",
  "labels": [
    "c"
  ],
  "log-opts": {
    "max-file": "5",
    "max-size": "10m"
  },
  "mtu": 9000
}
`
	if diff := cmp.Diff(want, string(c.DaemonJSON(9000, nil))); diff != "" {
		t.Error(diff)
	}
	pools := []string{"10.0.0.0/8"}
	if got := string(c.DaemonJSON(9000, pools)); got != strings.Replace(want, `  "host-gateway-ip"`, "  \"default-address-pools\": [\n    \"10.0.0.0/8\"\n  ],\n  \"host-gateway-ip\"", 1) {
		t.Error(got)
	}
	c.Daemon["default-address-pools"] = "own"
	if got := string(c.DaemonJSON(9000, pools)); strings.Contains(got, "10.0.0.0/8") || !c.HasPools() {
		t.Error(got)
	}
	delete(c.Daemon, "default-address-pools")
	toml := strings.ReplaceAll(c.TOML(), dir, "/DIR")
	golden(t, "testdata/effective.toml", toml)
	if _, err := json.Marshal(c.Entries()); err != nil {
		t.Error(err)
	}

	env.URI = "qemu:///session"
	if c, err = Load(filepath.Dir(file), env); err != nil || c.URI != "qemu:///session" || c.Origin("host.uri") != "$DEVVM_LIBVIRT_URI" {
		t.Errorf("%v %q %q", err, c.URI, c.Origin("host.uri"))
	}
	env.URI = "xen:///"
	if _, err = Load(filepath.Dir(file), env); err == nil || !strings.Contains(err.Error(), "DEVVM_LIBVIRT_URI") {
		t.Errorf("%v", err)
	}
}

// Without a project, even a file in the current directory does not count.
func TestNoProject(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, FileName, "cpu = 1")
	if c, err := Load("", bigHost); err != nil || c.File != "" {
		t.Errorf("%+v, %v", c, err)
	}
}

// Applying one file over another must not change the first.
func TestLayersDoNotShare(t *testing.T) {
	base, err := apply(Default(bigHost), "a", "docker.daemon.x = {a = 1}", bigHost, true)
	if err != nil {
		t.Fatal(err)
	}
	before := string(base.DaemonJSON(9000, nil))
	if _, err := apply(base, "b", "cpus = 1\ndocker.daemon.x = {b = 2}", bigHost, false); err != nil {
		t.Fatal(err)
	}
	if string(base.DaemonJSON(9000, nil)) != before || base.Origin("cpus") != "default" {
		t.Error("the base has changed")
	}
}

// Every message as the user sees it.
func TestMessages(t *testing.T) {
	cases := []struct{ name, text string }{
		{"unknown key", "\n\ncpu = 2\n"},
		{"unknown key, swapped letters", "memroy = \"4GiB\"\n"},
		{"unknown key, upper case", "CPUs = 4\n"},
		{"unknown key, cut", "mem = \"4GiB\"\n"},
		{"unknown key, nothing near", "volumes = [80]\n"},
		{"unknown key in a table", "[network]\nmode = \"user\"\nmod = \"user\"\n"},
		{"unknown table", "[provisioning]\nscript = \"x\"\n"},
		{"unknown table, nothing near", "[kubernetes]\nenabled = true\n"},
		{"key of a table at the top", "packages = [\"git\"]\n"},
		{"key of the top in a table", "[network]\nmode = \"user\"\ncpus = 2\n"},
		{"unknown key in quotes", "\"a \\u001b[31m b\" = 2\n"},
		{"unknown key, long", strings.Repeat("x", 300) + " = 2\n"},
		{"engine key outside daemon", "[docker]\ndebug = true\n"},
		{"first of two errors", "[network]\nmode = \"usr\"\n[provision]\npackage = []\n"},
		{"table is a value", "network = \"user\"\n"},
		{"table in double brackets", "[[network]]\nmode = \"user\"\n"},
		{"value is a table", "[cpus]\ncount = 2\n"},

		{"cpus as string", "cpus = \"4\"\n"},
		{"cpus as fraction", "cpus = 4.0\n"},
		{"cpus zero", "cpus = 0\n"},
		{"cpus negative", "cpus = -3\n"},
		{"cpus above the host", "cpus = 17\n"},
		{"cpus beyond the integers", "cpus = 99999999999999999999\n"},
		{"memory as number", "memory = 4096\n"},
		{"memory as small number", "memory = 8\n"},
		{"memory without unit", "memory = \"4096\"\n"},
		{"memory 4G", "memory = \"4G\"\n"},
		{"memory 4gb", "memory = \"4gb\"\n"},
		{"memory odd unit", "memory = \"4 parsec\"\n"},
		{"memory no number", "memory = \"lots\"\n"},
		{"memory negative", "memory = \"-4GiB\"\n"},
		{"memory empty", "memory = \"\"\n"},
		{"memory two points", "memory = \"1.2.3GiB\"\n"},
		{"memory too small", "memory = \"64MiB\"\n"},
		{"memory above the host", "memory = \"65GiB\"\n"},
		{"memory absurd", "memory = \"99999999999999999999TiB\"\n"},
		{"memory unquoted", "memory = 4GiB\n"},
		{"disk too small", "disk = \"100MB\"\n"},
		{"disk too large", "disk = \"17TiB\"\n"},
		{"disk without unit", "disk = \"40\"\n"},
		{"image empty", "image = \"\"\n"},
		{"image path tricks", "image = \"../x\"\n"},
		{"image control character", "image = \"a\\u0007\"\n"},
		{"image wrong type", "image = [\"debian-13\"]\n"},
		{"mode unknown", "network.mode = \"bridge\"\n"},
		{"mode near", "network.mode = \"ofline\"\n"},
		{"mode bool", "network.mode = false\n"},
		{"prefer unknown", "ports.prefer = \"lan\"\n"},
		{"prefer near", "ports.prefer = \"share\"\n"},
		{"prefer bool", "ports.prefer = true\n"},
		{"ports list", "ports = [80]\n"},
		{"map list", "ports.map = [80]\n"},
		{"map name", "[ports.map]\n80 = 8080\nhttp = 8081\n"},
		{"map zero", "ports.map = { 0 = 1 }\n"},
		{"map odd number", "ports.map = { 080 = 1 }\n"},
		{"map string", "ports.map = { 80 = \"8080\" }\n"},
		{"map too large", "ports.map = { 80 = 65536 }\n"},
		{"most string", "ports.most = \"256\"\n"},
		{"most large", "ports.most = 5000\n"},
		{"deny number", "ports.deny = 5432\n"},
		{"deny zero", "ports.deny = [0]\n"},
		{"deny string", "ports.deny = [\"5432\"]\n"},
		{"map twice", "[ports.map]\n80 = 8080\n81 = 8080\n"},

		{"egress unknown string", "network.egress = \"some\"\n"},
		{"egress near", "network.egress = \"nome\"\n"},
		{"egress one destination", "network.egress = \"registry.example.com:443\"\n"},
		{"egress bool", "network.egress = false\n"},
		{"egress all in a list", "[network]\negress = [\"all\"]\n"},
		{"egress URL", "[network]\negress = [\n  \"*.example.org\",\n  \"https://registry.example.com/v2/\",\n]\n"},
		{"egress host", "network.egress = [\"localhost:5432\"]\n"},
		{"egress number", "network.egress = [5432]\n"},
		{"egress bits", "network.egress = [\"10.20.0.5/16\"]\n"},
		{"egress control character", "network.egress = [\"a\\u001b[31m\"]\n"},
		{"egress too long", "network.egress = [" + strings.Repeat("\"a\",", 501) + "]\n"},
		{"host_ports number", "network.host_ports = 5432\n"},
		{"host_ports string", "network.host_ports = [\"5432\"]\n"},
		{"host_ports pair", "network.host_ports = [\"5432:5432\"]\n"},
		{"host_ports zero", "network.host_ports = [0]\n"},
		{"host_ports large", "network.host_ports = [65536]\n"},
		{"host_ports elsewhere", "host_ports = [5432]\n"},

		{"packages string", "provision.packages = \"git\"\n"},
		{"package number", "provision.packages = [\"git\", 3]\n"},
		{"package upper case", "provision.packages = [\"Git\"]\n"},
		{"package option", "provision.packages = [\"-oAPT::X=y\"]\n"},
		{"package version", "provision.packages = [\"git=1.0\"]\n"},
		{"script list", "provision.script = [\"a\"]\n"},
		{"script NUL", "provision.script = \"a\\u0000b\"\n"},

		{"daemon hosts", "[docker.daemon]\ndebug = true\nhosts = [\"tcp://0.0.0.0:2375\"]\n"},
		{"daemon Hosts", "[docker.daemon]\nHosts = []\n"},
		{"daemon tls", "docker.daemon.tlsverify = true\n"},
		{"daemon containerd", "docker.daemon.containerd = \"/x\"\n"},
		{"daemon date", "docker.daemon.x = [{y = 2026-01-02}]\n"},
		{"daemon infinite", "docker.daemon.x = -inf\n"},
		{"daemon bip", "docker.daemon.bip = \"192.0.2.1/24\"\n"},
		{"daemon pool", "[docker.daemon]\ndefault-address-pools = [{base = \"192.0.0.0/16\", size = 24}]\n"},
		{"daemon pools as tables", "[[docker.daemon.default-address-pools]]\nbase = \"192.0.2.128/25\"\n"},
		{"daemon list", "docker.daemon = [1]\n"},
		{"docker string", "docker = \"yes\"\n"},

		{"mount string", "mount = \"no\"\n"},
		{"mounts string", "mounts = \"../data\"\n"},
		{"mounts of strings", "mounts = [\"../data\"]\n"},
		{"mount without source", "[[mounts]]\ntarget = \"/data\"\n"},
		{"mount key near", "[[mounts]]\nsource = \"a\"\nwriteable = true\n"},
		{"mount key unknown", "[[mounts]]\nsource = \"a\"\nowner = \"me\"\n"},
		{"mount writable string", "[[mounts]]\nsource = \"a\"\nwritable = \"yes\"\n"},
		{"mount, the second of two", "cpus = 2\n\n[[mounts]]\nsource = \"a\"\n\n[[mounts]]\nsource = \"b\"\nwritable = 1\n"},
		{"mount, the second of a list", "mounts = [\n\t{source = \"a\"},\n\t{target = \"/b\"},\n]\n"},
		{"mount target relative", "[[mounts]]\nsource = \"a\"\ntarget = \"data\"\n"},
		{"mount target with dots", "[[mounts]]\nsource = \"a\"\ntarget = \"/data/../etc\"\n"},
		{"mount of another's home", "mounts = [{source = \"~bob/x\"}]\n"},
		{"mounts, too many", strings.Repeat("[[mounts]]\nsource = \"a\"\n", 33)},

		{"ignore string", "share.ignore = \".git\"\n"},
		{"ignore pattern", "share.ignore = [\"[a\"]\n"},

		{"host uri in a project", "[host]\nuri = \"qemu:///system\"\n"},

		{"no equals sign", "cpus 4\n"},
		{"colon", "cpus: 4\n"},
		{"unquoted string", "image = debian-13\n"},
		{"open string", "image = \"debian\ncpus = 2\n"},
		{"open table", "[network\nmode = \"user\"\n"},
		{"twice", "cpus = 2\ncpus = 3\n"},
		{"nul byte", "cpus = 2\x00\n"},
		{"not UTF-8", "# ok\nimage = \"d\xe9bian\"\n"},
		{"UTF-16", "\xff\xfec\x00p\x00"},
		{"too deep", "[docker.daemon]\nx" + strings.Repeat(".x", 40) + " = 1\n"},
		{"too deep lists", "docker.daemon.x = " + strings.Repeat("[", 2000) + "\n"},
		{"too many keys", "[docker.daemon]\n" + manyKeys(501)},
		{"too large", "#" + strings.Repeat("x", maxFile) + "\n"},
	}
	var b strings.Builder
	for _, c := range cases {
		dir := t.TempDir()
		env := bigHost
		env.UserFile = filepath.Join(dir, "config.toml")
		write(t, filepath.Join(dir, FileName), c.text)
		_, err := Load(dir, env)
		var e *Error
		if !errors.As(err, &e) {
			t.Fatalf("%s: %v (%T)", c.name, err, err)
		}
		fmt.Fprintf(&b, "== %s\n", c.name)
		if len(c.text) < 200 {
			fmt.Fprintf(&b, "%q\n", c.text)
		}
		msg := strings.ReplaceAll(e.Error(), dir, "/p")
		fmt.Fprintf(&b, "devvm: %s\nhint: %s\nkey: %s\n\n", msg, strings.ReplaceAll(e.Hint, dir, "/p"), e.Key)
		if e.Line > strings.Count(c.text, "\n")+1 {
			t.Errorf("%s: line %d", c.name, e.Line)
		}
		follow(t, c.name, c.text, e)
		if strings.ContainsAny(msg+e.Hint, "\n\x1b\x00") {
			t.Errorf("%s: control characters in %q %q", c.name, msg, e.Hint)
		}
	}
	golden(t, "testdata/messages.txt", b.String())
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "k%d = 1\n", i)
	}
	return b.String()
}

func TestSmallHostMessages(t *testing.T) {
	_, err := apply(Default(smallHost), "f", `memory = "4GiB"`, smallHost, false)
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(e.Msg, "this host has only 3772MiB") || !strings.Contains(e.Hint, `"3GiB" or less`) {
		t.Errorf("%+v", e)
	}
	tiny := Env{CPUs: 1, Memory: 900 * MiB}
	_, err = apply(Default(tiny), "f", `memory = "4GiB"`, tiny, false)
	if !errors.As(err, &e) || !strings.Contains(e.Hint, `"900MiB" or less`) {
		t.Errorf("%+v", e)
	}
	// The value that a hint proposes is accepted.
	for _, s := range []string{"3GiB", "3772MiB"} {
		if _, err := apply(Default(smallHost), "f", `memory = "`+s+`"`, smallHost, false); err != nil {
			t.Error(err)
		}
	}
}

func TestURI(t *testing.T) {
	for uri, ok := range map[string]bool{
		"qemu:///session": true, "qemu:///system": true, "qemu+unix:///session?socket=/run/x": false, "test:///default": true,
		"": false, "session": false, "xen:///system": false, "qemu://host/system": false, "qemu+ssh://host/system": false,
		"qemu+ssh:///system": false, "qemu://": false, "qemu:///": false, "qemu:///session\n": false, "://": false, "qemu:///%zz": false,
	} {
		_, err := apply(Default(bigHost), "f", "[host]\nuri = "+literal(uri)+"\n", bigHost, true)
		if (err == nil) != ok {
			t.Errorf("%q: %v", uri, err)
		}
	}
	if _, err := apply(Default(bigHost), "f", "[host]\nuri = 3\n", bigHost, true); err == nil {
		t.Error("3 is a URI")
	}
	_, err := apply(Default(bigHost), "f", "[host]\nurl = \"qemu:///session\"\n", bigHost, true)
	if e, ok := errors.AsType[*Error](err); !ok || !strings.Contains(e.Hint, "host.uri") {
		t.Errorf("%v", err)
	}
}

func TestValues(t *testing.T) {
	for text, check := range map[string]func(Config) bool{
		`memory = "1.5GiB"`:               func(c Config) bool { return c.Memory == 1536*MiB },
		`memory = "4 GiB"`:                func(c Config) bool { return c.Memory == 4*GiB },
		`memory = "4GB"`:                  func(c Config) bool { return c.Memory == 3814*MiB },
		`memory = "64GiB"`:                func(c Config) bool { return c.Memory == 64*GiB },
		`memory = "512MiB"`:               func(c Config) bool { return c.Memory == 512*MiB },
		`disk = "16TiB"`:                  func(c Config) bool { return c.Disk == 16*TiB },
		`disk = "10GB"`:                   func(c Config) bool { return c.Disk == 9537*MiB },
		`cpus = 16`:                       func(c Config) bool { return c.CPUs == 16 },
		`cpus = 0x10`:                     func(c Config) bool { return c.CPUs == 16 },
		`image = "sha256:0123abcd"`:       func(c Config) bool { return c.Image == "sha256:0123abcd" },
		`network = { mode = "offline" }`:  func(c Config) bool { return c.NetworkMode == NetworkOffline },
		"ports.most = 0":                  func(c Config) bool { return c.PortsMost == 0 },
		"ports.deny = [6379, 5432, 6379]": func(c Config) bool { return slices.Equal(c.PortsDeny, []uint16{5432, 6379}) },
		`ports = { prefer = "own" }`:      func(c Config) bool { return c.PortsPrefer == PortsOwn },
		"[ports.map]\n80 = 8080": func(c Config) bool {
			return maps.Equal(c.PortsMap, map[uint16]uint16{80: 8080})
		},
		`provision.packages = ["g++", "git", "libc6-dev", "git"]`: func(c Config) bool {
			return cmp.Equal(c.Packages, []string{"g++", "git", "libc6-dev"})
		},
		`provision.packages = []`:                        func(c Config) bool { return c.ProvisionHash() == Default(bigHost).ProvisionHash() },
		`provision.script = " \n "`:                      func(c Config) bool { return strings.TrimSpace(c.Script) == "" },
		"\ufeffcpus = 3\r\n[network]\r\nmode = \"user\"": func(c Config) bool { return c.CPUs == 3 },
		`docker.daemon.bip = "172.30.0.1/16"`:            func(c Config) bool { return c.Daemon["bip"] == "172.30.0.1/16" },
		`docker.daemon.bip = 3`:                          func(c Config) bool { return c.Daemon["bip"] == int64(3) },
		"# \"\"\" ' [[[[\ncpus = 5":                      func(c Config) bool { return c.CPUs == 5 },
		"provision.script = '''" + strings.Repeat("[{.\"", 500) + "''''\ncpus = 6": func(c Config) bool {
			return c.CPUs == 6 && len(c.Script) == 2001
		},
		"[docker.daemon]\n" + manyKeys(490): func(c Config) bool { return len(c.Daemon) == 490 },
	} {
		c, err := apply(Default(bigHost), "f", text, bigHost, false)
		if err != nil {
			t.Errorf("%.60s: %v", text, err)
			continue
		}
		if !check(c) {
			t.Errorf("%.60s: %+v", text, c)
		}
	}
}

// A script's line is the line of its key, however it is written.
func TestLines(t *testing.T) {
	for text, want := range map[string]int{
		"\n[provision]\nscript = \"\"\"\n\n\necho\n\"\"\"": 3,
		"\n[provision]\nscript = '''\necho\n'''":           3,
		"\n[provision]\nscript = \"echo\"":                 3,
		"provision = { script = \"\" }":                    1,
		"\r\nprovision.script = \"\"\"\r\necho\"\"\"":      2,
	} {
		c, err := apply(Default(bigHost), "f", text, bigHost, false)
		if got := c.Origin("provision.script"); err != nil || got != fmt.Sprintf("f:%d", want) {
			t.Errorf("%q: %s, %v", text, got, err)
		}
	}
}

func TestUnreadable(t *testing.T) {
	load := func(t *testing.T, dir string) *Error {
		t.Helper()
		done := make(chan error, 1)
		go func() {
			_, err := Load(dir, bigHost)
			done <- err
		}()
		select {
		case err := <-done:
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%v", err)
			}
			if e.File != filepath.Join(dir, FileName) {
				t.Errorf("file %q", e.File)
			}
			return e
		case <-time.After(10 * time.Second):
			t.Fatal("hangs")
			return nil
		}
	}
	t.Run("directory", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, FileName), 0o755); err != nil {
			t.Fatal(err)
		}
		if e := load(t, dir); !strings.Contains(e.Error(), FileName+": is a directory") || e.Hint == "" {
			t.Error(e)
		}
	})
	t.Run("pipe", func(t *testing.T) {
		dir := t.TempDir()
		if err := unix.Mkfifo(filepath.Join(dir, FileName), 0o644); err != nil {
			t.Fatal(err)
		}
		if e := load(t, dir); !strings.Contains(e.Msg, "is not a plain file") {
			t.Error(e)
		}
	})
	t.Run("dangling link", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Symlink("nowhere", filepath.Join(dir, FileName)); err != nil {
			t.Fatal(err)
		}
		if e := load(t, dir); !strings.Contains(e.Msg, "symbolic link") {
			t.Error(e)
		}
	})
	t.Run("link", func(t *testing.T) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "real"), "cpus = 7")
		if err := os.Symlink("real", filepath.Join(dir, FileName)); err != nil {
			t.Fatal(err)
		}
		if e := load(t, dir); !strings.Contains(e.Msg, "is a symbolic link") || e.Hint == "" {
			t.Error(e)
		}
		// The user's own file may be a link.
		env := bigHost
		env.UserFile = filepath.Join(dir, FileName)
		if c, err := Load("", env); err != nil || c.CPUs != 7 {
			t.Errorf("%+v, %v", c, err)
		}
	})
	t.Run("below a link", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "real"), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "real", FileName), "cpus = 7")
		link := filepath.Join(dir, "link")
		if err := os.Symlink("real", link); err != nil {
			t.Fatal(err)
		}
		if e := load(t, link); !strings.Contains(e.Msg, "below a symbolic link") || e.Hint == "" {
			t.Error(e)
		}
	})
	t.Run("no permission", func(t *testing.T) {
		if os.Getuid() == 0 {
			t.Skip("root reads everything")
		}
		dir := t.TempDir()
		if err := os.Chmod(write(t, filepath.Join(dir, FileName), ""), 0); err != nil {
			t.Fatal(err)
		}
		if e := load(t, dir); !errors.Is(e, fs.ErrPermission) || !strings.Contains(e.Hint, "chmod u+r") {
			t.Error(e)
		}
	})
	t.Run("below a file", func(t *testing.T) {
		file := write(t, filepath.Join(t.TempDir(), "it's a file"), "")
		if e := load(t, file); !strings.Contains(e.Error(), "not a directory") || !strings.Contains(e.Hint, `'\''`) {
			t.Error(e, e.Hint)
		}
	})
	t.Run("device", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Symlink("/dev/zero", filepath.Join(dir, FileName)); err != nil {
			t.Fatal(err)
		}
		if e := load(t, dir); !strings.Contains(e.Msg, "symbolic link") {
			t.Error(e)
		}
	})
	t.Run("empty", func(t *testing.T) {
		dir := t.TempDir()
		file := write(t, filepath.Join(dir, FileName), "")
		if c, err := Load(dir, bigHost); err != nil || c.File != file {
			t.Errorf("%+v, %v", c, err)
		}
	})
	t.Run("user's file", func(t *testing.T) {
		env := bigHost
		env.UserFile = write(t, filepath.Join(t.TempDir(), "config.toml"), "cpu = 1")
		_, err := Load(t.TempDir(), env)
		var e *Error
		if !errors.As(err, &e) || e.File != env.UserFile || e.Line != 1 {
			t.Errorf("%v", err)
		}
	})
}

func TestChecks(t *testing.T) {
	c, err := apply(Default(bigHost), "/p/devvm.toml", "\ndisk = \"2GiB\"\nnetwork.mode = \"offline\"\nprovision.packages = [\"git\"]", bigHost, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CheckDisk(2 * GiB); err != nil {
		t.Error(err)
	}
	var e *Error
	if err := c.CheckDisk(3 * GiB); !errors.As(err, &e) || e.Error() != `/p/devvm.toml:2: disk = "2GiB" is smaller than the base image "debian-13" (3GiB)` || !strings.Contains(e.Hint, `disk = "3GiB"`) {
		t.Errorf("%v", err)
	}
	if err := Default(bigHost).CheckDisk(41 * GiB); err == nil || strings.HasPrefix(err.Error(), ":") {
		t.Errorf("%v", err)
	}
	if err := c.CheckProvision(); !errors.As(err, &e) || e.Line != 4 {
		t.Errorf("%v", err)
	}
	c.NetworkMode = NetworkUser
	if err := c.CheckProvision(); err != nil {
		t.Error(err)
	}
	c.Network = egress.Policy{}
	if err := c.CheckProvision(); !errors.As(err, &e) || e.Line != 4 || !strings.Contains(e.Msg, "egress") {
		t.Errorf("%v", err)
	}
}

func TestNetwork(t *testing.T) {
	for text, want := range map[string]string{
		``:                "all",
		`egress = "all"`:  "all",
		`egress = "none"`: "none",
		`egress = []`:     "none",
		`egress = ["B.example.org.:443", "*.example.org", "b.example.org:443"]`: "b.example.org:443, *.example.org",
		`host_ports = [5432, 22, 5432]`:                                         "all; host ports 22, 5432",
		"egress = \"none\"\nhost_ports = [80]":                                  "none; host ports 80",
		"mode = \"offline\"\nhost_ports = [80]":                                 "offline",
	} {
		c, err := apply(Default(bigHost), "f", "[network]\n"+text, bigHost, false)
		if err != nil || c.Policy().String() != want {
			t.Errorf("%q: %s, %v", text, c.Policy(), err)
		}
		again, err := apply(Default(bigHost), "f", c.TOML(), bigHost, false)
		if err != nil || !again.Policy().Equal(c.Policy()) {
			t.Errorf("%s: %v", c.TOML(), err)
		}
	}
	// A later layer replaces the list of an earlier one.
	c, err := apply(Default(bigHost), "user", "network.egress = [\"a.org\"]\nnetwork.host_ports = [1]", bigHost, true)
	if err == nil {
		c, err = apply(c, "f", "network.egress = [\"b.org\"]", bigHost, false)
	}
	if err != nil || c.Policy().String() != "b.org; host ports 1" {
		t.Errorf("%s, %v", c.Policy(), err)
	}
	// A gateway that the user sets stays.
	for _, key := range []string{"host-gateway-ip = \"192.0.2.1\"", "host-gateway-ips = [\"192.0.2.1\"]"} {
		c, err := apply(Default(bigHost), "f", "[docker.daemon]\n"+key, bigHost, false)
		if err != nil || strings.Contains(string(c.DaemonJSON(9000, nil)), HostAddress) {
			t.Errorf("%s, %v", c.DaemonJSON(9000, nil), err)
		}
	}
	// So does an MTU.
	c, err = apply(Default(bigHost), "f", "[docker.daemon]\nmtu = 1280", bigHost, false)
	if err != nil || strings.Contains(string(c.DaemonJSON(9000, nil)), "9000") {
		t.Errorf("%s, %v", c.DaemonJSON(9000, nil), err)
	}
	// And so does the setting that the documentation gives for users' own networks.
	c, err = apply(Default(bigHost), "f", `docker.daemon.default-network-opts.bridge."com.docker.network.driver.mtu" = "65520"`, bigHost, false)
	if err != nil || string(c.DaemonJSON(9000, nil)) != `{
  "default-network-opts": {
    "bridge": {
      "com.docker.network.driver.mtu": "65520"
    }
  },
  "host-gateway-ip": "192.0.2.254",
  "mtu": 9000
}
` {
		t.Errorf("%s, %v", c.DaemonJSON(9000, nil), err)
	}
}

func TestHashes(t *testing.T) {
	load := func(text string) Config {
		t.Helper()
		c, err := apply(Default(bigHost), "f", text, bigHost, false)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	base := load("")
	// If the hash changes, every provisioned VM looks changed. Do that only on purpose.
	if got, want := base.ProvisionHash(), "373963c9ae75673c269135a165606be8834d1396f14ee3e6467987902f0c6713"; got != want {
		t.Errorf("ProvisionHash() = %s", got)
	}
	for _, c := range []struct {
		text  string
		provn bool // changed
	}{
		{"cpus = 4\nmemory = \"4096MiB\"\n# said out loud", false},
		{"provision.packages = []\nprovision.script = \"\"\n[docker.daemon]", false},
		{"image = \"other\"", false},
		{"network.mode = \"offline\"", false},
		{"network.egress = \"none\"", false},
		{"network.egress = [\"example.org\"]", false},
		{"network.host_ports = [5432]", false},
		{"network.egress = \"all\"\nnetwork.host_ports = []", false},
		{"docker.daemon.debug = true", false},
		{"provision.packages = [\"git\"]", true},
		{"provision.script = \"x\"", true},
	} {
		got := load(c.text)
		if (got.ProvisionHash() != base.ProvisionHash()) != c.provn {
			t.Errorf("%q", c.text)
		}
	}
	a, b := load(`provision.packages = ["git", "make"]`), load(`provision.packages = ["make", "git"]`)
	if a.ProvisionHash() != b.ProvisionHash() {
		t.Error("the order of packages counts")
	}
}

func TestSizes(t *testing.T) {
	for _, n := range []int64{MiB, 512 * MiB, GiB, 1536 * MiB, 40 * GiB, 3 * TiB, MaxDisk} {
		got, wrong := parseSize(FormatSize(n))
		if wrong != nil || got != n {
			t.Errorf("%s: %d, %v", FormatSize(n), got, wrong)
		}
	}
	if got := FormatSize(12345); got != "12345 bytes" {
		t.Error(got)
	}
	if _, wrong := parseSize("4G"); wrong == nil || !strings.Contains(wrong.hint, `write "4GiB"`) {
		t.Error(wrong)
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "ab", 2},
		{"ab", "", 2},
		{"cpus", "cpus", 0},
		{"cpu", "cpus", 1},
		{"memroy", "memory", 1},
		{"diks", "disk", 1},
		{"imgae", "image", 1},
		{"kitten", "sitting", 3},
		{"ünï", "uni", 2},
	} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func TestHostEnv(t *testing.T) {
	env := HostEnv("/home/u/.config/devvm", func(k string) string { return map[string]string{URIVariable: "qemu:///system"}[k] })
	if env.CPUs < 1 || env.Memory < 64*MiB || env.URI != "qemu:///system" || env.UserFile != "/home/u/.config/devvm/config.toml" {
		t.Errorf("%+v", env)
	}
}

// FuzzLoad checks that no file makes Load panic or hang, that every error says where, and that
// an accepted configuration can be written and read again.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(uncomment(Example())))
	f.Add([]byte("docker.daemon.a = [{b = 1.5}, 'x', true, -9, {}]\n"))
	f.Add([]byte("[[docker.daemon.x]]\na = 1\n[[docker.daemon.x]]\na.b = \"\\U0001F433\"\n"))
	f.Add([]byte("provision.script = \"\"\"\\\n  a\"\"\"\"\"\n"))
	f.Add([]byte("cpu = 1\n[network]\nmode = 3"))
	f.Add([]byte("host.uri = \"qemu:///session\""))
	f.Add([]byte("[network]\negress = [\"*.a.org:443\", \"[2001:db8::]/32\", \"10.0.0.0/8:1\"]\nhost_ports = [1, 65535]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		text := string(data)
		if len(text) > maxFile {
			t.Skip("Load refuses a file of this size before it is parsed")
		}
		for _, user := range []bool{false, true} {
			c, err := apply(Default(bigHost), "/p/devvm.toml", text, bigHost, user)
			if err != nil {
				var e *Error
				if !errors.As(err, &e) || e.Msg == "" || e.File == "" || e.Line < 0 || e.Line > strings.Count(text, "\n")+1 {
					t.Fatalf("%#v", err)
				}
				continue
			}
			again, err := apply(Default(bigHost), "/p/again.toml", c.TOML(), bigHost, user)
			if err != nil {
				t.Fatalf("%v\n%s", err, c.TOML())
			}
			if !bytes.Equal(canonical(c.Values(), ""), canonical(again.Values(), "")) || !c.Policy().Equal(again.Policy()) || c.URI != again.URI || string(c.DaemonJSON(9000, nil)) != string(again.DaemonJSON(9000, nil)) {
				t.Fatalf("%s\n%s", c.TOML(), again.TOML())
			}
		}
	})
}

// devvm.toml cannot undo what the user's own file denies projects.
func TestDenyAdds(t *testing.T) {
	dir := t.TempDir()
	env := Env{CPUs: 4, UserFile: write(t, filepath.Join(dir, "home", "config.toml"), "ports.deny = [5432]")}
	write(t, filepath.Join(dir, FileName), "ports.deny = [6379]")
	c, err := Load(dir, env)
	if err != nil || !slices.Equal(c.PortsDeny, []uint16{5432, 6379}) {
		t.Errorf("%v, %v", c.PortsDeny, err)
	}
	write(t, filepath.Join(dir, FileName), "ports.deny = []")
	if c, err = Load(dir, env); err != nil || !slices.Equal(c.PortsDeny, []uint16{5432}) {
		t.Errorf("%v, %v", c.PortsDeny, err)
	}
}
