package guard

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/devvm/devvm/pkg/mounts"
	"github.com/devvm/devvm/pkg/share"
	"github.com/devvm/devvm/pkg/shell"
)

// thenRestart ends messages. Docker's command line puts a full stop after the last
// character of a message, which nobody should have to take out of what he copies.
const thenRestart = "Then run 'devvm down && devvm up'"

// Refuse judges binds that [Guard.Serves] leaves open, by what was found for each, and
// returns what to tell the client; "": all pass.
func (g Guard) Refuse(binds []Bind, found []Found) string {
	var what, why []string
	var add []string // blocks for devvm.toml
	for i, b := range binds {
		v := g.judge(b, found[i])
		if v == pass {
			continue
		}
		// As the engine says it (moby's volume/mounts/errors.go), so that clients know it.
		if v == missing {
			what = append(what, "bind source path does not exist: "+b.Path)
		} else {
			what = append(what, "bind source path is not shared with the VM: "+b.Path)
		}
		reason, block := g.advise(b, found[i], v)
		why = append(why, reason)
		if block != "" && !slices.Contains(add, block) {
			add = append(add, block)
		}
	}
	if len(what) == 0 {
		return ""
	}
	message := `invalid mount config for type "bind": ` + strings.Join(what, "; ") + "\n" + strings.Join(slices.Compact(why), "\n")
	if len(add) > 0 {
		message += fmt.Sprintf("\nTo share it, add at the end of %s:\n\n%s\n%s", path.Join(g.Dir, "devvm.toml"), strings.Join(add, "\n"), thenRestart)
	}
	return message
}

// advise says what is the matter with a bind, and gives the lines for devvm.toml that
// share it, if such lines help.
func (g Guard) advise(b Bind, f Found, v verdict) (reason, block string) {
	onHost := f.Host != Missing && f.Host != Unknown
	state := "not in the project's VM"
	switch v {
	case hollow:
		state = "in the project's VM only as an empty directory, not as the host has it"
	case leading:
		state = "in the project's VM only as the way to what is shared with it, not as the host has it"
	case foreign:
		state = fmt.Sprintf("not in the project's VM, which has a %s of its own", b.Path)
	}
	if source, ok := g.Shares.OnHost(b.Path); ok && f.Real != "" && f.Real != source {
		return fmt.Sprintf("A symbolic link leads from it to %s, which is %s.", f.Real, state), Lines(f.Real, f.Real, b.ReadOnly)
	}
	if onHost {
		if at, ok := g.Shares.InVM(f.Real); ok {
			return fmt.Sprintf("%s is %s; what is there on this host, the VM has as %s: use that path.", b.Path, state, at), ""
		}
	}
	if mounts.Within(g.Dir, b.Path) && !slices.ContainsFunc(g.Shares, func(s share.Export) bool { return s.Source == g.Dir }) {
		reason = fmt.Sprintf("The project's VM does not have the project's directory, %s.", g.Dir)
		if unfit := g.unfit(g.Dir, g.Dir); unfit != "" {
			return reason + " It cannot: " + unfit + ".", ""
		}
		return reason + fmt.Sprintf(" Set mount = true in %s, in place of a mount = false there. %s", path.Join(g.Dir, "devvm.toml"), thenRestart), ""
	}
	dir, passing := g.passing(b.Path)
	switch {
	case f.Host == Sockets:
		return fmt.Sprintf("%s holds sockets of this host, which containers in a VM cannot use.", b.Path), ""
	case passing && f.Host != Socket && f.Host != Other:
		where := "on this host, but " + state
		if !onHost {
			where = "neither in the project's VM nor on this host"
		}
		tmp := shell.Quote(path.Join(g.Dir, ".tmp"))
		return fmt.Sprintf("%s is %s. Files in %s are short-lived. Have programs make their temporary files in the project's directory: mkdir -p %s && export TMPDIR=%[4]s (then try again)", b.Path, where, dir, tmp), ""
	case !onHost && g.unfit(b.Path, b.Path) != "":
		return fmt.Sprintf("%s is neither in the project's VM nor on this host. Make it in the VM with: devvm exec -- mkdir -p %s (or use a named volume)", b.Path, shell.Quote(b.Path)), ""
	case !onHost:
		return fmt.Sprintf("%s is neither in the project's VM nor on this host. Make it with: mkdir -p %s (or use a named volume)", b.Path, shell.Quote(b.Path)), Lines(b.Path, b.Path, b.ReadOnly)
	case f.Host == Socket && path.Base(b.Path) == "docker.sock":
		return fmt.Sprintf("%s is a socket of this host. Containers reach the engine of this VM at /var/run/docker.sock: use that path.", b.Path), ""
	case f.Host == Socket:
		return fmt.Sprintf("%s is a socket of this host, which containers in a VM cannot use.", b.Path), ""
	case f.Host == Other:
		return fmt.Sprintf("%s is on this host, neither a file nor a directory, and %s.", b.Path, state), ""
	case f.Host == File:
		reason = fmt.Sprintf("%s is on this host, but %s.", b.Path, state)
		if dir := path.Dir(f.Real); f.Real == b.Path && g.unfit(dir, dir) == "" {
			return reason + " Files are shared with their directory.", Lines(dir, dir, b.ReadOnly)
		}
		first := ""
		if v == hollow {
			first = fmt.Sprintf("devvm exec -- rmdir %s && ", shell.Quote(b.Path))
		}
		return reason + fmt.Sprintf(" Its directory cannot be shared; this makes a copy: %sdevvm cp %s vm:%[2]s (again after each change)", first, shell.Quote(b.Path)), ""
	}
	reason = fmt.Sprintf("%s is on this host, but %s.", b.Path, state)
	if unfit := g.unfit(f.Real, b.Path); unfit != "" {
		return reason + fmt.Sprintf(" It cannot be shared: %s. Share a directory in it, or copy it to another place in the VM with devvm cp.", unfit), ""
	}
	return reason, Lines(f.Real, b.Path, b.ReadOnly)
}

// passing tells whether a path is where things do not last, and where that is. Who works there
// in a project does not mean temporary files, and the advice needs a project that is shared.
func (g Guard) passing(p string) (dir string, ok bool) {
	kind, dir := mounts.Own(p)
	if kind != mounts.Temporary || p != dir && mounts.Within(dir, g.Dir) {
		return "", false
	}
	_, ok = g.Shares.InVM(g.Dir)
	return dir, ok
}

func (g Guard) unfit(source, target string) string {
	if g.Unfit == nil {
		return ""
	}
	return g.Unfit(source, target)
}

// Lines are what shares a directory, in devvm.toml.
func Lines(source, target string, readOnly bool) string {
	type mount struct {
		Source   string `toml:"source"`
		Target   string `toml:"target,omitempty"`
		Writable bool   `toml:"writable,omitempty"`
	}
	m := mount{Source: source, Writable: !readOnly}
	if target != source {
		m.Target = target
	}
	var b strings.Builder
	e := toml.NewEncoder(&b)
	e.Indent = ""
	_ = e.Encode(map[string][]mount{"mounts": {m}}) // strings and a bool into memory
	return b.String()
}
