package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// attempt runs a command line and returns what it found, by target.
func attempt(t *testing.T, in string, args ...string) map[string]result {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), args, strings.NewReader(in), &out); err != nil {
		t.Fatal(err)
	}
	found := map[string]result{}
	for d := json.NewDecoder(&out); ; {
		var r result
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			return found
		} else if err != nil {
			t.Fatal(err)
		}
		found[r.Target] = r
	}
}

// freePorts are two ports, on which nothing listens.
func freePorts(t *testing.T) (tcp, udp string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, udp = "tcp:"+l.Addr().String(), "udp:"+p.LocalAddr().String()
	l.Close()
	p.Close()
	return tcp, udp
}

// TestFinds: what is there is found, and what is not there is not.
func TestFinds(t *testing.T) {
	tcp, udp := freePorts(t)
	for target, r := range attempt(t, "", "get", "-wait", "200ms", tcp, udp) {
		if r.Got != gotClosed {
			t.Errorf("%s: %+v", target, r)
		}
	}
	in, end := io.Pipe()
	said, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- run(t.Context(), []string{"serve", "-say", "secret", tcp, udp}, in, out) }()
	line := make([]byte, 6)
	if _, err := io.ReadFull(said, line); err != nil || string(line) != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	go io.Copy(io.Discard, said)
	for target, r := range attempt(t, "", "get", tcp, udp) {
		if r.Got != gotAnswer || !strings.HasSuffix(r.Text, "secret") {
			t.Errorf("%s: %+v", target, r)
		}
	}
	port := netip.MustParseAddrPort(strings.TrimPrefix(tcp, "tcp:")).Port()
	var found bytes.Buffer
	w := &results{Encoder: json.NewEncoder(&found)}
	if err := scan(t.Context(), []string{"127.0.0.1"}, int(port), int(port), 1e9, w); err != nil || !strings.Contains(found.String(), tcp) {
		t.Errorf("scan: %v\n%s", err, &found)
	}
	end.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSnoop(t *testing.T) {
	dir := t.TempDir()
	file, sock := filepath.Join(dir, "file"), filepath.Join(dir, "sock")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := attempt(t, strings.Join([]string{dir, file, sock, filepath.Join(dir, "none")}, "\n"), "snoop")
	for _, path := range []string{dir, file, sock} {
		if got[path].Got != gotOpen {
			t.Errorf("%+v", got[path])
		}
	}
	if r := got[filepath.Join(dir, "none")]; r.Got != gotDenied {
		t.Errorf("%+v", r)
	}
}

func TestPackets(t *testing.T) {
	from, to := netip.MustParseAddrPort("127.0.0.1:40123"), netip.MustParseAddrPort("10.66.0.1:80")
	for name, packet := range map[string][]byte{"udp": udpPacket(from, to, "odd"), "tcp": synPacket(from, to)} {
		if checksum(packet[:20]) != 0 {
			t.Errorf("%s: header's checksum is wrong: %s", name, hex.EncodeToString(packet))
		}
		// As an answer it would come from the other's port.
		f := forgery{ports: []uint16{40123}}
		if got := f.answer(packet); !strings.HasPrefix(got, name+" 127.0.0.1:40123 to 10.66.0.1") {
			t.Errorf("%s: %q", name, got)
		}
		f.ports = []uint16{1}
		if got := f.answer(packet); got != "" {
			t.Errorf("%s of another port: %q", name, got)
		}
	}
	reset := synPacket(from, to)
	reset[20+13] = 0x14
	if got := (forgery{ports: []uint16{40123}}).answer(reset); got != "" {
		t.Errorf("a refusal is taken for an answer: %q", got)
	}
	tcp := synPacket(from, to)
	pseudo := append(append([]byte{}, tcp[12:20]...), 0, 6, 0, 20)
	if checksum(append(pseudo, tcp[20:]...)) != 0 {
		t.Error("TCP's checksum is wrong")
	}
}

// TestFlood: connections are counted, those that are refused too.
func TestFlood(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	closed, _ := freePorts(t)
	var out bytes.Buffer
	if err := run(t.Context(), []string{"flood", "-wait", "200ms", "tcp:" + l.Addr().String(), closed}, nil, &out); err != nil {
		t.Fatal(err)
	}
	counts := map[string]string{}
	for d := json.NewDecoder(&out); ; {
		var r result
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		counts[r.Target+" "+r.Got] = r.Text
	}
	if counts["tcp:"+l.Addr().String()+" open"] == "0" || counts[closed+" closed"] == "0" || counts[closed+" open"] != "0" {
		t.Errorf("counted %v", counts)
	}
}
