package watch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Budget is how many directories may be watched. The kernel's limit is per user, so it is
// shared by all processes of the user that name the same directory: devvm takes half of
// the user's watches, whatever the number of projects, and each process at most half of
// what the others leave.
//
// A process writes what it claims into a file that it keeps locked. The kernel ends the
// lock with the process, so a claim cannot outlive it. It is safe for concurrent use.
type Budget struct {
	dir  string
	most int

	mu      sync.Mutex
	used    int
	claimed int
	claim   *os.File  // locked; nil: nothing was claimed yet
	refused time.Time // when more was last asked for in vain
}

const (
	// claimStep is how many watches are claimed, and given back, at once.
	claimStep = 1024
	// claimAgain is how long a refusal holds: a tree that is too large does not keep
	// asking.
	claimAgain = 10 * time.Second
	// claimWait bounds the wait for another process's claim.
	claimWait = time.Second
)

// NewBudget makes a budget that is shared by way of files in a directory, "": by nobody.
// most is what all have together; 0: half of what the kernel lets this user have.
func NewBudget(dir string, most int) *Budget {
	if most <= 0 {
		most = userWatches() / 2
	}
	return &Budget{dir: dir, most: most}
}

// userWatches is the kernel's limit for each user.
func userWatches() int {
	const old = 8192 // of kernels before 5.11
	b, err := os.ReadFile("/proc/sys/fs/inotify/max_user_watches")
	if err != nil {
		return old
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return old
	}
	return n
}

// Close gives all back.
func (b *Budget) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.claim == nil {
		return nil
	}
	lock, err := b.lock()
	if err == nil {
		defer lock.Close()
	}
	err = errors.Join(err, os.Remove(b.claim.Name()), b.claim.Close())
	b.claim, b.claimed, b.used = nil, 0, 0
	if lock != nil {
		b.clear(lock)
	}
	return err
}

// clear removes the directory if nobody has a claim there. In a sandbox it may have to
// stay: see Sweep.
func (b *Budget) clear(lock *os.File) {
	if left, err := fs.Glob(os.DirFS(b.dir), "claim-*"); err == nil && len(left) == 0 {
		_ = os.Remove(lock.Name()) // who waits for it takes another
		_ = os.Remove(b.dir)
	}
}

// Sweep removes the claims in a directory of processes that have ended, and the directory
// if there are no others.
func Sweep(dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	b := NewBudget(dir, 1)
	lock, err := b.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := b.others(); err != nil {
		return err
	}
	b.clear(lock)
	return nil
}

// Claim claims the first watches. The directory is there from then on, and stays: a
// process that enters a sandbox afterwards can claim more.
func (b *Budget) Claim() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.claim != nil {
		return nil
	}
	return b.set(claimStep)
}

// take asks for one watch.
func (b *Budget) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used == b.claimed && (time.Since(b.refused) < claimAgain || !b.grow()) {
		return false
	}
	b.used++
	return true
}

// give returns watches.
func (b *Budget) give(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	if b.claimed-b.used >= 2*claimStep {
		_ = b.set(b.used + claimStep) // what fails is tried again by the next
	}
}

// grow claims more.
func (b *Budget) grow() bool {
	before := b.claimed
	if err := b.set(b.claimed + claimStep); err != nil || b.claimed <= before {
		b.refused = time.Now()
		return false
	}
	return true
}

// set claims so many watches, or as many as there are for this process.
func (b *Budget) set(want int) error {
	if b.dir == "" {
		b.claimed = min(want, b.most/2)
		return nil
	}
	lock, err := b.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	others, err := b.others()
	if err != nil {
		return err
	}
	want = max(b.used, min(want, (b.most-others)/2))
	if b.claim == nil {
		if b.claim, err = os.CreateTemp(b.dir, "claim-*"); err != nil {
			return err
		}
		if err := unix.Flock(int(b.claim.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return err
		}
	}
	if _, err := b.claim.WriteAt(fmt.Appendf(nil, "%10d\n", want), 0); err != nil {
		return err
	}
	b.claimed = want
	return nil
}

// lock keeps other processes from changing their claims until the file is closed.
func (b *Budget) lock() (*os.File, error) {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(b.dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(claimWait); ; time.Sleep(time.Millisecond) { //nolint:forbidigo // flock(2) has no time limit; claimWait bounds this
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			mine, err1 := f.Stat()
			now, err2 := os.Lstat(f.Name())
			if err1 == nil && err2 == nil && os.SameFile(mine, now) {
				return f, nil
			}
			_ = f.Close() // the last one has removed it
			return nil, fmt.Errorf("lock %s: it was replaced", f.Name())
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// others is what other processes have claimed. It removes the claims of those that have
// ended.
func (b *Budget) others() (int, error) {
	entries, err := os.ReadDir(b.dir)
	if err != nil {
		return 0, err
	}
	sum := 0
	for _, e := range entries {
		path := filepath.Join(b.dir, e.Name())
		if !strings.HasPrefix(e.Name(), "claim-") || b.claim != nil && path == b.claim.Name() {
			continue
		}
		n, dead := readClaim(path)
		if dead {
			_ = os.Remove(path)
		}
		sum += n
	}
	return sum, nil
}

// readClaim is what a process has claimed; dead says that it has ended.
func readClaim(path string) (n int, dead bool) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return 0, true
	}
	text, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, false
	}
	n, err = strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || n < 0 {
		return 0, false
	}
	return n, false
}
