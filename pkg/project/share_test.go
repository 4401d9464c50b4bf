package project

import (
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/share"
)

// What the VM's kernel cannot mount is not shared, and said to be too long.
func TestUnfit(t *testing.T) {
	var s Service
	for length, fit := range map[int]bool{245: true, 246: false, 1000: false} {
		path := "/" + strings.Repeat("x", length-1)
		why := s.unfit(share.Export{Source: path, Target: path})
		if (why == "") != fit || !fit && !strings.Contains(why, "mounts 245 at most") {
			t.Errorf("%d bytes: %q", length, why)
		}
	}
	if why := s.unfit(share.Export{Source: "/a", Target: "/a\nb"}); !strings.Contains(why, "control character") {
		t.Errorf("a newline: %q", why)
	}
}
