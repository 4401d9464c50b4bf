package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/ui"
)

// nearMisses are commands that people type and devvm does not have, with what does it. What
// differs by a letter or two is found without them.
var nearMisses = map[string]string{
	"apply":         "devvm up",
	"adopt":         "devvm move",
	"attach":        "devvm ssh",
	"bash":          "devvm ssh",
	"boot":          "devvm up",
	"build":         "devvm docker build, or for a base image: devvm image build",
	"clone":         "devvm snapshot create",
	"compose":       "devvm docker compose",
	"console":       "devvm logs --console, or for a shell: devvm ssh",
	"create":        "devvm up",
	"delete":        "devvm rm",
	"destroy":       "devvm rm",
	"disk":          "devvm df",
	"du":            "devvm df",
	"export":        "devvm image export",
	"factory-reset": "devvm nuke",
	"halt":          "devvm down",
	"images":        "devvm image ls, or Docker's: devvm docker images",
	"import":        "devvm image import",
	"kill":          "devvm down",
	"launch":        "devvm up",
	"load":          "devvm docker load, or for a base image: devvm image import",
	"log":           "devvm logs",
	"mount":         "[[mounts]] in devvm.toml (devvm config --example)",
	"mv":            "devvm move",
	"network":       "devvm egress, devvm ports",
	"pause":         "devvm suspend",
	"poweroff":      "devvm down",
	"provision":     "devvm up, which provisions a new VM and retries what failed; for a new VM: devvm nuke",
	"ps":            "devvm ls, or for containers: devvm docker ps",
	"pull":          "devvm docker pull, or for a base image: devvm image import",
	"reboot":        "devvm restart",
	"rebuild":       "devvm nuke",
	"recreate":      "devvm nuke",
	"remove":        "devvm rm",
	"rename":        "devvm move, in the directory that was renamed",
	"reset":         "devvm nuke",
	"restore":       "devvm snapshot restore NAME, or after a nuke: devvm nuke --undo",
	"resume":        "devvm up",
	"rollback":      "devvm snapshot restore NAME, or after a nuke: devvm nuke --undo",
	"run":           "devvm exec, or for a container: devvm docker run",
	"save":          "devvm suspend, devvm snapshot create",
	"scp":           "devvm cp",
	"sh":            "devvm ssh",
	"shell":         "devvm ssh",
	"shutdown":      "devvm down",
	"snapshots":     "devvm snapshot ls",
	"start":         "devvm up",
	"stats":         "devvm docker stats",
	"stop":          "devvm down",
	"templates":     "devvm template ls",
	"undo":          "devvm nuke --undo",
	"unsuspend":     "devvm up",
	"update":        "devvm image build, then devvm nuke",
	"upgrade":       "devvm image build, then devvm nuke",

	"image add":     "devvm image import",
	"image create":  "devvm image build",
	"image delete":  "devvm image rm",
	"image get":     "devvm image import URL --sha256 HEX, or devvm image build",
	"image load":    "devvm image import",
	"image pull":    "devvm image import URL --sha256 HEX, or devvm image build",
	"image push":    "devvm image export",
	"image remove":  "devvm image rm",
	"image save":    "devvm image export",
	"image inspect": "devvm image ls --json",

	"snapshot apply":    "devvm snapshot restore",
	"snapshot delete":   "devvm snapshot rm",
	"snapshot make":     "devvm snapshot create",
	"snapshot new":      "devvm snapshot create",
	"snapshot remove":   "devvm snapshot rm",
	"snapshot revert":   "devvm snapshot restore",
	"snapshot rollback": "devvm snapshot restore",
	"snapshot save":     "devvm snapshot create",
	"snapshot take":     "devvm snapshot create",

	"template create":  "devvm template build",
	"template delete":  "devvm template rm",
	"template inspect": "devvm template ls --json",
	"template make":    "devvm template build",
	"template remove":  "devvm template rm",
}

// unknownCommand says that a command, or one below it, is not there, and which is meant.
func unknownCommand(cmd *cobra.Command, word string) error {
	e := &ui.Error{
		Code: ui.ExitUsage,
		Msg:  fmt.Sprintf("unknown command %q for %q", word, cmd.CommandPath()),
		Hint: "see: " + cmd.CommandPath() + " --help",
	}
	typed := strings.TrimPrefix(cmd.CommandPath()+" "+word, cmd.Root().Name()+" ")
	if right, ok := nearMisses[typed]; ok {
		e.Hint = "you may want: " + right
		return e
	}
	cmd.SuggestionsMinimumDistance = 1 // of names of two letters the most are two apart
	if len(word) > 4 {
		cmd.SuggestionsMinimumDistance = 2 // two letters that have changed places
	}
	if near := cmd.SuggestionsFor(word); len(near) > 0 {
		for i := range near {
			near[i] = cmd.CommandPath() + " " + near[i]
		}
		e.Hint = "did you mean: " + strings.Join(near, ", ") + "?"
	}
	return e
}
