package dockerproxy_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/dockerproxy"
)

// editor changes every bind that begins with /from, and every device and port that is so.
func editor(to string) dockerproxy.AdmitFunc {
	return func(_ context.Context, c dockerproxy.Call) (v dockerproxy.Verdict, _ error) {
		add := func(to string, path ...string) { v.Edits = append(v.Edits, dockerproxy.Edit{Path: path, To: to}) }
		for i, b := range c.HostConfig.Binds {
			if rest, ok := strings.CutPrefix(b, "/from"); ok {
				add(to+rest, "HostConfig", "Binds", strconv.Itoa(i))
			}
		}
		for i, m := range c.HostConfig.Mounts {
			if m.Source == "/from" {
				add(to, "HostConfig", "Mounts", strconv.Itoa(i), "Source")
			}
			if m.VolumeOptions != nil && m.VolumeOptions.DriverConfig.Options["device"] == "/from" {
				add(to, "HostConfig", "Mounts", strconv.Itoa(i), "VolumeOptions", "DriverConfig", "Options", "device")
			}
		}
		for port, list := range c.HostConfig.PortBindings {
			for i, b := range list {
				if b.HostPort == "1-9" {
					add("5-9", "HostConfig", "PortBindings", port.String(), strconv.Itoa(i), "HostPort")
				}
			}
		}
		if c.Volume.Options["device"] == "/from" {
			add(to, "DriverOpts", "device")
		}
		return v, nil
	}
}

// TestEdit: strings are changed where they stand, and every other byte of a request reaches
// the engine as the client wrote it.
func TestEdit(t *testing.T) {
	ask := func(name, value, body string) string {
		return fmt.Sprintf("POST /v1.45/containers/create HTTP/1.1\r\nHost: d\r\n%s: %s\r\nX-Last: y\r\n\r\n%s", name, value, body)
	}
	length := func(body string) string { return ask("content-LENGTH", strconv.Itoa(len(body)), body) }
	const body = `{"New":{"b":[1e999,null],"a":"\u00e9<"}, "HostConfig" : {"Binds":["v:/v", "/from:/\u00e9:ro"],` +
		`"Mounts":[{"Type":"bind","Source":"/fr\u006fm","New":{"Source":"/from"}},{"VolumeOptions":{"DriverConfig":{"Options":{"o":"bind","device":"/from"}}}}],` +
		`"PortBindings":{"80/tcp":[{"HostPort":"80"},{"HostIp":"","HostPort":"1-9"}],"81":[{"HostPort":"1-9"}],"82/UDP":[{"HostPort":"1-9"}]}},"Binds":["/from:/x"]}  `
	edited := func(to string) string {
		return `{"New":{"b":[1e999,null],"a":"\u00e9<"}, "HostConfig" : {"Binds":["v:/v", "` + to + `:/é:ro"],` +
			`"Mounts":[{"Type":"bind","Source":"` + to + `","New":{"Source":"/from"}},{"VolumeOptions":{"DriverConfig":{"Options":{"o":"bind","device":"` + to + `"}}}}],` +
			`"PortBindings":{"80/tcp":[{"HostPort":"80"},{"HostIp":"","HostPort":"5-9"}],"81":[{"HostPort":"5-9"}],"82/UDP":[{"HostPort":"5-9"}]}},"Binds":["/from:/x"]}  `
	}
	padded := edited("/to")
	padded += strings.Repeat(" ", len(body)-len(padded))
	long := "/" + strings.Repeat("x", 9000)
	const lower = `{"hostconfig":{"binds":["/from:/b"]}}`
	const merged = `{"HostConfig":{"Binds":["/a:/b"]},"HOSTCONFIG":{"Memory":1,"Binds":["/b:/b","/from:/c"]}}`
	const volume = `{"Driver":"local","DriverOpts":{"o":"bind","device":"/from"}}`
	const keys = `{"DriverOpts":{"device":"/from","Device":"/other"}}`
	for _, c := range []struct {
		name, to, send, want string
	}{
		{"shorter", "/to", length(body), length(padded)},
		{"as long", "/frum", length(lower), length(strings.Replace(lower, "/from", "/frum", 1))},
		{"longer", long, length(body), ask("Content-Length", strconv.Itoa(len(edited(long))), edited(long))},
		{
			"longer, with its length twice and on a line of its own", long, strings.Replace(ask("Content-Length", fmt.Sprintf("\r\n\t%d", len(body)), body), "X-Last: y", fmt.Sprintf("CONTENT-LENGTH:%d", len(body)), 1),
			strings.Replace(ask("Content-Length", strconv.Itoa(len(edited(long))), edited(long)), "X-Last: y", fmt.Sprintf("Content-Length: %d", len(edited(long))), 1),
		},
		{"in chunks, with a trailer", "/to", strings.TrimSuffix(chunked("POST", "/containers/create", body), "\r\n") + "X-Sum: 1\r\n\r\n", "POST /containers/create HTTP/1.1\r\nHost: docker\r\nTransfer-Encoding: chunked\r\n\r\n" +
			fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(edited("/to")), edited("/to"))},
		{"in chunks", "/to", chunked("POST", "/containers/create", body[:70], body[70:]), "POST /containers/create HTTP/1.1\r\nHost: docker\r\nTransfer-Encoding: chunked\r\n\r\n" +
			fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(edited("/to")), edited("/to"))},
		{"two objects", "/frum", length(merged), length(strings.Replace(merged, "/from", "/frum", 1))},
		{"a volume", "/frum", request("POST", "/volumes/create", volume), request("POST", "/volumes/create", strings.Replace(volume, "/from", "/frum", 1))},
		{"keys that differ in case", "/frum", request("POST", "/volumes/create", keys), request("POST", "/volumes/create", strings.Replace(keys, "/from", "/frum", 1))},
		{"nothing to change", "/to", length(`{"HostConfig":{"Binds":["/a:/b"]}}`), length(`{"HostConfig":{"Binds":["/a:/b"]}}`)},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r raw
			_, sock := serve(t, dockerproxy.Options{Admit: editor(c.to), Dial: r.dial(t, func(*http.Request) string { return created })})
			conn := connect(t, sock)
			next := request("GET", "/_ping", "")
			go func() { _, _ = io.WriteString(conn, c.send+next) }()
			in := bufio.NewReader(conn)
			for range 2 {
				resp, err := http.ReadResponse(in, nil)
				if err != nil || resp.StatusCode != http.StatusCreated {
					t.Fatal(resp, err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
			}
			if got := r.bytes(); got != c.want+next {
				t.Errorf("the engine got\n%.900q, want\n%.900q", got, c.want+next)
			}
		})
	}
}

