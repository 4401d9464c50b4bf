package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/dockerproxy"
	"github.com/devvm/devvm/pkg/guard"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/mounts"
)

// Guard says what to do with containers that bind paths that the VM does not have.
type Guard struct {
	Dir string // the project's directory
	// Off reports whether the guard is off. It is called at the start and at each Resume; nil:
	// it is on.
	Off func() (bool, error)
	// Unfit is the same as in guard.Guard.
	Unfit func(source, target string) string
	// Sockets replaces HoldsSockets, for a process in a sandbox; nil: HoldsSockets.
	Sockets func(ctx context.Context, dir string) bool
}

// patienceLook is how long to wait for the VM to say what it has. If it does not answer in time,
// that is no reason to refuse.
const patienceLook = 10 * time.Second

// configureGuard reads the setting again. A bad one changes nothing.
func (s *supervisor) configureGuard() {
	if s.Guard.Off == nil {
		return
	}
	off, err := s.Guard.Off()
	if err != nil {
		s.Log.Warn("bind_guard is not read", "err", err)
		return
	}
	s.guardOff.Store(off)
}

// admitBinds refuses binds of paths that the VM does not have.
func (s *supervisor) admitBinds(ctx context.Context, container string, binds []guard.Bind) error {
	if len(binds) == 0 || s.guardOff.Load() {
		return nil
	}
	g := guard.Guard{Dir: s.Guard.Dir, Shares: s.Share.Exports, Unfit: s.Guard.Unfit}
	var open []guard.Bind
	var found []guard.Found
	var paths []string
	for _, b := range binds {
		if isEngineSocket(b.Path) {
			continue
		}
		source, shared := g.Shares.OnHost(b.Path)
		if shared && g.Serves(b, mounts.Real(source)) {
			continue
		}
		if !shared {
			source = b.Path
		}
		f := guard.Found{Host: kindOf(source)}
		if f.Host == guard.Directory && s.holdsSockets(ctx, source) {
			f.Host = guard.Sockets
		}
		if f.Host != guard.Missing && f.Host != guard.Unknown {
			f.Real = mounts.Real(source)
		}
		open, found, paths = append(open, b), append(found, f), append(paths, b.Path)
	}
	if len(open) == 0 {
		return nil
	}
	kinds, err := s.look(ctx, paths)
	if err != nil {
		s.Log.Warn("what the VM has is not known", "container", container, "paths", paths, "err", err)
		return nil
	}
	for i := range found {
		found[i].VM = kinds[i]
	}
	message := g.Refuse(open, found)
	if message == "" {
		return nil
	}
	s.Log.Warn("bind refused", "container", container, "paths", paths)
	return &dockerproxy.Refusal{Status: http.StatusBadRequest, Message: message}
}

func (s *supervisor) holdsSockets(ctx context.Context, dir string) bool {
	if s.Guard.Sockets != nil {
		return s.Guard.Sockets(ctx, dir)
	}
	return HoldsSockets(dir)
}

// manySockets is more entries than a directory of sockets has.
const manySockets = 100

// HoldsSockets reports whether a directory of this host is there only for sockets, and the files
// that their servers put beside them. A directory that cannot be read is not.
func HoldsSockets(dir string) bool {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	entries, err := f.ReadDir(manySockets)
	sockets := 0
	for _, e := range entries {
		beside := strings.HasSuffix(e.Name(), ".lock") || strings.HasSuffix(e.Name(), ".pid")
		switch {
		case e.Type() == fs.ModeSocket:
			sockets++
		case !e.Type().IsRegular() || !beside:
			return false
		}
	}
	return err == nil && sockets > 0 && len(entries) < manySockets
}

// kindOf is what this host has at a path.
func kindOf(path string) guard.Kind {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return guard.Missing
	case err != nil:
		return guard.Unknown
	case info.IsDir():
		return guard.Directory
	case info.Mode().IsRegular():
		return guard.File
	case info.Mode().Type() == fs.ModeSocket:
		return guard.Socket
	}
	return guard.Other
}

// lookCommand prints a guard.Kind for each of its arguments.
const lookCommand = `for p; do
	if [ -d "$p" ]; then
		if [ "$(ls -AU -- "$p" | head -c 1 | wc -c)" = 0 ]; then echo empty; else echo directory; fi
	elif [ -S "$p" ]; then echo socket
	elif [ -f "$p" ]; then echo file
	elif [ -e "$p" ]; then echo other
	else echo missing; fi
done`

// look asks the VM what it has at some paths.
func (s *supervisor) look(ctx context.Context, paths []string) ([]guard.Kind, error) {
	s.mu.Lock()
	link := s.link
	s.mu.Unlock()
	if link == nil {
		return nil, errors.New("the VM does not answer")
	}
	ctx, cancel := context.WithTimeout(ctx, patienceLook)
	defer cancel()
	var out excerpt
	code, err := link.Run(ctx, guest.Command{Argv: append([]string{"sh", "-c", lookCommand, "look"}, paths...), Stdout: &out})
	if err != nil {
		return nil, err
	}
	words := strings.Fields(out.String())
	if code != 0 || len(words) != len(paths) {
		return nil, fmt.Errorf("exit code %d, %d answers of %d", code, len(words), len(paths))
	}
	kinds := make([]guard.Kind, len(words))
	for i, w := range words {
		kinds[i] = guard.Kind(w)
	}
	return kinds, nil
}
