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

// Consent says when a larger value of a key needs the user's consent. A VM can write its
// devvm.toml, and a repository can bring one.
type Consent int

// The kinds of consent.
const (
	ConsentUnset  Consent = iota
	ConsentFree           // a larger value gives the VM nothing more of the host; Key.Free says why
	ConsentGrowth         // a project's first devvm.toml is accepted; more than that needs consent
	ConsentReach          // more than the user's own file grants needs consent, even the first time
)

// Wider lists for people what next asks for beyond before, one item a line. Text from the file
// appears in the lines unchanged. Wider does not know where mounts lead.
func Wider(before, next Config) []string {
	var lines []string
	for _, f := range schema {
		if f.wider != nil {
			lines = append(lines, f.wider(before, next)...)
		}
	}
	return lines
}

// Nothing returns the configuration that grants nothing, so that any other is wider.
func Nothing() Config {
	return Config{Daemon: map[string]any{}, NetworkMode: NetworkOffline, origins: map[string]origin{}}
}

// First returns what counts as agreed before the user has been asked: the values of next, but
// those of the user's own configuration for keys of [ConsentReach].
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

// Values returns the effective values of all keys that a project can set, as in JSON.
func (c Config) Values() map[string]any {
	values := map[string]any{}
	for _, f := range schema {
		if !f.UserOnly {
			values[f.Name] = f.get(c)
		}
	}
	return values
}

// FromValues reads the result of [Config.Values] after it has been through JSON. Missing keys
// get their default, unknown keys are ignored.
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

// plain converts a value to the types that TOML has.
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
		n, _ := v.Float64() // it was a float64
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

// grows makes the wider function of a numeric key.
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

// widerImage asks about every change of image: what one of the user's images contains may not
// be meant for every project.
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

// widerDaemon asks about each new or changed setting. Some, such as runtimes, run programs as
// root in each new VM.
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

// widerEgress and widerHostPorts also cover network.mode: an offline VM could reach nothing.
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

// widerPortsDeny asks about ports that are no longer denied.
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

// mostLines is how many of a script's new lines are shown.
const mostLines = 20

// widerScript asks about any changed script that does something.
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

// cut shortens a line to a readable length.
func cut(line string) string {
	const most = 200
	if r := []rune(line); len(r) > most {
		return string(r[:most]) + " …"
	}
	return line
}
