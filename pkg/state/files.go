package state

import (
	"path/filepath"

	"github.com/devvm/devvm/pkg/background"
)

// Files are the files of one project. docs/files.md describes each.
type Files struct {
	Root   string // projects/NAME: all that is kept
	Lock   string
	Record string
	VM     string // replaced as a whole by nuke
	Undo   string // the VM before the last nuke
	Logs   string

	Run string // runtime/NAME: sockets
	net string // runtime/net: the socket that QEMU connects to; QEMU may run as another user
}

// Files derives where a project's files are.
func (d Dirs) Files(name string) Files {
	root := filepath.Join(d.Data, "projects", name)
	p := Files{
		Root:   root,
		Lock:   filepath.Join(root, "lock"),
		Record: filepath.Join(root, "project.json"),
		VM:     filepath.Join(root, "vm"),
		Undo:   filepath.Join(root, "undo"),
		Logs:   filepath.Join(root, "log"),
		Run:    filepath.Join(d.Runtime, name),
		net:    filepath.Join(d.Runtime, "net"),
	}
	if d.Short != "" && d.tooLong(name) {
		p.Run = filepath.Join(d.Short, name[max(0, len(name)-8):])
		p.net = filepath.Join(d.Short, "net")
	}
	return p
}

// Disk is the VM's disk, an overlay on its image or template.
func (f Files) Disk() string { return filepath.Join(f.VM, "disk.qcow2") }

// Console is what the guest has written to its serial console.
func (f Files) Console() string { return filepath.Join(f.VM, "console.log") }

// Keys is the directory of the VM's SSH keys.
func (f Files) Keys() string { return filepath.Join(f.VM, "keys") }

// Credentials is the directory of what the guest's firmware tells it.
func (f Files) Credentials() string { return filepath.Join(f.VM, "credentials") }

// begun is the mark of a VM whose engine has never answered.
func (f Files) begun() string { return filepath.Join(f.VM, "begun") }

// unused is the mark of a VM that nobody has used yet.
func (f Files) unused() string { return filepath.Join(f.VM, "unused") }

// Provisioned holds the hash of the provisioning that was done in the VM.
func (f Files) Provisioned() string { return filepath.Join(f.VM, "provisioned") }

// Management is the mark of a VM whose sshd has an address of its own.
func (f Files) Management() string { return filepath.Join(f.VM, "management") }

// Stopping is the mark of a VM that has been asked to power off.
func (f Files) Stopping() string { return filepath.Join(f.VM, "stopping") }

// Vacant is the mark of a project that has no VM, on purpose.
func (f Files) Vacant() string { return filepath.Join(f.Root, "vacant") }

// Removing is where things are moved before they are removed.
func (f Files) Removing() string { return filepath.Join(f.Root, "removing") }

// Applied is the record of the settings in force for the VM, see pkg/applied.
func (f Files) Applied() string { return filepath.Join(f.Root, "applied.json") }

// Owners is the directory of the owners that files have in the VM.
func (f Files) Owners() string { return filepath.Join(f.Root, "owners") }

// ShareSocket is the socket of the server that shares files with the VM.
func (f Files) ShareSocket() string { return filepath.Join(f.Run, "share.sock") }

// NetLock is the lock of the network process.
func (f Files) NetLock() string { return filepath.Join(f.Run, "net.lock") }

// DialSocket is the socket for connections into the VM's network.
func (f Files) DialSocket() string { return filepath.Join(f.Run, "dial.sock") }

// ControlSocket is the supervisor's own socket.
func (f Files) ControlSocket() string { return filepath.Join(f.Run, "control.sock") }

// DockerSocket is the socket for Docker clients.
func (f Files) DockerSocket() string { return filepath.Join(f.Run, "docker.sock") }

// NetSocket is the socket that QEMU connects its network card to.
func (f Files) NetSocket() string { return filepath.Join(f.net, filepath.Base(f.Run)+".sock") }

// SupervisorLock is the lock of the supervisor.
func (f Files) SupervisorLock() string { return filepath.Join(f.Run, "supervisor.lock") }

// Exposures is the record of the ports that are exposed for a time.
func (f Files) Exposures() string { return filepath.Join(f.Root, "exposures.json") }

// NetLog is the log of the network process.
func (f Files) NetLog() string { return filepath.Join(f.Logs, "net.log") }

// SupervisorLog is the log of the supervisor.
func (f Files) SupervisorLog() string { return filepath.Join(f.Logs, "supervisor.log") }

// ProvisionLog is the output of provisioning.
func (f Files) ProvisionLog() string { return filepath.Join(f.Logs, "provision.log") }

// Remove removes everything of the project on this host. Root, by which it is found, goes last.
func (f Files) Remove() error {
	// Each as a whole: what is left by a killed run must not look like a VM without its disk.
	for _, path := range []string{f.VM, f.Undo} {
		if err := f.removeWhole(path); err != nil {
			return err
		}
	}
	for _, path := range []string{f.NetSocket(), background.Unfinished(f.NetSocket()), f.Run, f.Root} {
		if err := RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}
