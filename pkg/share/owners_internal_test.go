package share

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A log whose records are mostly out of date is written again, and says the same.
func TestOwnersRewritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "owners")
	log := slog.New(slog.DiscardHandler)
	l, _, err := openOwners(path, log)
	if err != nil {
		t.Fatal(err)
	}
	x := ownerEntry{tag: 1, key: key{dev: 2, ino: 3}, owner: owner{born: 4}}
	for i := range slackOwners + 1 {
		x.uid = uint32(i) + 1
		l.add(x)
	}
	l.flush(func() []ownerEntry { return []ownerEntry{x} })
	if info, err := os.Stat(path); err != nil || info.Size() != ownerSize || info.Mode() != 0o600 {
		t.Errorf("written again: %v, %v", info, err)
	}
	x.gid = 5
	l.add(x)
	l.close()
	l.add(x) // late
	l, all, err := openOwners(path, log)
	if err != nil {
		t.Fatal(err)
	}
	l.close()
	if len(all) != 2 || all[1] != x {
		t.Errorf("read again: %+v, want %+v last", all, x)
	}
}

// However much root makes, what others own is not forgotten for it.
func TestOwnersOfRoot(t *testing.T) {
	SetHostUser(t, 1000, 1000)
	x := newOwners()
	database := owner{uid: 999, gid: 999}
	x.put(key{ino: 1}, database)
	for i := range uint64(3 * manyRoots) {
		x.put(key{ino: 2 + i}, owner{})
	}
	if o, ok := x.get(key{ino: 1}); !ok || o != database {
		t.Errorf("the database's directory is %+v, %v", o, ok)
	}
	if n := len(x.root.old) + len(x.root.young); n > manyRoots {
		t.Errorf("%d owners are kept of root's files", n)
	}
	x.put(key{ino: 1}, hostUser)
	if o, ok := x.get(key{ino: 1}); ok {
		t.Errorf("given back to the host's user: %+v", o)
	}
}

// A pipe in the log's place is an error at once.
func TestOwnersPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "owners")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, _, err := openOwners(path, slog.New(slog.DiscardHandler)); err == nil {
		l.close()
		t.Error("a pipe is taken for the log")
	}
}
