package engine

import (
	"context"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// Binding is a wish of a container's to publish a port, as its maker wrote it.
type Binding struct{ HostIP, HostPort string }

// Wishes are what a container wants of its host when it runs.
type Wishes struct {
	ID, Name string               // of the container
	Bindings map[string][]Binding // by its own ports ("80/tcp")
	// PublishAll says that it publishes its exposed ports, too: the engine chooses where.
	PublishAll bool
	Binds      []string // "source:target[:options]"
	Mounts     []Mount
}

// Mount is a mount of a container's that is not among its Binds, in part.
type Mount struct {
	Type     string // "bind", "volume", …
	Source   string
	ReadOnly bool
}

// GetWishes asks what a container wants of its host.
func GetWishes(ctx context.Context, dial Dial, name string) (Wishes, error) {
	w := Wishes{Bindings: map[string][]Binding{}}
	err := over(dial, "ask the engine about a container", func(c *client.Client) error {
		answer, err := c.ContainerInspect(ctx, name, client.ContainerInspectOptions{})
		if err != nil || answer.Container.HostConfig == nil {
			return err
		}
		w.ID, w.Name = clip(answer.Container.ID, maxName), strings.TrimPrefix(answer.Container.Name, "/")
		host := answer.Container.HostConfig
		w.PublishAll = host.PublishAllPorts
		for port, wishes := range host.PortBindings {
			for _, wish := range wishes {
				b := Binding{HostPort: wish.HostPort}
				if wish.HostIP.IsValid() {
					b.HostIP = wish.HostIP.String()
				}
				w.Bindings[port.String()] = append(w.Bindings[port.String()], b)
			}
		}
		w.Binds = host.Binds
		for _, m := range host.Mounts {
			w.Mounts = append(w.Mounts, Mount{Type: string(m.Type), Source: m.Source, ReadOnly: m.ReadOnly})
		}
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
