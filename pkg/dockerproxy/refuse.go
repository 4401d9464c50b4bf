package dockerproxy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/devvm/devvm/pkg/relay"
)

// Bounds on how long and how much the proxy listens to a client that it cannot
// serve.
const (
	refuseTimeout = 5 * time.Second
	refuseHead    = 1 << 20
	refuseDrain   = 64 << 20
)

// refuse answers a client's request with 503 and a message in the form of the
// Docker API, and closes so that the client sees it.
func (p *Proxy) refuse(client net.Conn, cause error) {
	message := ""
	if p.opts.Unavailable != nil {
		message = p.opts.Unavailable()
	}
	if message == "" {
		message = fmt.Sprintf("devvm: the Docker engine in the VM cannot be reached: %v", cause)
	}
	_ = client.SetDeadline(time.Now().Add(refuseTimeout))

	// Not before the request: a client takes an answer to nothing for a broken
	// connection, and may ask again without end.
	head := bufio.NewReader(io.LimitReader(client, refuseHead))
	req, err := http.ReadRequest(head)
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		return // it has gone, or never asked
	}
	body, err := json.Marshal(struct {
		Message string `json:"message"`
	}{message})
	if err != nil {
		return
	}
	var answer bytes.Buffer
	fmt.Fprintf(&answer, "HTTP/1.1 %d %s\r\n", http.StatusServiceUnavailable, http.StatusText(http.StatusServiceUnavailable))
	fmt.Fprintf(&answer, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	fmt.Fprintf(&answer, "Server: devvm\r\nConnection: close\r\n\r\n")
	if req == nil || req.Method != http.MethodHead {
		answer.Write(body)
	}
	if _, err := client.Write(answer.Bytes()); err != nil {
		return
	}
	// Closing a socket that holds unread bytes resets it, and the client would
	// see that instead of the answer. So read on until it closes.
	_ = relay.CloseWrite(client)
	_, _ = io.CopyN(io.Discard, client, refuseDrain)
}
