package dockerproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"
)

// Call is a request that is about to reach the engine and may be refused.
type Call struct {
	Kind Kind
	// Container is the container that is meant, by name or ID. For Create it is the
	// name that it is to have, "" if the engine chooses.
	Container string
	// HostConfig is what the container to be wants of its host; only for Create.
	HostConfig container.HostConfig
	// Volume is the driver of the volume to be; only for CreateVolume.
	Volume mount.Driver
}

// Kind is what a Call asks for.
type Kind string

// The kinds of calls. A restart is a start.
const (
	Create       Kind = "create"
	Start        Kind = "start"
	Stop         Kind = "stop" // or kill, or remove
	CreateVolume Kind = "create volume"
	Prune        Kind = "prune"
	Resize       Kind = "resize" // the terminal of a container
)

// Verdict says how a call passes. The zero Verdict lets it pass as it is.
type Verdict struct {
	// Edits are strings of the body that the engine gets otherwise.
	Edits []Edit
	// BeforeAnswer, unless nil, is called when the engine has answered that it has done what
	// was asked, or has had nothing to do. The client gets the answer when it returns. It
	// must return when ctx ends: after 5 s, or with the connection.
	BeforeAnswer func(ctx context.Context)
	// Done, unless nil, is called once: when the engine's answer has ended, or the
	// connection has.
	Done func()
}

// AdmitFunc decides about a call: without an error it passes; an error is the answer that
// the client gets in the engine's place, with the status of a [*Refusal], else 500. It
// should let pass what it cannot judge.
type AdmitFunc func(ctx context.Context, call Call) (Verdict, error)

// Refusal is an answer in place of the engine's.
type Refusal struct {
	Status  int
	Message string // what happened and what to do
}

// Error implements error.
func (r *Refusal) Error() string { return r.Message }

// maxCall bounds a request that is read as a whole. Larger ones pass unread.
const maxCall = 4 << 20

// Requests that are read, with or without the version of the API in front.
var callPath = regexp.MustCompile(`^(?:/v[0-9.]+)?/(?:(volumes/create)|containers/(?:(create)|([^/]+)/(start|restart|resize|stop|kill))|((?:containers|images|volumes|networks|build)/prune))$`)

// A container that is removed may have run until then.
var removePath = regexp.MustCompile(`^(?:/v[0-9.]+)?/containers/([^/]+)$`)

// callOf says what a request asks for; false: nothing that is checked.
func callOf(req *http.Request) (Call, bool) {
	switch req.Method {
	case http.MethodPost:
	case http.MethodDelete:
		m := removePath.FindStringSubmatch(req.URL.EscapedPath())
		if m == nil {
			return Call{}, false
		}
		name, err := url.PathUnescape(m[1])
		return Call{Kind: Stop, Container: name}, err == nil
	default:
		return Call{}, false
	}
	m := callPath.FindStringSubmatch(req.URL.EscapedPath())
	switch {
	case m == nil:
		return Call{}, false
	case m[1] != "":
		return Call{Kind: CreateVolume}, true
	case m[2] != "":
		return Call{Kind: Create, Container: req.URL.Query().Get("name")}, true
	case m[5] != "":
		return Call{Kind: Prune}, true
	}
	kind := Start
	switch m[4] {
	case "resize":
		kind = Resize
	case "stop", "kill":
		kind = Stop
	}
	name, err := url.PathUnescape(m[3])
	return Call{Kind: kind, Container: name}, err == nil
}

// readConfig takes what a call's body says. An error means that the call is not
// understood: the engine is to judge.
func (c *Call) readConfig(body []byte) error {
	switch c.Kind {
	case Create:
		var config struct{ HostConfig container.HostConfig }
		if err := json.Unmarshal(body, &config); err != nil {
			return err
		}
		c.HostConfig = config.HostConfig
	case CreateVolume:
		var request volume.CreateRequest
		if err := json.Unmarshal(body, &request); err != nil {
			return err
		}
		c.Volume = mount.Driver{Name: request.Driver, Options: request.DriverOpts}
	}
	return nil
}

// writeRefusal answers a request as the engine would.
func writeRefusal(w io.Writer, req *http.Request, cause error, last bool) error {
	status := http.StatusInternalServerError
	if r, ok := errors.AsType[*Refusal](cause); ok {
		status = r.Status
	}
	body, err := json.Marshal(map[string]string{"message": cause.Error()})
	if err != nil {
		return fmt.Errorf("refuse: %w", err)
	}
	answer := http.Response{
		StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Request: req, Close: last || req.Close,
		Header:        http.Header{"Content-Type": {"application/json"}, "Server": {"devvm"}},
		ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)),
	}
	var out bytes.Buffer
	if err := answer.Write(&out); err != nil {
		return fmt.Errorf("refuse: %w", err)
	}
	_, err = w.Write(out.Bytes())
	return err
}
