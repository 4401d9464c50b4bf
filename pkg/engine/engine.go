// Package engine asks a Docker Engine a few questions through a unix socket:
// whether it answers, which version it is, and what it holds.
//
// It is the only package that imports Docker's client. It knows nothing about
// VMs; the socket may be devvm's docker.sock or any other. Each call opens and
// closes its own connections, and none outlives its context.
//
// An engine can be hostile: root in a VM may put anything in its place. Headers, bytes,
// objects and the time of each answer are bounded (bound.go).
//
// It fails with an error that wraps [ErrUnavailable] when there is no engine
// behind the socket (the socket is missing, nobody listens, or devvm's proxy
// says why the VM cannot be reached), and [ErrTooMuch] when it says more than is read;
// other errors are the engine's own.
package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// ErrUnavailable says that there is no engine behind the socket now.
var ErrUnavailable = errors.New("the Docker engine does not answer")

// Usage is what an engine holds, each list ordered by name.
type Usage struct {
	Containers []Container
	Images     []Image
	Volumes    []Volume
	// Sized says that the sizes are known. The engine measures them on demand,
	// which can take long or fail; they are all 0 then.
	Sized bool
}

// Container is a container in any state.
type Container struct {
	Name string
	Size int64 // bytes that it has written
}

// Image is an image with its first name, or its short ID if it has none.
type Image struct {
	Name string
	Size int64 // bytes, layers that it shares with others included
}

// Volume is a named or anonymous volume.
type Volume struct {
	Name string
	Size int64 // bytes
}

// Ping asks the engine behind the socket for a sign of life.
func Ping(ctx context.Context, sock string) error {
	return with(sock, "ping the engine", func(c *client.Client) error {
		_, err := c.Ping(ctx, client.PingOptions{})
		return err
	})
}

// GetVersion asks the engine behind the socket for its version, e.g. "26.1.5". It is in
// the head of each answer (Server: Docker/26.1.5 (linux)); only an engine that leaves it
// out is asked for /version, for which Docker's starts some programs each time.
func GetVersion(ctx context.Context, sock string) (string, error) {
	var version string
	server := func(r *http.Response) {
		product, _, _ := strings.Cut(r.Header.Get("Server"), " ")
		if name, v, _ := strings.Cut(product, "/"); name == "Docker" {
			version = v
		}
	}
	err := with(sock, "ask the engine for its version", func(c *client.Client) error {
		if _, err := c.Ping(ctx, client.PingOptions{}); err != nil || version != "" {
			return err
		}
		answer, err := c.ServerVersion(ctx, client.ServerVersionOptions{})
		version = answer.Version
		return err
	}, client.WithHTTPResponseHook(server))
	return clip(version, maxName), err
}

// sizeTimeout bounds the question for sizes, for which the engine may have to
// walk through all volumes.
const sizeTimeout = 5 * time.Second

// GetUsage asks the engine behind the socket what it holds. Sizes get half of
// the time that ctx leaves, 5 s at most; without them the lists are returned
// all the same.
func GetUsage(ctx context.Context, sock string) (Usage, error) {
	var u Usage
	err := with(sock, "ask the engine what it holds", func(c *client.Client) (err error) {
		u, err = usage(ctx, c)
		return err
	})
	return u, err
}

