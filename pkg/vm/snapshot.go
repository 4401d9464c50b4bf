package vm

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	libvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"
)

// snapshotXML asks libvirt for a snapshot inside the VM's own disk
// (https://libvirt.org/formatsnapshot.html): it needs no file beside it and goes
// where the disk goes. A seed's disk cannot hold one and does not change.
func snapshotXML(name string, seed bool) (string, error) {
	s := libvirtxml.DomainSnapshot{
		Name:  name,
		Disks: &libvirtxml.DomainSnapshotDisks{Disks: []libvirtxml.DomainSnapshotDisk{{Name: "vda", Snapshot: "internal"}}},
	}
	if seed {
		s.Disks.Disks = append(s.Disks.Disks, libvirtxml.DomainSnapshotDisk{Name: "vdb", Snapshot: "no"})
	}
	return s.Marshal()
}

// parseSnapshot reads libvirt's description of one.
func parseSnapshot(doc string) (Snapshot, error) {
	var s libvirtxml.DomainSnapshot
	if err := s.Unmarshal(doc); err != nil {
		return Snapshot{}, fmt.Errorf("parse snapshot: %w", err)
	}
	out := Snapshot{Name: s.Name, Memory: s.Memory != nil && s.Memory.Snapshot == "internal"}
	if seconds, err := strconv.ParseInt(s.CreationTime, 10, 64); err == nil {
		out.Created = time.Unix(seconds, 0)
	}
	return out, nil
}

// Snapshot implements Hypervisor. QEMU cannot be told to stop it: when ctx ends, what was
// made is removed again.
func (h *hypervisor) Snapshot(ctx context.Context, name, snapshot string) error {
	err := finish(ctx, func(patient context.Context) error { return h.snapshot(patient, ctx, name, snapshot) })
	if err != nil || ctx.Err() == nil {
		return err
	}
	patient, cancel := context.WithTimeout(context.WithoutCancel(ctx), patienceFinish)
	defer cancel()
	if err := h.DeleteSnapshot(patient, name, snapshot); err != nil {
		return fmt.Errorf("too late to cancel, the snapshot exists: %w", err)
	}
	return context.Cause(ctx)
}

// snapshot makes one in the patient context, unless it is not wanted any more.
func (h *hypervisor) snapshot(patient, wanted context.Context, name, snapshot string) error {
	return h.act(patient, "snapshot", name, func(l *link, v view) error {
		if wanted.Err() != nil {
			return context.Cause(wanted)
		}
		doc, err := l.DomainGetXMLDesc(v.dom, 0)
		if err != nil {
			return err
		}
		var d libvirtxml.Domain
		if err := d.Unmarshal(doc); err != nil {
			return err
		}
		request, err := snapshotXML(snapshot, d.Devices != nil && len(d.Devices.Disks) > 1)
		if err != nil {
			return err
		}
		_, err = l.DomainSnapshotCreateXML(v.dom, request, 0)
		return err
	})
}

// Snapshots implements Hypervisor.
func (h *hypervisor) Snapshots(ctx context.Context, name string) ([]Snapshot, error) {
	var out []Snapshot
	err := h.act(ctx, "list the snapshots of", name, func(l *link, v view) error {
		out = nil
		all, _, err := l.DomainListAllSnapshots(v.dom, 1, 0)
		if err != nil {
			return err
		}
		for _, one := range all {
			doc, err := l.DomainSnapshotGetXMLDesc(one, 0)
			if err != nil {
				return err
			}
			s, err := parseSnapshot(doc)
			if err != nil {
				return err
			}
			out = append(out, s)
		}
		slices.SortStableFunc(out, func(a, b Snapshot) int { return a.Created.Compare(b.Created) })
		return nil
	})
	return out, err
}

// Revert implements Hypervisor.
func (h *hypervisor) Revert(ctx context.Context, name, snapshot string) error {
	return h.act(ctx, "revert", name, func(l *link, v view) error {
		if v.on() {
			return ErrRunning
		}
		if err := h.reap(ctx, v); err != nil {
			return err
		}
		s, err := findSnapshot(l, v.dom, snapshot)
		if err != nil {
			return err
		}
		return l.DomainRevertToSnapshot(s, 0)
	})
}

// DeleteSnapshot implements Hypervisor.
func (h *hypervisor) DeleteSnapshot(ctx context.Context, name, snapshot string) error {
	return h.act(ctx, "delete a snapshot of", name, func(l *link, v view) error {
		s, err := findSnapshot(l, v.dom, snapshot)
		if err != nil {
			return err
		}
		return l.DomainSnapshotDelete(s, 0)
	})
}

func findSnapshot(l *link, dom libvirt.Domain, name string) (libvirt.DomainSnapshot, error) {
	s, err := l.DomainSnapshotLookupByName(dom, name, 0)
	if isCode(err, libvirt.ErrNoDomainSnapshot) {
		err = ErrNoSnapshot
	}
	return s, err
}
