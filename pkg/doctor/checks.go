package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/devvm/devvm/pkg/shell"
	"github.com/devvm/devvm/pkg/ui"
)

// Limits.
const (
	qemuMajor, qemuMinor = 7, 2 // the first with -netdev stream
	libvirtMajor         = 9    // the oldest that devvm is tested with
	sunPath              = 107  // longest path of a unix socket, sun_path in unix(7)

	buildData = 3 << 30    // free in Data to build an image and run a VM
	buildWork = 2500 << 20 // free in Work to build an image
	runData   = 1 << 30    // free in Data to go on
)

const slow = "VMs run all the same, emulated, many times slower"

func (d *doctor) system(context.Context) Result {
	kernel := strings.TrimSpace(d.h.read("/proc/sys/kernel/osrelease"))
	what := d.os.Name
	if kernel != "" {
		what += ", Linux " + kernel
	}
	what += ", " + d.h.Arch
	if d.o.Version != "" {
		what += ", devvm " + d.o.Version
	}
	switch {
	case d.h.Arch != "amd64":
		return blocked(what, "devvm runs on x86-64 only for now", "")
	case d.os.family() == unknown:
		return ok(what, "devvm does not know this distribution's packages, and names programs instead")
	}
	return ok(what, "")
}

// fix is the command that installs what is missing of these programs.
func (d *doctor) fix(programs ...string) string {
	return plan(d.h, d.os, func(n need) bool {
		for _, p := range programs {
			if n.program == p {
				return true
			}
		}
		return false
	}).fix()
}

var versionNumber = regexp.MustCompile(`(\d+)\.(\d+)(\.\d+)*`)

// atLeast reports whether a version such as "24.04" or "12" is of this major
// number or later; an empty one (a rolling distribution) is.
func atLeast(version string, major int) bool {
	first, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(first)
	return err != nil || n >= major
}

func (d *doctor) qemu(ctx context.Context) Result {
	path := d.h.look(qemuPrograms...)
	if path == "" {
		return blocked("QEMU is not installed", "nothing can run a VM", d.fix("qemu-system-x86_64"))
	}
	out, err := d.h.Exec(ctx, path, "--version")
	m := versionNumber.FindStringSubmatch(out)
	if err != nil || m == nil {
		return blocked(fmt.Sprintf("%s does not run: %s", path, reason(out, err)), "nothing can run a VM", path+" --version")
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	if major < qemuMajor || major == qemuMajor && minor < qemuMinor {
		return blocked(
			fmt.Sprintf("QEMU %s is too old", m[0]),
			fmt.Sprintf("devvm's network needs QEMU %d.%d, which gives a VM a network card without touching the host", qemuMajor, qemuMinor),
			"# upgrade to a release with a newer QEMU: Debian 12, Ubuntu 24.04 or later")
	}
	if major < 8 {
		return ok("QEMU "+m[0], "before QEMU 8.0 a VM cannot reconnect its network card: if the network process dies, the VM is saved and restored")
	}
	return ok("QEMU "+m[0], "")
}

func (d *doctor) qemuImg(ctx context.Context) Result {
	path := d.h.look("qemu-img")
	if path == "" {
		return blocked("qemu-img is not installed", "devvm cannot make disks", d.fix("qemu-img"))
	}
	out, err := d.h.Exec(ctx, path, "--version")
	v := versionNumber.FindString(out)
	if err != nil || v == "" {
		return blocked(fmt.Sprintf("%s does not run: %s", path, reason(out, err)), "devvm cannot make disks", path+" --version")
	}
	return ok("qemu-img "+v, "")
}

// reason is what a program said last, or why it did not run.
func reason(out string, err error) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if last := strings.TrimSpace(lines[len(lines)-1]); last != "" {
		if r := []rune(last); len(r) > 200 {
			last = string(r[:200])
		}
		return last
	}
	if err != nil {
		return err.Error()
	}
	return "it says nothing"
}

