package vmnet

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
func (st Status) PingsRefused() uint64 { return st.Refused[NoPing] }

// Attempt is something that the VM has asked for, once or again and again. It
// travels as JSON; fields are only ever added.
type Attempt struct {
	Protocol string    `json:"protocol"`          // "tcp", "udp", "dns" (a look-up), "icmp" or "ip"
	Name     string    `json:"name,omitempty"`    // by which the VM knows the address, as far as its DNS tells
	Address  string    `json:"address,omitempty"` // the last one; of look-ups none
	Port     uint16    `json:"port,omitempty"`
	Allowed  bool      `json:"allowed"`
	Reason   string    `json:"reason,omitempty"` // of a refusal
	Count    uint64    `json:"count"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
	Allow    *Allow    `json:"allow,omitempty"` // how devvm.toml would allow it, if it could
}

// Allow is what devvm.toml would say below [network] to allow an attempt.
type Allow struct {
	Key   string `json:"key"`   // "egress", "host_ports" or "mode"
	Entry string `json:"entry"` // what to add to the key's list, or its value
	Line  string `json:"line"`  // the whole line, with what is allowed already
}

// Egress is what a VM asked for, since its network process started.
type Egress struct {
	Policy    egress.Policy `json:"policy"`    // in force now
	Attempts  []Attempt     `json:"attempts"`  // the last one at the end
	Forgotten uint64        `json:"forgotten"` // attempts that had to make room
}

// NoPing is the reason of a refusal: see [Status.PingsRefused].
const NoPing = "this host lets users send no pings"
