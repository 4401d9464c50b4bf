package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	libvirt "github.com/digitalocean/go-libvirt"

	"github.com/devvm/devvm/pkg/sandbox"
)

// confined is what the QEMU of a VM may use: its own files, each by its path, so that it
// has neither the keys that lie beside them nor another VM's.
func confined(spec Spec) sandbox.QEMU {
	q := sandbox.QEMU{Write: []string{spec.Disk}, Append: spec.Console, Net: spec.NetSocket}
	read := slices.Concat(spec.Backing, []string{spec.Kernel, spec.Initrd, spec.Seed}, slices.Sorted(maps.Values(spec.Credentials)))
	q.Read = slices.DeleteFunc(read, func(path string) bool { return path == "" })
	return q
}

// findSandbox returns the path by which libvirt starts a VM's QEMU in a sandbox. An error
// says why there is none.
//
// libvirt remembers what an emulator can do by its path and for as long as its file does
// not change. The file is devvm's, so the path says which QEMU it stands for.
func (h *hypervisor) findSandbox(ctx context.Context, host Host) (string, error) {
	switch {
	case h.sandbox.Program == "":
		return "", errors.New("none is asked for")
	case h.uri != uriSession:
		return "", fmt.Errorf("QEMU runs as a user of its own at %s", h.uri)
	}
	if _, err := sandbox.Supported(); err != nil {
		return "", err
	}
	info, err := os.Stat(host.Emulator)
	if err != nil {
		return "", fmt.Errorf("look at QEMU: %w", err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %d %d", host.Emulator, host.QEMU, info.Size(), info.ModTime().UnixNano()))
	dir := filepath.Join(h.sandbox.Dir, hex.EncodeToString(sum[:4]))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make the sandbox: %w", err)
	}
	path := filepath.Join(dir, sandbox.Program)
	if err := pointTo(h.sandbox.Program, path); err != nil {
		return "", fmt.Errorf("make the sandbox: %w", err)
	}
	err = h.read(ctx, func(l *link) error {
		_, err := l.ConnectGetDomainCapabilities(libvirt.OptString{path}, libvirt.OptString{"x86_64"}, nil, libvirt.OptString{"qemu"}, 0)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("libvirt cannot start it: %w", explain(err))
	}
	return path, nil
}

// pointTo makes a path a link to a program, or leaves one that is.
func pointTo(program, path string) error {
	if at, err := os.Readlink(path); err == nil && at == program {
		return nil
	}
	fresh := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Symlink(program, fresh); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		_ = os.Remove(fresh)
		return err
	}
	return nil
}
