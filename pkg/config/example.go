package config

import (
	"fmt"
	"strings"
)

// Example returns a devvm.toml with every key and its explanation. Everything is commented out:
// "# " begins text, "#" alone a line of TOML.
func Example() string {
	var b strings.Builder
	b.WriteString("# devvm.toml: the VM of this project. Every key is optional; what is commented\n" +
		"# out here shows the syntax. `devvm config` shows the values in effect and where\n" +
		"# each comes from.\n")
	table := ""
	for _, f := range schema {
		if f.UserOnly {
			continue
		}
		heading, _ := splitKey(f.Name)
		if f.Name == "docker.daemon" {
			heading = f.Name
		}
		b.WriteString("\n")
		if heading != table {
			table = heading
			fmt.Fprintf(&b, "#[%s]\n", heading)
		}
		fmt.Fprintf(&b, "# %s\n", f.Brief)
		if f.Default != "empty" && !strings.HasPrefix(f.Default, `"`) {
			fmt.Fprintf(&b, "# Default: %s.\n", f.Default)
		}
		for line := range strings.SplitSeq(f.Example, "\n") {
			b.WriteString("#" + line + "\n")
		}
	}
	return b.String()
}

// Template returns the short devvm.toml that `devvm init` writes on a host with that many CPUs.
func Template(cpus int) string {
	return fmt.Sprintf(`# The VM of this project, for devvm. Every key is optional: devvm config --example

#cpus = %d
#memory = "4GiB"
#disk = "40GiB"

#[provision]
#packages = ["git", "make"]
`, max(1, min(2, cpus)))
}
