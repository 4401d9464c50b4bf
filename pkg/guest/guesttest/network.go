package guesttest

import (
	"encoding/binary"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
)

// Network is a network of an [Engine], other than the predefined ones.
type Network struct {
	Name string
	IPAM []IPAM // IPAM.Config
}

// IPAM is part of the API's IPAMConfig.
type IPAM struct {
	Subnet  netip.Prefix
	Gateway netip.Addr `json:",omitzero"`
}

// daemon is the part of its configuration that an engine uses.
type daemon struct {
	Pools []pool       `json:"default-address-pools"`
	Bip   netip.Prefix `json:"bip"`
}

// Configure makes the engine read its configuration (daemon.json). By default its networks have
// addresses from Docker's own pools.
func (e *Engine) Configure(daemonJSON []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	d := daemon{}
	if err := json.Unmarshal(daemonJSON, &d); err != nil {
		return err
	}
	if d.Pools == nil {
		d.Pools = dockerPools
	}
	e.daemon = d
	return nil
}

// dockerPools are some of the pools of an engine without configured ones.
var dockerPools = []pool{{netip.MustParsePrefix("172.17.0.0/16"), 16}, {netip.MustParsePrefix("172.18.0.0/16"), 16}}

// pool is a range of addresses, divided into parts for networks.
type pool struct {
	Base netip.Prefix `json:"base"`
	Size int          `json:"size"` // prefix length of a part
}

// bridge is the predefined network, which gets new addresses at each start.
func (d daemon) bridge() Network {
	if d.Bip.IsValid() {
		return Network{"bridge", []IPAM{{d.Bip.Masked(), d.Bip.Addr()}}}
	}
	return Network{"bridge", []IPAM{d.free(nil)}}
}

// free returns a part of the pools that no network uses.
func (d daemon) free(networks []Network) IPAM {
	for _, p := range d.Pools {
		for at := p.Base.Addr(); p.Base.Contains(at); {
			part := netip.PrefixFrom(at, p.Size)
			if !slices.ContainsFunc(networks, func(n Network) bool {
				return slices.ContainsFunc(n.IPAM, func(i IPAM) bool { return i.Subnet.Overlaps(part) })
			}) {
				return IPAM{part, at.Next()}
			}
			b := at.As4()
			binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+1<<(32-p.Size))
			at = netip.AddrFrom4(b)
		}
	}
	return IPAM{}
}

// networks returns all networks with addresses. The caller holds the lock.
func (e *Engine) networks() []Network {
	return append([]Network{e.daemon.bridge()}, e.state.Networks...)
}

func (e *Engine) handleNetworks(mux *http.ServeMux) {
	mux.HandleFunc("GET /networks", func(w http.ResponseWriter, _ *http.Request) {
		e.mu.Lock()
		defer e.mu.Unlock()
		list := []map[string]any{{"Name": "none", "IPAM": map[string]any{"Config": nil}}}
		for _, n := range e.networks() {
			list = append(list, map[string]any{"Name": n.Name, "IPAM": map[string]any{"Config": n.IPAM}})
		}
		answer(w, http.StatusOK, list)
	})
	mux.HandleFunc("POST /networks/create", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Name string
			IPAM struct{ Config []IPAM }
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			answer(w, http.StatusBadRequest, map[string]string{"message": err.Error()})
			return
		}
		n := Network{body.Name, body.IPAM.Config}
		if len(n.IPAM) == 0 {
			e.mu.Lock()
			n.IPAM = []IPAM{e.daemon.free(e.networks())}
			e.mu.Unlock()
		}
		e.add(w, func(s *State) { s.Networks = append(s.Networks, n) }, map[string]any{"Id": newID(n.Name), "Warning": ""})
	})
	mux.HandleFunc("DELETE /networks/{name}", func(w http.ResponseWriter, r *http.Request) {
		_ = e.change(func(s *State) {
			s.Networks = slices.DeleteFunc(s.Networks, func(n Network) bool { return n.Name == r.PathValue("name") })
		})
		w.WriteHeader(http.StatusNoContent)
	})
}
