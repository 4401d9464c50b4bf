package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/devvm/devvm/pkg/disk"
	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// What is missing on the host has an exit code of its own, and a hint.
func TestHostLacks(t *testing.T) {
	home := t.TempDir()
	for _, lack := range []error{vm.ErrNoLibvirt, vm.ErrNoQEMU, disk.ErrNoTool, image.ErrNoUserNamespaces, &image.ToolError{Tool: "tar"}} {
		streams, _, _, errs := ui.Test()
		a := newApp(streams, func(name string) string {
			if name == "HOME" {
				return home
			}
			return ""
		}, func(context.Context, vm.Options, *slog.Logger) (vm.Hypervisor, error) {
			return nil, fmt.Errorf("begin: %w", lack)
		})
		if code := a.execute(t.Context(), []string{"ls"}); code != ui.ExitHost || !strings.Contains(errs.String(), "hint: see what this host lacks with: devvm doctor") {
			t.Errorf("%v: exit code %d\n%s", lack, code, errs)
		}
	}
}

// What status says of a disk is what ls adds up.
func TestStatusDisk(t *testing.T) {
	st := project.Status{DiskUsed: 9 << 20, SavedUsed: 568 << 20, UndoUsed: 1 << 20}
	var b strings.Builder
	showStatus(&b, st)
	if want := "disk      578 MiB used on this host (568 MiB of that its saved memory, 1 MiB the undo)\n"; !strings.Contains(b.String(), want) || st.Used() != 578<<20 {
		t.Errorf("%d\n%s\nwant %s", st.Used(), b.String(), want)
	}
}

// TestShortage: each thing that a host can run out of has a next step, also from deep below.
func TestShortage(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{&fs.PathError{Op: "write", Path: "/x", Err: unix.ENOSPC}, "devvm prune"},
		{&fs.PathError{Op: "write", Path: "/x", Err: unix.EDQUOT}, "devvm prune"},
		{&fs.PathError{Op: "open", Path: "/x", Err: unix.EMFILE}, "ulimit -n"},
		{os.NewSyscallError("socket", unix.ENFILE), "fs.file-max"},
		{&fs.PathError{Op: "fork/exec", Path: "/usr/bin/qemu-img", Err: unix.EAGAIN}, "ulimit -u"},
		{&fs.PathError{Op: "fork/exec", Path: "/usr/bin/qemu-img", Err: unix.ENOMEM}, "suspend"},
		{&fs.PathError{Op: "read", Path: "/x", Err: unix.EAGAIN}, ""},
		{errors.New("something else"), ""},
	} {
		if got := shortage(fmt.Errorf("deep below: %w", c.err)); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}
