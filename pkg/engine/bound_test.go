package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/devvm/devvm/pkg/engine"
)

// flood is an answer of a beginning and then the same, n times.
func flood(begin, middle, end string, n int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if _, err := io.WriteString(w, begin); err != nil {
			return
		}
		block := strings.Repeat(middle, max(1, 32<<10/len(middle)))
		for size := 0; size < n*len(middle); size += len(block) {
			if _, err := io.WriteString(w, block); err != nil {
				return
			}
		}
		_, _ = io.WriteString(w, end)
	}
}

// An engine that says more than is read costs little, whatever it says and whoever asks.
// 2.6 million empty objects took 1.7 GB.
func TestBounds(t *testing.T) {
	const maxCost = 96 << 20 // all that is allocated, garbage included
	const endless = 1 << 30
	honest := flood("[]", " ", "", 1)
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
	}{
		{"millions of objects", flood("[{}", ",{}", "]", 2_600_000)},
		{"objects in one object", flood(`{"Volumes":[{}`, ",{}", "]}", 2_600_000)},
		{"a long string", flood(`[{"Id":"`, "x", "", endless)},
		{"long names", flood(`[{"Names":["`+strings.Repeat("x", 1<<20)+`"]}`, `,{"Names":["`+strings.Repeat("x", 1<<20)+`"]}`, "]", 10_000)},
		{"many mounts", flood(`[{"Mounts":[{}`, ",{}", "]}]", 2_600_000)},
		{"many names", flood(`[{"Names":[""`, `,""`, "]}]", 2_600_000)},
		{"depth", flood("", "[", "", 2_600_000)},
		{"quoted brackets that end nothing", flood(`["\"`, `\\\"]`, "", endless)},
		{"blanks", flood("[", " ", "", endless)},
		{"headers", func(w http.ResponseWriter, _ *http.Request) {
			for range 2000 {
				w.Header().Add("X", strings.Repeat("x", 1000))
			}
		}},
		{"an error", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			flood(`{"message":"`, "x", "", endless)(w, r)
		}},
		{"trailers", func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\n[]\r\n0\r\n")
			for line := "X: " + strings.Repeat("x", 8000) + "\r\n"; err == nil; _, err = io.WriteString(conn, line) {
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sock := handler(t, map[string]any{
				"/_ping": "OK", "/containers/json": c.answer, "/images/json": c.answer, "/volumes": c.answer,
				"/system/df": c.answer, "/containers/a/json": c.answer, "/version": c.answer, "/events": c.answer,
			})
			inList := handler(t, map[string]any{
				"/_ping": "OK", "/containers/json": honest, "/images/json": honest, "/volumes": c.answer, "/system/df": c.answer,
			})
			for name, ask := range map[string]func(context.Context) error{
				"usage":   func(ctx context.Context) error { _, err := engine.GetUsage(ctx, sock); return err },
				"volumes": func(ctx context.Context) error { _, err := engine.GetUsage(ctx, inList); return err },
				"version": func(ctx context.Context) error { _, err := engine.GetVersion(ctx, sock); return err },
				"wishes":  func(ctx context.Context) error { _, err := engine.GetWishes(ctx, dialer(sock), "a"); return err },
				"watch":   func(ctx context.Context) error { return engine.Watch(ctx, dialer(sock), nil, func(engine.Running) {}) },
			} {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				err := ask(ctx)
				runtime.ReadMemStats(&after)
				if err != nil && len(err.Error()) > 8<<10 {
					t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
				}
				if ctx.Err() != nil {
					t.Errorf("%s: it was read for 20 s", name)
				}
				cancel()
				if cost := after.TotalAlloc - before.TotalAlloc; cost > maxCost {
					t.Errorf("%s: %d MiB were allocated", name, cost>>20)
				}
			}
		})
	}
}

// What engines really hold is read.
func TestBoundsLeaveRoom(t *testing.T) {
	var list strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&list, `,{"Id":"%064x","Names":["/c%d"],"Labels":{"com.docker.compose.project":"app"},"Mounts":[{"Type":"bind","Source":"/home/me/app"}],`+
			`"Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":%d,"Type":"tcp"},{"IP":"::","PrivatePort":80,"PublicPort":%d,"Type":"tcp"}]}`, i, i, 1000+i, 1000+i)
	}
	sock := handler(t, map[string]any{
		"/_ping": "OK", "/images/json": flood("[", " ", "]", 1), "/volumes": flood("{", " ", "}", 1), "/system/df": flood("{", " ", "}", 1),
		"/containers/json": flood("["+list.String()[1:], " ", "]", 1),
		"/events": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			// More events than one answer may have bytes.
			for range 3000 {
				if _, err := fmt.Fprintf(w, `{"Type":"network","Action":"connect","Actor":{"ID":"%s"}}`+"\n", strings.Repeat("x", 1000)); err != nil {
					return
				}
			}
			<-r.Context().Done()
		}),
	})
	u, err := engine.GetUsage(t.Context(), sock)
	if err != nil || len(u.Containers) != 1000 || !u.Sized {
		t.Errorf("%d containers, %v", len(u.Containers), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	told := 0
	err = engine.Watch(ctx, dialer(sock), nil, func(r engine.Running) {
		if told++; len(r.Ports) != 2000 || len(r.Binds) != 1000 || r.More != 0 {
			t.Errorf("%d ports, %d binds", len(r.Ports), len(r.Binds))
		}
	})
	if told == 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("told %d times, %v", told, err)
	}
}
