package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	backend "github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"github.com/devvm/devvm/images"
)

// Guest is what a VM of a cloud image (Manifest.CloudInit) is told of itself.
// A VM of our own images gets the same as credentials.
type Guest struct {
	InstanceID     string // changes when the VM is made anew, so that cloud-init sets it up again
	Hostname       string
	Timezone       string // name in the tz database; "" leaves the image's
	AuthorizedKeys string // lines of authorized_keys
	HostKey        string // OpenSSH private key, ed25519
	HostKeyPublic  string // its line of the .pub file
	DaemonJSON     string // content of /etc/docker/daemon.json; "" for none
}

// seedLabel is the volume name by which cloud-init finds its data
// (https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html).
const seedLabel = "cidata"

// installEngine installs Docker Engine where the image has none: the images of
// Debian, Ubuntu and Fedora come without.
const installEngine = `command -v dockerd >/dev/null && exit 0
if command -v apt-get >/dev/null; then
	export DEBIAN_FRONTEND=noninteractive
	apt-get -q update && apt-get -q -y install docker.io
	apt-get -q -y install docker-cli || true
elif command -v dnf >/dev/null; then
	dnf -y install moby-engine && systemctl enable --now docker
else
	echo 'devvm: no Docker Engine in this image, and no apt or dnf to install it' >/dev/console
fi`

// The rule that leads the gateway to ports which containers publish on 127.0.0.1, as in
// our own images (images/debian-13).
const (
	loopbackScript = "debian-13/root/usr/lib/devvm/loopback"
	loopbackUnit   = `[Unit]
Description=The way to ports that are published on 127.0.0.1
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/devvm/loopback

[Install]
WantedBy=multi-user.target
`
	installLoopback = `command -v nft >/dev/null || apt-get -q -y install nftables || dnf -y install nftables
systemctl daemon-reload && systemctl enable --now devvm-loopback.service`
)

// Seed returns the files of cloud-init's NoCloud data source for a guest. The
// network is left to DHCP, which gives the address that other images have
// built in.
func Seed(g Guest) (map[string][]byte, error) {
	type file struct {
		Path        string `json:"path"`
		Permissions string `json:"permissions"`
		Content     string `json:"content"`
	}
	var keys []string
	for line := range strings.Lines(g.AuthorizedKeys) {
		if line = strings.TrimSpace(line); line != "" {
			keys = append(keys, line)
		}
	}
	if g.InstanceID == "" || g.Hostname == "" || len(keys) == 0 || g.HostKey == "" || g.HostKeyPublic == "" {
		return nil, errors.New("seed: a guest needs an instance id, a host name, an authorized key and a host key")
	}
	files := []file{{
		Path:        "/etc/ssh/sshd_config.d/10-devvm.conf",
		Permissions: "0644",
		Content: "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUseDNS no\n" +
			"AllowStreamLocalForwarding yes\nMaxStartups 1000\nMaxSessions 1000\n",
	}}
	loopback, err := images.FS.ReadFile(loopbackScript)
	if err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	files = append(files,
		file{Path: "/usr/lib/devvm/loopback", Permissions: "0755", Content: string(loopback)},
		file{Path: "/etc/systemd/system/devvm-loopback.service", Permissions: "0644", Content: loopbackUnit})
	if g.DaemonJSON != "" {
		files = append(files, file{Path: "/etc/docker/daemon.json", Permissions: "0644", Content: g.DaemonJSON})
	}
	// JSON is YAML, and needs no rules for quoting of ours.
	userData, err := jsonBytes(struct {
		Hostname         string            `json:"hostname"`
		PreserveHostname bool              `json:"preserve_hostname"`
		ManageEtcHosts   bool              `json:"manage_etc_hosts"`
		Timezone         string            `json:"timezone,omitempty"`
		Users            []string          `json:"users"` // none but root, which gets the keys
		DisableRoot      bool              `json:"disable_root"`
		SSHPasswords     bool              `json:"ssh_pwauth"`
		AuthorizedKeys   []string          `json:"ssh_authorized_keys"`
		DeleteHostKeys   bool              `json:"ssh_deletekeys"`
		HostKeyTypes     []string          `json:"ssh_genkeytypes"`
		HostKeys         map[string]string `json:"ssh_keys"`
		Files            []file            `json:"write_files"`
		BootCommands     [][]string        `json:"bootcmd"`
		Commands         [][]string        `json:"runcmd"`
	}{
		Hostname: g.Hostname, ManageEtcHosts: true, Timezone: g.Timezone,
		Users: []string{}, AuthorizedKeys: keys,
		DeleteHostKeys: true, HostKeyTypes: []string{},
		HostKeys:     map[string]string{"ed25519_private": g.HostKey, "ed25519_public": strings.TrimSpace(g.HostKeyPublic)},
		Files:        files,
		BootCommands: [][]string{{"sh", "-c", "echo 'devvm: kernel up' >/dev/console"}},
		Commands:     [][]string{{"sh", "-c", installEngine}, {"sh", "-c", installLoopback}},
	})
	if err != nil {
		return nil, err
	}
	metaData, err := jsonBytes(struct {
		InstanceID string `json:"instance-id"`
		Hostname   string `json:"local-hostname"`
	}{g.InstanceID, g.Hostname})
	if err != nil {
		return nil, err
	}
	type match struct {
		Name string `json:"name"`
	}
	type card struct {
		Match match `json:"match"`
		DHCP4 bool  `json:"dhcp4"`
	}
	network, err := jsonBytes(struct {
		Version   int             `json:"version"`
		Ethernets map[string]card `json:"ethernets"`
	}{2, map[string]card{"devvm": {match{"e*"}, true}}})
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		"user-data":      append([]byte("#cloud-config\n"), userData...),
		"meta-data":      metaData,
		"network-config": network,
	}, nil
}

func jsonBytes(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // the shell's > stays readable
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	return buf.Bytes(), nil
}

// WriteSeed writes the files of Seed as a CD image, which is to be attached to
// the VM, in place of path. Only the owner can read it: it holds a private key.
func WriteSeed(path string, files map[string][]byte) error {
	if err := writeSeed(path, files); err != nil {
		return fmt.Errorf("write seed %s: %w", path, err)
	}
	return nil
}

func writeSeed(path string, files map[string][]byte) error {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".seed-") // 0700
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, "iso")
	err = makeISO(tmp, filepath.Join(dir, "files"), files)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	return errors.Join(err, os.RemoveAll(dir))
}

func makeISO(path, workspace string, files map[string][]byte) (err error) {
	if err := os.Mkdir(workspace, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	iso, err := iso9660.Create(backend.New(f, false), 0, 0, 0, workspace)
	if err != nil {
		return err
	}
	for name, data := range files {
		out, err := iso.OpenFile("/"+name, os.O_CREATE|os.O_RDWR)
		if err != nil {
			return err
		}
		if _, err := out.Write(data); err != nil {
			return errors.Join(err, out.Close())
		}
		if err := out.Close(); err != nil {
			return err
		}
	}
	// Rock Ridge, for names that are not in capitals.
	return iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: seedLabel})
}
