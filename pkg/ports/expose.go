package ports

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/devvm/devvm/pkg/file"
)

// Exposure opens a published port to others than this host, for a time.
type Exposure struct {
	Port  uint16       `json:"port"`  // on the host
	To    netip.Prefix `json:"to"`    // who may come in
	Until time.Time    `json:"until"` // when it ends by itself
}

// MaxExposure is the longest time that a port can be exposed for.
const MaxExposure = 7 * 24 * time.Hour

// Check finds what is wrong with an exposure.
func (e Exposure) Check(now time.Time) error {
	switch left := e.Until.Sub(now); {
	case e.Port == 0:
		return errors.New("port 0 cannot be exposed")
	case !e.To.IsValid() || e.To != e.To.Masked():
		return fmt.Errorf("%s is not a range of addresses", e.To)
	case e.To.Addr().IsLoopback():
		return fmt.Errorf("%s is this host itself, which reaches published ports anyway", e.To)
	case left <= 0:
		return errors.New("the time is over already")
	case left > MaxExposure+time.Minute:
		return fmt.Errorf("a port can be exposed for %s at most", MaxExposure)
	}
	return nil
}

// ended tells whether the time of an exposure is over.
func (e Exposure) ended(now time.Time) bool { return !now.Before(e.Until) }

// live returns the exposures whose time is not over.
func live(all []Exposure, now time.Time) []Exposure {
	return slices.DeleteFunc(slices.Clone(all), func(e Exposure) bool { return e.ended(now) })
}

// admits tells whether an exposure lets a peer in.
func admits(all []Exposure, port uint16, peer netip.Addr, now time.Time) bool {
	return slices.ContainsFunc(all, func(e Exposure) bool {
		return e.Port == port && !e.ended(now) && e.To.Contains(peer.Unmap().WithZone(""))
	})
}

// ReadExposures reads the file that a Table keeps them in; none if there is no file.
func ReadExposures(path string) ([]Exposure, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var file exposureFile
	if err == nil {
		if err = json.Unmarshal(b, &file); err != nil {
			err = fmt.Errorf("%s is damaged: %w", path, err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read exposures: %w", err)
	}
	return file.Exposures, nil
}

type exposureFile struct {
	Exposures []Exposure `json:"exposures"`
}

// writeExposures replaces the file in one step; without exposures there is none.
func writeExposures(path string, all []Exposure) error {
	if len(all) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("write exposures: %w", err)
		}
		return nil
	}
	b, err := json.MarshalIndent(exposureFile{all}, "", "  ")
	if err != nil {
		return fmt.Errorf("write exposures: %w", err)
	}
	if err := file.Replace(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write exposures: %w", err)
	}
	return nil
}

// Forget removes exposures from the file, port 0: all, for a project without a Table. It
// says how many there were.
func Forget(path string, port uint16) (int, error) {
	all, err := ReadExposures(path)
	if err != nil && port != 0 {
		return 0, err
	}
	left := without(all, port)
	if len(left) == len(all) && err == nil {
		return 0, nil
	}
	return len(all) - len(left), writeExposures(path, left)
}

// without leaves out the exposures of a port, 0: all.
func without(all []Exposure, port uint16) []Exposure {
	return slices.DeleteFunc(slices.Clone(all), func(e Exposure) bool { return port == 0 || e.Port == port })
}

// hostAddrs are the addresses of this host by which the range reaches it: those that
// lie in it, and the one that the kernel would answer it from. They change with the
// host's networks.
func hostAddrs(to netip.Prefix) ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("this host's addresses: %w", err)
	}
	var list []netip.Addr
	for _, a := range all {
		if p, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(p.IP); ok && to.Contains(ip.Unmap()) {
				list = append(list, ip.Unmap())
			}
		}
	}
	peer := to.Addr()
	if !to.IsSingleIP() {
		peer = peer.Next()
	}
	if routes, err := netlink.RouteGet(peer.AsSlice()); err == nil && len(routes) > 0 {
		if ip, ok := netip.AddrFromSlice(routes[0].Src); ok {
			list = append(list, ip.Unmap())
		}
	}
	list = slices.DeleteFunc(list, func(a netip.Addr) bool { return !a.IsGlobalUnicast() })
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list), nil
}
