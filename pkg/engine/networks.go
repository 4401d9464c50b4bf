package engine

import (
	"context"
	"net/netip"

	"github.com/moby/moby/client"
)

// Network is one of the engine's, by one of its subnets.
type Network struct {
	Name   string
	Subnet netip.Prefix
	// Asked says that whoever made the network asked for the subnet. The engine tells it of most:
	// where it was not asked for a subnet, it says the gateway that it has chosen, and no more.
	Asked bool
}

// maxNetworks bounds what is kept of a list.
const maxNetworks = 1000

// GetNetworks lists the IPv4 subnets of the engine's networks.
func GetNetworks(ctx context.Context, sock string) ([]Network, error) {
	var list []Network
	err := with(sock, "ask the engine for its networks", func(c *client.Client) error {
		all, err := c.NetworkList(ctx, client.NetworkListOptions{})
		if err != nil {
			return err
		}
		for _, n := range all.Items {
			for _, i := range n.IPAM.Config {
				if i.Subnet.Addr().Is4() && len(list) < maxNetworks {
					asked := !i.Gateway.IsValid() || i.IPRange.IsValid() || len(i.AuxAddress) > 0
					list = append(list, Network{clip(n.Name, maxName), i.Subnet.Masked(), asked})
				}
			}
		}
		return nil
	})
	return list, err
}
