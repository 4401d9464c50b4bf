package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/devvm/devvm/pkg/ports"
)

// State is how far the supervisor is on the way to the engine.
type State string

// The states, in the order in which a boot goes through them.
const (
	StateConnecting State = "connecting" // the guest's SSH does not answer yet
	StateSSH        State = "ssh"        // SSH answers, the engine does not yet
	StateReady      State = "ready"      // the engine answers
	StateLost       State = "lost"       // it was ready; the link broke and is being made anew
	StateStopped    State = "stopped"    // the VM is gone
	StateSuspended  State = "suspended"  // the VM was asked to rest: no link is made until Resume
)

// Status is what the supervisor knows. It is served as JSON on control.sock;
// fields are only ever added.
type Status struct {
	State State     `json:"state"`
	Since time.Time `json:"since"`
	Error string    `json:"error,omitempty"` // why State is not ready
	// Paused is why QEMU has paused the VM. The supervisor resumes it when it can.
	Paused string `json:"paused,omitempty"`
	// SlowSince is when the VM last answered, if it is silent now. The link is kept.
	SlowSince time.Time `json:"slow_since,omitzero"`
	// EngineFailed has the engine's last messages, if the VM no longer restarts it. In StateSSH
	// they are kept until the engine has answered or failed again.
	EngineFailed string `json:"engine_failed,omitempty"`

	// Room is the VM's memory and disk at the last look; nil: there was none.
	Room *Room `json:"room,omitempty"`

	// Alone says that the supervisor's aide, which looks outside of its sandbox, has ended: then
	// nobody knows who has a port, and a paused VM is not resumed. The next up while no client is
	// on docker.sock replaces both.
	Alone bool `json:"alone,omitempty"`

	// ShortAt is when the engine last ran out of disk space in the VM in the middle of an answer.
	ShortAt time.Time `json:"short_at,omitzero"`

	PID         int    `json:"pid"`
	Version     string `json:"version"`
	Connections int    `json:"connections"` // open on docker.sock now
	Redials     int    `json:"redials"`     // times the link was made anew
	// Rebooted is when the supervisor last noticed that the VM had booted by itself: after a
	// crash of its kernel, or by a command in it.
	Rebooted time.Time `json:"rebooted,omitzero"`
	Ports    int       `json:"ports"` // published ones that are open on this host
	// PortsPublished is how many ports containers publish, open on this host or not.
	PortsPublished int `json:"ports_published,omitempty"`
	// PortsNotOpen is how many of them are not open, or not on all addresses, mostly because they
	// are taken.
	PortsNotOpen int `json:"ports_not_open,omitempty"`
	// PortsKnown says that since StateReady the engine has listed the published ports, and that
	// they have been opened.
	PortsKnown bool `json:"ports_known"`
	// PortsProblem is why the published ports are unknown, if they are.
	PortsProblem string `json:"ports_problem,omitempty"`

	Exposures []ports.Exposed `json:"exposures,omitempty"` // to others than this host

	Files []Files `json:"files,omitempty"`
}

// Files is a directory of the host that the VM has.
type Files struct {
	Path      string `json:"path"` // in the VM
	Writable  bool   `json:"writable"`
	Transport string `json:"transport"` // "nfs"
	Why       string `json:"why"`       // and not otherwise
	// Unwatched says that there are more directories than the kernel lets devvm watch: watchers
	// in the VM miss the host's changes in some of them.
	Unwatched bool `json:"unwatched,omitempty"`
}

// whyNFS is Files.Why. docs/files-in-the-vm.md has more.
const whyNFS = "needs no root, and survives suspend and fork"

// ErrNone says that no supervisor listens on the control socket.
var ErrNone = errors.New("no supervisor is running")

// ErrHung says that a supervisor listens on the control socket but does not answer.
var ErrHung = errors.New("the supervisor does not answer (repair it with: devvm up)")

// Patience with a supervisor that is busy.
const (
	patienceAnswer = 5 * time.Second
	patienceEnd    = 30 * time.Second
)

// Client talks to a supervisor over its control socket. A request fails with ErrHung if there is no
// answer within 5 s.
type Client struct {
	http http.Client
}