// TestEditRefused: where a name appears twice, the engine decides which one counts. So none is
// changed, and none passes.
func TestEditRefused(t *testing.T) {
	var r raw
	_, sock := serve(t, dockerproxy.Options{Admit: editor("/to"), Dial: r.dial(t, func(*http.Request) string { return created })})
	conn := connect(t, sock)
	go func() {
		_, _ = io.WriteString(conn, request("POST", "/containers/create", `{"HostConfig":{"Binds":["/x:/y"],"binds":["/from:/b"]}}`))
	}()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), "HostConfig.Binds.0 appears twice in the request") || r.bytes() != "" {
		t.Errorf("%d %s, and the engine got %q", resp.StatusCode, text, r.bytes())
	}
}

// TestEditExpect: with a head that is on its way, a body may become shorter, and not longer.
func TestEditExpect(t *testing.T) {
	const body = `{"HostConfig":{"Binds":["/from:/b"]}}`
	for to, want := range map[string]string{"/to": "HTTP/1.1 201 Created", "/longer/than/that": "HTTP/1.1 400 Bad Request"} {
		var r raw
		_, sock := serve(t, dockerproxy.Options{Admit: editor(to), Dial: r.dial(t, func(*http.Request) string { return created })})
		conn := connect(t, sock)
		head := fmt.Sprintf("POST /containers/create HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", len(body))
		_, _ = io.WriteString(conn, head)
		read(t, conn, "HTTP/1.1 100 Continue\r\n\r\n")
		_, _ = io.WriteString(conn, body)
		in := bufio.NewReader(conn)
		line, err := in.ReadString('\n')
		if strings.TrimSpace(line) != want || err != nil {
			t.Errorf("%s: %q, %v", to, line, err)
		}
		got := strings.TrimPrefix(r.bytes(), head)
		if to == "/to" && got != `{"HostConfig":{"Binds":["/to:/b"]}}  ` || to != "/to" && got != "" {
			t.Errorf("%s: the engine got %q", to, got)
		}
		_ = conn.CloseWrite()
		_, _ = io.Copy(io.Discard, in)
	}
}
