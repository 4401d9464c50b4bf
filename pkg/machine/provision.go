package machine

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/devvm/devvm/pkg/background"
	"github.com/devvm/devvm/pkg/config"
	"github.com/devvm/devvm/pkg/file"
	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/ui"
)

// Provision provisions a VM that was not provisioned yet. If that fails, it returns the error,
// and the next up tries again.
func (m *Machine) Provision(ctx context.Context) error {
	steps := provisionSteps(m.Config.Packages, m.Config.Script)
	done, err := os.ReadFile(m.Files.Provisioned())
	switch {
	case err == nil && string(done) != m.Config.ProvisionHash():
		m.Progress.Note("[provision] has changed; it applies to a new VM: devvm nuke")
		return nil
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist): // it may have been provisioned
		return fmt.Errorf("look whether the VM is provisioned: %w", err)
	case len(steps) == 0:
		return file.Replace(m.Files.Provisioned(), []byte(m.Config.ProvisionHash()), 0o600)
	}
	m.Progress.Start("provision", "provision the new VM")
	client, err := m.ConnectSSH(ctx, m.Project, m.Accel)
	if err != nil {
		return fmt.Errorf("provision: %w", err)
	}
	defer client.Close()
	log, err := os.OpenFile(m.Files.ProvisionLog(), os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open provisioning log: %w", err)
	}
	defer log.Close()
	last := &lastLines{most: 20}
	out := io.MultiWriter(m.Progress.Output(), background.NewLog(log), last)
	for _, step := range steps {
		// The step of an up that was killed may still run: wait for it.
		step.Argv = append([]string{"flock", "/run/devvm-provision"}, step.Argv...)
		step.Stdout, step.Stderr = out, out
		code, err := client.Run(ctx, step)
		if err != nil {
			return fmt.Errorf("provision: %w", err)
		}
		if code != 0 {
			which := ""
			if len(last.text) == 0 {
				which = "to see which command fails, begin the script with: set -x\n"
			}
			return &ui.Error{
				Msg: fmt.Sprintf("provisioning failed with exit code %d; %s", code, last.words()),
				Hint: which + "fix [provision] in " + config.FileName + " and run devvm up again; in a VM made with devvm up --cold you can try the script by hand" +
					see(m.Files.ProvisionLog(), "all of it: devvm logs --provision"),
			}
		}
	}
	return file.Replace(m.Files.Provisioned(), []byte(m.Config.ProvisionHash()), 0o600)
}

// provisionProgram runs a script and says which line failed. A guest without perl, unlike any
// Debian, runs the script alone.
//
//go:embed provision.pl
var provisionProgram string

// provisionSteps returns the commands that provision a VM, or none if there is nothing to do.
func provisionSteps(packages []string, script string) []guest.Command {
	var steps []guest.Command
	if len(packages) > 0 {
		steps = append(steps,
			guest.Command{Argv: []string{"apt-get", "update", "-q"}},
			guest.Command{Argv: append([]string{
				"env", "DEBIAN_FRONTEND=noninteractive",
				"apt-get", "install", "-q", "-y", "--no-install-recommends", "--",
			}, packages...)})
	}
	if strings.TrimSpace(script) != "" {
		// In a file of its own, so that its "#!" line counts.
		const file = "/var/lib/devvm/provision"
		ours := "0"
		if !strings.HasPrefix(script, "#!") {
			script, ours = "#!/bin/sh -eu\n"+script, "1"
		}
		steps = append(steps,
			guest.Command{
				Argv:  []string{"sh", "-c", "mkdir -p /var/lib/devvm && cat >" + file + " && chmod 700 " + file},
				Stdin: strings.NewReader(script),
			},
			guest.Command{Argv: []string{"sh", "-c", `command -v perl >/dev/null || exec "$1"; exec perl -e "$3" "$1" "$2"`, "provision", file, ours, provisionProgram}})
	}
	return steps
}

// lastLines keeps the last lines that are written to it.
type lastLines struct {
	most int
	text []byte
}

func (l *lastLines) Write(p []byte) (int, error) {
	l.text = append(l.text, p...)
	if over := len(l.text) - 16<<10; over > 0 {
		l.text = l.text[over:]
	}
	return len(p), nil
}

// words introduces the last lines.
func (l *lastLines) words() string {
	if len(l.text) == 0 {
		return "it printed nothing"
	}
	return "its last lines:\n" + l.String()
}

// String returns the last lines, indented.
func (l *lastLines) String() string {
	lines := strings.Split(strings.TrimRight(string(l.text), "\n"), "\n")
	if over := len(lines) - l.most; over > 0 {
		lines = lines[over:]
	}
	return "  " + strings.Join(lines, "\n  ")
}
