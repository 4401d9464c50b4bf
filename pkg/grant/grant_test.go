package grant_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/grant"
)

const dir = "/home/u/app"

// load returns what a devvm.toml asks for.
func load(t *testing.T, text string, shares ...grant.Share) grant.Grant {
	t.Helper()
	at := t.TempDir()
	if err := os.WriteFile(filepath.Join(at, config.FileName), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(at, config.Env{CPUs: 8, Memory: 64 * config.GiB})
	if err != nil {
		t.Fatal(err)
	}
	return grant.Of(dir, cfg, shares)
}

// growth has, for each key that needs consent, a file that asks for little, one that asks for
// more, and the lines about the difference.
var growth = map[string]struct {
	little, more string
	lines        []string
}{
	"image":              {`image = "a"`, `image = "b"`, []string{`image = "b"`}},
	"cpus":               {"cpus = 1", "cpus = 8", []string{"cpus = 8 (was: 1)"}},
	"memory":             {`memory = "1GiB"`, `memory = "23GiB"`, []string{`memory = "23GiB" (was: "1GiB")`}},
	"disk":               {`disk = "10GiB"`, `disk = "15TiB"`, []string{`disk = "15TiB" (was: "10GiB")`}},
	"mount":              {"mount = false", "mount = true", []string{"mount = true"}},
	"docker.daemon":      {"[docker.daemon]\ndebug = true", "[docker.daemon]\ndebug = true\nruntimes.x.path = '/x'", []string{`docker.daemon.runtimes = {x = {path = "/x"}}`}},
	"network.mode":       {"[network]\nmode = 'offline'", "[network]\nmode = 'user'", []string{`egress = "all" (was: "none")`}},
	"network.egress":     {"[network]\negress = ['a.example']", "[network]\negress = ['a.example', 'b.example']", []string{"egress + b.example"}},
	"network.host_ports": {"", "[network]\nhost_ports = [22]", []string{"host_ports + 22"}},
	"ports.map":          {"[ports]\nmap = {80 = 8080}", "[ports]\nmap = {80 = 8081, 81 = 8082}", []string{"ports.map + 80 = 8081", "ports.map + 81 = 8082"}},
	"ports.most":         {"[ports]\nmost = 10", "[ports]\nmost = 4096", []string{"ports.most = 4096 (was: 10)"}},
	"ports.deny":         {"[ports]\ndeny = [5432, 6379]", "[ports]\ndeny = [6379]", []string{"ports.deny - 5432"}},
	"provision.packages": {"[provision]\npackages = ['make']", "[provision]\npackages = ['git', 'make']", []string{"provision.packages + git"}},
	"provision.script":   {"[provision]\nscript = 'true'", "[provision]\nscript = '''\ntrue\nevil\n'''", []string{"provision.script + evil"}},
}

// Each key says whether more of it needs the user's consent. If so, Compare notices.
func TestEveryKey(t *testing.T) {
	for _, k := range config.Keys() {
		c, known := growth[k.Name]
		switch {
		case k.Consent == config.ConsentFree:
			if k.Free == "" || known {
				t.Errorf("%s: it is not said why more of it is free, or there is a test that it is not", k.Name)
			}
			continue
		case k.Free != "":
			t.Errorf("%s: is asked about, and says why not", k.Name)
			continue
		case k.Consent != config.ConsentGrowth && k.Consent != config.ConsentReach:
			t.Errorf("%s: say in the table of keys whether more of it needs the user's word", k.Name)
			continue
		case k.Name == "mounts": // see TestShares
			continue
		case !known:
			t.Errorf("%s: there is no test that more of it is asked about", k.Name)
			continue
		}
		little, more := load(t, c.little), load(t, c.more)
		if got := grant.Compare(little, more); fmt.Sprint(got) != fmt.Sprint(c.lines) {
			t.Errorf("%s: asked about %q, want %q", k.Name, got, c.lines)
		}
		for _, same := range []grant.Grant{little, more} {
			if got := grant.Compare(same, same); len(got) > 0 {
				t.Errorf("%s: the same is asked about: %q", k.Name, got)
			}
			if got := grant.Compare(grant.Nothing(), same); len(got) == 0 {
				t.Errorf("%s: after nothing, nothing is more", k.Name)
			}
		}
		if got := grant.Compare(more, little); len(got) > 0 && k.Name != "image" && k.Name != "ports.map" && k.Name != "provision.script" {
			t.Errorf("%s: less is asked about: %q", k.Name, got)
		}
		// The first time, sizes are accepted as they are, but reach is not.
		own := load(t, "")
		asked := len(grant.Compare(grant.First(own, more), more)) > 0
		if want := k.Name == "network.host_ports" || k.Name == "ports.most"; asked != want {
			t.Errorf("%s: at first: asked about: %v", k.Name, asked)
		}
	}
}

func TestShares(t *testing.T) {
	inner, outer := dir+"/inner", "/srv/outer"
	share := func(source string, writable bool) grant.Share { return grant.Share{Source: source, Writable: writable} }
	all, none := load(t, ""), load(t, "mount = false")
	with := func(g grant.Grant, shares ...grant.Share) grant.Grant { g.Shares = shares; return g }
	for _, c := range []struct {
		what           string
		agreed, wanted grant.Grant
		lines          string
	}{
		{"inside", all, with(all, share(inner, true)), ""},
		{"outside", all, with(all, share(outer, false)), "mounts + /srv/outer (read-only)"},
		{"beside, by a name like the project's", all, with(all, share(dir+"2", false)), "mounts + /home/u/app2 (read-only)"},
		{"the same", with(all, share(outer, false)), with(all, share(outer, false)), ""},
		{"writable", with(all, share(outer, false)), with(all, share(outer, true)), "mounts + /srv/outer (writable)"},
		{"read-only", with(all, share(outer, true)), with(all, share(outer, false)), ""},
		{"below one", with(all, share(outer, true)), with(all, share(outer+"/x", false)), "mounts + /srv/outer/x (read-only)"},
		{"inside, without the project's directory", none, with(none, share(inner, false)), "mounts + /home/u/app/inner (read-only)"},
		{"at first, inside", grant.First(load(t, ""), with(none, share(inner, true))), with(none, share(inner, true)), ""},
		{"at first, outside", grant.First(load(t, ""), with(all, share(outer, true))), with(all, share(outer, true)), "mounts + /srv/outer (writable)"},
		{"at first, by the user's own file", grant.First(load(t, "", share(outer, true)), with(all, share(outer, true))), with(all, share(outer, true)), ""},
	} {
		if got := strings.Join(grant.Compare(c.agreed, c.wanted), ", "); got != c.lines {
			t.Errorf("%s: %q, want %q", c.what, got, c.lines)
		}
	}
}

// An unchanged file asks for the same, even if the user's own file or the host's size makes it
// mean more. The targets of its mounts are compared.
func TestSameFile(t *testing.T) {
	agreed, wanted := load(t, "# the same"), load(t, "# the same")
	wanted.Config.Memory *= 2
	if got := grant.Compare(agreed, wanted); len(got) > 0 {
		t.Error(got)
	}
	wanted.Shares = []grant.Share{{Source: "/etc"}}
	if got := grant.Compare(agreed, wanted); len(got) != 1 {
		t.Error(got)
	}
	other := load(t, "# another")
	other.Config.Memory *= 2
	if got := grant.Compare(agreed, other); len(got) != 1 {
		t.Error("the control: ", got)
	}
	// A missing file is treated like a file.
	gone := grant.Of(dir, config.Default(config.Env{}), nil)
	if got := grant.Compare(grant.Nothing(), gone); len(got) == 0 {
		t.Error("no file is what was never agreed to")
	}
}

func TestNested(t *testing.T) {
	own := load(t, "")
	small := load(t, "cpus = 1\nmemory = '1GiB'\n[network]\negress = ['a.example', 'b.example']\nhost_ports = [1, 2]\n[provision]\nscript = 'x'")
	large := load(t, "cpus = 8\nmemory = '32GiB'\n[network]\negress = ['b.example', 'c.example']\nhost_ports = [2, 3]", grant.Share{Source: "/srv"})
	for _, c := range []struct {
		what   string
		outer  []grant.Grant
		policy string
		cpus   int
	}{
		{"one small", []grant.Grant{small}, "a.example, b.example", 4},
		{"one large", []grant.Grant{large}, "b.example, c.example", 8},
		{"both", []grant.Grant{small, large}, "b.example", 4},
		{"one of which nothing is known", []grant.Grant{large, grant.Nothing()}, "offline", 4},
	} {
		got := grant.Nested(own, c.outer)
		if p := got.Config.Policy(); p.String() != c.policy || got.Config.CPUs != c.cpus || got.Config.Script != "" || len(got.Shares) > 0 {
			t.Errorf("%s: %s, %d CPUs, %q, %v", c.what, p, got.Config.CPUs, got.Config.Script, got.Shares)
		}
	}
	// The user's own file does not widen the network beyond what the other VMs have.
	if got := grant.Compare(grant.Nested(own, []grant.Grant{small}), own); fmt.Sprint(got) != `[egress = "all" (was: ["a.example", "b.example"])]` {
		t.Errorf("%q", got)
	}
}
