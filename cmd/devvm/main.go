// Command devvm gives each project directory its own small VM with Docker
// Engine in it, reachable from this host alone.
//
// Each command has a file of its own: it parses flags, calls one function of
// the packages below and prints. The exit codes are in docs/scripting.md.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

func main() {
	os.Exit(run(os.Args[1:], newApp(ui.System(os.Getenv), os.Getenv, vm.Open)))
}

// run carries out one command line and returns the exit code. The first
// Ctrl-C cancels the context, the second one ends the process.
func run(args []string, a *app) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop)
	return a.execute(ctx, args)
}
