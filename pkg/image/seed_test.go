package image

import (
	"encoding/json"
	"flag"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	backend "github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files")

func testGuest() Guest {
	return Guest{
		InstanceID: "devvm-app-1a2b3c4d-1", Hostname: "app", Timezone: "Europe/Berlin",
		AuthorizedKeys: "ssh-ed25519 AAAAuser devvm\n\n", DaemonJSON: `{"log-driver": "local"}`,
		HostKey:       "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
		HostKeyPublic: "ssh-ed25519 AAAAhost\n",
	}
}

func TestSeed(t *testing.T) {
	minimal := testGuest()
	minimal.Timezone, minimal.DaemonJSON = "", ""
	for name, g := range map[string]Guest{"seed": testGuest(), "seed-minimal": minimal} {
		files, err := Seed(g)
		if err != nil {
			t.Fatal(err)
		}
		var got strings.Builder
		for _, file := range []string{"user-data", "meta-data", "network-config"} {
			got.WriteString("-- " + file + " --\n" + string(files[file]))
			if !json.Valid([]byte(strings.TrimPrefix(string(files[file]), "#cloud-config\n"))) {
				t.Errorf("%s is not JSON", file)
			}
		}
		golden := filepath.Join("testdata", name+".txt")
		if *update {
			if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got.String()); diff != "" {
			t.Error(diff)
		}
	}
	for _, g := range []Guest{{}, {InstanceID: "a", Hostname: "b", AuthorizedKeys: "\n", HostKey: "c", HostKeyPublic: "d"}} {
		if _, err := Seed(g); err == nil {
			t.Errorf("Seed of %+v: no error", g)
		}
	}
}

func TestWriteSeed(t *testing.T) {
	files, err := Seed(testGuest())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "seed.iso")
	for range 2 { // the second replaces the first
		if err := WriteSeed(path, files); err != nil {
			t.Fatal(err)
		}
	}
	if got := entries(t, dir); len(got) != 1 {
		t.Errorf("left behind: %q", got)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v, want mode 0600", info, err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	iso, err := iso9660.Read(backend.New(f, true), 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimRight(iso.Label(), " \x00"); got != seedLabel {
		t.Errorf("label %q", got)
	}
	for name, want := range files {
		in, err := iso.Open(name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := io.ReadAll(in)
		if diff := cmp.Diff(string(want), string(got)); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
	if list, err := fs.ReadDir(iso, "."); err != nil || len(list) != len(files) {
		t.Errorf("files: %v, %v", list, err)
	}
}
