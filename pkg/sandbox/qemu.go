package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Program is the name under which devvm is QEMU's stand-in, and that of the program which
// it then becomes.
const Program = "qemu-system-x86_64"

// Env is the environment variable that hands a VM's [QEMU] to [RunQEMU]. libvirt sets it
// from the VM's definition, which only the user can change.
const Env = "DEVVM_QEMU"

// QEMU is what the QEMU of one VM may use beside what each QEMU needs.
type QEMU struct {
	Read  []string `json:"read,omitempty"`  // files: kernel, images that the disk lies on, credentials
	Write []string `json:"write,omitempty"` // files: the disk
	// Append is a file that is made if it is not there: the console's log.
	Append string `json:"append,omitempty"`
	// Net is the unix socket that the VM's network card ends in. QEMU gets a connection
	// to it, and can make no other.
	Net string `json:"net,omitempty"`
}

// String is the value of Env.
func (q QEMU) String() string {
	b, err := json.Marshal(q)
	if err != nil {
		panic(err) // strings
	}
	return string(b)
}

// system is what each QEMU needs: itself, its libraries, modules and firmware, and what
// the kernel says of processors and memory.
var system = Policy{
	Run: []string{"/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/gnu/store"},
	Read: []string{
		"/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/qemu",
		"/dev/urandom", "/dev/random", "/proc", "/sys/devices/system", "/sys/kernel/mm", "/sys/module",
	},
	Devices: []string{"/dev/kvm", "/dev/null", "/dev/zero"},
}

// Policy is what the QEMU that is started with the arguments may use.
func (q QEMU) Policy(args []string) Policy {
	p := Policy{Read: slices.Clone(q.Read), Write: slices.Clone(q.Write)}
	if q.Append != "" {
		p.Write = append(p.Write, q.Append)
	}
	if dir := ownDir(args); dir != "" {
		p.Read = append(p.Read, dir)
	}
	return system.And(p)
}

// RunQEMU makes this process the QEMU of a VM, with the arguments that libvirt has for
// it, in the sandbox that the VM's definition asks for. It returns only if it fails.
//
// libvirt also starts each emulator that it does not know yet, with no machine, and asks
// what it can do: that needs no sandbox, and gets none. A machine without a sandbox does
// not start.
func RunQEMU(args, environ []string) error {
	program, err := find()
	if err != nil {
		return err
	}
	text, environ := take(environ)
	if text == "" {
		if !isProbe(args) {
			return fmt.Errorf("%s starts VMs of devvm's only, by their definition in libvirt", args[0])
		}
		return become(program, args, environ)
	}
	var q QEMU
	if err := json.Unmarshal([]byte(text), &q); err != nil {
		return fmt.Errorf("read %s: %w", Env, err)
	}
	if q.Append != "" { // QEMU must find it
		f, err := os.OpenFile(q.Append, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		_ = f.Close()
	}
	if q.Net != "" {
		if args, err = connect(args, q.Net); err != nil {
			return err
		}
	}
	policy := q.Policy(args)
	policy.Run = append(policy.Run, program)
	if _, err := Enter(policy); err != nil {
		return err
	}
	if err := Deny(Calls{Attributes: true, Sockets: true}); err != nil {
		return err
	}
	return become(program, args, environ)
}

// become replaces this process's program.
func become(program string, args, environ []string) error {
	args = append([]string{program}, args[1:]...)
	if err := unix.Exec(program, args, environ); err != nil {
		return fmt.Errorf("run %s: %w", program, err)
	}
	return nil
}

// find finds QEMU as libvirt does, on PATH and where Red Hat keeps it, but not this
// process's program.
func find() (string, error) {
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	dirs := append(filepath.SplitList(os.Getenv("PATH")), "/usr/bin", "/usr/local/bin")
	for _, path := range append(inEach(dirs, Program), "/usr/libexec/qemu-kvm") {
		info, err := os.Stat(path)
		if err != nil || os.SameFile(info, self) || !filepath.IsAbs(path) {
			continue
		}
		if path, err = exec.LookPath(path); err == nil {
			return filepath.EvalSymlinks(path)
		}
	}
	return "", errors.New("there is no " + Program)
}

func inEach(dirs []string, name string) []string {
	paths := make([]string, len(dirs))
	for i, dir := range dirs {
		paths[i] = filepath.Join(dir, name)
	}
	return paths
}

// take returns the value of Env, and the environment without it.
func take(environ []string) (value string, rest []string) {
	for _, e := range environ {
		if v, ours := strings.CutPrefix(e, Env+"="); ours {
			value = v
		} else {
			rest = append(rest, e)
		}
	}
	return value, rest
}

// option is a pair of arguments, "-name" and its value.
func option(args []string, name string, ok func(value string) bool) (at int) {
	for i := range args {
		if i > 0 && args[i-1] == name && ok(args[i]) {
			return i
		}
	}
	return -1
}

// isProbe tells whether QEMU is to have no machine (virQEMUCapsInitQMP in libvirt).
func isProbe(args []string) bool {
	machine := func(value string) bool { return value == "none" || strings.HasPrefix(value, "none,") }
	return option(args, "-machine", machine) > 0 || option(args, "-M", machine) > 0
}

// ownDir is the directory that libvirt has made for the run of the VM: it stands in the
// arguments as that of a secret (qemuBuildMasterKeyCommandLine), "" if it does not.
func ownDir(args []string) string {
	var secret struct {
		Type string `json:"qom-type"`
		File string `json:"file"`
	}
	at := option(args, "-object", func(value string) bool {
		return json.Unmarshal([]byte(value), &secret) == nil && secret.Type == "secret" && filepath.IsAbs(secret.File)
	})
	if at < 0 {
		return ""
	}
	return filepath.Dir(secret.File)
}

// connect connects to the socket of the VM's network, and returns the arguments with the
// connection in the socket's place. QEMU inherits it.
func connect(args []string, socket string) ([]string, error) {
	var card map[string]any
	at := option(args, "-netdev", func(value string) bool {
		card = nil // as the last one may have left it
		if json.Unmarshal([]byte(value), &card) != nil || card["type"] != "stream" {
			return false
		}
		addr, _ := card["addr"].(map[string]any)
		return addr["path"] == socket
	})
	if at < 0 {
		return nil, fmt.Errorf("no network card ends in %s", socket)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0) // not close-on-exec
	if err != nil {
		return nil, fmt.Errorf("connect to the VM's network: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		return nil, fmt.Errorf("connect to the VM's network at %s: %w", socket, err)
	}
	card["addr"] = map[string]string{"type": "fd", "str": fmt.Sprint(fd)}
	delete(card, "reconnect") // it could not
	delete(card, "reconnect-ms")
	b, err := json.Marshal(card)
	if err != nil {
		return nil, err
	}
	args = slices.Clone(args)
	args[at] = string(b)
	return args, nil
}