// NewClient returns a client. It does not connect yet.
func NewClient(controlSocket string) *Client {
	var d net.Dialer
	return &Client{http.Client{Transport: &http.Transport{
		DisableKeepAlives:     true,
		ResponseHeaderTimeout: patienceAnswer,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", controlSocket)
		},
	}}}
}

// Status asks for the state; ErrNone if nobody listens.
func (c *Client) Status(ctx context.Context) (Status, error) { return c.status(ctx, "/status") }

// Look is Status with a fresh look at the VM's memory and disk, if that takes at most 2 s.
func (c *Client) Look(ctx context.Context) (Status, error) { return c.status(ctx, "/status?look") }

func (c *Client) status(ctx context.Context, path string) (Status, error) {
	var s Status
	ctx, cancel := context.WithTimeoutCause(ctx, 2*patienceAnswer, ErrHung) // of which the body is a part
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		if errors.Is(context.Cause(ctx), ErrHung) {
			return s, ErrHung
		}
		return s, fmt.Errorf("read supervisor's status: %w", err)
	}
	return s, nil
}

// Stop asks the supervisor to end and waits for that, for 30 s at most (ErrHung). It fails with
// ErrNone if there is none, or one that is ending already.
func (c *Client) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patienceAnswer+patienceEnd, ErrHung)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPost, "/stop", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	// The answer ends with the supervisor, by its end or by a broken connection.
	_, _ = io.Copy(io.Discard, resp.Body)
	return context.Cause(ctx)
}

// Suspend makes the supervisor close its link and make no other until Resume. Clients of docker.sock
// are told. It fails with ErrNone if there is no supervisor.
func (c *Client) Suspend(ctx context.Context) error { return c.post(ctx, "/suspend") }

// Resume undoes Suspend. Without a Suspend it does nothing.
func (c *Client) Resume(ctx context.Context) error { return c.post(ctx, "/resume") }

// CatchUp waits until the VM sees the files as the host has them now, for a few tenths of a second
// at most.
func (c *Client) CatchUp(ctx context.Context) error {
	resp, err := c.do(ctx, http.MethodPost, "/catch-up", nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Sync makes the guest write its caches to its disk, over the present link.
func (c *Client) Sync(ctx context.Context) error {
	resp, err := c.do(ctx, http.MethodPost, "/sync", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	why, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return fmt.Errorf("ask supervisor: %w", err)
	}
	if len(why) > 0 {
		return errors.New(strings.TrimSpace(string(why)))
	}
	return nil
}

func (c *Client) post(ctx context.Context, path string) error {
	resp, err := c.do(ctx, http.MethodPost, path, nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Watch calls f with the current status and then with each change, until f
// returns false, the supervisor ends (ErrNone) or ctx does.
func (c *Client) Watch(ctx context.Context, f func(Status) bool) error {
	resp, err := c.do(ctx, http.MethodGet, "/events", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	for {
		var s Status
		if err := d.Decode(&s); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return ErrNone
		}
		if !f(s) {
			return nil
		}
	}
}

// do sends a request, with body as JSON unless it is nil, and checks the answer's code.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("ask supervisor: %w", err)
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://supervisor"+path, content)
	if err != nil {
		return nil, fmt.Errorf("ask supervisor: %w", err)
	}
	resp, err := c.http.Do(req)
	var late net.Error
	switch {
	case ctx.Err() == nil && errors.As(err, &late) && late.Timeout():
		return nil, ErrHung
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, ErrNone
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE): // it has ended, or is about to
		return nil, ErrNone
	case err != nil:
		return nil, fmt.Errorf("ask supervisor: %w", err)
	case resp.StatusCode == http.StatusGone:
		resp.Body.Close()
		return nil, ErrNone
	case resp.StatusCode == http.StatusBadRequest:
		defer resp.Body.Close()
		why, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		if err != nil {
			return nil, fmt.Errorf("ask supervisor: %w", err)
		}
		return nil, errors.New(strings.TrimSpace(string(why)))
	case resp.StatusCode != http.StatusOK:
		resp.Body.Close()
		return nil, fmt.Errorf("ask supervisor: %s", resp.Status)
	}
	return resp, nil
}
