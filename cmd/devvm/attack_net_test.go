//go:build attack

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/audit"
)

// Addresses that are nobody's, and what the host's own rules make of them.
const (
	translatedToHost   = "10.43.0.1"
	translatedToBehind = "10.43.0.2"
	// decoyUDP is of a service that answers from the address that it was asked at, as the
	// host's rules need it to.
	decoyUDP = "40003"
)

// attackTranslated is what a VM tries at addresses that the host's firewall leads to the
// host, as kube-proxy and transparent proxies do.
func (s *scene) attackTranslated(t *testing.T, l lan, a victim) {
	s.section("Addresses that the host's own rules lead to its services")
	host := within(l.host)
	rules := `add table ip attack
add chain ip attack output { type nat hook output priority -100; }
add rule ip attack output ip daddr ` + translatedToHost + ` tcp dport 443 dnat to ` + hostAddr + `:` + decoy + `
add rule ip attack output ip daddr ` + translatedToHost + ` udp dport 443 dnat to ` + hostAddr + `:` + decoyUDP + `
add rule ip attack output ip daddr ` + translatedToHost + ` tcp dport 444 redirect to :` + decoy + `
add rule ip attack output ip daddr ` + translatedToHost + ` tcp dport 445 dnat to 127.0.0.1:` + decoyLocal + `
add rule ip attack output ip daddr ` + translatedToBehind + ` tcp dport 443 dnat to ` + behindAddr + `:80
`
	if _, err := command(t.Context(), strings.NewReader(rules), host.argv("nft", "-f", "-")...); err != nil {
		t.Fatal(err)
	}
	must(t, "ip", "-n", l.host, "route", "add", "10.43.0.0/24", "via", behindAddr)
	t.Cleanup(func() { // audit compares the host with what it was
		ctx := context.WithoutCancel(t.Context())
		_, _ = command(ctx, nil, host.argv("nft", "delete", "table", "ip", "attack")...)
		_, _ = command(ctx, nil, "ip", "-n", l.host, "route", "del", "10.43.0.0/24")
	})
	s.serve(t, host, "the host's service", "udp:"+hostAddr+":"+decoyUDP)
	here := host.with(s.attacker)
	here.name = "the host itself"
	s.reads(t, here, "control: DNAT", "tcp:"+translatedToHost+":443", "the host's service")
	s.reads(t, here, "control: DNAT, UDP", "udp:"+translatedToHost+":443", "the host's service", "-say", "from the host")
	s.reads(t, here, "control: REDIRECT", "tcp:"+translatedToHost+":444", "the host's service")
	s.reads(t, here, "control: DNAT to loopback", "tcp:"+translatedToHost+":445", "the host's local service")
	s.reads(t, a.root, "control: DNAT to elsewhere", "tcp:"+translatedToBehind+":443", "behind the host")
	for _, p := range []place{a.root, a.container("container"), a.container("privileged container", "--privileged", "--network", "host")} {
		s.none(t, p, [][2]string{
			{"tcp:" + translatedToHost + ":443", "DNAT to the host"},
			{"tcp:" + translatedToHost + ":444", "REDIRECT to the host"},
			{"tcp:" + translatedToHost + ":445", "DNAT to the host's loopback"},
			{"udp:" + translatedToHost + ":443", "DNAT to the host, UDP"},
		}, "-wait", "3s", "-say", "translated")
	}
	var journal struct {
		Attempts []struct{ Protocol, Address, Reason string }
	}
	if err := json.Unmarshal([]byte(must(t, a.run.argv("egress", "--json")...)), &journal); err != nil {
		t.Fatal(err)
	}
	noted := map[string]bool{}
	for _, attempt := range journal.Attempts {
		if attempt.Address == translatedToHost && strings.Contains(attempt.Reason, "led to the host") {
			noted[attempt.Protocol] = true
		}
	}
	s.attempt(t, "devvm egress", "names what was refused", "tcp and udp", fmt.Sprint(noted), noted["tcp"] && noted["udp"])
}

// mostResident is what a network process may hold, in bytes, whatever its guest does.
const mostResident = 64 << 20

// attackFlood is what root in a VM tries against its own network process: connections to
// the gateway's services that it neither reads nor closes.
func (s *scene) attackFlood(t *testing.T, l lan, a, b victim) {
	s.section("Root in a VM floods its gateway")
	var env map[string]string
	if err := json.Unmarshal([]byte(must(t, a.run.argv("env", "--json")...)), &env); err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(filepath.Dir(strings.TrimPrefix(env["DOCKER_HOST"], "unix://")))
	pid := 0
	for _, p := range s.audit(t, s.asUser(l.host)).Processes {
		if p.Project == name && p.Kind == audit.KindNet {
			pid = p.PID
		}
	}
	if pid == 0 {
		t.Fatal("the network process of a is not found")
	}
	done := make(chan []found, 1)
	go func() {
		done <- s.try(t, a.root, nil, "flood", "-wait", "10s", "tcp:192.0.2.1:13", "tcp:192.0.2.1:53", "tcp:192.0.2.1:2049")
	}()
	var counts []found
	answers, failures := 0, 0
	for counts == nil {
		start := time.Now()
		if _, err := command(t.Context(), nil, b.run.argv("docker", "version")...); err != nil || time.Since(start) > 30*time.Second {
			failures++
			t.Logf("b's engine: %v after %v", err, time.Since(start))
		} else {
			answers++
		}
		select {
		case counts = <-done:
		default:
		}
	}
	accepted, refused := 0, 0
	for _, f := range counts {
		n, _ := strconv.Atoi(f.Text)
		if f.Got == "open" {
			accepted += n
		} else {
			refused += n
		}
	}
	s.attempt(t, a.root.name, "connections to the gateway (control)", "some are accepted", fmt.Sprintf("%d accepted, %d refused", accepted, refused), accepted > 0)
	most := residentPeak(t, pid)
	s.attempt(t, a.root.name, "a's network process", fmt.Sprintf("at most %d MB", mostResident>>20), fmt.Sprintf("%.1f MB", float64(most)/(1<<20)), most <= mostResident)
	s.attempt(t, "b's docker.sock", "meanwhile", "answers throughout", fmt.Sprintf("%d answers, %d failures", answers, failures), answers > 0 && failures == 0)
}

// residentPeak is the most that a process has had resident, in bytes (proc(5)).
func residentPeak(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kB, err := strconv.Atoi(strings.Fields(v)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kB << 10
		}
	}
	t.Fatalf("no VmHWM of process %d", pid)
	return 0
}
