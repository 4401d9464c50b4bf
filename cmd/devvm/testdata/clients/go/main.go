// Command testcontainers-go does what a test with testcontainers-go does: it starts a
// container, waits until its port answers, looks into it, and removes it. With the argument
// "leave" it does not remove it: that is then up to Ryuk.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/exec"
	"github.com/testcontainers/testcontainers-go/wait"
)

func main() {
	if err := run(context.Background(), len(os.Args) > 1 && os.Args[1] == "leave"); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, leave bool) error {
	c, err := testcontainers.Run(ctx, "box",
		testcontainers.WithCmd("sh", "-c", "echo serving; exec httpd -f -p 8080 -h /www"),
		testcontainers.WithExposedPorts("8080/tcp"),
		testcontainers.WithFiles(testcontainers.ContainerFile{Reader: strings.NewReader("hello\n"), ContainerFilePath: "/www/index.html", FileMode: 0o644}),
		testcontainers.WithWaitStrategy(wait.ForAll(wait.ForLog("serving"), wait.ForListeningPort("8080/tcp"), wait.ForHTTP("/index.html").WithPort("8080/tcp"))),
	)
	if err != nil {
		return err
	}
	endpoint, err := c.PortEndpoint(ctx, "8080/tcp", "http")
	if err != nil {
		return err
	}
	resp, err := http.Get(endpoint + "/index.html")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil || string(page) != "hello\n" {
		return fmt.Errorf("%s: %q, %v", endpoint, page, err)
	}
	code, out, err := c.Exec(ctx, []string{"sh", "-c", "cat /www/index.html; exit 3"}, exec.Multiplexed())
	if err != nil {
		return err
	}
	if text, err := io.ReadAll(out); code != 3 || string(text) != "hello\n" || err != nil {
		return fmt.Errorf("exec: code %d, %q, %v", code, text, err)
	}
	logs, err := c.Logs(ctx)
	if err != nil {
		return err
	}
	if text, err := io.ReadAll(logs); !strings.Contains(string(text), "serving") {
		return fmt.Errorf("logs: %q, %v", text, err)
	}
	if leave {
		return nil
	}
	if err := c.Stop(ctx, nil); err != nil {
		return err
	}
	if err := c.Start(ctx); err != nil {
		return err
	}
	return c.Terminate(ctx)
}
