package dockerproxy_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/devvm/devvm/pkg/dockerproxy"
)

// TestExplain: a failure of the engine's comes with the message that the host has for it, and
// all else as the engine has said it.
func TestExplain(t *testing.T) {
	t.Parallel()
	fails := func(body string) string {
		return fmt.Sprintf("HTTP/1.1 500 Internal Server Error\r\nContent-Length: %d\r\nContent-Type: application/json\r\n\r\n%s", len(body), body)
	}
	long := `{"message":"disk is full, ` + strings.Repeat("x", 70<<10) + `"}`
	for path, c := range map[string]struct{ answer, want string }{
		"/full":    {fails(`{"message":"disk is full"}`), fails(`{"message":"disk is full: \"clean up\""}`)},
		"/other":   {fails(`{"message":"no such thing"}`), ""},
		"/text":    {fails("disk is full"), ""},
		"/empty":   {fails(""), ""},
		"/missing": {"HTTP/1.1 404 Not Found\r\nContent-Length: 26\r\n\r\n{\"message\":\"disk is full\"}", ""},
		"/chunked": {"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n1a\r\n{\"message\":\"disk is full\"}\r\n0\r\n\r\n", ""},
		"/long":    {fails(long), ""},
		"/ok":      {okChunked, ""},
	} {
		if c.want == "" {
			c.want = c.answer
		}
		engine := new(raw)
		_, sock := serve(t, dockerproxy.Options{
			Dial: engine.dial(t, func(r *http.Request) string {
				if r.URL.Path == "/after" {
					return noContent
				}
				return c.answer
			}),
			Admit: admitAll,
			Explain: func(_ context.Context, message string) string {
				if message == "disk is full" {
					return message + `: "clean up"`
				}
				return message
			},
		})
		client := connect(t, sock)
		_, _ = io.WriteString(client, request(http.MethodPost, path, "{}"))
		read(t, client, c.want)
		_, _ = io.WriteString(client, request(http.MethodPost, "/after", ""))
		read(t, client, noContent)
	}
}

// TestFailed: how an answer ends that began well is told, and the answer passes as it is.
func TestFailed(t *testing.T) {
	t.Parallel()
	stream := func(kind, body string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: %s\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", kind, len(body), body)
	}
	const end = `{"errorDetail":{"message":"disk is full"},"error":"disk is full"}` + "\r\n"
	for name, c := range map[string]struct{ answer, want string }{
		"pull":     {stream("application/json", `{"status":"Pulling"}`+"\r\n"+end), "disk is full"},
		"at once":  {stream("application/json; charset=utf-8", end), "disk is full"},
		"long":     {stream("application/json", strings.Repeat("{\"status\":\"Pulling\"}\r\n", 5000)+end), "disk is full"},
		"no line":  {stream("application/json", strings.Repeat("x", 1<<20)), ""},
		"well":     {stream("application/json", end+`{"status":"Done"}`+"\r\n"), ""},
		"a log":    {stream("text/plain", end), ""},
		"too long": {stream("application/json", `{"error":"`+strings.Repeat("x", 8<<10)+`"}`), ""},
		"empty":    {stream("application/json", "\n"), ""},
	} {
		engine := new(raw)
		told := make(chan string, 1)
		_, sock := serve(t, dockerproxy.Options{
			Dial: engine.dial(t, func(r *http.Request) string {
				if r.URL.Path == "/after" {
					return noContent
				}
				return c.answer
			}),
			Admit:  admitAll,
			Failed: func(_ context.Context, message string) { told <- message },
		})
		client := connect(t, sock)
		_, _ = io.WriteString(client, request(http.MethodPost, "/images/create", "{}"))
		read(t, client, c.answer)
		_, _ = io.WriteString(client, request(http.MethodPost, "/after", ""))
		read(t, client, noContent)
		got := ""
		select {
		case got = <-told:
		default:
		}
		if got != c.want {
			t.Errorf("%s: told %q, want %q", name, got, c.want)
		}
	}
}
