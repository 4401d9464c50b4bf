// Package dockercontext keeps a named context for each project in the configuration of this
// host's Docker client, through the client itself. It switches the current context only from a
// project's to that of the directory that takes over its VM.
//
// It imports no other package of devvm, and fails with [ErrNoClient] or as the client does.
package dockercontext

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// ErrNoClient says that there is no Docker client on this host.
var ErrNoClient = errors.New("there is no Docker client on this host")

// Name returns the name of a project's context.
func Name(project string) string { return "devvm-" + project }

// Create creates or updates the project's context, which points to the socket
// (https://docs.docker.com/reference/cli/docker/context/create/).
func Create(ctx context.Context, project, socket string) error {
	docker, err := exec.LookPath("docker")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoClient, err)
	}
	endpoint := "host=unix://" + socket
	name := Name(project)
	verb := "create"
	if has(ctx, docker, name) {
		verb = "update"
	}
	out, err := exec.CommandContext(ctx, docker, "context", verb, name, "--docker", endpoint, "--description", "devvm "+project).CombinedOutput()
	if err != nil {
		return fmt.Errorf("docker context %s %s: %w: %s", verb, name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Move replaces the context of a former project, if there is one, with the new project's.
func Move(ctx context.Context, former, project, socket string) error {
	docker, err := exec.LookPath("docker")
	if err != nil || !has(ctx, docker, Name(former)) {
		return nil //nolint:nilerr // without a client there is no context
	}
	if err := Create(ctx, project, socket); err != nil {
		return err
	}
	show := exec.CommandContext(ctx, docker, "context", "show")
	show.Env = slices.DeleteFunc(os.Environ(), func(s string) bool { // these override the current context
		return strings.HasPrefix(s, "DOCKER_HOST=") || strings.HasPrefix(s, "DOCKER_CONTEXT=")
	})
	current, err := show.Output()
	if err == nil && strings.TrimSpace(string(current)) == Name(former) {
		if out, err := exec.CommandContext(ctx, docker, "context", "use", Name(project)).CombinedOutput(); err != nil {
			return fmt.Errorf("docker context use %s: %w: %s", Name(project), err, strings.TrimSpace(string(out)))
		}
	}
	return Remove(ctx, former)
}

// Remove removes the project's context, if there is one.
func Remove(ctx context.Context, project string) error {
	docker, err := exec.LookPath("docker")
	if err != nil {
		return nil //nolint:nilerr // without a client there is no context
	}
	name := Name(project)
	if !has(ctx, docker, name) {
		return nil
	}
	// --force: even if it is the current context.
	if out, err := exec.CommandContext(ctx, docker, "context", "rm", "--force", name).CombinedOutput(); err != nil {
		return fmt.Errorf("docker context rm %s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// has reports whether the Docker client has a context.
func has(ctx context.Context, docker, name string) bool {
	return exec.CommandContext(ctx, docker, "context", "inspect", name).Run() == nil
}
