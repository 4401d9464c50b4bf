package config

import (
	"fmt"
	"strings"
	"testing"
)

// changed has, for each key that a project can set, a value other than the default and the text
// that people see for that change.
var changed = map[string][2]string{
	"image":              {`image = "other"`, "image debian-13 → other"},
	"cpus":               {"cpus = 3", "cpus 4 → 3"},
	"memory":             {`memory = "3GiB"`, "memory 4GiB → 3GiB"},
	"disk":               {`disk = "50GiB"`, "disk 40GiB → 50GiB"},
	"mount":              {"mount = false", "mount true → false"},
	"mounts":             {`mounts = [{ source = "/x" }]`, "mounts"},
	"bind_guard":         {"bind_guard = false", "bind_guard true → false"},
	"docker.daemon":      {"docker.daemon.debug = true", "docker.daemon"},
	"network.mode":       {`network.mode = "offline"`, "network.mode user → offline"},
	"network.egress":     {`network.egress = ["example.org"]`, "network.egress"},
	"network.host_ports": {"network.host_ports = [5432]", "network.host_ports"},
	"ports.prefer":       {`ports.prefer = "own"`, "ports.prefer shared → own"},
	"ports.map":          {"ports.map = { 80 = 8080 }", "ports.map"},
	"ports.most":         {"ports.most = 3", "ports.most 256 → 3"},
	"ports.deny":         {"ports.deny = [5432]", "ports.deny"},
	"provision.packages": {`provision.packages = ["git"]`, "provision.packages"},
	"provision.script":   {`provision.script = "` + strings.Repeat("true;", 20) + `"`, "provision.script"},
	"share.durable":      {"share.durable = true", "share.durable false → true"},
	"share.ignore":       {`share.ignore = ["x"]`, "share.ignore"},
}

// A change to one key shows as one change of that key, and applies when the table says.
func TestChanges(t *testing.T) {
	base := Default(bigHost)
	for _, k := range Keys() {
		c, ok := changed[k.Name]
		if ok == k.UserOnly {
			t.Errorf("%s: this test has a value: %v", k.Name, ok)
		}
		if !ok {
			continue
		}
		now, err := apply(Default(bigHost), "f", c[0], bigHost, false)
		if err != nil {
			t.Fatal(err)
		}
		if k.Applies != AppliesUp && k.Applies != AppliesStart && k.Applies != AppliesNew {
			t.Errorf("%s: say in the table of keys when a change takes effect", k.Name)
		}
		for _, then := range []Applies{AppliesCommand, AppliesUp, AppliesStart, AppliesNew} {
			want := "[]"
			if then == k.Applies {
				want = "[" + c[1] + "]"
			}
			if got := fmt.Sprint(Changes(base, now, then)); got != want {
				t.Errorf("%s: what takes effect %s: %s, want %s", k.Name, then, got, want)
			}
		}
	}
	same, err := apply(Default(bigHost), "f", "cpus = 4\nmemory = \"4096MiB\"\n[docker.daemon]", bigHost, false)
	if err != nil {
		t.Fatal(err)
	}
	if got := Changes(base, same, AppliesStart); len(got) > 0 {
		t.Errorf("said out loud: %v", got)
	}
}
