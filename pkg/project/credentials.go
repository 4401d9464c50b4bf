package project

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/image"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/subnet"
	"github.com/devvm/devvm/pkg/usernet"
)

// Names of the guest's system credentials; images/debian-13 reads them.
const (
	credentialKeys     = "devvm.authorized_keys"
	credentialHostKey  = "devvm.host_key"
	credentialHostname = "devvm.hostname"
	credentialTimezone = "devvm.timezone"
	credentialDaemon   = "devvm.daemon.json"
	credentialShare    = "devvm.share"
	// credentialMachine is also how a fork knows that it is one: its template's
	// was another.
	credentialMachine = "system.machine_id"
)

// credentialSizes are the sizes, in bytes, to which credentials are padded with line
// ends. A fork's kernel knows its template's sizes and reads its own with them.
var credentialSizes = map[string]int{
	credentialKeys: 512, credentialHostKey: 1024, credentialHostname: 128, credentialTimezone: 128,
	credentialShare: 8192,
}

// seed is the path of the seed that sets up a cloud image; "" for our own
// images, which read credentials.
func (b *boot) seed(img image.Image) string {
	if !img.CloudInit {
		return ""
	}
	return filepath.Join(b.files.Credentials(), "seed.iso")
}

// writeCredentials writes what the guest is told at its boot. What is to be kept is written
// only if it is not there.
func (b *boot) writeCredentials(img image.Image, keep ...string) error {
	if err := noteAddress(b.files, img); err != nil {
		return err
	}
	keys, err := guest.LoadKeys(b.files.Keys())
	if err != nil {
		return fmt.Errorf("load keys: %w", err)
	}
	if img.CloudInit {
		seed, err := image.Seed(image.Guest{
			InstanceID:     b.project.UUID,
			Hostname:       b.project.Name,
			Timezone:       b.Zone,
			AuthorizedKeys: keys.AuthorizedKey(),
			HostKey:        string(keys.HostKeyPEM()),
			HostKeyPublic:  keys.HostPublicKey(),
			DaemonJSON:     string(b.daemonJSON()),
		})
		if err != nil {
			return err
		}
		return image.WriteSeed(b.seed(img), seed)
	}
	machine, err := b.machineID()
	if err != nil {
		return err
	}
	has, err := readShares(b.files)
	if err != nil {
		return err
	}
	all := map[string][]byte{
		credentialMachine:  machine,
		credentialKeys:     []byte(keys.AuthorizedKey()),
		credentialHostKey:  keys.HostKeyPEM(),
		credentialHostname: []byte(b.project.Name),
		credentialTimezone: []byte(b.Zone),
	}
	if path := filepath.Join(b.files.Credentials(), credentialDaemon); !slices.Contains(keep, credentialDaemon) || !state.Exists(path) {
		all[credentialDaemon] = b.daemonJSON()
	}
	if img.Mounts {
		all[credentialShare] = credentialOf(has.Exports)
	}
	var writing errgroup.Group // each waits for the disk
	for name, content := range all {
		path := filepath.Join(b.files.Credentials(), name)
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

// daemonJSON configures the engine. Containers on its own bridge have the link's MTU: under
// emulation each packet costs, and with Docker's 1500 they send a quarter of what they can.
func (b *boot) daemonJSON() []byte { return b.engineConfig(b.choosePools()) }

func (b *boot) engineConfig(pools subnet.Pools) []byte {
	if pools == nil {
		return b.cfg.DaemonJSON(usernet.DefaultMTU, nil)
	}
	return b.cfg.DaemonJSON(usernet.DefaultMTU, pools)
}

// machineID returns the VM's machine id (machine-id(5)), which it keeps for life.
func (b *boot) machineID() ([]byte, error) {
	id, err := os.ReadFile(filepath.Join(b.files.Credentials(), credentialMachine))
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
