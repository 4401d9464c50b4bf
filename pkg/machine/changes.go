package machine

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/devvm/devvm/pkg/disk"
	"github.com/devvm/devvm/pkg/subnet"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

// noteChanges says which settings a VM that goes on as it is does not have yet.
func (m *Machine) noteChanges(ctx context.Context, dom vm.Domain) {
	if dom.Config == m.Config.StartHash() {
		return
	}
	if changes := m.changes(ctx, dom); len(changes) > 0 {
		m.Progress.Note("changed settings take effect at the next start (devvm down && devvm up): %s", strings.Join(changes, ", "))
	}
}

// changes names the settings in which a VM differs from devvm.toml.
func (m *Machine) changes(ctx context.Context, dom vm.Domain) []string {
	var out []string
	if dom.CPUs != m.Config.CPUs {
		out = append(out, fmt.Sprintf("cpus %d → %d", dom.CPUs, m.Config.CPUs))
	}
	if dom.Memory != m.Config.Memory {
		out = append(out, fmt.Sprintf("memory %s → %s", ui.Size(dom.Memory), ui.Size(m.Config.Memory)))
	}
	if info, err := disk.Stat(ctx, m.Files.Disk()); err == nil {
		switch has := info.VirtualSize; {
		case has > m.Config.Disk:
			m.noteDisk(has)
		case has < m.Config.Disk:
			out = append(out, fmt.Sprintf("disk %s → %s", ui.Size(has), ui.Size(m.Config.Disk)))
		}
	}
	daemon, err := os.ReadFile(filepath.Join(m.Files.Credentials(), credentialDaemon))
	pools, _ := subnet.Of(daemon) // others are no change of devvm.toml's
	if err == nil && !bytes.Equal(daemon, m.engineConfig(pools)) {
		out = append(out, "docker.daemon")
	}
	if err != nil && len(out) == 0 { // a cloud image's has it elsewhere
		out = append(out, "perhaps docker.daemon")
	}
	has, err := ReadShares(m.Files)
	next, nerr := m.wantedShares()
	if err == nil && nerr == nil {
		if !slices.Equal(has.Exports, next.Exports) {
			out = append(out, "mounts")
		}
		if has.Durable != next.Durable || !slices.Equal(has.Ignore, next.Ignore) {
			out = append(out, "share")
		}
	}
	return out
}

// noteDisk says that a disk which is larger than devvm.toml wants it stays so.
func (m *Machine) noteDisk(has int64) {
	m.Progress.Note("the disk stays at %s: disks only grow (devvm nuke makes a new one)", ui.Size(has))
}