func usage(ctx context.Context, c *client.Client) (Usage, error) {
	containers, err := c.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return Usage{}, err
	}
	images, err := c.ImageList(ctx, client.ImageListOptions{})
	if err != nil {
		return Usage{}, err
	}
	volumes, err := c.VolumeList(ctx, client.VolumeListOptions{})
	if err != nil {
		return Usage{}, err
	}

	limit := sizeTimeout
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(deadline)/2)
	}
	sizeCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	disk, err := c.DiskUsage(sizeCtx, client.DiskUsageOptions{
		Containers: true, Images: true, Volumes: true, Verbose: true,
	})
	if err != nil && ctx.Err() != nil {
		return Usage{}, ctx.Err()
	}
	u := Usage{Sized: err == nil}
	size := map[string]int64{}
	if u.Sized {
		for _, item := range disk.Containers.Items {
			size[item.ID] = known(item.SizeRw)
		}
		for _, item := range disk.Images.Items {
			size[item.ID] = known(item.Size)
		}
		for _, item := range disk.Volumes.Items {
			if item.UsageData != nil {
				size["volume "+item.Name] = known(item.UsageData.Size)
			}
		}
	}
	for _, item := range containers.Items {
		name := nameOf(item)
		u.Containers = append(u.Containers, Container{Name: name, Size: size[item.ID]})
	}
	for _, item := range images.Items {
		name := shortID(item.ID)
		if len(item.RepoTags) > 0 && item.RepoTags[0] != "<none>:<none>" {
			name = clip(item.RepoTags[0], maxName)
		}
		u.Images = append(u.Images, Image{Name: name, Size: size[item.ID]})
	}
	for _, item := range volumes.Items {
		u.Volumes = append(u.Volumes, Volume{Name: clip(item.Name, maxName), Size: size["volume "+item.Name]})
	}
	slices.SortFunc(u.Containers, func(a, b Container) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(u.Images, func(a, b Image) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(u.Volumes, func(a, b Volume) int { return cmp.Compare(a.Name, b.Name) })
	return u, nil
}

// known takes the API's -1 for a size that was not computed as 0.
func known(size int64) int64 { return max(size, 0) }

// nameOf is what people call a container.
func nameOf(c container.Summary) string {
	if len(c.Names) > 0 {
		return clip(strings.TrimPrefix(c.Names[0], "/"), maxName)
	}
	return shortID(c.ID)
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

// with asks one question through a socket.
func with(sock, act string, ask func(*client.Client) error, more ...client.Opt) error {
	var d net.Dialer
	return question("unix://"+sock, longAnswer, func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", sock)
	}, act, ask, more...)
}

// over asks one question over connections of the caller's.
func over(dial Dial, act string, ask func(*client.Client) error) error {
	return question("unix:///dial", shortAnswer, func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }, act, ask)
}

// headerTimeout is for an engine to begin with an answer, if the caller has no other
// patience.
const headerTimeout = time.Minute

// question makes a client for one question.
func question(host string, most int, dial func(ctx context.Context, network, address string) (net.Conn, error), act string, ask func(*client.Client) error, more ...client.Opt) error {
	transport := &http.Transport{
		DialContext: dial, DisableCompression: true,
		MaxResponseHeaderBytes: maxHeader, ResponseHeaderTimeout: headerTimeout,
		MaxIdleConns: 2, IdleConnTimeout: 10 * time.Second,
	}
	defer transport.CloseIdleConnections()
	c, err := client.New(append(more, client.WithHost(host),
		client.WithHTTPClient(&http.Client{Transport: bounded{transport, most}, CheckRedirect: client.CheckRedirect}))...)
	if err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	defer func() { _ = c.Close() }()
	if err := ask(c); err != nil {
		return fmt.Errorf("%s: %w", act, explain(err))
	}
	return nil
}

// explain classifies an error and takes away what Docker's client puts before
// the engine's, or the proxy's, own words.
func explain(err error) error {
	text := strings.TrimPrefix(err.Error(), "Error response from daemon: ")
	why := err
	if of, ok := errors.AsType[*url.Error](err); ok { // whose text has the socket's path, percent-encoded
		why = of.Err
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	case errors.Is(err, context.Canceled), errors.Is(err, ErrTooMuch):
		return why
	case client.IsErrConnectionFailed(err):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case errdefs.IsUnavailable(err):
		return &unavailable{clip(text, maxWords), err}
	}
	if text := clip(why.Error(), maxWords); text != why.Error() { // of the engine's own
		return errors.New(text)
	}
	return why
}

// Bounds on what is kept of an engine's words, in bytes.
const (
	maxWords = 4 << 10 // an error
	maxName  = 256
)

// clip shortens what an engine says. It copies, so that the rest of the answer can go.
func clip(s string, most int) string {
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strings.Clone(s)
}

// unavailable is an [ErrUnavailable] in the words of whoever answered.
type unavailable struct {
	text  string
	cause error
}

// Error implements error.
func (u *unavailable) Error() string { return u.text }

// Unwrap gives the class and the cause.
func (u *unavailable) Unwrap() []error { return []error{ErrUnavailable, u.cause} }
