package project

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/machine"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/supervisor"
)

// TestShortOfRoom: only a disk of the VM's that is full, or nearly, is to blame.
func TestShortOfRoom(t *testing.T) {
	const gib = 1 << 30
	for name, tt := range map[string]struct {
		room *supervisor.Room
		want string
	}{
		"not known": {nil, ""},
		"room":      {&supervisor.Room{Room: guest.Room{Disk: 20 * gib, DiskFree: 10 * gib, Inodes: 1e6, InodesFree: 1e5}}, ""},
		"btrfs":     {&supervisor.Room{Room: guest.Room{Disk: 20 * gib, DiskFree: 10 * gib}}, ""},
		"full":      {&supervisor.Room{Room: guest.Room{Disk: 20 * gib}}, "the VM's disk is full: "},
		"nearly":    {&supervisor.Room{Room: guest.Room{Disk: 20 * gib, DiskFree: gib / 2}}, "the VM's disk has only 512 MiB left: "},
		"files":     {&supervisor.Room{Room: guest.Room{Disk: 20 * gib, DiskFree: 10 * gib, Inodes: 1e6, InodesFree: 900}}, "the VM's disk can hold only 900 more files: "},
	} {
		t.Run(name, func(t *testing.T) {
			run, err := os.MkdirTemp("/tmp", "dv") //nolint:usetesting // sockets need a short path
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(run)
			s := &Service{Env: machine.Env{Dirs: state.Dirs{Data: t.TempDir(), Runtime: run}}}
			p := state.Project{Name: "app-12345678"}
			socket := s.Dirs.Files(p.Name).ControlSocket()
			if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
				t.Fatal(err)
			}
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { //nolint:gosec // for one client
				_ = json.NewEncoder(w).Encode(supervisor.Status{Room: tt.room})
			})}
			defer server.Close()
			go func() { _ = server.Serve(l) }()
			got := s.ShortOfRoom(t.Context(), p)
			if !strings.HasPrefix(got, tt.want) || (got == "") != (tt.want == "") {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
