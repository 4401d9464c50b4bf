package machine

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/devvm/devvm/pkg/applied"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/subnet"
	"github.com/devvm/devvm/pkg/vmnet"
)

// Names of the guest's system credentials; images/debian-13 reads them.
const (
	credentialKeys     = "devvm.authorized_keys"
	credentialHostKey  = "devvm.host_key"
	credentialHostname = "devvm.hostname"
	credentialTimezone = "devvm.timezone"
	credentialDaemon   = "devvm.daemon.json"
	credentialShare    = "devvm.share"
	// credentialMachine also tells a fork that it is one: its template had another.
	credentialMachine = "system.machine_id"
)

// credentialSizes are the sizes, in bytes, to which credentials are padded with newlines. A
// fork's kernel still has the sizes of its template and reads its own credentials with them.
var credentialSizes = map[string]int{
	credentialKeys: 512, credentialHostKey: 1024, credentialHostname: 128, credentialTimezone: 128,
	credentialShare: 8192,
}

// seed is the path of the seed that sets up a cloud image. Our own images read credentials
// instead and have none: "".
func (m *Machine) seed(img image.Image) string {
	if !img.CloudInit {
		return ""
	}
	return filepath.Join(m.Files.Credentials(), "seed.iso")
}

// writeCredentials writes the guest's credentials for its boot. Those in keep are written only
// if they are missing.
func (m *Machine) writeCredentials(img image.Image, keep ...string) error {
	if err := noteAddress(m.Files, img); err != nil {
		return err
	}
	keys, err := guest.LoadKeys(m.Files.Keys())
	if err != nil {
		return fmt.Errorf("load keys: %w", err)
	}
	if img.CloudInit {
		seed, err := image.Seed(image.Guest{
			InstanceID:     m.Project.UUID,
			Hostname:       m.Project.Name,
			Timezone:       m.Zone,
			AuthorizedKeys: keys.AuthorizedKey(),
			HostKey:        string(keys.HostKeyPEM()),
			HostKeyPublic:  keys.HostPublicKey(),
			DaemonJSON:     string(m.daemonJSON()),
		})
		if err != nil {
			return err
		}
		return image.WriteSeed(m.seed(img), seed)
	}
	machine, err := m.machineID()
	if err != nil {
		return err
	}
	r, err := applied.Read(m.Files.Applied())
	if err != nil {
		return err
	}
	all := map[string][]byte{
		credentialMachine:  machine,
		credentialKeys:     []byte(keys.AuthorizedKey()),
		credentialHostKey:  keys.HostKeyPEM(),
		credentialHostname: []byte(m.Project.Name),
		credentialTimezone: []byte(m.Zone),
	}
	if path := filepath.Join(m.Files.Credentials(), credentialDaemon); !slices.Contains(keep, credentialDaemon) || !state.Exists(path) {
		all[credentialDaemon] = m.daemonJSON()
	}
	if img.Mounts {
		all[credentialShare] = credentialOf(r.Exports())
	}
	var writing errgroup.Group // each waits for the disk
	for name, content := range all {
		path := filepath.Join(m.Files.Credentials(), name)
		if slices.Contains(keep, name) && state.Exists(path) {
			continue
		}
		writing.Go(func() error {
			for len(content) < credentialSizes[name] {
				content = append(content, '\n')
			}
			return file.Replace(path, content, 0o600)
		})
	}
	return writing.Wait()
}

// daemonJSON configures the engine. Containers on its default bridge get the link's MTU: under
// emulation the number of packets counts, and with Docker's 1500 they send a quarter as much.
func (m *Machine) daemonJSON() []byte { return m.engineConfig(m.choosePools()) }

func (m *Machine) engineConfig(pools subnet.Pools) []byte {
	if pools == nil {
		return m.Config.DaemonJSON(vmnet.DefaultMTU, nil)
	}
	return m.Config.DaemonJSON(vmnet.DefaultMTU, pools)
}

// machineID returns the VM's machine ID (machine-id(5)), which never changes.
func (m *Machine) machineID() ([]byte, error) {
	id, err := os.ReadFile(filepath.Join(m.Files.Credentials(), credentialMachine))
	if err == nil {
		return id, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read machine id: %w", err)
	}
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	return hex.AppendEncode(nil, random[:]), nil
}
