package share_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/share"
)

// mounted mounts a shared directory with this machine's own kernel. It needs root and
// a kernel with a client of NFS, as the VM has: the test's program can be run there.
func mounted(t *testing.T, options string) (dir, mnt string, s *share.Server) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	_ = exec.Command("modprobe", "-q", "nfsv3").Run()
	if known, _ := os.ReadFile("/proc/filesystems"); !bytes.Contains(known, []byte("\tnfs\n")) {
		t.Skip("this kernel has no client of NFS")
	}
	top := realTemp(t)
	for d := top; d != "/"; d = filepath.Dir(d) { // the agent is nobody special
		if fi, err := os.Stat(d); err == nil && fi.Mode().Perm()&1 == 0 {
			os.Chmod(d, fi.Mode().Perm()|1)
		}
	}
	dir, mnt = filepath.Join(top, "dir"), filepath.Join(top, "mnt")
	os.Mkdir(dir, 0o755)
	os.Mkdir(mnt, 0o755)
	s, err := share.New(share.Options{Exports: []share.Export{{Source: dir, Target: mnt, Writable: true}}, Events: true})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(mnt, unix.MNT_DETACH)
		}
		cancel()
		<-done
		s.Close()
	})
	port := l.Addr().(*net.TCPAddr).Port
	o := fmt.Sprintf("vers=3,proto=tcp,hard,nolock,noacl,nconnect=2,acregmin=10,acregmax=10,acdirmin=1,acdirmax=1,port=%[1]d,mountport=%[1]d,mountproto=tcp,mountvers=3,addr=127.0.0.1,noalignwrite", port)
	out, err := exec.Command("mount", "-i", "-t", "nfs", "-o", o+options, "127.0.0.1:"+mnt, mnt).CombinedOutput()
	if err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	return dir, mnt, s
}

