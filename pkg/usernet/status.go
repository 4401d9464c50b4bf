package usernet

import "github.com/devvm/devvm/pkg/vmnet"

// Status describes the network now.
func (s *Stack) Status() vmnet.Status {
	s.mu.Lock()
	since := s.since
	s.mu.Unlock()
	c := s.cable.Counters()
	policy := s.policy.now()
	return vmnet.Status{
		Connected: !since.IsZero(), Since: since,
		Guest: vmnet.Guest.String(), Offline: policy.Offline, Policy: &policy, MTU: s.cfg.MTU,
		FramesIn: c.FramesIn, BytesIn: c.BytesIn,
		FramesOut: c.FramesOut, BytesOut: c.BytesOut, Dropped: c.Dropped,
		TCPFlows: len(s.out.tcpSlots), UDPFlows: s.out.udpFlows.len(), Pings: s.out.pings.len(), NoPings: !s.pings, IPv6: s.route6.Load(), DialIns: int(s.dialIns.Load()),
		Refused: s.policy.refusals(),
	}
}
