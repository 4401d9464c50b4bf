package background

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestListen(t *testing.T) {
	mode := func(path string) string {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().String()
	}
	dir := filepath.Join(t.TempDir(), "run")
	if err := PrivateDir(dir); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "docker.sock")
	old := unix.Umask(0)
	l, err := Listen(sock, nil)
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	if m := mode(sock); m != "Srw-------" {
		t.Errorf("socket %s", m)
	}
	if m := mode(dir); m != "drwx------" {
		t.Errorf("directory %s", m)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("left over: %v", list)
	}

	// A second takes its place; closing the first leaves the second's file.
	second, err := Listen(sock, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("unix", sock); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(sock); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}

	for name, tt := range map[string]struct{ path, want string }{
		"no name":      {dir + "/", "no file name"},
		"too long":     {filepath.Join(dir, strings.Repeat("x", 108)), "at most"},
		"not a socket": {filepath.Join(dir, "file"), "not a socket"},
	} {
		_ = os.WriteFile(filepath.Join(dir, "file"), []byte("precious"), 0o600)
		if l, err := Listen(tt.path, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				_ = l.Close()
			}
		}
	}
	open := filepath.Join(dir, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := PrivateDir(open); err == nil || !strings.Contains(err.Error(), "open to other users") {
		t.Error(err)
	}
	for _, short := range []string{"s", "~", "~x"} {
		l, err := Listen(filepath.Join(dir, short), nil)
		if err != nil {
			t.Error(err)
			continue
		}
		_ = l.Close()
	}
	longest := filepath.Join(dir, strings.Repeat("x", MaxPath-len(dir)-1))
	if l, err := Listen(longest, nil); err != nil {
		t.Error(err)
	} else {
		_ = l.Close()
	}
}
