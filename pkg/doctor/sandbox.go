package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/devvm/devvm/pkg/shell"
)

// libvirtProfile is AppArmor's for libvirt's daemon, which lets that start programs of
// /usr/bin only.
const libvirtProfile = "usr.sbin.libvirtd"

// sandbox tells whether QEMU is confined to its VM's files.
func (d *doctor) sandbox(ctx context.Context) Result {
	const without = "who breaks out of a VM's QEMU has all files of yours; nothing else changes"
	host, err := d.libvirtHost(ctx)
	modules := strings.Split(strings.TrimSpace(d.h.read("/sys/kernel/security/lsm")), ",")
	switch {
	case err != nil:
		return ok("libvirt does not answer, so that this is not known", "")
	case host.Sandbox != "":
		return ok("QEMU, the network process and the supervisor are confined to a VM's own files", "")
	case host.QEMUUser >= 0:
		return ok(fmt.Sprintf("QEMU runs as a user of its own (uid %d)", host.QEMUUser), "")
	case len(modules) > 1 && !slices.Contains(modules, "landlock"):
		return warn("the kernel does not use Landlock", without,
			"# add it to the kernel's command line, and boot again: lsm=landlock,"+strings.Join(modules, ","))
	case d.h.exists("/etc/apparmor.d/"+libvirtProfile) && slices.Contains(modules, "apparmor") && strings.Contains(host.NoSandbox, "libvirt"):
		rule := shell.Quote(d.o.Program + " PUx,")
		return warn(host.NoSandbox, "AppArmor lets libvirt start programs of /usr/bin only; "+without, strings.Join([]string{
			"echo " + rule + " | " + d.h.sudo("tee -a /etc/apparmor.d/local/%s", libvirtProfile),
			d.h.sudo("apparmor_parser -r /etc/apparmor.d/%s", libvirtProfile),
		}, "\n"))
	}
	return warn(host.NoSandbox, without, "# Landlock is in Linux 5.19 and later")
}
