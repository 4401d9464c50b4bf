package share

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
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
	l.settle(func() []ownerEntry { return []ownerEntry{x} })
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
