// Command ryuk stands in for Testcontainers' Ryuk, whose image comes from a registry. It
// binds the engine's socket and speaks Ryuk's protocol: each line of a client's is a filter,
// which it acknowledges; when the client has gone, it removes what matches. "ryuk ping" asks
// the engine at that socket for its version and ends.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
)

var engine = http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", "/var/run/docker.sock")
}}}

func main() {
	version, err := ask(http.MethodGet, "/version")
	if err != nil {
		log.Fatal(err)
	}
	if len(os.Args) > 1 && os.Args[1] == "ping" {
		fmt.Printf("%s\n", version)
		return
	}
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	log.Print("Started")
	for {
		conn, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(conn)
	}
}

func ask(method, path string) ([]byte, error) {
	req, err := http.NewRequest(method, "http://engine"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := engine.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= http.StatusBadRequest {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, body)
	}
	return body, err
}

func serve(conn net.Conn) {
	defer conn.Close()
	var labels []string
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		filter, err := url.ParseQuery(lines.Text())
		if err != nil {
			log.Print(err)
			continue
		}
		labels = append(labels, filter["label"]...)
		fmt.Fprintln(conn, "ACK")
	}
	if len(labels) == 0 {
		return // the client only looked whether the port is open
	}
	filters, err := json.Marshal(map[string][]string{"label": labels})
	if err != nil {
		log.Fatal(err)
	}
	list, err := ask(http.MethodGet, "/containers/json?all=1&filters="+url.QueryEscape(string(filters)))
	if err != nil {
		log.Fatal(err)
	}
	var containers []struct {
		ID string `json:"Id"`
	}
	if err := json.Unmarshal(list, &containers); err != nil {
		log.Fatal(err)
	}
	for _, c := range containers {
		if _, err := ask(http.MethodDelete, "/containers/"+c.ID+"?force=1&v=1"); err != nil {
			log.Print(err)
		}
	}
	log.Printf("removed %d containers", len(containers))
	os.Exit(0)
}
