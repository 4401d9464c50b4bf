package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/devvm/devvm/pkg/ui"
)

// contextName is the name of a project's Docker context.
func contextName(project string) string { return "devvm-" + project }

// createContext makes, or corrects, a named Docker context through the host's
// own Docker client. The current context stays as it is.
// https://docs.docker.com/reference/cli/docker/context/create/
func createContext(ctx context.Context, project, socket string) error {
	docker, err := exec.LookPath("docker")
	if err != nil {
		return &ui.Error{
			Msg:  "a Docker context needs a Docker client on this host, and there is none",
			Hint: "use the VM's own client (devvm docker …), or install one and run devvm up --context again",
			Err:  err,
		}
	}
	endpoint := "host=unix://" + socket
	name := contextName(project)
	verb := "create"
	if hasContext(ctx, docker, name) {
		verb = "update"
	}
	out, err := exec.CommandContext(ctx, docker, "context", verb, name, "--docker", endpoint, "--description", "devvm "+project).CombinedOutput()
	if err != nil {
		return fmt.Errorf("docker context %s %s: %w: %s", verb, name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// removeContext removes the project's context, if there is one.
func removeContext(ctx context.Context, project string) error {
	docker, err := exec.LookPath("docker")
	if err != nil {
		return nil //nolint:nilerr // without a client there is no context
	}
	name := contextName(project)
	if !hasContext(ctx, docker, name) {
		return nil
	}
	// --force: also when the user has made it the current one.
	if out, err := exec.CommandContext(ctx, docker, "context", "rm", "--force", name).CombinedOutput(); err != nil {
		return fmt.Errorf("docker context rm %s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// hasContext tells whether the Docker client knows a context.
func hasContext(ctx context.Context, docker, name string) bool {
	return exec.CommandContext(ctx, docker, "context", "inspect", name).Run() == nil
}
