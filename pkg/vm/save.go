package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sync/errgroup"
)

// saveDir is where libvirt keeps the memory of saved domains.
func (h *hypervisor) saveDir() string {
	if h.uri == uriSession {
		if dir, err := os.UserConfigDir(); err == nil {
			return filepath.Join(dir, "libvirt", "qemu", "save")
		}
	}
	return "/var/lib/libvirt/qemu/save"
}

// Save implements Hypervisor. When ctx ends, libvirt is told to stop, and lets the VM run
// on.
func (h *hypervisor) Save(ctx context.Context, name string) error {
	return finish(ctx, func(patient context.Context) error {
		return h.act(patient, "save", name, func(l *link, v view) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if !v.on() {
				return ErrNotRunning
			}
			err := abortable(ctx, func() error { return l.DomainManagedSave(v.dom, 0) }, func() { _ = l.DomainAbortJob(v.dom) })
			if isCode(err, libvirt.ErrOperationAborted) && ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		})
	})
}

// abortable carries out a job of libvirt's that abort ends. Once ctx ends, it aborts until
// the job has ended: the first time the job may not have begun.
func abortable(ctx context.Context, job func() error, abort func()) error {
	done := make(chan struct{})
	var aborting sync.WaitGroup
	defer aborting.Wait()
	defer close(done)
	aborting.Go(func() {
		select {
		case <-ctx.Done():
		case <-done:
			return
		}
		again := time.NewTicker(retryDial)
		defer again.Stop()
		for {
			abort()
			select {
			case <-again.C:
			case <-done:
				return
			}
		}
	})
	return job()
}

// patienceFinish is for what libvirt is at when a command is cancelled.
const patienceFinish = time.Minute

// finish carries out what must not be left half done: libvirt goes on with a call whose
// client is gone, and a VM may stand still meanwhile. The context that f gets ends a while
// after ctx, and f has to see to ctx itself.
func finish(ctx context.Context, f func(context.Context) error) error {
	patient, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel(nil)
	watching.Go(func() {
		select {
		case <-ctx.Done():
		case <-patient.Done():
			return
		}
		select {
		case <-time.After(patienceFinish):
			cancel(errUnfinished)
		case <-patient.Done():
		}
	})
	return f(patient)
}

// errUnfinished says that libvirt is still at what was cancelled.
var errUnfinished = fmt.Errorf("libvirt did not finish within %s of being cancelled, and is still working", patienceFinish)

// DropSaved implements Hypervisor.
func (h *hypervisor) DropSaved(ctx context.Context, name string) error {
	return h.act(ctx, "drop the saved memory of", name, func(l *link, v view) error {
		if v.State != StateSaved {
			return nil
		}
		if h.uri != uriTest { // libvirt fails where the file is gone already
			path := h.savePath(v.Name)
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err == nil {
				_ = f.Close()
			}
		}
		return l.DomainManagedSaveRemove(v.dom, 0)
	})
}

// savePath is where libvirt keeps the memory of a saved domain of ours.
func (h *hypervisor) savePath(name string) string {
	return filepath.Join(h.saveDir(), DomainPrefix+name+".save")
}

// checkSaved looks at a saved memory before libvirt does, which boots the VM without a word
// if the file is gone, and removes one that does not begin as it should.
func (h *hypervisor) checkSaved(name string) error {
	if h.uri == uriTest {
		return nil
	}
	path := h.savePath(name)
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read its saved memory: %w", err)
	}
	defer f.Close()
	magic := make([]byte, len(memoryMagic))
	switch _, err := io.ReadFull(f, magic); {
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("read its saved memory: %w", err)
	case string(magic) != memoryMagic:
		return fmt.Errorf("%w: %s does not begin with %q", ErrMemory, path, memoryMagic)
	}
	return nil
}

// Freeze implements Hypervisor.
func (h *hypervisor) Freeze(ctx context.Context, name, path string) error {
	err := h.act(ctx, "freeze", name, func(l *link, v view) error {
		if !v.on() {
			return ErrNotRunning
		}
		return l.DomainSaveFlags(v.dom, path, nil, uint32(libvirt.DomainSaveRunning))
	})
	if err != nil || h.uri == uriTest {
		return err
	}
	if err := checkMemory(path); err != nil {
		return err
	}
	if err := dropZeroes(ctx, path); err != nil { // forks are slower, no more
		if ctx.Err() != nil {
			return fmt.Errorf("freeze VM %s: %w", name, err)
		}
		h.log.WarnContext(ctx, "memory stays as QEMU saved it", "vm", name, "err", err)
	}
	return nil
}

// Fork implements Hypervisor.
func (h *hypervisor) Fork(ctx context.Context, spec Spec, memory, scratch string, meanwhile func(context.Context) error) error {
	host, err := h.Host(ctx)
	if err != nil {
		return err
	}
	doc, err := DomainXML(spec, host)
	if err != nil {
		return err
	}
	preparing, preparingCtx := errgroup.WithContext(ctx)
	preparing.Go(func() error { return copyMemory(preparingCtx, scratch, memory, doc) })
	preparing.Go(func() error { return meanwhile(preparingCtx) })
	preparing.Go(func() error { return h.redefine(ctx, spec) }) // whatever the others do
	if err := preparing.Wait(); err != nil {
		return fmt.Errorf("fork VM %s: %w", spec.Name, err)
	}
	return h.act(ctx, "fork", spec.Name, func(l *link, v view) error {
		if v.on() {
			return ErrRunning
		}
		if err := h.reap(ctx, v); err != nil {
			return err
		}
		return l.DomainRestoreFlags(scratch, nil, uint32(libvirt.DomainSaveRunning))
	})
}

// redefine is Define, but nothing of a stopped VM that had the name stays.
func (h *hypervisor) redefine(ctx context.Context, spec Spec) error {
	if err := h.Undefine(ctx, spec.Name); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return h.Define(ctx, spec)
}
