package guest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/devvm/devvm/pkg/file"
)

// Names of the files in a VM's key directory.
const (
	userKeyFile    = "id_ed25519"
	hostKeyFile    = "host_ed25519"
	knownHostsFile = "known_hosts"
)

// HostAlias is the name of the guest's key in a VM's known_hosts file. Each VM has its own
// file, so the name need not tell VMs apart.
const HostAlias = "devvm"

// Keys are the two key pairs of one VM: the user key, with which the host logs in, and the
// guest's host key. The host makes both and hands the guest its host key, so even the first
// connection is pinned. The zero value holds no keys.
type Keys struct {
	dir        string
	user, host ssh.Signer
	hostPEM    []byte
}

// GenerateKeys makes the keys of a new VM in dir (created, mode 0700; private files 0600, each
// written atomically and synced). It keeps a complete set that is already there, so an
// interrupted caller can simply try again, and replaces a broken or partial one.
func GenerateKeys(dir string) (Keys, error) {
	if keys, err := LoadKeys(dir); err == nil {
		return keys, keys.writePublic()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Keys{}, fmt.Errorf("make the VM's keys: %w", err)
	}
	for _, name := range []string{userKeyFile, hostKeyFile} {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return Keys{}, fmt.Errorf("make the VM's keys: %w", err)
		}
		block, err := ssh.MarshalPrivateKey(private, "devvm")
		if err != nil {
			return Keys{}, fmt.Errorf("make the VM's keys: %w", err)
		}
		if err := file.Replace(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return Keys{}, err
		}
	}
	keys, err := LoadKeys(dir)
	if err != nil {
		return Keys{}, err
	}
	return keys, keys.writePublic()
}

// LoadKeys reads the keys that GenerateKeys left in dir. If there are none, the error wraps
// [fs.ErrNotExist].
func LoadKeys(dir string) (Keys, error) {
	user, _, err := loadKey(filepath.Join(dir, userKeyFile))
	if err != nil {
		return Keys{}, err
	}
	host, hostPEM, err := loadKey(filepath.Join(dir, hostKeyFile))
	if err != nil {
		return Keys{}, err
	}
	return Keys{dir: dir, user: user, host: host, hostPEM: hostPEM}, nil
}

func loadKey(path string) (ssh.Signer, []byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read the VM's keys: %w", err)
	}
	signer, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return nil, nil, fmt.Errorf("read the VM's keys: %s: %w", path, err)
	}
	if t := signer.PublicKey().Type(); t != ssh.KeyAlgoED25519 {
		return nil, nil, fmt.Errorf("read the VM's keys: %s is of type %s, not %s", path, t, ssh.KeyAlgoED25519)
	}
	return signer, data, nil
}

// writePublic writes the files that other programs read: the public keys and known_hosts.
func (k Keys) writePublic() error {
	for name, text := range map[string]string{
		userKeyFile + ".pub": k.AuthorizedKey(),
		hostKeyFile + ".pub": publicLine(k.host),
		knownHostsFile:       HostAlias + " " + publicLine(k.host),
	} {
		path := filepath.Join(k.dir, name)
		if have, err := os.ReadFile(path); err == nil && string(have) == text {
			continue
		}
		if err := file.Replace(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// AuthorizedKey is the line for the guest's authorized_keys, newline included.
func (k Keys) AuthorizedKey() string { return publicLine(k.user) }

// HostPublicKey is the line of the guest's public host key, newline included.
func (k Keys) HostPublicKey() string { return publicLine(k.host) }

// HostKeyPEM is the private host key for the guest, in OpenSSH's format.
func (k Keys) HostKeyPEM() []byte { return bytes.Clone(k.hostPEM) }

// IdentityFile is the path of the private user key.
func (k Keys) IdentityFile() string { return filepath.Join(k.dir, userKeyFile) }

// KnownHostsFile is the path of a known_hosts file that holds the guest's host
// key under [HostAlias].
func (k Keys) KnownHostsFile() string { return filepath.Join(k.dir, knownHostsFile) }

func publicLine(s ssh.Signer) string {
	line := strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(s.PublicKey())), "\n")
	return line + " devvm\n"
}
