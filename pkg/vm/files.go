package vm

import (
	"context"
	"fmt"
	"slices"
	"strings"

	libvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"
)

// Files implements Hypervisor.
func (h *hypervisor) Files(ctx context.Context) (map[string][]string, error) {
	var out map[string][]string
	err := h.read(ctx, func(l *link) error {
		out = map[string][]string{}
		domains, _, err := l.ConnectListAllDomains(1, libvirt.ConnectListDomainsActive|libvirt.ConnectListDomainsInactive)
		if err != nil {
			return err
		}
		for _, dom := range domains {
			name, ours := strings.CutPrefix(dom.Name, DomainPrefix)
			if !ours {
				continue
			}
			named, err := filesOf(l, dom)
			switch {
			case libvirt.IsNotFound(err): // gone since
			case err != nil:
				return fmt.Errorf("of VM %s: %w", name, err)
			default:
				out[name] = named
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("ask libvirt which files VMs use: %w", explain(err))
	}
	return out, nil
}

// filesOf collects what the documents of a domain name.
func filesOf(l *link, dom libvirt.Domain) ([]string, error) {
	var docs []string
	add := func(doc string, err error) error {
		docs = append(docs, doc)
		return err
	}
	// A running VM has two definitions: what it runs with, and what it will start with.
	if err := add(l.DomainGetXMLDesc(dom, 0)); err != nil {
		return nil, err
	}
	if err := add(l.DomainGetXMLDesc(dom, libvirt.DomainXMLInactive)); err != nil {
		return nil, err
	}
	saved, err := l.DomainHasManagedSaveImage(dom, 0)
	if err != nil {
		return nil, err
	}
	if saved != 0 {
		if err := add(l.DomainManagedSaveGetXMLDesc(dom, 0)); err != nil && !isCode(err, libvirt.ErrNoSupport) { // the test driver
			return nil, fmt.Errorf("read its saved memory: %w", err)
		}
	}
	snapshots, _, err := l.DomainListAllSnapshots(dom, 1, 0)
	if err != nil {
		return nil, err
	}
	for _, s := range snapshots {
		if err := add(l.DomainSnapshotGetXMLDesc(s, 0)); err != nil {
			return nil, err
		}
	}
	var all []string
	for _, doc := range docs {
		named, err := filesIn(doc)
		if err != nil {
			return nil, err
		}
		all = append(all, named...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// filesIn returns the paths that a domain's definition, or a snapshot's, names as disks,
// with what they lie on, or boots from.
func filesIn(doc string) ([]string, error) {
	var all []string
	domain := func(d *libvirtxml.Domain) {
		if d == nil {
			return
		}
		if d.OS != nil {
			all = append(all, d.OS.Kernel, d.OS.Initrd)
		}
		if d.Devices == nil {
			return
		}
		for _, disk := range d.Devices.Disks {
			if disk.Source != nil && disk.Source.File != nil {
				all = append(all, disk.Source.File.File)
			}
			for below := disk.BackingStore; below != nil; below = below.BackingStore {
				if below.Source != nil && below.Source.File != nil {
					all = append(all, below.Source.File.File)
				}
			}
		}
	}
	if strings.HasPrefix(strings.TrimSpace(doc), "<domainsnapshot") {
		var s libvirtxml.DomainSnapshot
		if err := s.Unmarshal(doc); err != nil {
			return nil, fmt.Errorf("parse snapshot: %w", err)
		}
		domain(s.Domain)
		if s.InactiveDomain != nil {
			domain(&s.InactiveDomain.Domain)
		}
	} else if doc != "" {
		var d libvirtxml.Domain
		if err := d.Unmarshal(doc); err != nil {
			return nil, fmt.Errorf("parse domain: %w", err)
		}
		domain(&d)
	}
	return slices.DeleteFunc(all, func(path string) bool { return path == "" }), nil
}
