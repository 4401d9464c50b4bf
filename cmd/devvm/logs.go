package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/devvm/devvm/pkg/guest"
	"github.com/devvm/devvm/pkg/project"
	"github.com/devvm/devvm/pkg/ui"
)

type logsOptions struct {
	follow                                          bool
	console, engine, supervisor, network, provision bool
	tail                                            int // lines; less than 0: all
}

func (a *app) newLogsCmd() *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "Show the logs of the engine, the guest's console or devvm's own processes",
		Args:  cobra.NoArgs,
		RunE: a.withProject(func(ctx context.Context, s *project.Service, p project.Project) error {
			return a.runLogs(ctx, s, p, o)
		}),
	}
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "go on until Ctrl-C")
	f.IntVarP(&o.tail, "tail", "n", -1, "only the last `lines`; -1: all")
	f.BoolVar(&o.engine, "engine", false, "Docker Engine's log in the VM (default)")
	f.BoolVar(&o.console, "console", false, "the guest's serial console")
	f.BoolVar(&o.supervisor, "supervisor", false, "the process that serves docker.sock")
	f.BoolVar(&o.network, "network", false, "the process that is the VM's network")
	f.BoolVar(&o.provision, "provision", false, "the last provisioning")
	cmd.MarkFlagsMutuallyExclusive("engine", "console", "supervisor", "network", "provision")
	return cmd
}

func (a *app) runLogs(ctx context.Context, s *project.Service, p project.Project, o logsOptions) error {
	logs := s.Logs(p)
	path := ""
	switch {
	case o.console:
		path = logs.Console
	case o.supervisor:
		path = logs.Supervisor
	case o.network:
		path = logs.Network
	case o.provision:
		path = logs.Provision
	}
	if path != "" {
		return a.showFile(ctx, path, o)
	}
	client, err := s.Connect(ctx, p)
	if err != nil {
		return err
	}
	defer client.Close()
	argv := []string{"journalctl", "--no-pager", "--output=short-iso", "--unit=docker.service", "--unit=containerd.service"}
	switch {
	case o.tail >= 0:
		argv = append(argv, fmt.Sprintf("--lines=%d", o.tail))
	case o.follow:
		argv = append(argv, "--lines=100")
	}
	if o.follow {
		argv = append(argv, "--follow")
	}
	code, err := client.Run(ctx, guest.Command{Argv: argv, Stdout: a.Out, Stderr: a.Err})
	if o.follow && ctx.Err() != nil {
		return nil // Ctrl-C is how that ends
	}
	if err != nil {
		return fmt.Errorf("read the engine's log: %w", err)
	}
	if code != 0 {
		return ui.Exit(code)
	}
	return nil
}

// followEvery is how often a followed file is looked at.
const followEvery = 200 * time.Millisecond

// showFile copies a log file to the output; to follow it, until ctx ends.
func (a *app) showFile(ctx context.Context, path string, o logsOptions) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &ui.Error{Msg: "there is no such log yet: " + path, Hint: "the VM has not run, or nothing was written: devvm status"}
	}
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	defer func() { f.Close() }()
	if o.tail >= 0 {
		if err := seekTail(f, o.tail); err != nil {
			return fmt.Errorf("read log: %w", err)
		}
	}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		if _, err := io.Copy(a.Out, f); err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if !o.follow {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		next, err := goOn(f, path)
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if next != f {
			_, err := io.Copy(a.Out, f) // what came to it last
			f.Close()
			if f = next; err != nil {
				return fmt.Errorf("read log: %w", err)
			}
		}
	}
}

// goOn returns the file in which a log goes on: another one, if libvirt has begun one, or
// the same, at its end if it was shortened.
func goOn(f *os.File, path string) (*os.File, error) {
	was, err := f.Stat()
	if err != nil {
		return f, err
	}
	now, err := os.Stat(path)
	if err != nil { // in between, or gone with the VM
		return f, nil //nolint:nilerr // it may come back
	}
	if !os.SameFile(was, now) {
		next, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return f, nil
		}
		return next, err
	}
	at, err := f.Seek(0, io.SeekCurrent)
	if err == nil && at > was.Size() {
		_, err = f.Seek(0, io.SeekEnd)
	}
	return f, err
}

// seekTail puts a file's offset where its last lines begin.
func seekTail(f *os.File, lines int) error {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || lines == 0 {
		return err
	}
	block := make([]byte, 64<<10)
	for start := end; start > 0; {
		n := min(start, int64(len(block)))
		start -= n
		if _, err := f.ReadAt(block[:n], start); err != nil {
			return err
		}
		for i := n - 1; i >= 0; i-- {
			if block[i] != '\n' || start+i == end-1 { // that ends the last line
				continue
			}
			if lines--; lines == 0 {
				_, err := f.Seek(start+i+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}