// What the kernel's client makes of the server.
func TestKernel(t *testing.T) {
	dir, mnt, _ := mounted(t, "")
	data := make([]byte, 5<<20)
	rand.Read(data)
	if err := os.WriteFile(filepath.Join(mnt, "big"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	if have(t, filepath.Join(dir, "big")) != string(data) {
		t.Error("other data on the host")
	}
	// git's objects.
	f, err := os.OpenFile(filepath.Join(mnt, "object"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o444)
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("one"))
	f.Sync()
	f.Write([]byte("two"))
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if have(t, filepath.Join(dir, "object")) != "onetwo" {
		t.Error("git's object is not whole")
	}
	// A file that is removed while it is open.
	f, err = os.Create(filepath.Join(mnt, "gone"))
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("still"))
	os.Remove(f.Name())
	b := make([]byte, 10)
	if n, err := f.ReadAt(b, 0); string(b[:n]) != "still" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	f.Close()
	if names, _ := os.ReadDir(dir); len(names) != 2 {
		t.Errorf("left: %v", names)
	}
	if err := os.Chown(filepath.Join(mnt, "big"), 999, 998); err != nil {
		t.Errorf("chown: %v", err)
	}
	for i := range 2000 {
		if err := os.WriteFile(filepath.Join(mnt, fmt.Sprint("f", i)), []byte(fmt.Sprint(i)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := os.ReadDir(mnt); err != nil || len(names) != 2002 {
		t.Errorf("%d names, %v", len(names), err)
	}
	// The same tree on both sides.
	if a, b := onDisk(t, dir), onDisk(t, mnt); strings.Join(a, "\n") != strings.Join(b, "\n") {
		t.Error("the trees differ")
	}
}

// What the host changes reaches those who watch the mount.
func TestKernelEvents(t *testing.T) {
	dir, mnt, s := mounted(t, "")
	put(t, filepath.Join(dir, "d/old"), "1")
	put(t, filepath.Join(dir, "d/other"), "1")
	put(t, filepath.Join(dir, "d/busy"), "1")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- s.Mirror(ctx, func(ctx context.Context, argv []string, stdin io.Reader, stdout io.Writer) error {
			cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, t.Output()
			return cmd.Run()
		})
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Mirror: %v", err)
		}
	}()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	in := os.NewFile(uintptr(fd), "inotify")
	defer in.Close()
	if _, err := unix.InotifyAddWatch(fd, filepath.Join(mnt, "d"), unix.IN_ALL_EVENTS&^(unix.IN_ACCESS|unix.IN_OPEN|unix.IN_CLOSE_NOWRITE)); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(filepath.Join(mnt, "d")) // as watchers do
	if err != nil || len(names) != 3 {
		t.Fatal(names, err)
	}
	busy, err := os.Open(filepath.Join(mnt, "d/busy"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	words := map[uint32]string{
		unix.IN_CREATE: "create", unix.IN_MODIFY: "modify", unix.IN_ATTRIB: "attrib", unix.IN_CLOSE_WRITE: "close",
		unix.IN_MOVED_FROM: "from", unix.IN_MOVED_TO: "to", unix.IN_DELETE: "delete",
	}
	var all []string
	wait := func(what string, wants ...string) {
		t.Helper()
		begin := time.Now()
		got := map[string]bool{}
		buf := make([]byte, 64<<10)
		for {
			missing := ""
			for _, w := range wants {
				if !got[w] {
					missing = w
				}
			}
			if missing == "" {
				t.Logf("%-28s %5d ms", what, time.Since(begin).Milliseconds())
				return
			}
			in.SetReadDeadline(begin.Add(20 * time.Second))
			n, err := in.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %q did not come; what came: %q", what, missing, all)
				return
			}
			for b := buf[:n]; len(b) >= 16; {
				mask, size := binary.NativeEndian.Uint32(b[4:]), 16+binary.NativeEndian.Uint32(b[12:])
				name := strings.TrimRight(string(b[16:size]), "\x00")
				for bit, word := range words {
					if mask&bit != 0 {
						got[word+" "+name] = true
						all = append(all, word+" "+name)
					}
				}
				b = b[size:]
			}
		}
	}
	// The watch on the host and the agent begin when they like.
	for began := false; !began; {
		put(t, filepath.Join(dir, "d/begin"), fmt.Sprint(time.Now()))
		in.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := in.Read(make([]byte, 4096)); err == nil {
			began = true
		}
		if ctx.Err() != nil || len(done) > 0 {
			t.Fatal("the agent has ended")
		}
	}
	path := func(name string) string { return filepath.Join(dir, "d", name) }
	put(t, path("new"), "x")
	wait("a new file", "create new")
	put(t, path("old"), "22")
	wait("a file is written", "modify old", "close old")
	if got := have(t, filepath.Join(mnt, "d/old")); got != "22" {
		t.Errorf("a watcher that reads at once has %q", got)
	}
	put(t, path("old~"), "333")
	os.Rename(path("old~"), path("old"))
	wait("an atomic save", "to old")
	if got := have(t, filepath.Join(mnt, "d/old")); got != "333" {
		t.Errorf("a watcher that reads at once has %q", got)
	}
	os.Rename(path("other"), path("another"))
	wait("a rename", "from other", "to another")
	os.Remove(path("another"))
	wait("a removal", "delete another")
	os.Remove(path("busy"))
	wait("a removal of what is open", "delete busy")
	b := make([]byte, 10)
	if n, err := busy.ReadAt(b, 0); n != 1 {
		t.Logf("reading what is removed: %v", err)
	}
	os.Mkdir(path("sub"), 0o755)
	wait("a directory", "create sub")
	os.Rename(path("sub"), path("sub2"))
	wait("a directory is renamed", "from sub", "to sub2")
	os.Remove(path("sub2"))
	wait("a directory is removed", "delete sub2")
	os.Symlink("to where", path("link"))
	wait("a link", "create link")
	os.Chmod(path("new"), 0o600)
	wait("a mode", "attrib new")
	os.Remove(path("new"))
	wait("a removal", "delete new")
	begin := time.Now()
	for i := range 500 {
		put(t, path(fmt.Sprint("many", i)), "x")
	}
	var many []string
	for i := range 500 {
		many = append(many, fmt.Sprint("create many", i))
	}
	wait("500 new files", many...)
	t.Logf("500 files: %v", time.Since(begin))
	// Nothing was changed on the host by all that.
	if a, b := onDisk(t, dir), onDisk(t, mnt); strings.Join(a, "\n") != strings.Join(b, "\n") {
		t.Error("the trees differ")
	}
}
