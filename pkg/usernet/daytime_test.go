package usernet_test

import (
	"io"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/egress"
	"github.com/devvm/devvm/pkg/usernet"
)

func TestDaytime(t *testing.T) {
	_, g := network(t, usernet.Config{Policy: &egress.Policy{Offline: true}})
	c, err := g.Dial(testContext(t), "tcp", "192.0.2.1:13")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	said, err := strconv.ParseFloat(strings.TrimSuffix(string(b), "\n"), 64)
	if err != nil {
		t.Fatal(err)
	}
	if off := math.Abs(said - float64(time.Now().UnixNano())/1e9); off > 60 {
		t.Errorf("the gateway said %q, which is %.1f s off", b, off)
	}
}
