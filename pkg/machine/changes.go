package machine

import (
	"context"
	"slices"
	"strings"

	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/disk"
	"github.com/devvm/devvm/pkg/ui"
)

// noteChanges tells the user which settings a VM that keeps running does not have yet.
func (m *Machine) noteChanges(ctx context.Context) {
	r, err := applied.Read(m.Files.Applied())
	if err != nil || r.Start == nil {
		return // unknown
	}
	var out []string
	mounts := !slices.Equal(r.Start.Exports, m.Exports)
	for _, c := range config.Changes(r.Start.Config, m.Config, config.AppliesStart) {
		switch c.Key {
		case "disk":
			if !m.grows(ctx) {
				continue
			}
		case "mount", "mounts":
			mounts = false // already said
		}
		out = append(out, c.String())
	}
	if mounts { // the same keys, but other directories
		out = append(out, "mounts")
	}
	if len(out) > 0 {
		m.Progress.Note("changed settings take effect at the next start (devvm down && devvm up): %s", strings.Join(out, ", "))
	}
}

// IsUpToDate reports whether the VM started with the settings that the configuration has now.
func (m *Machine) IsUpToDate() bool {
	r, err := applied.Read(m.Files.Applied())
	return err == nil && r.Start != nil && slices.Equal(r.Start.Exports, m.Exports) &&
		len(config.Changes(r.Start.Config, m.Config, config.AppliesStart)) == 0
}

// grows reports whether the disk is smaller than devvm.toml says. If it is larger, grows tells the
// user that it stays so.
func (m *Machine) grows(ctx context.Context) bool {
	info, err := disk.Stat(ctx, m.Files.Disk())
	if err == nil && info.VirtualSize > m.Config.Disk {
		m.noteDisk(info.VirtualSize)
	}
	return err == nil && info.VirtualSize < m.Config.Disk
}

// noteDisk tells the user that a disk stays larger than devvm.toml says.
func (m *Machine) noteDisk(has int64) {
	m.Progress.Note("the disk stays at %s: disks only grow (devvm nuke makes a new one)", ui.Size(has))
}
