package engine

import (
	"context"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// Wishes are what a container wants of its host when it runs.
type Wishes struct {
	ID, Name string // of the container
	container.HostConfig
}

// GetWishes asks what a container wants of its host.
func GetWishes(ctx context.Context, dial Dial, name string) (w Wishes, err error) {
	err = over(dial, "ask the engine about a container", func(c *client.Client) error {
		answer, err := c.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
		if err != nil || answer.Container.HostConfig == nil {
			return err
		}
		w = Wishes{clip(answer.Container.ID, maxName), strings.TrimPrefix(answer.Container.Name, "/"), *answer.Container.HostConfig}
		return nil
	})
	return w, err
}

// IsCreated asks whether a container has not been started yet.
func IsCreated(ctx context.Context, dial Dial, name string) (bool, error) {
	created := false
	err := over(dial, "ask the engine about a container", func(c *client.Client) error {
		answer, err := c.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
		created = err == nil && answer.Container.State != nil && answer.Container.State.Status == container.StateCreated
		return err
	})
	return created, err
}