func (d *doctor) libvirt(ctx context.Context) Result {
	uri := d.o.URI
	if uri == "" {
		uri = "qemu:///session"
		if d.h.UID == 0 {
			uri = "qemu:///system"
		}
	}
	daemon := d.h.look(libvirtPrograms...)
	host, err := d.libvirtHost(ctx)
	switch {
	case err == nil:
		if host.URI != "" {
			uri = host.URI
		}
		what := fmt.Sprintf("libvirt %s answers at %s", host.Libvirt, uri)
		if m := versionNumber.FindStringSubmatch(host.Libvirt); m != nil && !atLeast(host.Libvirt, libvirtMajor) {
			return warn(what, fmt.Sprintf("devvm is tested with libvirt %d.0 and later", libvirtMajor), "# upgrade to a release with a newer libvirt: Debian 12, Ubuntu 24.04 or later")
		}
		if d.h.look("virtlogd") == "" && daemon != "" {
			return blocked(what+", but virtlogd is not installed", "libvirt cannot keep the console's log, and does not start a VM without it", d.fix("virtlogd"))
		}
		return ok(what, "")
	case daemon == "":
		return blocked("libvirt is not installed", "nothing can define a VM", d.fix("libvirtd", "libvirt's QEMU driver", "virtlogd", "libvirt's system configuration"))
	case errors.Is(err, errNotAsked):
		return ok(daemon+" is installed", "whether it answers was not checked")
	}
	socket := "libvirtd.socket virtlogd.socket"
	if filepath.Base(daemon) == "virtqemud" {
		socket = "virtqemud.socket virtlogd.socket"
	}
	what := fmt.Sprintf("libvirt does not answer at %s: %s", uri, oneLine(err))
	const meaning = "devvm can neither make nor find a VM"
	system := strings.HasSuffix(uri, "/system")
	switch {
	case ctx.Err() != nil:
		return blocked(what, meaning, "# see what hangs: "+filepath.Base(daemon)+" --timeout=30 --verbose")
	case system && d.h.UID != 0 && strings.Contains(err.Error(), "permission denied"):
		return blocked(what, meaning, d.libvirtForbidden())
	case system && d.h.exists("/run/systemd/system"):
		return blocked(what, meaning, d.h.sudo("systemctl enable --now %s", socket))
	case system && d.h.UID != 0:
		return blocked(what, meaning, "sudo virtlogd --daemon\nsudo "+filepath.Base(daemon)+" --daemon")
	}
	// In the foreground it says what is wrong.
	return blocked(what, meaning, daemon+" --timeout=30 --verbose")
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func (d *doctor) kvm(ctx context.Context) Result {
	flags := cpuFlags(d.h.read("/proc/cpuinfo"))
	module := ""
	switch {
	case flags["vmx"]:
		module = "kvm_intel"
	case flags["svm"]:
		module = "kvm_amd"
	}
	const dev = "/dev/kvm"
	if !d.h.exists(dev) {
		switch {
		case d.inContainer():
			return warn("this is a container without /dev/kvm", slow, "# give the container the device: --device /dev/kvm")
		case module != "":
			return warn("the CPU can run VMs, but /dev/kvm does not exist", slow,
				d.h.sudo("modprobe %s", module)+"\n# if that fails, switch on virtualisation (VT-x, AMD-V, SVM) in the firmware")
		case flags["hypervisor"]:
			return warn("this machine is a VM that cannot run VMs itself (no nested virtualisation)", slow, "# switch on nested virtualisation for this machine in the hypervisor that runs it")
		}
		return warn("the CPU shows no virtualisation (neither vmx nor svm)", slow, "# switch on virtualisation (VT-x, AMD-V, SVM) in the firmware")
	}
	if err := d.h.OpenRW(d.h.path(dev)); err != nil {
		if !errors.Is(err, fs.ErrPermission) {
			fix := "# see what the kernel says: dmesg | grep -i kvm"
			if module != "" {
				fix = d.h.sudo("modprobe %s", module) + "\n" + fix
			}
			return warn(fmt.Sprintf("/dev/kvm does not open: %s", oneLine(pathless(err))), slow, fix)
		}
		if d.h.UID == 0 {
			return warn("/dev/kvm does not open, not even for root", slow+"; a container or a security policy forbids it", "# allow this container or service the device /dev/kvm")
		}
		return d.kvmForbidden(dev)
	}
	host, err := d.libvirtHost(ctx)
	if err != nil || d.o.Accel == nil {
		return ok("/dev/kvm opens", "whether KVM really runs a VM shows with the first one")
	}
	v := d.o.Accel(host)
	switch {
	case v.Note != "":
		return warn(v.Note, "VMs run all the same", v.Hint)
	case v.Proven:
		return ok("KVM runs VMs here", "")
	}
	return ok("/dev/kvm opens", "whether KVM really runs a VM shows with the first one; if it does not, devvm falls back to emulation")
}

// kvmForbidden says how a user gets access to the device.
func (d *doctor) kvmForbidden(dev string) Result {
	what := fmt.Sprintf("%s may not use /dev/kvm", d.h.User)
	_, gid, err := d.h.owner(dev)
	group, members := d.h.group(gid)
	if err != nil || gid == 0 || group == "" { // root's group is not one to join
		return warn(what, slow, d.h.sudo("groupadd -f -r kvm")+"\n"+d.h.sudo("usermod -aG kvm %s", d.h.User)+"\n"+d.h.sudo("chown root:kvm /dev/kvm")+"\n"+d.h.sudo("chmod 660 /dev/kvm")+"\n# then log out and in again")
	}
	open := ""
	if info, err := os.Stat(d.h.path(dev)); err == nil && info.Mode().Perm()&0o060 != 0o060 {
		open = d.h.sudo("chmod g+rw /dev/kvm") + "\n"
	}
	if slices.Contains(members, d.h.User) {
		return warn(what+" yet, though a member of the group "+group, slow, open+"# log out and in again (or, for this shell: newgrp "+group+")\n# then stop the old libvirt daemon of yours, or wait two minutes after the last VM")
	}
	return warn(what, slow, open+d.h.sudo("usermod -aG %s %s", group, d.h.User)+"\n# then log out and in again")
}

// libvirtForbidden says how a user gets access to the libvirt that root runs.
func (d *doctor) libvirtForbidden() string {
	const group = "libvirt" // the distributions' name for it
	members, found := d.h.members(group)
	switch {
	case !found:
		return "# this host has no group for libvirt's users; leave out host.uri and DEVVM_LIBVIRT_URI, and devvm uses a libvirt of your own"
	case slices.Contains(members, d.h.User):
		return "# log out and in again: you are a member of the group " + group + ", but were not when you logged in"
	}
	return d.h.sudo("usermod -aG %s %s", group, d.h.User) + "\n# then log out and in again"
}

// pathless is an error without the path, which the message has already.
func pathless(err error) error {
	if p, found := errors.AsType[*fs.PathError](err); found {
		return p.Err
	}
	return err
}

func cpuFlags(cpuinfo string) map[string]bool {
	flags := map[string]bool{}
	for line := range strings.Lines(cpuinfo) {
		name, value, found := strings.Cut(line, ":")
		if found && strings.TrimSpace(name) == "flags" {
			for _, f := range strings.Fields(value) {
				flags[f] = true
			}
			break // all CPUs are alike in what matters here
		}
	}
	return flags
}

func (d *doctor) inContainer() bool {
	return d.h.exists("/.dockerenv") || d.h.exists("/run/.containerenv") || d.h.exists("/run/systemd/container")
}

func (d *doctor) imageTools(ctx context.Context) Result {
	p := plan(d.h, d.os, func(n need) bool { return n.image })
	if len(p.Missing)+len(p.Unavailable) == 0 {
		return ok("all that builds a base image is installed", "")
	}
	var names []string
	for _, m := range append(p.Missing, p.Unavailable...) {
		names = append(names, m.Name)
	}
	what := "not installed: " + strings.Join(names, ", ")
	fix := p.fix()
	if len(p.Unavailable) > 0 {
		fix += "\n# or build the image on a Debian or Ubuntu host (devvm image build) and bring it here: devvm image import"
	}
	if d.haveImage(ctx) {
		return warn(what, "no new base image can be built here; existing ones still work", fix)
	}
	return blocked(what, "the base image cannot be built", fix)
}

func (d *doctor) diskSpace(ctx context.Context) Result {
	type space struct {
		dir  string
		need int64
	}
	wanted := []space{{d.o.Data, runData}}
	meaning := "VMs may run out of space"
	build := !d.haveImage(ctx)
	if build {
		wanted = []space{{d.o.Data, buildData}, {d.o.Work, buildWork}}
		meaning = "the base image cannot be built"
	}
	var have []string
	for _, w := range wanted {
		if w.dir == "" {
			continue
		}
		free, err := d.h.free(w.dir)
		if err != nil {
			return warn(fmt.Sprintf("the free space of %s is not known: %s", w.dir, oneLine(pathless(err))), "", "df -h "+shell.Quote(w.dir))
		}
		if free < w.need {
			r := warn(fmt.Sprintf("%s has %s free, %s are needed", w.dir, ui.Size(free), ui.Size(w.need)), meaning,
				"df -h "+shell.Quote(w.dir)+"\ndevvm prune\n# devvm df shows what each project takes; devvm rm frees it")
			if build {
				r.Status, r.Blocks = Fail, true
			}
			return r
		}
		have = append(have, fmt.Sprintf("%s free in %s", ui.Size(free), w.dir))
	}
	return ok(strings.Join(have, ", "), "")
}

func (d *doctor) memory(context.Context) Result {
	info := map[string]int64{}
	for line := range strings.Lines(d.h.read("/proc/meminfo")) {
		name, value, _ := strings.Cut(line, ":")
		if f := strings.Fields(value); len(f) > 0 {
			if n, err := strconv.ParseInt(f[0], 10, 64); err == nil {
				info[name] = n << 10
			}
		}
	}
	total, available := info["MemTotal"], info["MemAvailable"]
	if total == 0 {
		return warn("the host's memory is not known: /proc/meminfo cannot be read", "", "cat /proc/meminfo")
	}
	what := fmt.Sprintf("%s of %s available", ui.Size(available), ui.Size(total))
	if d.o.Memory > 0 && available < d.o.Memory {
		return warn(fmt.Sprintf("%s, and a VM may take %s", what, ui.Size(d.o.Memory)),
			"a VM takes memory as it uses it and gives it back; with too little, the host swaps or kills it",
			"# end other programs or VMs (devvm ls), or set a smaller memory in devvm.toml")
	}
	return ok(what, "")
}

func (d *doctor) runtimeDir(context.Context) Result {
	what := "sockets are kept in " + d.o.Runtime
	if d.o.Runtime == "" {
		what = "nothing is wrong with it"
	}
	if d.h.UID == 0 {
		return ok(what, "")
	}
	dir := d.h.Getenv("XDG_RUNTIME_DIR")
	usual := "/run/user/" + strconv.Itoa(d.h.UID)
	uid, _, err := d.h.owner(usual)
	haveUsual := err == nil && uid == d.h.UID
	repair := "unset XDG_RUNTIME_DIR"
	if haveUsual && dir != usual {
		repair = "export XDG_RUNTIME_DIR=" + usual
	}
	const ignored = "devvm ignores it, libvirt may not"
	switch {
	case dir == "" && haveUsual:
		dir = usual
	case dir == "":
		return ok(what+"; there is no XDG_RUNTIME_DIR", "")
	case !filepath.IsAbs(dir):
		return warn("XDG_RUNTIME_DIR is not an absolute path: "+dir, ignored, repair)
	default:
		owner, _, err := d.h.owner(dir)
		if err != nil {
			return warn("XDG_RUNTIME_DIR does not exist: "+dir, ignored, repair)
		}
		if owner != d.h.UID {
			return warn(fmt.Sprintf("XDG_RUNTIME_DIR belongs to uid %d: %s", owner, dir), "it came along with su or sudo; "+ignored, repair)
		}
		if info, err := os.Stat(d.h.path(dir)); err == nil && info.Mode().Perm()&0o022 != 0 {
			return warn(fmt.Sprintf("others can write to XDG_RUNTIME_DIR: %s has mode %04o", dir, info.Mode().Perm()), ignored, "chmod go-w "+shell.Quote(dir))
		}
	}
	if dir == usual && d.h.exists("/run/systemd/system") && !d.h.exists("/var/lib/systemd/linger/"+d.h.User) {
		return warn(what, "systemd removes "+usual+" when your last session ends; VMs that run then can no longer be reached", "loginctl enable-linger")
	}
	return ok(what, "")
}

func (d *doctor) sockets(context.Context) Result {
	if d.o.Unsafe != nil {
		return blocked(oneLine(d.o.Unsafe), "devvm does not put docker.sock there", "# "+ui.Hint(d.o.Unsafe))
	}
	n := len(d.o.Socket)
	if n == 0 {
		return ok("paths of sockets were not checked", "")
	}
	if n > sunPath {
		return blocked(fmt.Sprintf("the path of a socket has %d bytes: %s", n, d.o.Socket), fmt.Sprintf("the kernel takes at most %d", sunPath), "# use a shorter XDG_RUNTIME_DIR or XDG_DATA_HOME")
	}
	return ok(fmt.Sprintf("the longest path has %d of %d bytes", n, sunPath), "")
}

func (d *doctor) dockerClient(ctx context.Context) Result {
	for _, name := range []string{"DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_TLS"} {
		if v := d.h.Getenv(name); v != "" {
			return warn(fmt.Sprintf("%s is set to %q", name, v), "Docker's client then does not follow DOCKER_HOST to the VM as devvm env sets it", "unset "+name)
		}
	}
	path := d.h.look("docker")
	if path == "" {
		return ok("no Docker client on this host", "devvm docker runs the one in the VM")
	}
	out, err := d.h.Exec(ctx, path, "--version")
	switch {
	case err != nil:
		return warn(fmt.Sprintf("%s does not run: %s", path, reason(out, err)), "devvm docker runs the one in the VM", path+" --version")
	case strings.Contains(strings.ToLower(out), "podman"):
		return warn("the command docker is Podman's", "it does not follow DOCKER_HOST to the VM", "devvm docker ps\n# or install Docker's own client")
	}
	if _, err := d.h.Exec(ctx, path, "compose", "version"); err != nil {
		return warn(reason(out, nil)+", without its plugin compose", "docker compose does not work here; devvm docker compose runs the one in the VM", "devvm docker compose version\n# or install Docker's plugin compose here")
	}
	return ok(reason(out, nil), "")
}

func (d *doctor) dockerHost(context.Context) Result {
	for _, p := range []string{"/sys/class/net/docker0", "/run/docker.sock", "/var/run/docker.pid"} {
		if d.h.exists(p) {
			return ok("Docker runs on this host too", "its firewall rules (policy DROP on FORWARD) do not matter to devvm's VMs, which use no bridge and no forwarding; devvm audit says what its containers show to neighbours")
		}
	}
	return ok("no Docker on this host", "")
}

func (d *doctor) hypervisors(context.Context) Result {
	var found []string
	for line := range strings.Lines(d.h.read("/proc/modules")) {
		switch name, _, _ := strings.Cut(line, " "); name {
		case "vboxdrv":
			found = append(found, "VirtualBox")
		case "vmmon":
			found = append(found, "VMware")
		}
	}
	if len(found) > 0 {
		return ok(strings.Join(found, " and ")+" on this host too", "while its VMs run, KVM may not start; devvm then falls back to emulation")
	}
	return ok("none", "")
}

func (d *doctor) leftovers(ctx context.Context) Result {
	if d.o.Leftovers == nil {
		return ok("not looked for", "")
	}
	list, err := d.o.Leftovers(ctx)
	if err != nil {
		return warn("cannot look for leftovers of earlier runs: "+oneLine(err), "", "")
	}
	if len(list) == 0 {
		return ok("nothing is left over of earlier runs", "")
	}
	var what, fix []string
	for _, l := range list {
		what = append(what, l.What)
		if l.Fix != "" {
			fix = append(fix, l.Fix)
		}
	}
	return warn("left over: "+strings.Join(what, "; "), "it takes space and does no harm", strings.Join(fix, "\n"))
}
