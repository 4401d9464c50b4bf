package audit

import (
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// account is a user of this host by what decides which files are theirs.
type account struct {
	uid    int
	groups []int
}

// nobody is the account of whom nothing is known: no file's owner, in no group.
const nobody = -2

// accounts are the users and groups of this host, as its files name them (passwd(5),
// group(5)).
type accounts struct {
	users  []account
	groups map[int]bool // those of which all members are known
}

func readAccounts(h Host) accounts {
	return parseAccounts(h.text("etc/passwd"), h.text("etc/group"), elsewhere(h.text("etc/nsswitch.conf")))
}

// elsewhere tells whether users or groups come from more than the files (nsswitch.conf(5)).
func elsewhere(nsswitch string) bool {
	for line := range strings.Lines(nsswitch) {
		line, _, _ = strings.Cut(line, "#")
		database, services, _ := strings.Cut(line, ":")
		if database = strings.TrimSpace(database); database != "passwd" && database != "group" && database != "initgroups" {
			continue
		}
		for _, service := range strings.Fields(services) {
			switch service {
			case "files", "compat", "systemd", "altfiles": // systemd's are of services, and of homes that are mounted
			default:
				if !strings.HasPrefix(service, "[") && !strings.HasSuffix(service, "]") {
					return true
				}
			}
		}
	}
	return false
}

// parseAccounts reads the two files. A line that it does not understand names nobody. If
// users come from elsewhere, too, a group is known that has a user's name, and is theirs.
func parseAccounts(passwd, group string, elsewhere bool) accounts {
	out := accounts{groups: map[int]bool{}}
	names := map[int]string{}     // of groups
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
	delete(members, "") // of a group without any
	for _, groups := range members {
		out.users = append(out.users, account{nobody, groups})
	}
	return out
}

// open tells whether anybody but root and the given users gets to the socket that is the
// first of the way, through the directories that are the rest. A group that is not known
// may have anybody in it.
func (a accounts) open(way []access, mine ...int) bool {
	users := append(slices.Clone(a.users), account{uid: nobody})
	for _, f := range way {
		users = append(users, account{uid: f.uid}) // who may have no other entry
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
