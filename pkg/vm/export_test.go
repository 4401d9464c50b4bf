package vm

import (
	"context"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
)

// Validate has libvirt hold a definition against its schema, and does not keep
// it.
func Validate(ctx context.Context, hv Hypervisor, doc string) error {
	h := hv.(*hypervisor)
	return h.do(ctx, func(l *link) error {
		dom, err := l.DomainDefineXMLFlags(doc, libvirt.DomainDefineValidate)
		if err != nil {
			return err
		}
		return l.DomainUndefineFlags(dom, undefineFlags)
	})
}

// DefineForeign defines a domain past all that devvm does with one.
func DefineForeign(ctx context.Context, o Options, doc string) (undefine func() error, err error) {
	hv, err := Open(ctx, o, quiet)
	if err != nil {
		return nil, err
	}
	h := hv.(*hypervisor)
	var dom libvirt.Domain
	err = h.do(ctx, func(l *link) (err error) {
		dom, err = l.DomainDefineXMLFlags(doc, 0)
		return err
	})
	if err != nil {
		h.Close()
		return nil, err
	}
	return func() error {
		defer h.Close()
		return h.do(context.WithoutCancel(ctx), func(l *link) error { return l.DomainUndefineFlags(dom, 0) })
	}, nil
}

// Monitor asks the QEMU of a VM something and returns its answer.
func Monitor(ctx context.Context, hv Hypervisor, name, command string) (answer string, err error) {
	h := hv.(*hypervisor)
	err = h.do(ctx, func(l *link) error {
		dom, err := l.DomainLookupByName(DomainPrefix + name)
		if err == nil {
			answer, err = l.QEMUDomainMonitorCommand(dom, command, 0)
		}
		return err
	})
	return answer, err
}

// OpenURI opens any URI at the daemon with the runtime directory.
func OpenURI(ctx context.Context, uri, runtimeDir string) (Hypervisor, error) {
	d, err := findDaemon(uriTest, runtimeDir, processSurroundings(), quiet)
	if err != nil {
		return nil, err
	}
	h := &hypervisor{uri: uri, daemon: d, timeout: 30 * time.Second, log: quiet}
	l, err := h.connect(ctx)
	if err != nil {
		return nil, err
	}
	h.put(l)
	return h, nil
}
