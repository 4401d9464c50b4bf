package audit

import (
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// account is a user of this host, with what decides which files the user may access.
type account struct {
	uid    int
	groups []int
}

// nobody is the uid of an unknown account: it owns no file and is in no group.
const nobody = -2

// accounts are the users and groups of this host, from the files of that name (passwd(5),
// group(5)).
type accounts struct {
	users  []account
	groups map[int]bool // groups whose members are all known
}

func readAccounts(h Host) accounts {
	return parseAccounts(h.text("etc/passwd"), h.text("etc/group"), elsewhere(h.text("etc/nsswitch.conf")))
}

// elsewhere reports whether users or groups also come from sources other than the files
// (nsswitch.conf(5)).
func elsewhere(nsswitch string) bool {
	for line := range strings.Lines(nsswitch) {
		line, _, _ = strings.Cut(line, "#")
		database, services, _ := strings.Cut(line, ":")
		if database = strings.TrimSpace(database); database != "passwd" && database != "group" && database != "initgroups" {
			continue
		}
		for _, service := range strings.Fields(services) {
			switch service {
			case "files", "compat", "systemd", "altfiles": // systemd adds users of services and of mounted homes
			default:
				if !strings.HasPrefix(service, "[") && !strings.HasSuffix(service, "]") {
					return true
				}
			}
		}
	}
	return false
}

// parseAccounts reads the two files and ignores lines that it does not understand. If users
// also come from elsewhere, a group is known only if it has its user's name, and belongs to
// that user alone.
func parseAccounts(passwd, group string, elsewhere bool) accounts {
	out := accounts{groups: map[int]bool{}}
	names := map[int]string{}     // names of groups
	members := map[string][]int{} // a user's name to the groups that list it
	for line := range strings.Lines(group) {
		f := strings.Split(strings.TrimSpace(line), ":") // name, password, gid, members
		if len(f) < 4 {
			continue
		}
		gid, err := strconv.Atoi(f[2])
		if err != nil {
			continue
		}
		names[gid] = f[0]
		for name := range strings.SplitSeq(f[3], ",") {
			members[name] = append(members[name], gid)
		}
	}
	for line := range strings.Lines(passwd) {
		f := strings.Split(strings.TrimSpace(line), ":") // name, password, uid, gid, …
		if len(f) < 4 {
			continue
		}
		uid, err := strconv.Atoi(f[2])
		gid, err2 := strconv.Atoi(f[3])
		if err != nil || err2 != nil {
			continue
		}
		out.users = append(out.users, account{uid, append(members[f[0]], gid)})
		delete(members, f[0])
		out.groups[gid] = out.groups[gid] || names[gid] == f[0]
	}
	if !elsewhere && len(out.users) > 0 {
		for gid := range names {
			out.groups[gid] = true
		}
	}
	delete(members, "") // from groups without members
	for _, groups := range members {
		out.users = append(out.users, account{nobody, groups})
	}
	return out
}

// open reports whether anybody but root and the given users can reach a socket. The socket is
// the first element of way, its directories are the rest. A group that is not known may contain
// anybody.
func (a accounts) open(way []access, mine ...int) bool {
	users := append(slices.Clone(a.users), account{uid: nobody})
	for _, f := range way {
		users = append(users, account{uid: f.uid}) // the owner may have no other entry
	}
	return slices.ContainsFunc(users, func(u account) bool {
		if u.uid == 0 || slices.Contains(mine, u.uid) {
			return false
		}
		for i, f := range way {
			bit := fs.FileMode(0o1)
			if i == 0 {
				bit = 0o2
			}
			in := f.acl || !a.groups[f.gid] || slices.Contains(u.groups, f.gid)
			if f.mode&bit == 0 && !(in && f.mode&(bit<<3) != 0) && !(u.uid == f.uid && f.mode&(bit<<6) != 0) {
				return false
			}
		}
		return true
	})
}
