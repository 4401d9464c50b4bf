package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/shell"
	"github.com/devvm/devvm/pkg/state"
	"github.com/devvm/devvm/pkg/ui"
)

type envOptions struct {
	shell string
	unset bool
}

func (a *app) newEnvCmd() *cobra.Command {
	var o envOptions
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print the variables that point Docker clients at the VM",
		Long: `Print the variables that point Docker clients at the project's VM. The VM need not
run, nor exist yet. devvm never switches your current Docker context.`,
		Example: `  eval "$(devvm env)"         # bash, zsh
  devvm env | source          # fish
  eval "$(devvm env --unset)" # undo it`,
		Args: cobra.NoArgs,
		RunE: a.withProject(func(_ context.Context, s *project.Service, p state.Project) error {
			return a.runEnv(s, p, o)
		}),
	}
	cmd.Flags().StringVar(&o.shell, "shell", "", "print for this `shell`: bash, zsh, sh or fish (default: the one that runs devvm)")
	cmd.Flags().BoolVar(&o.unset, "unset", false, "print commands that remove the variables")
	cmd.Flags().Bool("json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("unset", "json") // JSON has the variables, not what to do with them
	complete(cmd, "shell", cobra.FixedCompletions([]cobra.Completion{"bash", "zsh", "sh", "fish"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// variable is one environment variable; an empty value means that it must not
// be set, since it would send clients elsewhere.
type variable struct{ name, value string }

// variables are what Docker clients and Testcontainers look at.
// https://docs.docker.com/reference/cli/docker/#environment-variables
// https://java.testcontainers.org/features/configuration/#customizing-docker-host-detection
func variables(p state.Project, socket string) []variable {
	return []variable{
		{"DOCKER_HOST", "unix://" + socket},
		{"DOCKER_CONTEXT", ""},
		{"DOCKER_TLS_VERIFY", ""},
		{"DOCKER_CERT_PATH", ""},
		// What a container must mount to reach the engine: its path in the VM.
		{"TESTCONTAINERS_DOCKER_SOCKET_OVERRIDE", "/var/run/docker.sock"},
		// Each engine gives the ports that it chooses the same numbers, so that on
		// localhost the next container may be another project's.
		{"TESTCONTAINERS_HOST_OVERRIDE", project.Address(p).String()},
		{"DEVVM_PROJECT", p.Name},
	}
}

func (a *app) runEnv(s *project.Service, p state.Project, o envOptions) error {
	vars := variables(p, s.Socket(p))
	if a.json {
		out := map[string]string{}
		for _, v := range vars {
			if v.value != "" {
				out[v.name] = v.value
			}
		}
		return a.JSON(out)
	}
	name := o.shell
	if name == "" {
		name = shell.Detect(a.getenv, os.Getppid())
	}
	if !shell.Known(name) {
		return &ui.Error{Code: ui.ExitUsage, Msg: fmt.Sprintf("unknown shell %q", name), Hint: "use --shell bash, zsh, sh or fish, or --json"}
	}
	for _, v := range vars {
		line := shell.Export(name, v.name, v.value)
		if v.value == "" || o.unset {
			line = shell.Unset(name, v.name)
		}
		if v.value == "" && o.unset {
			continue // not ours
		}
		if _, err := fmt.Fprintln(a.Out, line); err != nil {
			return err
		}
	}
	if o.unset || s.Exists(p) {
		return nil
	}
	if above, ok := s.Above(p); ok {
		a.Note("%s has no VM; to use the one of the directory above: --project %s", p.Dir, above.Dir)
	} else {
		a.Note("%s has no VM yet: devvm up", p.Dir)
	}
	return nil
}
