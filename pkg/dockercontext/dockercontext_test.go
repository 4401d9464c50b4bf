package dockercontext_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/dockercontext"
)

func TestContext(t *testing.T) {
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skip("no docker on this machine (package docker-cli)")
	}
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	t.Setenv("DOCKER_HOST", "")
	docker := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "docker", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if err := dockercontext.Remove(t.Context(), "app"); err != nil {
		t.Error("there is none:", err)
	}
	for _, socket := range []string{"/run/a.sock", "/run/b.sock"} {
		if err := dockercontext.Create(t.Context(), "app", socket); err != nil {
			t.Fatal(err)
		}
		if host := docker("context", "inspect", dockercontext.Name("app"), "--format", "{{.Endpoints.docker.Host}}"); host != "unix://"+socket {
			t.Error(host)
		}
	}
	if current := docker("context", "show"); current != "default" {
		t.Errorf("the current context was switched to %s", current)
	}
	docker("context", "use", dockercontext.Name("app"))
	// Move keeps the context current. Otherwise docker would continue with this host's engine.
	t.Setenv("DOCKER_HOST", "unix:///run/c.sock")
	if err := dockercontext.Move(t.Context(), "app", "app2", "/run/d.sock"); err != nil {
		t.Error(err)
	}
	t.Setenv("DOCKER_HOST", "")
	if current := docker("context", "show"); current != dockercontext.Name("app2") {
		t.Errorf("the current context is %s", current)
	}
	if err := dockercontext.Move(t.Context(), "app2", "app", "/run/d.sock"); err != nil {
		t.Error(err)
	}
	if err := dockercontext.Remove(t.Context(), "app"); err != nil {
		t.Error(err)
	}
	if list := docker("context", "ls", "--format", "{{.Name}}"); strings.Contains(list, "app") {
		t.Error(list)
	}
}

func TestNoClient(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := dockercontext.Create(t.Context(), "app", "/run/a.sock"); !errors.Is(err, dockercontext.ErrNoClient) {
		t.Error(err)
	}
	if err := dockercontext.Remove(t.Context(), "app"); err != nil {
		t.Error(err)
	}
}
