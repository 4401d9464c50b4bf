package doctor

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// subordinate is how many subordinate ids a build needs: those of Debian.
const subordinate = 65536

// apparmorProfile lets mmdebstrap alone make user namespaces, where Ubuntu
// reserves them to programs with a profile.
const apparmorProfile = `abi <abi/4.0>,\nprofile devvm-mmdebstrap /usr/bin/mmdebstrap flags=(unconfined) { userns, }\n`

// userNamespaces asks mmdebstrap to do what it does first in a build without
// root. Only if it cannot are the usual reasons looked at.
func (d *doctor) userNamespaces(ctx context.Context) Result {
	if d.h.UID == 0 {
		return ok("root builds images without them", "")
	}
	result := func(what, fix string) Result {
		if d.haveImage(ctx) {
			return warn(what, "no new base image can be built without root; the ones that are there serve", fix)
		}
		return blocked(what, "the base image cannot be built without root", fix)
	}
	mmdebstrap := d.h.look("mmdebstrap")
	said := ""
	if mmdebstrap != "" {
		out, err := d.h.Exec(ctx, mmdebstrap, "--unshare-helper", "true")
		if err == nil {
			return ok("user namespaces with subordinate ids work", "")
		}
		said = reason(out, err)
	}
	if d.h.look("newuidmap") == "" {
		return result("newuidmap is not installed", d.fix("newuidmap"))
	}
	if fix := d.addSubordinateIDs(); fix != "" {
		return result(fmt.Sprintf("%s has no subordinate ids in /etc/subuid and /etc/subgid", d.h.User), fix)
	}
	if n, known := d.h.number("/proc/sys/kernel/unprivileged_userns_clone"); known && n == 0 {
		return result("the kernel keeps user namespaces from users (kernel.unprivileged_userns_clone = 0)", d.sysctl("kernel.unprivileged_userns_clone=1"))
	}
	if n, known := d.h.number("/proc/sys/user/max_user_namespaces"); known && n == 0 {
		return result("user namespaces are switched off (user.max_user_namespaces = 0)", d.sysctl("user.max_user_namespaces=15000"))
	}
	if n, known := d.h.number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"); known && n == 1 && said != "" {
		return result("AppArmor keeps user namespaces from mmdebstrap (kernel.apparmor_restrict_unprivileged_userns = 1)",
			fmt.Sprintf("printf '%s' | %s\n%s", apparmorProfile, d.h.sudo("tee /etc/apparmor.d/devvm-mmdebstrap"), d.h.sudo("apparmor_parser -r /etc/apparmor.d/devvm-mmdebstrap")))
	}
	if said != "" {
		return result("user namespaces do not work: "+said, "mmdebstrap --unshare-helper true\n# in a container, allow user namespaces; or build the image as root")
	}
	return ok("nothing forbids them", "whether they work shows when mmdebstrap is installed")
}

// sysctl sets a kernel parameter for now and for good.
func (d *doctor) sysctl(setting string) string {
	return d.h.sudo("sysctl -w %s", setting) + "\necho " + setting + " | " + d.h.sudo("tee -a /etc/sysctl.d/60-devvm.conf")
}

// addSubordinateIDs is the command that gives the user subordinate ids, ""
// if there are enough.
func (d *doctor) addSubordinateIDs() string {
	uids, freeUID := d.subordinateIDs("/etc/subuid")
	gids, freeGID := d.subordinateIDs("/etc/subgid")
	free := max(freeUID, freeGID)
	var flags string
	if uids < subordinate {
		flags += fmt.Sprintf(" --add-subuids %d-%d", free, free+subordinate-1)
	}
	if gids < subordinate {
		flags += fmt.Sprintf(" --add-subgids %d-%d", free, free+subordinate-1)
	}
	if flags == "" {
		return ""
	}
	return d.h.sudo("usermod%s %s", flags, d.h.User)
}

// subordinateIDs reads subuid(5) or subgid(5): how many ids the user has in
// one range, and the first that nobody has.
func (d *doctor) subordinateIDs(file string) (have, free int64) {
	free = 100000
	for line := range strings.Lines(d.h.read(file)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 {
			continue
		}
		first, err1 := strconv.ParseInt(f[1], 10, 64)
		count, err2 := strconv.ParseInt(f[2], 10, 64)
		if err1 != nil || err2 != nil || first < 0 || count < 0 || first+count > 1<<32 {
			continue
		}
		free = max(free, first+count)
		if f[0] == d.h.User || f[0] == strconv.Itoa(d.h.UID) {
			have = max(have, count)
		}
	}
	return have, free
}
