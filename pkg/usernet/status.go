package usernet

import (
	"time"

	"github.com/devvm/devvm/pkg/egress"
)

// Status describes a VM's network at one moment. It travels as JSON; fields
// are only ever added.
type Status struct {
	Connected bool              `json:"connected"`          // a VM is plugged in
	Since     time.Time         `json:"since,omitzero"`     // when it was
	Guest     string            `json:"guest"`              // the VM's address
	Offline   bool              `json:"offline"`            // outbound is refused
	Policy    *egress.Policy    `json:"policy"`             // what the VM may reach
	MTU       int               `json:"mtu"`                // bytes of an IP packet
	FramesIn  uint64            `json:"frames_in"`          // from the VM
	BytesIn   uint64            `json:"bytes_in"`           // from the VM
	FramesOut uint64            `json:"frames_out"`         // to the VM
	BytesOut  uint64            `json:"bytes_out"`          // to the VM
	Dropped   uint64            `json:"dropped"`            // frames that the VM did not take
	TCPFlows  int               `json:"tcp_flows"`          // outbound connections, those being dialled included
	UDPFlows  int               `json:"udp_flows"`          // outbound
	Pings     int               `json:"pings"`              // outbound, by destination and program
	NoPings   bool              `json:"no_pings,omitempty"` // the host lets this process send none
	IPv6      bool              `json:"ipv6"`               // the host has a way out by it, and so has the VM
	DialIns   int               `json:"dial_ins"`           // connections into the VM through the unix socket
	Refused   map[string]uint64 `json:"refused"`            // refused so far, by reason
	PID       int               `json:"pid,omitempty"`      // of the network process
}

// PingsRefused is how many pings of the VM's did not leave because the host lets its user
// send none.
func (st Status) PingsRefused() uint64 { return st.Refused[string(refusePing)] }

// Status describes the network now.
func (s *Stack) Status() Status {
	s.mu.Lock()
	since := s.since
	s.mu.Unlock()
	c := s.cable.Counters()
	policy := s.policy.now()
	return Status{
		Connected: !since.IsZero(), Since: since,
		Guest: Guest.String(), Offline: policy.Offline, Policy: &policy, MTU: s.cfg.MTU,
		FramesIn: c.FramesIn, BytesIn: c.BytesIn,
		FramesOut: c.FramesOut, BytesOut: c.BytesOut, Dropped: c.Dropped,
		TCPFlows: len(s.out.tcpSlots), UDPFlows: s.out.udpFlows.len(), Pings: s.out.pings.len(), NoPings: !s.pings, IPv6: s.route6.Load(), DialIns: int(s.dialIns.Load()),
		Refused: s.policy.refusals(),
	}
}
