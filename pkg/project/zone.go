package project

import (
	"os"
	"path/filepath"
	"strings"
	"time"
)

// TimeZone returns the host's time zone by its IANA name, or UTC. It comes from TZ, or from the
// target of the symbolic link localtime.
func TimeZone(getenv func(string) string, localtime string) string {
	if tz := strings.TrimPrefix(getenv("TZ"), ":"); tz != "" {
		if _, err := time.LoadLocation(tz); err == nil && !filepath.IsAbs(tz) {
			return tz
		}
	}
	target, err := os.Readlink(localtime)
	if err != nil {
		return "UTC"
	}
	if _, zone, found := strings.Cut(target, "zoneinfo/"); found {
		return zone
	}
	return "UTC"
}
