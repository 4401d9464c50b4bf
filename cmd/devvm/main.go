// Command devvm gives each project directory its own small VM with Docker
// Engine in it, reachable from this host alone.
//
// Each command has a file of its own: it parses flags, calls one function of
// the packages below and prints. The exit codes are in docs/scripting.md.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/devvm/devvm/pkg/sandbox"
	"github.com/devvm/devvm/pkg/ui"
	"github.com/devvm/devvm/pkg/vm"
)

func main() {
	if filepath.Base(os.Args[0]) == sandbox.Program { // libvirt has started a VM's QEMU
		err := sandbox.RunQEMU(os.Args, os.Environ())
		fmt.Fprintf(os.Stderr, "devvm: the VM's sandbox: %v\n", err)
		os.Exit(ui.ExitError)
	}
	os.Exit(run(os.Args[1:], newApp(ui.System(os.Getenv), os.Getenv, vm.Open)))
}

// again is how long after the first signal a second one ends the process. What comes
// sooner is the same Ctrl-C: make, sudo and timeout(1) pass on to devvm what the terminal,
// or they themselves, have sent to its process group, too.
const again = 500 * time.Millisecond

// run carries out one command line and returns the exit code. The first
// Ctrl-C cancels the context, the second one, but for the time of again, ends the process.
func run(args []string, a *app) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, func() { time.AfterFunc(a.again, stop) })
	return a.execute(ctx, args)
}
