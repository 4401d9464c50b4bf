package supervisor

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/devvm/devvm/images"
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
		"mount":            `case $* in *noalignwrite*) [ ! -e old ] || exit 32;; esac; for a; do printf '<%s>' "$a"; done; echo`,
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
	const options = "vers=3,proto=tcp,hard,nolock,noacl,nconnect=2,acregmin=10,acregmax=10,acdirmin=1,acdirmax=1,port=2049,mountport=2049,mountproto=tcp,mountvers=3,addr=192.0.2.1"
	mounts := "<-i><-t><nfs><-o><" + options + ",noalignwrite,rw><--><192.0.2.1:/it's $(touch x) a -o \"dir\"></it's $(touch x) a -o \"dir\">\n" +
		"<-i><-t><nfs><-o><" + options + ",noalignwrite,ro><--><192.0.2.1:/srv/ü></srv/ü>\n"
	first := run()
	if !strings.HasPrefix(first, "iptables-restore -w -n\n*raw\n-A PREROUTING -d 192.0.2.1 -p tcp --dport 2049 -j DROP\n") || !strings.HasSuffix(first, "COMMIT\n"+mounts) {
		t.Errorf("first:\n%s", first)
	}
	if again := run(); again != mounts {
		t.Errorf("again:\n%s\nwant:\n%s", again, mounts)
	}
	// A kernel that does not know an option mounts without it.
	if err := os.WriteFile(filepath.Join(dir, "old"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if old, want := run(), strings.ReplaceAll(mounts, ",noalignwrite", ""); old != want {
		t.Errorf("an old kernel:\n%s\nwant:\n%s", old, want)
	}
}

// The image's script mounts what its firmware says, in the words of Credential, and what
// is mounted already it leaves alone.
func TestToldToMount(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	fake := "#!/bin/sh\nfor a; do printf '<%s>' \"$a\"; done; echo\n"
	if err := os.WriteFile(filepath.Join(bin, "mount"), []byte(fake), 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := images.FS.ReadFile("debian-13/root/usr/lib/devvm/share")
	if err != nil {
		t.Fatal(err)
	}
	told, mounts := filepath.Join(dir, "told"), filepath.Join(dir, "mounts")
	script := strings.NewReplacer(
		"/sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/devvm.share/raw", told,
		"/proc/mounts", mounts, "/run/devvm/", dir+"/",
	).Replace(string(text))
	run := func() string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "bash", "-c", script)
		cmd.Dir, cmd.Env = dir, []string{"PATH=" + bin + ":" + os.Getenv("PATH")}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	if out := run(); out != "" {
		t.Errorf("told nothing:\n%s", out)
	}
	odd := `/it's $(touch x) a\b "dir"`
	credential := Share{
		Address: netip.MustParseAddr("192.0.2.1"),
		Exports: []share.Export{{Target: odd, Writable: true}, {Target: "/srv/ü "}},
	}.Credential()
	for path, content := range map[string]string{
		told:   string(credential) + strings.Repeat("\n", 100),
		mounts: "proc /proc proc rw 0 0\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const options = "vers=3,proto=tcp,hard,nolock,noacl,nconnect=2,acregmin=10,acregmax=10,acdirmin=1,acdirmax=1,port=2049,mountport=2049,mountproto=tcp,mountvers=3,addr=192.0.2.1,noalignwrite"
	first := "<-i><-n><-t><nfs><-o><" + options + ",rw,X-mount.mkdir><--><192.0.2.1:" + odd + "><" + odd + ">\n"
	second := "<-i><-n><-t><nfs><-o><" + options + ",ro,X-mount.mkdir><--><192.0.2.1:/srv/ü ></srv/ü >\n"
	if out := run(); out != first+second {
		t.Errorf("got\n%s\nwant\n%s", out, first+second)
	}
	have := `192.0.2.1:x /it's\040$(touch\040x)\040a\134b\040"dir" nfs rw 0 0` + "\n"
	if err := os.WriteFile(mounts, []byte(have), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run(); out != second {
		t.Errorf("got\n%s\nwant\n%s", out, second)
	}
	if _, err := os.Stat(filepath.Join(dir, "x")); err == nil {
		t.Error("a path was run as a command")
	}
}

// Of what a command in the VM says without end only so much is kept.
func TestExcerpt(t *testing.T) {
	var said excerpt
	for range 3 {
		if n, err := said.Write(make([]byte, maxExcerpt-1)); n != maxExcerpt-1 || err != nil {
			t.Fatal(n, err)
		}
	}
	if said.Len() != maxExcerpt {
		t.Errorf("%d bytes are kept", said.Len())
	}
}
