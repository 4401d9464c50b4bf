package supervisor

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/share"
)

// The script for the VM mounts what is not mounted, whatever its name is, and guards
// the server first.
func TestMountScript(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"iptables-restore": `echo iptables-restore "$@"; cat`,
		"mountpoint":       `case $* in *there*) exit 0;; esac; exit 1`,
		"mount":            `for a; do printf '<%s>' "$a"; done; echo`,
		"mkdir":            `exit 0`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := Share{
		Address: netip.MustParseAddr("192.0.2.1"),
		Exports: []share.Export{
			{Target: "/there"},
			{Target: "/it's $(touch x) a -o \"dir\"", Writable: true},
			{Target: "/srv/ü"},
		},
	}.script()
	script = strings.ReplaceAll(script, "/run/devvm-share", filepath.Join(dir, "marker"))
	run := func() string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "/bin/sh")
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH")}
		cmd.Stdin = strings.NewReader(script)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	const options = "vers=3,proto=tcp,hard,nolock,noacl,nconnect=2,actimeo=1,port=2049,mountport=2049,mountproto=tcp,mountvers=3,addr=192.0.2.1"
	mounts := "<-i><-t><nfs><-o><" + options + ",rw><--><192.0.2.1:/it's $(touch x) a -o \"dir\"></it's $(touch x) a -o \"dir\">\n" +
		"<-i><-t><nfs><-o><" + options + ",ro><--><192.0.2.1:/srv/ü></srv/ü>\n"
	first := run()
	if !strings.HasPrefix(first, "iptables-restore -w -n\n*raw\n-A PREROUTING -d 192.0.2.1 -p tcp --dport 2049 -j DROP\n") || !strings.HasSuffix(first, "COMMIT\n"+mounts) {
		t.Errorf("first:\n%s", first)
	}
	if again := run(); again != mounts {
		t.Errorf("again:\n%s\nwant:\n%s", again, mounts)
	}
}
