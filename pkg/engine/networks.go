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
					list = append(list, Network{clip(n.Name, maxName), i.Subnet.Masked()})
				}
			}
		}
		return nil
	})
	return list, err
}
