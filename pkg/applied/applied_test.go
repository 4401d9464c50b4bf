package applied_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/grant"
	"github.com/devvm/devvm/pkg/share"
)

const dir = "/home/u/app"

// everything sets each key to a value other than its default.
const everything = "image = 'other'\ncpus = 3\nmemory = '3GiB'\ndisk = '50GiB'\nmount = false\nbind_guard = false\nmounts = [{source = '/x', target = '/y', writable = true}]\n" +
	"[docker.daemon]\na = 1\nb = 1.5\nc = [{d = true}]\n[network]\negress = ['a.example:443']\nhost_ports = [1]\nmode = 'offline'\n" +
	"[ports]\nprefer = 'own'\nmap = {80 = 8080}\nmost = 7\ndeny = [9]\n[provision]\npackages = ['git']\nscript = 'x'\n[share]\nignore = ['y']\ndurable = true"

func load(t *testing.T, text string) config.Config {
	t.Helper()
	at := t.TempDir()
	if err := os.WriteFile(filepath.Join(at, config.FileName), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(at, config.Env{CPUs: 8, Memory: 64 * config.GiB})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// A record reads back as it was written, every key of it.
func TestRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "applied.json")
	if r, err := applied.Read(path); err != nil || r.Agreed != nil || r.Start != nil || len(r.Exports()) > 0 {
		t.Fatalf("without a file: %+v, %v", r, err)
	}
	cfg := load(t, everything)
	plain := load(t, "").Values()
	for key, value := range cfg.Values() {
		if reflect.DeepEqual(value, plain[key]) {
			t.Errorf("%s has its default: give it another value", key)
		}
	}
	wanted := grant.Of(dir, cfg, []grant.Share{{Source: "/x", Writable: true}})
	start := applied.Start{Config: cfg, Exports: []share.Export{{Source: "/x", Target: "/y", Writable: true}}, HadExports: true}
	for _, r := range []applied.Record{{}, {Agreed: &wanted}, {Start: &start}, {Agreed: &wanted, Start: &start}} {
		if err := r.Write(path); err != nil {
			t.Fatal(err)
		}
		back, err := applied.Read(path)
		if err != nil || (back.Agreed == nil) != (r.Agreed == nil) || (back.Start == nil) != (r.Start == nil) {
			t.Fatalf("%+v, %v, want %+v", back, err, r)
		}
		if back.Agreed != nil {
			if got := grant.Compare(*back.Agreed, wanted); len(got) > 0 {
				t.Errorf("asked about again: %q", got)
			}
			back.Agreed.File = "" // every key is compared
			if got := grant.Compare(*back.Agreed, wanted); len(got) > 0 {
				t.Errorf("what was kept is less: %q", got)
			}
		}
		if back.Start != nil {
			for _, then := range []config.Applies{config.AppliesUp, config.AppliesStart, config.AppliesNew} {
				if got := config.Changes(back.Start.Config, cfg, then); len(got) > 0 {
					t.Errorf("the start had another %v", got)
				}
			}
			if !reflect.DeepEqual(back.Exports(), start.Exports) || !back.Start.HadExports {
				t.Errorf("%+v", back.Start)
			}
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	}
}

// A file that is not complete and valid grants nothing, and says nothing about the VM.
func TestDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "applied.json")
	wanted := grant.Of(dir, load(t, everything), nil)
	if err := (applied.Record{Agreed: &wanted, Start: &applied.Start{Config: wanted.Config}}).Write(path); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	plain := grant.Of(dir, load(t, ""), nil)
	check := func(what string) {
		t.Helper()
		r, err := applied.Read(path)
		if err == nil || !strings.Contains(err.Error(), path) || r.Start != nil || r.Agreed == nil {
			t.Fatalf("%s: %+v, %v", what, r, err)
		}
		if r.Agreed.File != "" || !r.Agreed.Config.Policy().Equal(egress.Policy{Offline: true}) || len(grant.Compare(*r.Agreed, plain)) < 4 {
			t.Errorf("%s grants %+v", what, r.Agreed)
		}
	}
	for _, bad := range []string{
		"", " ", "[]", "{", "{}", `{"version":2}`, `{"version":1,"agreed":{}}`, `{"version":1,"start":{}}`, `{"version":1,"agreed":{"values":{"cpus":"x"}}}`,
		`{"version":1,"agreed":{"values":{"cpus":1e99}}}`, `{"version":1,"start":{"values":{"network.egress":["["]}}}`,
	} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		check(fmt.Sprintf("%q", bad))
	}
	for n := range whole[:len(whole)-2] { // without the last two bytes, which only end the object
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		check(fmt.Sprintf("%d bytes of %d", n, len(whole)))
	}
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	check("a directory")
	if _, err := applied.Read(path); !errors.Is(err, syscall.EISDIR) {
		t.Error(err)
	}
	// A missing key has its default, an unknown key is ignored.
	if err := errors.Join(os.Remove(path), os.WriteFile(path, []byte(`{"version":1,"agreed":{"values":{"cpus":2,"future":1}}}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	if r, err := applied.Read(path); err != nil || r.Agreed.Config.CPUs != 2 || !r.Agreed.Config.Mount {
		t.Errorf("%+v, %v", r, err)
	}
}
