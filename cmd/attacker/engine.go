package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// engine poses as a Docker Engine on a unix socket until ctx ends. With "ports" it lists
// 20,000 published ports, others each time; with "flood" its answers have no end.
func engine(ctx context.Context, socket, how string) error {
	if how != "ports" && how != "flood" {
		return errors.New(usage)
	}
	_ = os.Remove(socket)
	l, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}
	var lists atomic.Int64
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.45")
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, "/_ping"):
			_, _ = io.WriteString(w, "OK")
		case strings.HasSuffix(r.URL.Path, "/events"):
			_ = http.NewResponseController(w).Flush()
			for i := 0; r.Context().Err() == nil; i++ {
				if _, err := fmt.Fprintf(w, `{"Type":"container","Action":"start","Actor":{"ID":"%d"}}`+"\n", i); err != nil {
					return
				}
			}
		case how == "ports" && strings.HasSuffix(r.URL.Path, "/containers/json"):
			listPorts(w, int(lists.Add(1))*1000)
		default:
			begin := "[{}"
			if strings.HasSuffix(r.URL.Path, "/volumes") || strings.HasSuffix(r.URL.Path, "/df") {
				begin = `{"Volumes":[{}`
			}
			_, err := io.WriteString(w, begin)
			for block := strings.Repeat(",{}", 10_000); err == nil; {
				_, err = io.WriteString(w, block)
			}
		}
	})}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}

// listPorts lists a container with 20,000 published ports.
func listPorts(w io.Writer, first int) {
	const from, many = 20_000, 20_000
	_, _ = io.WriteString(w, `[{"Id":"a","Names":["/a"],"Ports":[`)
	for i := range many {
		port := from + (first+i)%many
		comma := ","
		if i == 0 {
			comma = ""
		}
		if _, err := fmt.Fprintf(w, `%s{"IP":"0.0.0.0","PrivatePort":%d,"PublicPort":%d,"Type":"tcp"}`, comma, port, port); err != nil {
			return
		}
	}
	_, _ = io.WriteString(w, "]}]")
}
