package usernet

import (
	"context"
	"net"

	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/devvm/devvm/pkg/usernet/internal/socket"
)

// reservedPorts are those below: what only root in the VM, and its kernel, can send
// from.
const reservedPorts = 1024

// service tells which unix socket of the host's serves what a connection of the
// guest's asks for; "" for none.
func (o *outbound) service(r *tcp.ForwarderRequest) string {
	to := destinationOf(r.ID())
	if to.Addr() != Gateway {
		return ""
	}
	return o.s.cfg.Services[to.Port()]
}

// handleService joins a connection request of the guest with a service. Nobody
// serves it at the moment: it is refused, as is one from a port that any user of the
// VM can have.
func (o *outbound) handleService(r *tcp.ForwarderRequest, path string) {
	id := r.ID()
	o.syns.take(id)
	if id.RemotePort >= reservedPorts {
		o.s.log.Debug("service refused", "port", id.LocalPort, "from", id.RemotePort)
		r.Complete(true)
		return
	}
	ctx, cancel := context.WithTimeout(o.s.ctx, dialTimeout)
	var d net.Dialer
	outside, err := d.DialContext(ctx, "unix", path)
	cancel()
	if err != nil {
		o.s.log.Debug("service does not answer", "port", id.LocalPort, "error", err)
		r.Complete(true)
		return
	}
	var wq waiter.Queue
	ep, nerr := r.CreateEndpoint(&wq)
	r.Complete(false)
	if nerr != nil {
		abort(outside)
		return
	}
	if err := o.s.relays.join(o.s.ctx, socket.NewTCP(&wq, ep), outside.(*net.UnixConn)); err != nil {
		o.s.log.Debug("service's connection broke", "port", id.LocalPort, "error", err)
	}
}
