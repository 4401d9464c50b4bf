package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/devvm/devvm/pkg/egress"
)

// Consent says when more of a key needs the user's word. A VM can write its devvm.toml, and
// a repository brings one.
type Consent int

// Each key has one of these.
const (
	ConsentUnset  Consent = iota
	ConsentFree           // a larger value gives the VM nothing more of the host; Key.Free says why
	ConsentGrowth         // what a project's first devvm.toml says is taken, more than that is asked about
	ConsentReach          // more than the user's own file says is asked about, at first too
)

// Wider lists what a configuration asks for beyond another, a line each, for people. What
// is read of a file is in the lines as it is. Where mounts lead is not known here.
func Wider(before, next Config) []string {
	var lines []string
	for _, f := range schema {
		if f.wider != nil {
			lines = append(lines, f.wider(before, next)...)
		}
	}
	return lines
}

// Nothing is the configuration beyond which everything is more.
func Nothing() Config {
	return Config{Daemon: map[string]any{}, NetworkMode: NetworkOffline, origins: map[string]origin{}}
}

// First is what counts as agreed to when nobody has been asked yet: what the configuration
// says, but for keys of [ConsentReach] what the user's own says.
func First(own, next Config) Config {
	for _, f := range schema {
		if f.Consent != ConsentReach {
			continue
		}
		if p := f.set(&next, Env{}, plain(f.get(own))); p != nil {
			panic(fmt.Sprintf("config: a checked value of %s is refused: %s", f.Name, p.msg))
		}
	}
	return next
}

// Values are the effective values of all keys that a project can set, as they are in JSON.
func (c Config) Values() map[string]any {
	values := map[string]any{}
	for _, f := range schema {
		if !f.UserOnly {
			values[f.Name] = f.get(c)
		}
	}
	return values
}

// FromValues reads what [Config.Values] gives, after its way through JSON. Keys that are
// missing have their default, those that are not known are left out.
func FromValues(values map[string]any) (Config, error) {
	c := Default(Env{})
	for _, f := range schema {
		v, ok := values[f.Name]
		if !ok || f.UserOnly {
			continue
		}
		if p := f.set(&c, Env{}, plain(v)); p != nil {
			return Config{}, fmt.Errorf("%s: %s", f.Name, p.msg)
		}
	}
	return c, nil
}

// plain is a value with the types that TOML has.
func plain(v any) any {
	d := json.NewDecoder(bytes.NewReader(canonical(v, "")))
	d.UseNumber()
	var out any
	if err := d.Decode(&out); err != nil {
		panic(fmt.Sprintf("config: JSON that was just made is none: %v", err))
	}
	return numbers(out)
}

func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		n, _ := v.Float64() // it was one
		return n
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = numbers(v[k])
		}
	}
	return v
}

// grows is the wider of a size.
func grows(name string, size func(Config) int64, text func(Config) string) func(before, next Config) []string {
	return func(before, next Config) []string {
		switch {
		case size(next) <= size(before):
			return nil
		case size(before) == 0:
			return []string{name + " = " + text(next)}
		}
		return []string{fmt.Sprintf("%s = %s (was: %s)", name, text(next), text(before))}
	}
}

// widerImage asks about any other image: what is in one of the user's may not be for every
// project.
func widerImage(before, next Config) []string {
	if before.Image == next.Image {
		return nil
	}
	return []string{"image = " + literal(next.Image)}
}

func widerMount(before, next Config) []string {
	if before.Mount || !next.Mount {
		return nil
	}
	return []string{"mount = true"}
}

// widerDaemon asks about each setting that is new or another: some, such as runtimes, run
// programs as root in each new VM.
func widerDaemon(before, next Config) []string {
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(next.Daemon)) {
		v := next.Daemon[k]
		if was, ok := before.Daemon[k]; !ok || !bytes.Equal(canonical(was, ""), canonical(v, "")) {
			lines = append(lines, cut(fmt.Sprintf("docker.daemon.%s = %s", quoteKey(k), literal(v))))
		}
	}
	return lines
}

// widerEgress and widerHostPorts are for network.mode, too: who was offline had nothing.
func widerEgress(before, next Config) []string {
	b, n := before.Policy(), next.Policy()
	b.HostPorts, n.HostPorts = nil, nil
	return egress.Widening(b, n)
}

func widerHostPorts(before, next Config) []string {
	b, n := before.Policy(), next.Policy()
	b.All, n.All, b.Rules, n.Rules = false, false, nil, nil
	return egress.Widening(b, n)
}

func widerPortsMap(before, next Config) []string {
	var lines []string
	for _, published := range slices.Sorted(maps.Keys(next.PortsMap)) {
		if host := next.PortsMap[published]; before.PortsMap[published] != host {
			lines = append(lines, fmt.Sprintf("ports.map + %d = %d", published, host))
		}
	}
	return lines
}

// widerPortsDeny asks about ports that were denied and no longer are.
func widerPortsDeny(before, next Config) []string {
	var lines []string
	for _, port := range before.PortsDeny {
		if !slices.Contains(next.PortsDeny, port) {
			lines = append(lines, fmt.Sprintf("ports.deny - %d", port))
		}
	}
	return lines
}

func widerPackages(before, next Config) []string {
	var lines []string
	for _, p := range next.packageSet() {
		if !slices.Contains(before.Packages, p) {
			lines = append(lines, "provision.packages + "+p)
		}
	}
	return lines
}

// mostLines is how many new lines of a script are shown.
const mostLines = 20

// widerScript asks about any other script that does something.
func widerScript(before, next Config) []string {
	if before.Script == next.Script || strings.TrimSpace(next.Script) == "" {
		return nil
	}
	had := map[string]int{}
	for line := range strings.SplitSeq(before.Script, "\n") {
		had[line]++
	}
	var lines []string
	more := 0
	for line := range strings.SplitSeq(next.Script, "\n") {
		had[line]--
		switch {
		case had[line] >= 0 || strings.TrimSpace(line) == "":
		case len(lines) < mostLines:
			lines = append(lines, cut("provision.script + "+line))
		default:
			more++
		}
	}
	switch {
	case more > 0:
		lines = append(lines, fmt.Sprintf("provision.script + %d more lines", more))
	case len(lines) == 0:
		lines = append(lines, "provision.script: lines are gone or in another order")
	}
	return lines
}

// cut is a line of a length that can be read.
func cut(line string) string {
	const most = 200
	if r := []rune(line); len(r) > most {
		return string(r[:most]) + " …"
	}
	return line
}
