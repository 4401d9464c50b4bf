package vmnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"
)

// The protocol of the dial socket is HTTP/1.1:
//
//	CONNECT 192.0.2.4:22                    a TCP connection into the VM (RFC 9110, 9.3.6)
//	GET /.well-known/masque/udp/192.0.2.2/53/  datagrams (RFC 9298): Upgrade: connect-udp
//	GET /status                             Status as JSON
//	GET /egress                             Egress as JSON; with ?follow, Attempts, a line each, without end
//	PUT /policy                             an egress.Policy as JSON; the answer is policyAnswer
//	POST /stop                              ends the network
//
// After the answer to CONNECT (200) or the upgrade (101) the connection is the
// tunnel. Failures are JSON, [dialError], with a status that says the kind.

// PolicyAnswer is the answer to another policy.
type PolicyAnswer struct {
	Cut int `json:"cut"` // connections that it does not allow
}

// dialError is the body of an answer that is not a success.
type dialError struct {
	Code    string `json:"code,omitempty"` // of dialErrors
	Message string `json:"message"`
}

// dialErrors are the kinds of failure that a [Dialer] tells apart, with the
// names and HTTP statuses under which they travel.
var dialErrors = []struct {
	err    error
	code   string
	status int
}{
	{ErrNoGuest, "no-guest", http.StatusServiceUnavailable},
	{ErrNotGuest, "not-guest", http.StatusForbidden},
	{ErrClosed, "closed", http.StatusServiceUnavailable},
	{syscall.ECONNREFUSED, "refused", http.StatusBadGateway},
	{syscall.ECONNRESET, "reset", http.StatusBadGateway},
	{syscall.EHOSTUNREACH, "unreachable", http.StatusBadGateway},
	{syscall.ETIMEDOUT, "timeout", http.StatusGatewayTimeout},
}

// AnswerError answers a request that has failed, so that a [Dialer] gets the same error.
func AnswerError(w http.ResponseWriter, err error) {
	if errors.Is(err, context.DeadlineExceeded) {
		err = syscall.ETIMEDOUT
	}
	body, status := dialError{Message: err.Error()}, http.StatusInternalServerError
	for _, kind := range dialErrors {
		if errors.Is(err, kind.err) {
			body.Code, status = kind.code, kind.status
			break
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// answerFailure turns an answer of [answerError] into the error that it
// stands for.
func answerFailure(answer *http.Response) error {
	defer answer.Body.Close()
	var body dialError
	if json.NewDecoder(io.LimitReader(answer.Body, 8<<10)).Decode(&body) != nil || body.Message == "" {
		return fmt.Errorf("the VM's network process answered %s", answer.Status)
	}
	for _, kind := range dialErrors {
		if kind.code == body.Code {
			return kind.err
		}
	}
	return errors.New(body.Message)
}
